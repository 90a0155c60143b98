# SPDX-License-Identifier: MIT
"""Turn a fork of the manager into a helper of it, such as the log keeper."""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import select
import signal
import traceback
from collections.abc import Callable, Collection

from gunicorn.companion.helpers.wire import Message, Wire
from gunicorn.unix.process import set_process_title
from gunicorn.unix.signals import blocked_signals, disregard, reset_to_default, unblock_all
from gunicorn.unix.unpatched import original

# Nobody but the manager tells a helper anything, and only SIGKILL ends it.
_DISREGARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
)


def fork_helper(title: str, wire: Wire, life: Callable[[], object], kept: Collection[int] = ()) -> int:
    """Fork a helper at the other end of *wire* that ends with *life*; return its pid. Raises OSError.

    Of the manager's descriptors it has *kept*. It tells the manager of an exception that ends it.
    """
    with blocked_signals():
        # Looked up: gevent may have replaced it.
        pid = os.fork()
        if pid == 0:
            try:
                become_helper(title, {wire.fileno(), *kept})
                life()
                os._exit(0)
            except BaseException:
                failed: Message = {"failed": traceback.format_exc()}
                with contextlib.suppress(Exception):
                    wire.send(failed)
            finally:
                os._exit(1)
    return pid


def become_helper(title: str, kept: Collection[int]) -> None:
    """Part from the manager, in a child whose signals are blocked; of its descriptors, *kept* stay open."""
    # What ends the server does not end it: it stays for the last words of companions.
    os.setsid()
    reset_to_default()
    disregard(_DISREGARDED, for_good=True)
    # No page of the manager's objects is copied only because it is looked at, and no object is freed that
    # would close a descriptor, which may be another's by then.
    gc.disable()
    gc.freeze()
    _undo_gevent()
    _close_all_but({0, 1, 2, *kept})
    unblock_all()
    set_process_title(title)


def _undo_gevent() -> None:
    """Call the system, not gevent: its loop needs descriptors that are closed here."""
    for module, name in (
        (os, "close"),
        (os, "fork"),
        (os, "waitpid"),
        (select, "poll"),
        (signal, "signal"),
        (_thread, "start_new_thread"),
    ):
        setattr(module, name, original(module.__name__, name))


def _close_all_but(kept: Collection[int]) -> None:
    """Close what is the manager's: a lock that is held here too would not end with it."""
    for directory in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            numbers = [int(name) for name in os.listdir(directory)]
            break
    else:
        numbers = list(range(min(os.sysconf("SC_OPEN_MAX"), 65536)))
    for fd in numbers:
        if fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)
