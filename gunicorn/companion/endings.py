# SPDX-License-Identifier: MIT
"""The end of sessions: SIGKILL to what must go, and the word that nothing of a session is left."""

from __future__ import annotations

import signal
from collections.abc import Iterable

from gunicorn.companion import session
from gunicorn.companion.claims import Claims
from gunicorn.companion.process import CompanionProcess


class Endings:
    """Knows which sessions are to be killed. *claims* knows the older selves that are ended, too."""

    def __init__(self, claims: Claims) -> None:
        self.claims = claims
        self._to_kill: set[CompanionProcess] = set()

    def kill(self, process: CompanionProcess) -> None:
        """SIGKILL to every process of its session, at the next step."""
        self._to_kill.add(process)

    def step(self, processes: Iterable[CompanionProcess], now: float) -> list[CompanionProcess]:
        """Kill what must end; return those of *processes* whose session has become empty.

        One look at the process table serves them all.
        """
        ending = [p for p in processes if p.ending]
        own = {p for p in {*ending, *self._to_kill} if not self.claims.waits_for_older_self(p.name)}
        self._to_kill.clear()
        empty: list[CompanionProcess] = []
        wanted = {p.session for p in own if p.session is not None} | self.claims.sessions_to_look_at(now)
        if not wanted:
            return empty
        members = session.members(wanted)
        for process in own:
            if process.pid is not None:
                # Before the others, for whose death it would have an answer; and just after its
                # fork it is not in its session yet.
                session.send(process.pid, signal.SIGKILL)
            for pid in members.get(process.session or 0, ()):
                session.send(pid, signal.SIGKILL)
        for process in ending:
            if process in own:
                gone = process.session not in members
            else:
                older = self.claims.older_session(process.name)
                gone = older in wanted and self.claims.step_older_self(process.name, now, members)
            if gone:
                empty.append(process)
        self.claims.step_strays(now, wanted, members)
        return empty
