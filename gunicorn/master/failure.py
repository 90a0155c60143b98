# SPDX-License-Identifier: MIT
"""Describe why a worker, or a reload, has failed."""

from __future__ import annotations

import signal
from typing import NamedTuple

from gunicorn.app.configfile import is_ours, user_traceback
from gunicorn.errors import AppImportError, ConfigError, on_one_line
from gunicorn.sock import BindError
from gunicorn.unix.process import describe_end, exit_code, term_signal

# How many lines of a traceback the log gets.
LAST_LINES = 12


class Failure(NamedTuple):
    """Why a worker has failed: in a line, and the last lines of the traceback, if there is one."""

    reason: str
    trace: str = ""

    def __str__(self) -> str:
        return "\n".join(filter(None, self))


def explain(status: int, *, booted: bool, told: Failure | None, timeout: float, vanished: bool) -> Failure:
    """Return why a worker has failed that ended with the wait *status*.

    *told*: what it has reported. *timeout*: after how many seconds the master has given it up; 0 if it has
    not. *vanished*: it ended without coming to the end of its code.
    """
    doing = "serving" if booted else "booting"
    if timeout:
        text = "sent no heartbeat" if booted else "did not boot"
        return Failure(f"a worker {text} within {timeout:g} s (timeout)", told.trace if told else "")
    if told is not None:
        return told
    text = f"a worker {describe_end(status)} while {doing}"
    if term_signal(status) == signal.SIGKILL:
        text += " (out of memory?)"
    elif vanished and exit_code(status) is not None:
        text += ", without an exception (os._exit() in the application?)"
    return Failure(text)


def of_exception(exc: BaseException) -> Failure:
    """Return what to report of *exc*."""
    if isinstance(exc, AppImportError | ConfigError):
        # What is wrong is in their text; their own traces show our code only.
        trace = exc.trace if isinstance(exc, AppImportError) else ""
        return Failure(one_line(exc), "\n".join(trace.splitlines()[-LAST_LINES:]))
    if isinstance(exc, SystemExit):
        return Failure(one_line(exc), _where(exc))
    return Failure(_with_type(exc), last_lines(exc))


def last_lines(exc: BaseException) -> str:
    """Return the last lines of the traceback of *exc*, without the frames of the server and the import."""
    import traceback

    # A syntax error of the first module has no frame of its own.
    text = user_traceback(exc) or "".join(traceback.format_exception_only(type(exc), exc))
    lines = [line for line in text.splitlines() if not line.startswith('  File "<frozen importlib')]
    return "\n".join(lines[-LAST_LINES:])


def _where(exc: BaseException) -> str:
    """Return the last calls that led to *exc*, without those of the server: our signal handler raised it."""
    import traceback

    calls = [call for call in traceback.extract_tb(exc.__traceback__) if not is_ours(call.filename)]
    return "".join(traceback.format_list(calls[-LAST_LINES // 2 :])).rstrip()


def one_line(exc: BaseException) -> str:
    """Return an error's text for one line of the log; with its type, if the text alone says little."""
    text = on_one_line(str(exc))
    if isinstance(exc, SystemExit):
        return f"it asked to exit ({text})" if text else "it asked to exit"
    if isinstance(exc, AppImportError | ConfigError | RuntimeError | BindError) and text:
        return text
    return _with_type(exc)


def _with_type(exc: BaseException) -> str:
    text = on_one_line(str(exc))
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


class FailedStarts:
    """Counts workers that cannot boot while the server goes on; says when that is worth a line in the log."""

    def __init__(self) -> None:
        self.count = 0
        self._reason = ""

    def note(self, reason: str) -> bool:
        """Count one; return whether to log it: the first, another reason, and then the 10th, 100th, …"""
        self.count += 1
        known, self._reason = reason == self._reason, reason
        return not known or str(self.count).strip("0") == "1"

    def end(self) -> int:
        """A worker has booted: return how many could not before it, and begin anew."""
        count, self.count, self._reason = self.count, 0, ""
        return count
