# SPDX-License-Identifier: MIT
"""Decide which thread of a worker leads and which stand by. No clock, no sockets.

The leader waits for what arrives and serves it, one request after the other. While it is quick it keeps its
turn and no thread is woken for a request: that would cost more than most requests do. Only when one holds it
up does a thread that stands by take the turn over. The watchman, a thread that serves nothing, ensures that:
it checks every ``LOOK`` seconds as long as there is work.

An application that blocks often would be held up often. After two hold-ups in a row the turn is therefore
passed on before each of the next requests is served, of twice as many if one more comes soon after them.
"""

from __future__ import annotations

import threading

#: How long a request may take before another thread goes on with those after it; twice that at most.
LOOK = 0.002
#: When the watchman himself was late, the machine is busy and a wait says little, unless it is this long.
SURELY = 0.01
#: For how long a request may compute. Another thread would only compete with it for the interpreter.
COMPUTING = 0.05
#: For how long there is nothing to do before he rests: the next request often comes soon.
RESTLESS = 0.02

#: Of how many requests one may be held up before passing on all turns is cheaper; what such a phase begins
#: with, and its longest.
_RARELY, _FEWEST, _MOST = 64, 64, 8192


class Turns:
    """Threads name themselves by any number but 0; *alone*, there is only one."""

    def __init__(self, alone: bool = False) -> None:
        self.leader = 0
        #: Kept by the leader: how often it has begun to serve, and whether it does.
        self.count = 0
        self.working = False
        #: Whether the watchman looks. The leader has him woken if he does not, once it is working.
        self.watched = alone
        #: For how many requests to come the turn is passed on before they are served.
        self.wary = 0
        self._alone = alone
        self._caution = 0  # the length of the latest such phase
        self._held_up_at = -_MOST
        self._stopped = False
        self._lock = threading.Lock()  # for the changes of ``leader`` below
        # Locked as long as somebody leads; those who stand by wait for it.
        self._baton = threading.Lock()
        self._seen = 0
        self._since = self._spent = self._looked = 0.0

    def take(self, me: int) -> bool:
        """Wait until it is the turn of *me*; False once ``stop()`` was called."""
        with self._lock:
            if self.leader and self.working and not self._stopped:
                # The leader is busy, so *me*, which runs anyway, takes its place.
                self.leader = me
                return True
        self._baton.acquire()
        with self._lock:
            if self._stopped:
                self._release()
                return False
            self.leader = me
            return True

    def pass_on(self, leader: int) -> bool:
        """Let another thread lead in place of *leader*; False if *leader* does not lead."""
        with self._lock:
            if not leader or self.leader != leader:
                return False
            self.leader = 0
            self._release()
            return True

    def beware(self, me: int) -> None:
        """Pass the turn on before a request is served, while ``wary``."""
        if self.pass_on(me):
            self.wary -= 1

    def look(self, now: float, spent: float = 0.0) -> bool:
        """Called by the watchman: pass the turn on if its holder is held up. False if he may rest.

        *spent*: how much time of the processor the leader has had, ever, where that is known.
        """
        late = now - self._looked > 2 * LOOK
        self._looked = now
        if self._alone:
            return False
        if self.count != self._seen:
            self._seen = self.count
            self._since = now
            self._spent = spent
        elif not self.working:
            if now - self._since > RESTLESS:
                self.watched = False
                # It may have begun to work, and seen that it was watched.
                self.watched = self.working
        elif self._is_held_up(now, spent, late):
            self._since = now
            if self.pass_on(self.leader):
                self._learn()
        return self.watched

    def _is_held_up(self, now: float, spent: float, late: bool) -> bool:
        waited = now - self._since
        idle = waited - max(0.0, spent - self._spent)
        return waited > COMPUTING or idle > (SURELY if late else LOOK / 2)

    def _learn(self) -> None:
        """Decide for how many requests to pass the turn on early. A thread may just have lacked the
        processor.
        """
        apart = self.count - self._held_up_at
        self._held_up_at = self.count
        if apart < self._caution + _RARELY:
            self.wary = self._caution = min(2 * self._caution, _MOST) if self._caution else _FEWEST
        else:
            self.wary = self._caution = 0

    def stop(self) -> None:
        """End all waiting, now and later."""
        with self._lock:
            self._stopped = True
            self.leader = 0
            self._release()

    def _release(self) -> None:
        if self._baton.locked():
            self._baton.release()
