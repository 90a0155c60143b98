# SPDX-License-Identifier: MIT
"""Decide how the threads of a worker share the work: one leads, or all serve in parallel. No clock.

The leader waits for what arrives and serves it, one request after the other. While it is quick it keeps its
turn and no thread is woken for a request: that would cost more than most requests do. Only when a request
blocks it does a thread that stands by take the turn over. The main thread, which serves nothing, ensures
that: it checks every ``CHECK`` seconds as long as there is work.

An application that waits often, for a database say, would hold up what has arrived behind each wait. Where
that is seen all threads serve in parallel: each waits for one event and serves it. After a number of requests
one leads again, and where requests still wait, the next time in parallel is twice as long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from gunicorn.workers.threads.waits import Samples

#: How long a request may take before another thread goes on with those after it; twice that at most.
CHECK = 0.002
#: When the main thread itself was late, the machine is busy and a wait says little, unless it is this long.
BLOCKED = 0.01
#: For how long a request may compute. Another thread would only compete with it for the interpreter.
COMPUTING = 0.05
#: For how long there is nothing to do before the checks end: the next request often comes soon.
IDLE = 0.02

#: If one request in fewer than this blocks, serving in parallel is cheaper; for how many requests at first,
#: and at most.
_RARELY, _FEWEST, _MOST = 64, 512, 8192


class Turns:
    """Threads name themselves by any number but 0; *alone*, there is only one."""

    def __init__(self, alone: bool = False) -> None:
        self.leader = 0
        #: How often a leader has begun to serve, and another thread beside it or in parallel.
        self.led = self.beside = 0
        #: Whether the leader serves. Only the leader says that.
        self.working = False
        #: Whether the main thread checks. A thread that begins to work has it woken if it does not.
        self.checked = alone
        #: For how many requests to come all threads serve in parallel.
        self.parallel: float = 0
        self._alone = alone
        #: Whether the main thread is to check even where no thread could take the turn over.
        self.watched = False
        self._parallel_before = 0  # where `parallel` began the last time
        self._waited_at = -_MOST  # `led` when a request was last seen to wait
        self._stopped = False
        self._lock = threading.Lock()  # for the changes of ``leader`` below
        # Locked as long as a thread leads; those that stand by wait for it.
        self._baton = threading.Lock()
        self._seen = (0, 0)  # `led` and `beside` at the last check that found either changed
        self._measured = 0
        self._since = self._spent = self._last_check = 0.0
        self._samples = Samples()

    def is_checked_leader(self, me: int) -> bool:
        """Whether *me* leads, and the main thread checks on it."""
        return self.checked and self.leader == me

    def take(self, me: int, has_work: bool = False) -> bool:
        """Wait until it is the turn of *me*, as leader or in parallel; False once ``stop()`` was called.

        *has_work*: there is something that the leader did not know of when it began to wait.
        """
        with self._lock:
            if self.leader == me and not self.parallel:
                return True
            if self.parallel or self._stopped:
                return self._join()
            if self.leader and has_work:
                self.leader = me
                return True
        self._baton.acquire()
        with self._lock:
            if self.parallel or self._stopped:
                return self._join()
            self.leader = me
            return True

    def _join(self) -> bool:
        """Serve in parallel, where nobody leads, or end, and wake the next thread to do the same."""
        self._clear_leader()
        return not self._stopped

    def pass_on(self, leader: int) -> bool:
        """Let another thread lead in place of *leader*, which is blocked; False if it does not lead."""
        with self._lock:
            if not leader or self.leader != leader:
                return False
            # Before a thread is woken, which must know whether to lead.
            self._note_blocked()
            self._clear_leader()
            return True

    def _clear_leader(self) -> None:
        self.leader = 0
        self.working = False
        self._release()

    def serve_one_in_parallel(self) -> None:
        """Note that a thread serves a request in parallel."""
        self.beside += 1
        if self.parallel > 0:
            self.parallel -= 1

    # -- whether requests wait ---------------------------------------------------------------

    def begins_sample(self) -> bool:
        """Whether the leader is to measure the requests that it serves next."""
        return not self._alone and self._samples.is_due(self.led)

    def end_sample(self, requests: int, lost: float, waits: int) -> None:
        """Note that *requests* of the leader have lost so many seconds in so many *waits*."""
        if self._samples.add(self.led, requests, lost, waits):
            self._serve_in_parallel()

    def _note_blocked(self) -> None:
        """Note that a request has blocked the leader. One alone may just have lacked the processor."""
        if self.led - self._waited_at < _RARELY:
            self._serve_in_parallel()
        else:
            self._parallel_before = 0
        self._waited_at = self.led

    def _serve_in_parallel(self) -> None:
        before = self._parallel_before if self.led - self._waited_at < _RARELY else 0
        self.parallel = self._parallel_before = min(2 * before, _MOST) or _FEWEST
        self._waited_at = self.led

    # -- the main thread ---------------------------------------------------------------------

    def check(self, now: float, time_spent: Callable[[int], float] = lambda thread: 0.0) -> bool:
        """Called by the main thread: pass the turn on if the leader is blocked. False if checks may end.

        *time_spent*: how much time of the processor a thread has had, ever, where that is known.
        """
        leader = self.leader
        spent = time_spent(leader)
        late = now - self._last_check > 2 * CHECK
        if late:
            self._samples.spoil()
        self._last_check = now
        if self._alone and not self.watched:
            return False
        seen = self.led, self.beside
        # What others serve says nothing about a leader at work.
        goes_on = seen[0] != self._seen[0] if self.working else seen != self._seen
        if goes_on or leader != self._measured:
            # Another thread may have become the leader, and begun, just now: its time is another one.
            self._seen = seen
            self._measured = leader
            self._since = now
            self._spent = spent
        elif not self.working:
            if now - self._since > IDLE:
                self._end_checks()
        elif self._is_blocked(now, spent, late):
            self._since = now
            if self._alone:
                self._end_checks()
            else:
                self.pass_on(leader)
        return self.checked

    def _end_checks(self) -> None:
        self.checked = False
        # A thread may have begun to serve, having seen that the main thread checks.
        self.checked = (self.led, self.beside) != self._seen

    def _is_blocked(self, now: float, spent: float, late: bool) -> bool:
        waited = now - self._since
        idle = waited - max(0.0, spent - self._spent)
        return waited > COMPUTING or idle > (BLOCKED if late else CHECK / 2)

    def stop(self) -> None:
        """End all waiting, now and later."""
        with self._lock:
            self._stopped = True
            self._clear_leader()

    def _release(self) -> None:
        if self._baton.locked():
            self._baton.release()
