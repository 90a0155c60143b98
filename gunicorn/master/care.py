# SPDX-License-Identifier: MIT
"""Decide how many workers the load asks for. Pure: the master looks at the scoreboard and carries it out."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

# Seconds between two looks at what the workers do.
LOOK_INTERVAL = 0.25
# How long there must have been more idle workers than wanted until one of them is ended, and then the next.
CALM = 30.0
NEXT_ONE = 5.0


def idle(running: Iterable[int], places: int) -> float:
    """Return how many workers are idle, of some that serve *running* requests and have *places* each.

    One with 8 threads, 6 of them free, is three quarters of an idle one.
    """
    return sum(1 - min(1.0, requests / max(1, places)) for requests in running)


def idle_one(requests: Mapping[int, int], due: Collection[int]) -> int | None:
    """Choose the worker to end: of the idle ones the oldest, or one that is due anyway; None if all are busy.

    *requests*: how many each serves, the oldest worker first.
    """
    idle_ones = [pid for pid, count in requests.items() if not count]
    return next((pid for pid in idle_ones if pid in due), idle_ones[0] if idle_ones else None)


class Spares:
    """Keeps *spare* workers idle, with ``extra`` workers besides the *fixed* ones, up to *most* of both."""

    def __init__(self) -> None:
        self.extra = 0
        self._short = False
        self._calm_since: float | None = None

    def look(self, now: float, *, fixed: int, most: int, spare: int, idle: float, booting: int) -> None:
        """Adapt ``extra`` to what was seen at *now*: *idle* workers, and some that have yet to boot."""
        free = idle + booting
        short = free < spare
        if short and self._short:
            # If nobody is idle, so many clients may wait that a few more workers would not do.
            missing = spare - free if idle else max(spare - free, (fixed + self.extra) / 2)
            self.extra += math.ceil(missing)
        # A moment at which all of them answer something quick asks for nothing.
        self._short = short
        if free < spare + 1 or self.extra <= 0:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        elif now - self._calm_since >= CALM:
            self._calm_since = now - CALM + NEXT_ONE
            self.extra -= 1
        # With none wanted at all, as after SIGWINCH, none is idle on purpose.
        self.extra = max(0, min(self.extra, most - fixed)) if fixed else 0
