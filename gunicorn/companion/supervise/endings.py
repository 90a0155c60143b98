# SPDX-License-Identifier: MIT
"""End sessions: kill what is left, and report when a session is empty."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from gunicorn.companion import detached
from gunicorn.companion.process import CompanionProcess, State
from gunicorn.companion.supervise.rights import StartRights
from gunicorn.unix import session

# Seconds for the leftovers of a stopped companion to notice that they are alone, as helpers do when their
# pipe ends.
GRACE = 0.05


class Endings:
    """Knows the sessions to kill.

    *start_rights* knows the older processes to stop. *on_kill* is called for each companion whose leftovers
    get SIGKILL, with their pids and those that have left its session; *on_left* likewise for the leftovers
    of older processes.
    """

    def __init__(
        self,
        start_rights: StartRights,
        on_kill: Callable[[CompanionProcess, Sequence[int], Collection[int]], None],
        on_left: Callable[[Collection[int]], None],
    ) -> None:
        self.start_rights = start_rights
        self.on_kill = on_kill
        self.on_left = on_left
        self.adopted: detached.Adopted | None = None
        # Those that have left their session and have had the stop signal.
        self._asked: set[int] = set()
        # The leftovers of a session, and when they were seen first; and who of them has had SIGKILL.
        self._seen: dict[int, float] = {}
        self._killed: dict[int, set[int]] = {}
        # Set where what loses its parent below us becomes our child: prctl(2), PR_SET_CHILD_SUBREAPER.
        self.children: session.OwnChildren | None = None
        self._to_kill: set[CompanionProcess] = set()

    def adopt(self, children: session.OwnChildren) -> None:
        """Adopt descendants that lose their parent from now on."""
        self.children = children
        self.adopted = detached.Adopted(children, self.start_rights.run_dir)

    def kill(self, process: CompanionProcess) -> None:
        """SIGKILL to every process of its session, at the next step."""
        self._to_kill.add(process)

    def step(self, processes: Collection[CompanionProcess], now: float) -> list[CompanionProcess]:
        """Kill leftovers; return those of *processes* whose session has become empty.

        One read of the process table serves them all, and usually none is needed.
        """
        ending = [p for p in processes if p.ending]
        own = {p for p in {*ending, *self._to_kill} if not self.start_rights.waits_for_older_process(p.name)}
        self._to_kill.clear()
        if not any(p.draining for p in ending):
            self._asked.clear()
        empty: list[CompanionProcess] = []
        wanted = {p.session for p in own if p.session is not None} | self.start_rights.sessions_to_look_at(
            now
        )
        if not wanted:
            return empty
        members: dict[int, list[int]] = {}
        away: dict[str, list[int]] = {}
        try:
            if not self._nothing_is_left(own, wanted, processes):
                members, away = session.members(wanted), self._away(own, processes)
        except OSError:
            # No descriptor is left to read with. Kill the processes that can be found without one; the next
            # step finds the rest.
            for process in own:
                if process.pid is not None:
                    session.send(process.pid, signal.SIGKILL)
            return empty
        for process in own:
            outside = away.get(process.name, [])
            if process.draining:
                self._ask(process, outside)
            else:
                self._kill(process, members.get(process.session or 0, ()), outside, now)
        older = {p.name: self.start_rights.older_session(p.name) for p in ending if p not in own}
        gone_before = {
            name
            for name, number in older.items()
            if number in wanted and self.start_rights.step_older_process(name, now, members)
        }
        gone_before -= self._end_left_by(gone_before)
        for process in ending:
            if process in own:
                gone = process.session not in members and process.name not in away
            else:
                gone = process.name in gone_before
            if gone:
                self.start_rights.forget_older_process(process.name)
                empty.append(process)
                self._seen.pop(process.session or 0, None)
                self._killed.pop(process.session or 0, None)
        self._end_left_by(self.start_rights.step_orphans(now, wanted, members))
        return empty

    def _away(
        self, processes: Iterable[CompanionProcess], all_of_them: Iterable[CompanionProcess]
    ) -> dict[str, list[int]]:
        """Map names of *processes* to the pids that have left their session and lost their parent."""
        if self.adopted is None:
            return {}
        sessions = {p.session for p in all_of_them}
        found = self.adopted.of(
            [p.name for p in processes], [p.pid for p in all_of_them if p.pid is not None]
        )
        return {
            name: outside
            for name, pids in found.items()
            if (outside := [pid for pid in pids if session.session_of(pid) not in sessions])
        }

    def belonging(self, processes: Collection[CompanionProcess]) -> Mapping[int, int]:
        """Map processes that have left their session and lost their parent to that session."""
        sessions = {p.name: p.session for p in processes}
        try:
            away = self._away(processes, processes)
        except OSError:
            return {}
        return {pid: sessions[name] or 0 for name, pids in away.items() for pid in pids}

    def _ask(self, process: CompanionProcess, outside: Iterable[int]) -> None:
        """Send the stop signal, once, to processes outside the process group that had it."""
        for pid in outside:
            if pid not in self._asked:
                self._asked.add(pid)
                session.ask_to_stop(pid, process.config.stop_signal)

    def _end_left_by(self, names: Collection[str]) -> set[str]:
        """Kill leftovers of the older processes of *names*; return the names that had some."""
        if not names or self.adopted is None:
            return set()
        wanted = {detached.digest(name): name for name in names}
        found = {}
        try:
            found = {
                pid: wanted[mark.name]
                for pid, mark in detached.left(self.start_rights.run_dir).items()
                if mark.name in wanted
            }
        except OSError:
            # No descriptor is left to look with; the next step does.
            return set(names)
        if found:
            self.on_left(list(found))
        for pid in found:
            session.send(pid, signal.SIGKILL)
        return set(found.values())

    def end_left(self) -> list[str]:
        """Kill leftovers of dead managers; return the names whose older processes are still ending.

        Their leftovers follow.
        """
        if self.adopted is None:
            return []
        try:
            older = self.start_rights.with_older_processes()
        except OSError:
            return []
        busy = {detached.digest(name) for name in older}
        run_dir = self.start_rights.run_dir
        detached.end_left(lambda: detached.left(run_dir), self.on_left, lambda mark: mark.name not in busy)
        return older

    def _kill(
        self, process: CompanionProcess, members: Sequence[int], outside: Sequence[int], now: float
    ) -> None:
        leader, number = process.pid, process.session or 0
        if leader is not None:
            # Before the others, for whose death it would have an answer; and just after its
            # fork it is not in its session yet.
            session.send(leader, signal.SIGKILL)
        leftovers = [pid for pid in (*members, *outside) if pid != leader]
        early = leftovers and now < self._seen.setdefault(number, now) + GRACE
        if early and leader is None and process.state is State.STOPPING and not process.killed:
            return
        killed = self._killed.setdefault(number, set())
        fresh = [pid for pid in leftovers if pid not in killed]
        if fresh:
            killed.update(fresh)
            # Told before: dead processes have no names.
            self.on_kill(process, fresh, outside)
        for pid in leftovers:
            session.send(pid, signal.SIGKILL)

    def descriptors(self) -> list[int]:
        return [self.children.fd] if self.children is not None and self.children.fd >= 0 else []

    def close(self) -> None:
        if self.children is not None:
            self.children.close()

    def _nothing_is_left(
        self, own: Iterable[CompanionProcess], wanted: set[int], processes: Iterable[CompanionProcess]
    ) -> bool:
        """Whether the sessions *wanted* are empty: their leaders are gone, and nobody was adopted from them.

        A session is inherited only by fork, so all its members descend from its leader. When the leader is a
        zombie, the kernel has given each of its children to the nearest adopting ancestor, which is this
        process; the same holds for every descendant that dies. So if all our children are companions that we
        have forked, no descendant is left.
        """
        if self.children is None or wanted != {
            p.session for p in own if p.pid is None and p.waiting_for is None
        }:
            return False
        children = self.children.read()
        return children is not None and children <= {p.pid for p in processes}
