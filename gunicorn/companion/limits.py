# SPDX-License-Identifier: MIT
"""What lives or grows beyond its limit is asked in for a restart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from gunicorn.companion import memory
from gunicorn.companion.process import CompanionProcess, State
from gunicorn.companion.rolling import Rolling

# How often the memory of companions that have a limit is looked at, in seconds.
MEMORY_INTERVAL = 5.0

MB = 2**20


# The session of what belongs to a companion and has left it: see `Endings.belonging`.
Belonging = Callable[[Collection[CompanionProcess]], Mapping[int, int]]


class Limits:
    """`max_lifetime` and `max_memory`. ``due``: when memory is looked at next; None: it need not be."""

    def __init__(self, rolling: Rolling, belonging: Belonging = lambda processes: {}) -> None:
        self.rolling = rolling
        self.belonging = belonging
        self.due: float | None = None

    def check(self, processes: Collection[CompanionProcess], now: float) -> None:
        """Ask in what is beyond its limit at *now*."""
        for process in processes:
            if process.config.max_lifetime is not None and process.is_expired(now):
                reason = f"it has lived for {process.config.max_lifetime:g}s"
                self.rolling.ask(process.name, reason, process.pid)
        limited = [p for p in processes if p.config.max_memory is not None and p.state is State.RUNNING]
        if not limited:
            self.due = None
        elif self.due is None:
            self.due = now + MEMORY_INTERVAL
        elif now >= self.due:
            self.due = now + MEMORY_INTERVAL
            self._check_memory(limited, self.belonging(processes))

    def _check_memory(self, limited: list[CompanionProcess], more: Mapping[int, int]) -> None:
        limits = {p.session: p.config.max_memory or 0 for p in limited if p.session is not None}
        found = memory.beyond(limits, more)
        for process in limited:
            private = found.get(process.session or 0)
            if private is not None:
                limit = process.config.max_memory or 0
                reason = f"its {private / MB:.1f} MB of private memory are over {limit / MB:g} MB"
                self.rolling.ask(process.name, reason, process.pid)
