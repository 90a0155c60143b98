# SPDX-License-Identifier: MIT
"""Find out whether requests wait, for a database say, so that it pays to serve them in parallel."""

from __future__ import annotations

import resource
import time

#: After how many requests it is decided.
SAMPLE = 16
#: A thread that is woken for each request costs about so many seconds. Where requests wait for longer, it is
#: cheaper to serve in parallel. At least every fourth has to wait: what few lose, a busy machine may cause.
WORTH = 0.00005
_MANY = 4
#: From one sample to the next there are at most so many requests.
_SELDOM = 512

_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)


class Stretch:
    """What the current thread does from here to ``end()``."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._spent, self._waits = _usage()

    def end(self) -> tuple[float, int]:
        """For how many seconds it did not have the processor, and how often it gave it away to wait.

        Where the system does not count its waits, there are many.
        """
        spent, waits = _usage()
        return time.monotonic() - self._began - (spent - self._spent), waits - self._waits


def _usage() -> tuple[float, int]:
    if _THREAD is None:
        return time.thread_time(), time.monotonic_ns()
    usage = resource.getrusage(_THREAD)
    return usage.ru_utime + usage.ru_stime, usage.ru_nvcsw


class Samples:
    """Stretches of requests, and what they say. No clock: counts say when the next one is due.

    As long as no request waits, they become rarer.
    """

    def __init__(self) -> None:
        self._due = self._interval = 0
        self._spoiled = False
        self._clear()

    def _clear(self) -> None:
        self._requests, self._lost, self._waits = 0, 0.0, 0

    def is_due(self, count: int) -> bool:
        """Whether a stretch is to begin, now that *count* requests have begun."""
        if count < self._due:
            return False
        self._spoiled = False
        return True

    def spoil(self) -> None:
        """Note that the machine is busy: what is lost in this stretch says nothing."""
        self._spoiled = True

    def add(self, count: int, requests: int, lost: float, waits: int) -> bool:
        """Add a stretch of *requests*, with what ``Stretch.end()`` has returned; whether requests wait."""
        if self._spoiled:
            return False
        self._requests += requests
        self._lost += lost
        self._waits += waits
        if self._requests < SAMPLE:
            return False
        found = self._waits * _MANY >= self._requests and self._lost >= self._requests * WORTH
        self._interval = 0 if found else min(max(SAMPLE, 2 * self._interval), _SELDOM)
        self._due = count + self._interval
        self._clear()
        return found
