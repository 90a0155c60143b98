# SPDX-License-Identifier: MIT
"""Do what the interpreter does at its end, and leave out what it does to the memory."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading

# PEP 669 has so many.
MONITORING_TOOLS = 6


def end_fork(exc: SystemExit) -> None:
    """End this forked process as *exc* says, its memory as it is. Return if a tracer is at work.

    At its end Python frees every object. That writes to the pages that a fork shares with its parent, so
    each of them is copied, only to be given back.
    """
    # A tool for coverage or profiles saves what it has found when *exc* reaches it.
    if not _is_traced():
        os._exit(finalize(code_of(exc)))


def _is_traced() -> bool:
    if sys.gettrace() is not None or sys.getprofile() is not None:
        return True
    monitoring = getattr(sys, "monitoring", None)
    return monitoring is not None and any(map(monitoring.get_tool, range(MONITORING_TOOLS)))


def code_of(exc: SystemExit) -> int:
    """Like the interpreter: None is 0, a number is itself, anything else is printed and 1."""
    if exc.code is None:
        return 0
    if isinstance(exc.code, int):
        return exc.code & 0xFF
    print(exc.code, file=sys.stderr)
    return 1


def finalize(code: int) -> int:
    """Join the threads, run the exit handlers, flush; return the exit code."""
    with contextlib.suppress(SystemExit):
        try:
            threading._shutdown()  # type: ignore[attr-defined]
        except KeyboardInterrupt:
            code = 130
        # Every handler that raises is reported by the call itself.
        atexit._run_exitfuncs()
    return code if flush() else code or 120  # the interpreter's own code for output that was lost


def flush() -> bool:
    """Flush the buffers; False if that fails."""
    good = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            good = good and stream is None
    return good
