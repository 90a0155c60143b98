# SPDX-License-Identifier: MIT
"""Errors that end a start, or make a reload keep the old configuration."""

from __future__ import annotations

from collections.abc import Sequence

# Characters at both ends of a mistake that are shown in any case.
HALF = 500


class HaltServer(BaseException):
    """Ends the arbiter's loop: *reason* goes to the log, *exit_status* to the shell.

    A BaseException, so that no ``except Exception`` around a hook swallows it.
    """

    def __init__(self, reason: str, exit_status: int = 1) -> None:
        super().__init__(reason, exit_status)
        self.reason = reason
        self.exit_status = exit_status

    def __str__(self) -> str:
        return f"<HaltServer {self.reason!r} {self.exit_status}>"


class ConfigError(Exception):
    """The configuration is wrong; the text names what to change."""


def all_mistakes(where: str, mistakes: Sequence[str]) -> str:
    """One message for *mistakes*: a line for each where there are several."""
    mistakes = [without_middle(mistake) for mistake in mistakes]
    if len(mistakes) == 1:
        return f"{where}: {mistakes[0]}"
    return "\n  ".join([f"{where}: {len(mistakes)} mistakes:", *mistakes])


def without_middle(text: str) -> str:
    """Leave out the middle of *text*, which has a long value, where it is too long to be read."""
    left_out = len(text) - 2 * HALF
    return text if left_out <= 0 else f"{text[:HALF]} [...{left_out} characters...] {text[-HALF:]}"


def on_one_line(message: str) -> str:
    """*message* as one line, for a log or a status, with semicolons between its mistakes."""
    lines = [" ".join(line.split()) for line in message.splitlines()]
    first, *rest = [line for line in lines if line] or [""]
    return f"{first} {'; '.join(rest)}" if rest else first


class AppImportError(Exception):
    """The application that the configuration names was not found."""

    # The lines of a traceback, if its text does not say where the application failed.
    trace = ""
