# SPDX-License-Identifier: MIT
"""Find processes that have left their companion's session, by their marks, and end those of dead managers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping

from gunicorn.companion.child.mark import Mark, digest, read
from gunicorn.unix import session

# Chooses processes by their marks.
Names = Callable[[Mark], bool]

# Seconds to wait for processes to be gone after SIGKILL, before anything starts.
END_OF_LEFT = 1.0


class Adopted:
    """Children of this manager that it has not forked: descendants that have lost their parent."""

    def __init__(self, children: session.OwnChildren, run_dir: str | None) -> None:
        self.children = children
        self.run_dir = run_dir
        self._marks: dict[int, Mark | None] = {}

    def of(self, names: Collection[str], forked: Collection[int]) -> dict[str, list[int]]:
        """Map names of companions to the adopted processes that they have started; *forked*: our own."""
        found = self.children.read()
        adopted = set() if found is None else found - set(forked)
        self._marks = {pid: mark for pid, mark in self._marks.items() if pid in adopted}
        result: dict[str, list[int]] = {}
        if not adopted:
            return result
        me, by_digest = os.getpid(), {digest(name): name for name in names}
        for pid in sorted(adopted):
            mark = self._mark(pid)
            if mark is not None and mark.manager == me and mark.name in by_digest and _runs(pid):
                result.setdefault(by_digest[mark.name], []).append(pid)
        return result

    def _mark(self, pid: int) -> Mark | None:
        if pid not in self._marks:
            try:
                self._marks[pid] = read(pid)
            except OSError:
                return None
        return self._marks[pid]


def _runs(pid: int) -> bool:
    info = session.read_stat(pid)
    return info is not None and info.runs


def left(run_dir: str | None) -> dict[int, Mark]:
    """Return the processes that dead managers of *run_dir* have left, by pid; some may be about to end."""
    if run_dir is None:
        return {}
    ours = digest(run_dir)
    return of_dead_managers(lambda mark: mark.run_dir == ours)


def may_hold_sockets(run_dir: str | None) -> dict[int, str]:
    """Return leftovers of dead managers, by pid with the digest of its companion's name.

    Also those of companions that may run beside an older process, of any server, because no later manager
    stops them.
    """
    places = {digest(run_dir or ""), digest("")}
    return {pid: mark.name for pid, mark in of_dead_managers(lambda mark: mark.run_dir in places).items()}


def of_dead_managers(is_wanted: Names) -> dict[int, Mark]:
    """The processes, by pid, that run with a mark that *is_wanted* and whose manager is dead."""
    found: dict[int, Mark] = {}
    for pid in session.all_pids():
        mark = read(pid)
        if mark is not None and is_wanted(mark) and not mark.supervised and _runs(pid):
            found[pid] = mark
    return found


def end_left(
    look: Callable[[], Mapping[int, Mark]],
    tell: Callable[[Collection[int]], None],
    names: Names = lambda mark: True,
) -> None:
    """Kill the processes that *look* finds and *names* chooses, and wait a moment for them to be gone.

    *tell* is called before, while they have names.
    """
    deadline = time.monotonic() + END_OF_LEFT
    told: set[int] = set()
    with contextlib.suppress(OSError):
        while pids := [pid for pid, mark in look().items() if names(mark)]:
            if fresh := [pid for pid in pids if pid not in told]:
                tell(fresh)
                told.update(fresh)
            for pid in pids:
                session.send(pid, signal.SIGKILL)
            if time.monotonic() >= deadline:
                return
            time.sleep(0.005)
