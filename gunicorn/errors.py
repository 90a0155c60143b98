# SPDX-License-Identifier: MIT
"""The errors that end a start or leave a running configuration as it is."""

from __future__ import annotations


class HaltServer(BaseException):
    """Ends the arbiter's loop: *reason* goes to the log, *exit_status* to the shell.

    It derives from BaseException so that no application's ``except Exception``
    around a hook swallows it.
    """

    def __init__(self, reason: str, exit_status: int = 1) -> None:
        super().__init__(reason, exit_status)
        self.reason = reason
        self.exit_status = exit_status

    def __str__(self) -> str:
        return f"<HaltServer {self.reason!r} {self.exit_status}>"


class ConfigError(Exception):
    """The configuration is wrong; the text names what to change."""


class AppImportError(Exception):
    """The application was not found where the configuration says it is."""
