# SPDX-License-Identifier: MIT
"""Measure the memory of companions, and restart those that exceed their memory or lifetime."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from gunicorn.companion.process import Cause, CompanionProcess, State
from gunicorn.companion.supervise.order import Rolling
from gunicorn.memory import INTERVAL, MB, Memory, Patience, may_exceed, of_process, resident
from gunicorn.unix import session

# Seconds between checks of the memory of companions with a limit.
MEMORY_INTERVAL = INTERVAL

# Maps processes that have left their companion's session to that session: see `Sessions.belonging`.
Belonging = Callable[[], Mapping[int, int]]


def of_session(pids: Iterable[int]) -> Memory | None:
    """Return the sum over the processes of one session; None if the system shows none of them."""
    found = [memory for pid in pids if (memory := of_process(pid)) is not None]
    return sum(found, Memory()) if found else None


def of_sessions(sessions: Collection[int], more: Mapping[int, int] | None = None) -> dict[int, Memory]:
    """Return the memory of each of *sessions* with its descendants, with one read of the process table.

    *more*: processes that have lost their parent, and their session. A session that the system does not show
    is omitted.
    """
    return of_families(families(sessions, more))


def of_families(found: Mapping[int, Iterable[int]]) -> dict[int, Memory]:
    """Return the sum over the processes of each; what the system does not show is omitted."""
    return {leader: memory for leader, pids in found.items() if (memory := of_session(pids)) is not None}


def beyond(limits: Mapping[int, int], more: Mapping[int, int] | None = None) -> dict[int, int]:
    """Return the private memory of the sessions that exceed their limit."""
    found = {}
    for leader, pids in families(limits, more).items():
        if not may_exceed(sum(map(resident, pids)), limits[leader]):
            continue
        memory = of_session(pids)
        if memory is not None and memory.private > limits[leader]:
            found[leader] = memory.private
    return found


def families(sessions: Collection[int], more: Mapping[int, int] | None) -> dict[int, list[int]]:
    """Return the processes of each session; nothing if no descriptor is left, until the next time."""
    if not sessions:
        return {}
    try:
        return session.families(sessions, more or {})
    except OSError:
        return {}


def totals(companions: Iterable[Memory], manager: int | None = None) -> dict[str, Any]:
    """Return the sums for ``status``; *manager*: the manager's pid, listed separately."""
    total = sum(companions, Memory())
    own = of_process(manager) if manager is not None else None
    return {
        **total.as_dict(),
        "separate": total.separate,
        "manager": None if own is None else own.as_dict(),
    }


class Limits:
    """`max_lifetime` and `max_memory`. ``due``: the time of the next memory check; None: no check."""

    def __init__(self, rolling: Rolling, log: Any, belonging: Belonging = dict) -> None:
        self.rolling = rolling
        self.log = log
        self.belonging = belonging
        self.due: float | None = None
        self._patience: dict[str, Patience] = {}

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
            self._check_memory(limited, self.belonging(), now)

    def _check_memory(self, limited: list[CompanionProcess], more: Mapping[int, int], now: float) -> None:
        limits = {p.session: p.config.max_memory or 0 for p in limited if p.session is not None}
        found = beyond(limits, more)
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
        """Seconds after its start for which *name* is left alone, whatever memory it takes."""
        return self._patience[name].seconds if name in self._patience else 0.0

    def _note(self, process: CompanionProcess, age: float) -> None:
        patience = self._patience.setdefault(process.name, Patience(MEMORY_INTERVAL))
        if patience.note(age):
            self.log.warning(
                "Companion %s exceeds its max_memory soon after each start, %d times in a row: does it need"
                " more? After the next start the limit is ignored for %gs",
                process.name,
                patience.count,
                patience.seconds,
            )
