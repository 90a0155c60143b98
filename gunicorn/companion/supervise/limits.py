# SPDX-License-Identifier: MIT
"""Restart companions that exceed their lifetime or memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from gunicorn.companion.process import CompanionProcess, State
from gunicorn.companion.states import Cause
from gunicorn.companion.supervise import memory
from gunicorn.companion.supervise.rolling import Rolling

# Seconds between checks of the memory of companions with a limit.
MEMORY_INTERVAL = 5.0

MB = 2**20

# A process that exceeds its memory this soon after its start will do so again. Each time in a row the next
# one is left alone for twice as long, up to the longest, so that it gets something done; all in seconds.
SOON = 60.0
LONGEST_PATIENCE = 600.0
# At so many in a row the limit is called into question.
TOO_MANY = 3


# The session of what belongs to a companion and has left it: see `Endings.belonging`.
Belonging = Callable[[Collection[CompanionProcess]], Mapping[int, int]]


class Limits:
    """`max_lifetime` and `max_memory`. ``due``: the time of the next memory check; None: no check."""

    def __init__(self, rolling: Rolling, log: Any, belonging: Belonging = lambda processes: {}) -> None:
        self.rolling = rolling
        self.log = log
        self.belonging = belonging
        self.due: float | None = None
        # How often in a row each has exceeded its memory soon after its start.
        self._soon: dict[str, int] = {}

    def check(self, processes: Collection[CompanionProcess], now: float) -> None:
        """Queue a restart of companions that exceed a limit at *now*."""
        for process in processes:
            if process.config.max_lifetime is not None and process.is_expired(now):
                reason = f"it has lived for {process.config.max_lifetime:g}s"
                self.rolling.ask(process.name, reason, process.pid, Cause.LIFETIME)
        limited = [p for p in processes if p.config.max_memory is not None and p.state is State.RUNNING]
        if not limited:
            self.due = None
        elif self.due is None:
            self.due = now + MEMORY_INTERVAL
        elif now >= self.due:
            self.due = now + MEMORY_INTERVAL
            self._check_memory(limited, self.belonging(processes), now)

    def _check_memory(self, limited: list[CompanionProcess], more: Mapping[int, int], now: float) -> None:
        limits = {p.session: p.config.max_memory or 0 for p in limited if p.session is not None}
        found = memory.beyond(limits, more)
        for process in limited:
            private = found.get(process.session or 0)
            age = now - (process.started_at or now)
            if private is None or age < self.patience(process.name):
                continue
            limit = process.config.max_memory or 0
            reason = f"its {private / MB:.1f} MB of private memory exceed {limit / MB:g} MB"
            if self.rolling.ask(process.name, reason, process.pid, Cause.MEMORY):
                self._note(process, age)

    def patience(self, name: str) -> float:
        """For how long after its start *name* is left alone, whatever memory it takes."""
        count = self._soon.get(name, 0)
        return min(LONGEST_PATIENCE, MEMORY_INTERVAL * 2.0 ** min(count, 10)) if count else 0.0

    def _note(self, process: CompanionProcess, age: float) -> None:
        name = process.name
        # One that was left alone for long has exceeded its limit no later than all before it.
        if age > max(SOON, self.patience(name) + 2 * MEMORY_INTERVAL):
            self._soon.pop(name, None)
            return
        self._soon[name] = count = self._soon.get(name, 0) + 1
        if count >= TOO_MANY:
            self.log.warning(
                "Companion %s exceeds its max_memory soon after each start, %d times in a row: does it need"
                " more? After the next start the limit is ignored for %gs",
                name,
                count,
                self.patience(name),
            )
