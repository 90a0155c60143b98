# SPDX-License-Identifier: MIT
"""Wait for many descriptors at once, each with a callback.

With ``select.poll`` and not ``select.select``: descriptors above 1023 happen.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable

Callback = Callable[[int], object]

READABLE = select.POLLIN
WRITABLE = select.POLLOUT

# poll(2) takes milliseconds as a C int.
_LONGEST_WAIT_MS = 2**31 - 1


class Poller:
    """A set of descriptors, each with a callback that gets the events on it.

    Errors and hang-ups (``POLLERR``, ``POLLHUP``, ``POLLNVAL``) are always reported. A callback may add and
    remove descriptors, even its own.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callback] = {}

    def __contains__(self, fd: int) -> bool:
        return fd in self._callbacks

    def __len__(self) -> int:
        return len(self._callbacks)

    def add(self, fd: int, callback: Callback, events: int = READABLE) -> None:
        """Watch *fd* for *events*; replaces an earlier callback and events."""
        self._poll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Change what *fd* is watched for; KeyError if it is not watched."""
        if fd not in self._callbacks:
            raise KeyError(fd)
        self._poll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Stop watching *fd*, before it is closed. Does nothing if it is not watched."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def wait(self, timeout: float | None) -> int:
        """Wait up to *timeout* seconds (None: no limit), run callbacks, return how many ran.

        The timeout is rounded up to milliseconds: a loop that wakes before its deadline would spin.
        """
        ran = 0
        for fd, events in self._poll.poll(_milliseconds(timeout)):
            # An earlier callback of this round may have removed it.
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback(events)
                ran += 1
        return ran


def _milliseconds(timeout: float | None) -> int | None:
    if timeout is None:
        return None
    return min(max(0, math.ceil(timeout * 1000)), _LONGEST_WAIT_MS)
