# SPDX-License-Identifier: MIT
"""The end of sessions: SIGKILL to what must go, and the word that nothing of a session is left."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterable, Sequence

from gunicorn.companion import session
from gunicorn.companion.claims import Claims
from gunicorn.companion.process import CompanionProcess

# What a companion has left behind is given so long to see that it is alone, as helpers do whose pipe ends.
GRACE = 0.05


class Endings:
    """Knows which sessions are to be killed. *claims* knows the older selves that are ended, too.

    *on_kill* is told of each companion whose leftovers get SIGKILL, with their pids.
    """

    def __init__(self, claims: Claims, on_kill: Callable[[CompanionProcess, Sequence[int]], None]) -> None:
        self.claims = claims
        self.on_kill = on_kill
        # The leftovers of a session, and when they were seen first; and who of them has had SIGKILL.
        self._seen: dict[int, float] = {}
        self._killed: dict[int, set[int]] = {}
        # Set where what loses its parent below us becomes our child: prctl(2), PR_SET_CHILD_SUBREAPER.
        self.children: session.OwnChildren | None = None
        self._to_kill: set[CompanionProcess] = set()

    def kill(self, process: CompanionProcess) -> None:
        """SIGKILL to every process of its session, at the next step."""
        self._to_kill.add(process)

    def step(self, processes: Collection[CompanionProcess], now: float) -> list[CompanionProcess]:
        """Kill what must end; return those of *processes* whose session has become empty.

        One look at the process table serves them all, and mostly it takes none.
        """
        ending = [p for p in processes if p.ending]
        own = {p for p in {*ending, *self._to_kill} if not self.claims.waits_for_older_self(p.name)}
        self._to_kill.clear()
        empty: list[CompanionProcess] = []
        wanted = {p.session for p in own if p.session is not None} | self.claims.sessions_to_look_at(now)
        if not wanted:
            return empty
        try:
            members = {} if self._nothing_is_left(own, wanted, processes) else session.members(wanted)
        except OSError:
            # No descriptor is left to look with. Whoever can be found without is killed; for the rest
            # there is the next step.
            for process in own:
                if process.pid is not None:
                    session.send(process.pid, signal.SIGKILL)
            return empty
        for process in own:
            if not process.draining:
                self._kill(process, members.get(process.session or 0, ()), now)
        for process in ending:
            if process in own:
                gone = process.session not in members
            else:
                older = self.claims.older_session(process.name)
                gone = older in wanted and self.claims.step_older_self(process.name, now, members)
            if gone:
                empty.append(process)
                self._seen.pop(process.session or 0, None)
                self._killed.pop(process.session or 0, None)
        self.claims.step_strays(now, wanted, members)
        return empty

    def _kill(self, process: CompanionProcess, members: Sequence[int], now: float) -> None:
        leader, number = process.pid, process.session or 0
        if leader is not None:
            # Before the others, for whose death it would have an answer; and just after its
            # fork it is not in its session yet.
            session.send(leader, signal.SIGKILL)
        leftovers = [pid for pid in members if pid != leader]
        early = leftovers and now < self._seen.setdefault(number, now) + GRACE
        if early and leader is None and not process.killed:
            return
        killed = self._killed.setdefault(number, set())
        fresh = [pid for pid in leftovers if pid not in killed]
        if fresh:
            killed.update(fresh)
            # Told before: dead processes have no names.
            self.on_kill(process, fresh)
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

        A session is inherited by fork alone, so whoever is in one descends from its leader. When the
        leader can be waited for, each of its children has been given to the nearest ancestor that adopts,
        which is us, and so with whoever dies of those below. If all our children are companions
        that we have forked, there is no such child, and nobody below one.
        """
        if self.children is None or wanted != {
            p.session for p in own if p.pid is None and p.waiting_for is None
        }:
            return False
        children = self.children.read()
        return children is not None and children <= {p.pid for p in processes}
