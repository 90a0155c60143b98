# SPDX-License-Identifier: MIT
"""End a process although nobody reads what it writes to standard output and error.

The server's own log lines wait for no reader. But a hook may print, the handler of a logconfig may log, and
Python flushes both streams when it exits: each would wait for ever to write to a full pipe.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from types import FrameType

from gunicorn.unix.signals import set_handler
from gunicorn.unix.unpatched import original

# How often to look. A stream that has no room twice in a row counts as unread.
INTERVAL = 0.25

_full: set[int] = set()


def discard_unread_output() -> None:
    """From now on, send to /dev/null what nobody reads.

    For the end of a process, because it takes SIGALRM: that interrupts a write of the main thread, which
    Python then repeats. Does nothing where the application handles SIGALRM itself, or in another thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
        set_handler(signal.SIGALRM, _discard, restart=False)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)


def _discard(signum: int, frame: FrameType | None) -> None:
    full = {fd for fd in (1, 2) if not _has_room(fd)}
    for fd in full & _full:
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, fd)
            os.close(nowhere)
    _full.clear()
    _full.update(full)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


def _has_room(fd: int) -> bool:
    poll = original("select", "poll")()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def flush_output() -> None:
    """Write what both streams still hold, as far as somebody reads it, and send no more signals."""
    if threading.active_count() == 1:
        _flush()
    else:
        # Another thread may hold a stream while it waits for a reader. The signals do not reach that one.
        until = time.monotonic() + 3 * INTERVAL
        while not (_has_room(1) and _has_room(2)) and time.monotonic() < until:
            time.sleep(INTERVAL / 10)
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(2 * INTERVAL)
    if signal.getsignal(signal.SIGALRM) is _discard:
        signal.setitimer(signal.ITIMER_REAL, 0)
