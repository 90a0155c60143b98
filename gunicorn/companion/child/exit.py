# SPDX-License-Identifier: MIT
"""Run a companion's target to its end, and exit like a Python program of its own."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import traceback
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from gunicorn.unix.exit import code_of, finalize


def run_to_the_end(
    load: Callable[[], Callable[[], Any] | None], report: Callable[[BaseException], object] = lambda exc: None
) -> int:
    """Call the target that *load* returns, do what the interpreter does at its end, return the exit code.

    If *load* returns None, it has reported why there is nothing to run; the code is 1. *report* is called
    with an exception that ends the target; if it returns True, no traceback is printed.
    """
    code = 0
    try:
        target = load()
        if target is None:
            return 1
        target()
    except SystemExit as exc:
        code = code_of(exc)
        if code and not isinstance(exc.code, int):
            report(exc)
    except KeyboardInterrupt:
        code = _interrupted()
    except BaseException as exc:
        # A program's own hook, such as that of an error reporter, is always called.
        if report(exc) is not True or sys.excepthook is not sys.__excepthook__:
            _excepthook()
        code = 1
    return finalize(code)


def _interrupted() -> NoReturn:
    """Like the interpreter: the parent sees a death by SIGINT, not an exit code."""
    _excepthook()
    finalize(130)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(130)


def _excepthook() -> None:
    kind, value, trace = sys.exc_info()
    if kind is None or value is None:
        return
    # The first frame is ours; the user's traceback begins with the target.
    value.__traceback__ = trace.tb_next if trace is not None else None
    try:
        sys.excepthook(kind, value, value.__traceback__)
    except BaseException:
        # It must not hide the exception, or keep the exit handlers from running.
        traceback.print_exc()
        sys.__excepthook__(kind, value, value.__traceback__)


def forget_inherited_exit_handlers() -> None:
    """Forget the exit handlers of the master, which it runs itself; `multiprocessing` does likewise.

    Those of the standard library are registered again, for this process's own use of them.
    """
    util = sys.modules.get("multiprocessing.util")
    atexit._clear()
    registry: dict[Any, Any] = getattr(weakref.finalize, "_registry", {})
    for info in registry.values():
        info.atexit = False
    # The next finalize object registers the class's handler, which was just cleared.
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    atexit.register(logging.shutdown)
    if util is not None:
        util._finalizer_registry.clear()
        # The master's children: this process must neither join nor terminate them.
        sys.modules["multiprocessing.process"]._children.clear()
        atexit.register(util._exit_function)
