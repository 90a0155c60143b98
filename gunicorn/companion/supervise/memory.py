# SPDX-License-Identifier: MIT
"""Measure the memory of companions, and restart those that exceed their memory or lifetime.

The resident size (RSS) counts a page that ten processes share ten times. The
kernel knows better, by /proc/<pid>/smaps_rollup (see proc(5)): the proportional
size (PSS) counts a tenth of it for each, so that the PSS of all processes add up
to what the machine has given away; *private* memory is what would be free again
if the process ended; and anonymous memory beyond its proportional part is what
copy-on-write saves: a process that was not forked from the others would have
those pages to itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gunicorn.companion.process import Cause, CompanionProcess, State
from gunicorn.companion.supervise.order import Rolling
from gunicorn.unix import session

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")

# Seconds between checks of the memory of companions with a limit.
MEMORY_INTERVAL = 5.0

MB = 2**20

# A process that exceeds its memory this soon after its start will do so again. Each time in a row the next
# one is left alone for twice as long, up to the longest, so that it gets something done; all in seconds.
SOON = 60.0
LONGEST_PATIENCE = 600.0
# After this many in a row, warn that the limit may be too low.
TOO_MANY = 3

# Maps processes that have left their companion's session to that session: see `Sessions.belonging`.
Belonging = Callable[[], Mapping[int, int]]


@dataclass(frozen=True)
class Memory:
    """Bytes of memory, of one process or the sum of several."""

    rss: int = 0
    pss: int = 0
    private: int = 0
    saved: int = 0

    @property
    def separate(self) -> int:
        """What the same processes would take as separate programs.

        Separate programs share mapped files too, such as libraries; so these count in proportion.
        """
        return self.pss + self.saved

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            self.rss + other.rss,
            self.pss + other.pss,
            self.private + other.private,
            self.saved + other.saved,
        )

    def as_dict(self) -> dict[str, int]:
        """The figures as ``status`` shows them for one companion."""
        return {"rss": self.rss, "pss": self.pss, "private": self.private, "saved": self.saved}


def parse(rollup: bytes) -> Memory:
    """The figures of one process from its smaps_rollup."""
    sizes: dict[bytes, int] = {}
    for line in rollup.splitlines():
        name, _, rest = line.partition(b":")
        value = rest.split()
        # The first line, an address range, is no size.
        if len(value) == 2 and value[1] == b"kB" and value[0].isdigit():
            sizes[name] = int(value[0]) * 1024
    rss, pss = sizes.get(b"Rss", 0), sizes.get(b"Pss", 0)
    private = sizes.get(b"Private_Clean", 0) + sizes.get(b"Private_Dirty", 0)
    if b"Pss_Anon" in sizes:
        saved = sizes.get(b"Anonymous", 0) - sizes[b"Pss_Anon"]
    else:
        # Before Linux 5.4: all that is shared, mapped files included.
        saved = rss - pss
    return Memory(rss, pss, private, max(0, saved))


def of_process(pid: int) -> Memory | None:
    """Measure one process; None if it is gone, or the kernel does not let us.

    It tells a process's own user, unless the program is set-user-id or has changed its user.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return parse(file.read())
    except OSError:
        # If the main thread has ended and others run on, each of them shows the memory of the process.
        return next(filter(None, map(_of_thread, session.other_threads(pid))), None)


def _of_thread(path: str) -> Memory | None:
    try:
        with open(f"{path}/smaps_rollup", "rb") as file:
            return parse(file.read())
    except OSError:
        return None


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
    """Return the private memory of the sessions that exceed their limit.

    Private memory is a part of the resident size, which the kernel counts anyway. Only if that is near the
    limit, let the kernel walk through the pages, which takes some milliseconds a process.
    """
    found = {}
    for leader, pids in families(limits, more).items():
        # The kernel's count may lag by some pages for each processor.
        if sum(map(resident, pids)) * 4 < limits[leader] * 3:
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


def resident(pid: int) -> int:
    """The resident size by /proc/<pid>/statm; 0 where the process is gone."""
    pages = _resident_pages(f"/proc/{pid}")
    if not pages:
        pages = max(map(_resident_pages, session.other_threads(pid)), default=0)
    return pages * PAGE_SIZE


def _resident_pages(path: str) -> int:
    try:
        with open(f"{path}/statm", "rb") as file:
            return int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


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
        count = self._soon.get(name, 0)
        return min(LONGEST_PATIENCE, MEMORY_INTERVAL * 2.0 ** min(count, 10)) if count else 0.0

    def _note(self, process: CompanionProcess, age: float) -> None:
        name = process.name
        # After a long patience the excess is noticed late, so it still counts as soon.
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
