# SPDX-License-Identifier: MIT
"""Decide which thread of a worker leads and which stand by. No clock, no sockets.

The leader waits for what arrives and serves it, one request after the other. While it is quick it keeps its
turn and no thread is woken for a request: that would cost more than most requests do. Only when a request
blocks it does a thread that stands by take the turn over. The main thread, which serves nothing, ensures
that: it checks every ``CHECK`` seconds as long as there is work.

An application that blocks often would block the leader often. After two blocked requests in a row the turn is
therefore passed on before each of the next requests is served; of twice as many if another one blocks soon
after them.
"""

from __future__ import annotations

import threading

#: How long a request may take before another thread goes on with those after it; twice that at most.
CHECK = 0.002
#: When the main thread itself was late, the machine is busy and a wait says little, unless it is this long.
BLOCKED = 0.01
#: For how long a request may compute. Another thread would only compete with it for the interpreter.
COMPUTING = 0.05
#: For how long there is nothing to do before the checks end: the next request often comes soon.
IDLE = 0.02

#: If one request in fewer than this blocks, passing on all turns is cheaper; for how many requests at first,
#: and at most.
_RARELY, _FEWEST, _MOST = 64, 64, 8192


class Turns:
    """Threads name themselves by any number but 0; *alone*, there is only one."""

    def __init__(self, alone: bool = False) -> None:
        self.leader = 0
        #: Kept by the leader: how often it has begun to serve, and whether it does.
        self.count = 0
        self.working = False
        #: Whether the main thread checks. A leader that begins to work has it woken if it does not.
        self.checked = alone
        #: For how many requests to come the turn is passed on before they are served.
        self.early = 0
        self._alone = alone
        #: Whether the main thread is to check even where no thread could take the turn over.
        self.watched = False
        self._early_before = 0  # where `early` began the last time
        self._blocked_at = -_MOST
        self._stopped = False
        self._lock = threading.Lock()  # for the changes of ``leader`` below
        # Locked as long as a thread leads; those that stand by wait for it.
        self._baton = threading.Lock()
        self._seen = 0
        self._since = self._spent = self._last_check = 0.0

    def is_checked_leader(self, me: int) -> bool:
        """Whether *me* leads, and the main thread checks on it."""
        return self.checked and self.leader == me

    def take(self, me: int, has_work: bool = False) -> bool:
        """Wait until it is the turn of *me*; False once ``stop()`` was called.

        *has_work*: there is something that the leader did not know of when it began to wait.
        """
        with self._lock:
            if self.leader and (self.working or has_work) and not self._stopped:
                # The leader is busy or waits, so *me*, which runs anyway, takes its place.
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

    def pass_on_early(self, me: int) -> None:
        """Pass the turn on before a request is served, where `early` says so."""
        if self.pass_on(me):
            self.early -= 1

    def check(self, now: float, spent: float = 0.0) -> bool:
        """Called by the main thread: pass the turn on if the leader is blocked. False if checks may end.

        *spent*: how much time of the processor the leader has had, ever, where that is known.
        """
        late = now - self._last_check > 2 * CHECK
        self._last_check = now
        if self._alone and not self.watched:
            return False
        if self.count != self._seen:
            self._seen = self.count
            self._since = now
            self._spent = spent
        elif not self.working:
            if now - self._since > IDLE:
                self.checked = False
                # It may have begun to work, having seen that it was checked.
                self.checked = self.working
        elif self._is_blocked(now, spent, late):
            self._since = now
            if self._alone:
                self.checked = False
            elif self.pass_on(self.leader):
                self._note_blocked()
        return self.checked

    def _is_blocked(self, now: float, spent: float, late: bool) -> bool:
        waited = now - self._since
        idle = waited - max(0.0, spent - self._spent)
        return waited > COMPUTING or idle > (BLOCKED if late else CHECK / 2)

    def _note_blocked(self) -> None:
        """Decide for how many requests to pass the turn on early. One alone may just have lacked the
        processor.
        """
        apart = self.count - self._blocked_at
        self._blocked_at = self.count
        often = apart < self._early_before + _RARELY
        self.early = self._early_before = (min(2 * self._early_before, _MOST) or _FEWEST) if often else 0

    def stop(self) -> None:
        """End all waiting, now and later."""
        with self._lock:
            self._stopped = True
            self.leader = 0
            self._release()

    def _release(self) -> None:
        if self._baton.locked():
            self._baton.release()
