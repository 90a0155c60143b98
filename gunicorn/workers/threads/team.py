# SPDX-License-Identifier: MIT
"""The threads of a worker: what each of them does next, and how the main thread checks on them.

``turns`` decides whether one leads or all serve in parallel. The leader waits on the poller and serves what
it finds; under load it finds several requests at once, and serves them as a batch (``batch``). In parallel
each thread waits for one event and serves it.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from typing import Any, Protocol

from gunicorn.workers.threads.batch import Batch
from gunicorn.workers.threads.polling import make_poller
from gunicorn.workers.threads.turns import Turns
from gunicorn.workers.threads.waits import SAMPLE, Stretch

# How long the main thread waits, at most, for each turn at the interpreter while it sends what is held.
_SWITCH_INTERVAL = 0.0001


class Host(Protocol):
    """What the worker does with connections, in the thread that calls."""

    log: Any

    def wake(self) -> None:
        """Wake the main thread, which checks the team from then on."""

    def attend(self, fd: int) -> None:
        """Handle a report of *fd*, and serve what has arrived."""

    def receive(self, fd: int) -> Any:
        """Handle a report of *fd*, and serve nothing; returns a connection whose next request was parsed."""

    def serve(self, conn: Any) -> None:
        """Serve the request of *conn* that was parsed, and those that have arrived after it."""

    def send_held(self, conn: Any) -> None:
        """Send the answer of *conn* that the batch has held."""


def _time_spent(thread: int) -> float:
    """The time of the processor that *thread* has had, in seconds; 0 if that is unknown."""
    if not thread or not hasattr(time, "pthread_getcpuclockid"):
        return 0.0
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread))
    except OSError:
        return 0.0


class Team:
    """*size* threads, each of which runs ``follow()``.

    :param batches: whether answers may be held, and requests received together
    :param parallel: whether all always serve in parallel
    """

    def __init__(self, host: Host, size: int, *, batches: bool, parallel: bool) -> None:
        self._host = host
        self._batches = batches
        # Before anybody replaces it: the number of a thread must not change.
        self.get_ident = threading.get_ident
        self.poller = make_poller()
        self.batch = Batch(host.send_held, self._may_hold)
        self.turns = Turns(alone=size <= 1)
        if parallel:
            self.turns.parallel = math.inf
        # Threads that stand by, or wait in parallel.
        self._free: set[int] = set()

    def watch(self) -> None:
        """Have the main thread check also where no thread could take another's turn."""
        self.turns.watched = True
        self.turns.checked = False

    @property
    def has_free_thread(self) -> bool:
        """Whether a thread serves nothing."""
        return bool(self._free) or (bool(self.turns.leader) and not self.turns.working)

    def stop(self) -> None:
        """End all threads as soon as they have served what they serve."""
        self.turns.stop()
        self.poller.stop()

    # -- a thread ------------------------------------------------------------------------

    def follow(self) -> None:
        """The life of a thread: wait for a turn, serve, wait."""
        me = self.get_ident()
        turns, received, free = self.turns, self.batch.received, self._free
        free.add(me)
        # Where another thread leads by now, it may have begun to wait before this one received something.
        while turns.take(me, has_work=bool(received)):
            try:
                if turns.parallel:
                    self._serve_next(me)
                else:
                    free.discard(me)
                    self._lead(me)
            except BaseException:
                # A thread that ended would be missed by all requests after this one.
                self._host.log.exception("An error in a worker thread")
            free.add(me)

    def _lead(self, me: int) -> None:
        """Wait for what arrives and serve it, as long as this thread leads."""
        turns, batch = self.turns, self.batch
        stretch, served = None, 0
        while turns.leader == me and not turns.parallel:
            if stretch is not None and (served >= SAMPLE or not batch.received):
                turns.end_sample(served, *stretch.end())
                stretch = None
                continue
            fd: int | None = None
            if not batch.received:
                batch.send()
                if turns.leader != me:
                    continue
                turns.working = False
                fd = self.poller.wait()
                if fd is None:
                    return
            if stretch is None and turns.begins_sample():
                stretch, served = Stretch(), 0
            served += 1
            turns.led += 1
            if turns.leader == me:  # another thread may lead since, and be at work or not
                turns.working = True
            self._have_checked()
            if fd is None:
                self._serve_received()
            elif self._batches and self.poller.has_more():
                self._receive_all(fd)
            else:
                self._host.attend(fd)
        if stretch is not None:
            turns.end_sample(served, *stretch.end())

    def _serve_next(self, me: int) -> None:
        """Serve one request beside the other threads."""
        fd: int | None = None
        if not self.batch.received:
            fd = self.poller.wait(most=1)
            if fd is None:
                return
        self._free.discard(me)
        self.turns.serve_one_in_parallel()
        self._have_checked()
        if len(self.batch.received) > 1 or self.poller.has_more():
            # A leader has found more than this thread can serve; the others may wait in the poller.
            self.poller.nudge()
        if fd is None:
            self._serve_received()
        else:
            self._host.attend(fd)

    def _have_checked(self) -> None:
        """Let the main thread check the turns from now on."""
        if not self.turns.checked:
            self.turns.checked = True
            self._host.wake()

    def _receive_all(self, fd: int | None) -> None:
        """Receive from *fd* and all others that are ready, before the first of them is served."""
        while fd is not None:
            conn = self._host.receive(fd)
            if conn is not None:
                self.batch.received.append(conn)
            fd = self.poller.next_ready()
        self.batch.start(time.monotonic())

    def _serve_received(self) -> None:
        """Serve the request that was received first."""
        try:
            conn = self.batch.received.popleft()
        except IndexError:
            return  # another thread was faster
        conn.may_wait = self.batch.begin(time.monotonic())
        self._host.serve(conn)

    def _may_hold(self) -> bool:
        """Whether an answer of this thread may wait. Only the leader and the main thread send what is held,
        and a view may have lasted until another thread leads, or until the checks have ended.
        """
        return self.turns.is_checked_leader(self.get_ident())

    # -- the main thread -----------------------------------------------------------------

    def check(self, now: float) -> bool:
        """Let another thread lead if the leader is blocked, and send what is held for too long.

        Returns False if the next check may wait until a thread wakes the main thread.
        """
        turns = self.turns
        checking = turns.check(now, _time_spent)
        checking = self._send_overdue(now) or checking
        if not turns.working and (self.batch.received or self.poller.has_more()):
            # All threads may wait in the poller, where they do not see that there is work.
            self.poller.nudge()
        return checking

    def _send_overdue(self, now: float) -> bool:
        """Send the answers that are held for too long; whether anything is left.

        Each system call gives the interpreter away, and a thread that computes gives it back after the switch
        interval only: with five milliseconds each, the last answer would wait for long.
        """
        if not self.batch.is_overdue(now):
            return self.batch.send_overdue(now)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(min(interval, _SWITCH_INTERVAL))
        try:
            return self.batch.send_overdue(now)
        finally:
            sys.setswitchinterval(interval)
