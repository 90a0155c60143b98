# SPDX-License-Identifier: MIT
"""One wait for an event loop: descriptors with callbacks, until the nearest deadline.

A loop that supervises something is a few verbs around ``Poller.wait()``::

    poller = Poller()
    poller.add(inbox.fileno(), on_signals)
    deadlines: Deadlines[int] = Deadlines()          # pid -> when it is killed
    while running:
        poller.wait(deadlines.timeout(time.monotonic()))
        for pid in deadlines.pop_due(time.monotonic()):
            ...

``select.poll`` and not ``select.select``: descriptors above 1023 happen.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Callback = Callable[[int], object]
Key = TypeVar("Key", bound=Hashable)

READABLE = select.POLLIN
WRITABLE = select.POLLOUT

# poll(2) takes milliseconds as a C int.
_LONGEST_WAIT_MS = 2**31 - 1


class Poller:
    """A set of descriptors, each with the callback that is given the events seen on it.

    Errors and hang-ups (``POLLERR``, ``POLLHUP``, ``POLLNVAL``) are reported whether or not they were
    asked for, so a callback finds them out by reading. A callback may add and remove descriptors,
    its own included.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callback] = {}

    def __contains__(self, fd: int) -> bool:
        return fd in self._callbacks

    def __len__(self) -> int:
        return len(self._callbacks)

    def add(self, fd: int, callback: Callback, events: int = READABLE) -> None:
        """Watch *fd* for *events*; a descriptor that is watched already gets both replaced."""
        self._poll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Change what *fd* is watched for; KeyError if it is not watched."""
        if fd not in self._callbacks:
            raise KeyError(fd)
        self._poll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget *fd*, before it is closed; nothing happens if it is not watched."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def wait(self, timeout: float | None) -> int:
        """Wait up to *timeout* seconds (none: without a bound), run callbacks, return how many ran.

        The wait is rounded up to the next millisecond: a loop that woke a moment before its deadline
        would find nothing due and spin.
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


class Deadlines(Generic[Key]):
    """Moments on the monotonic clock, each under a key; the clock is given, never read."""

    def __init__(self) -> None:
        self._when: dict[Key, float] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._when

    def __len__(self) -> int:
        return len(self._when)

    def get(self, key: Key) -> float | None:
        """The moment set for *key*, or none."""
        return self._when.get(key)

    def set(self, key: Key, when: float) -> None:
        """Set or move the deadline of *key*."""
        self._when[key] = when

    def cap(self, key: Key, when: float) -> None:
        """Set the deadline of *key* unless it has an earlier one."""
        self._when[key] = min(when, self._when.get(key, when))

    def clear(self, key: Key) -> None:
        """Forget the deadline of *key*, if there is one."""
        self._when.pop(key, None)

    def nearest(self) -> float | None:
        """The earliest moment; none if there is no deadline."""
        return min(self._when.values(), default=None)

    def timeout(self, now: float, longest: float | None = None) -> float | None:
        """Seconds from *now* to the nearest deadline, at most *longest*, never below 0."""
        nearest = self.nearest()
        left = None if nearest is None else max(0.0, nearest - now)
        if left is None:
            return longest
        return left if longest is None else min(left, longest)

    def pop_due(self, now: float) -> list[Key]:
        """Remove and return the keys whose moment has come, the earliest first."""
        due = sorted(
            (when, index, key) for index, (key, when) in enumerate(self._when.items()) if when <= now
        )
        keys = [key for _, _, key in due]
        for key in keys:
            del self._when[key]
        return keys
