# SPDX-License-Identifier: MIT
"""A connection of the threaded worker, the table of those that wait, and the threads that serve them."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gunicorn import sock as listening
from gunicorn.http.errors import NoMoreData
from gunicorn.http.parse import whole_head
from gunicorn.http.parser import RequestParser
from gunicorn.http.policy import RequestPolicy, policy_for
from gunicorn.workers.connection import State, wrap_accepted
from gunicorn.workers.cycle import KEEP, Outcome
from gunicorn.workers.threads.batch import Batch

if TYPE_CHECKING:
    import ssl
else:
    from gunicorn.unix import maybessl as ssl

_RECEIVE = 65536


class TConn:
    """A connection: the bytes of its next request so far, and its deadline for more."""

    def __init__(self, cfg: Any, sock: Any, client: Any, server: Any, batch: Batch | None = None) -> None:
        self.cfg = cfg
        self.batch: Any = batch
        self.sock = sock
        self.client = client
        self.server = server
        self.fd: int = sock.fileno()
        #: What it waits for or, while a thread has it, has waited for.
        self.state: str = State.NEW
        self.deadline = math.inf
        self.timeout: float | None = None
        self.parser: Any = None
        self.initialized = False
        #: Whether Python keeps the timeouts of the socket, and not the kernel: with TLS, and under gevent.
        self.is_timed = False
        self.gatherer: Any = None
        #: Whether ``gather()`` has received all that had arrived.
        self.received_all = True
        # The current request, if `request_timeout` limits it: since when, and by which thread.
        self.request: Any = None
        self.since = math.inf
        self.thread = 0
        #: What is still to be sent of a complete answer, and what becomes of the connection after it.
        self.answer = b""
        self.outcome: Outcome = KEEP
        #: Whether the answer to the request that is being served may wait for others.
        self.may_wait = False
        #: The next request, if it was parsed together with others.
        self.parsed: Any = None
        # While the answer is held: popped once it was sent, and once the request has ended.
        self._steps: list[bool] = []

    def hold(self, data: bytes) -> None:
        """Send *data*, a complete answer, together with others or at once, without waiting for the client."""
        self.answer = data
        self._steps = [True, False]
        self.batch.hold(self, self.may_wait)

    @property
    def is_held(self) -> bool:
        """Whether the answer to the request that is being served was given to ``hold()``."""
        return bool(self._steps)

    def step(self) -> bool:
        """Note that a held answer was sent, or that its request has ended; True for the later of both.

        Different threads may come with them. A pop is atomic.
        """
        return self._steps.pop()

    def init(
        self,
        context: ssl.SSLContext | None = None,
        policy: RequestPolicy | None = None,
        parser_class: type[RequestParser] = RequestParser,
    ) -> None:
        """Prepare for reading; with TLS the handshake is still to come. A second call does nothing."""
        if self.initialized:
            return
        self.initialized = True
        if self.cfg.is_ssl:
            self.set_timed()
            self.sock = wrap_accepted(context or listening.ssl_context(self.cfg), self.sock, self.cfg)
        self.parser = parser_class(self.cfg, self.sock, self.client, policy=policy or policy_for(self.cfg))

    def set_timed(self) -> None:
        """Have Python keep the timeouts of the socket, which waits for nothing between two requests."""
        self.is_timed = True
        self.sock.settimeout(0)

    def set_timeout(self) -> None:
        """Let the connection idle for `keepalive` seconds from now."""
        self.timeout = time.monotonic() + self.cfg.keepalive

    def gather(self) -> bool:
        """Receive without waiting; True once the parser can read a whole head.

        Raises BlockingIOError or SSLWantReadError where more has to come, NoMoreData at the end of the
        connection (its ``buf`` says of how much), ParseException for what is no request.
        """
        parser = self.parser
        unreader = parser.unreader
        gatherer = self.gatherer
        while True:
            if unreader.pending:
                data = unreader.read()
            elif self.is_timed:
                data = self.sock.recv(_RECEIVE)
            else:
                data = self.sock.recv(_RECEIVE, socket.MSG_DONTWAIT)
                unreader.asked = False
                self.received_all = len(data) < _RECEIVE
            if gatherer is None:
                # The parser finds its end again.
                if whole_head(data, parser.policy, first=not parser.req_count):
                    unreader.pending = data
                    return True
                gatherer = self.gatherer = parser.gatherer()
            if not data:
                raise NoMoreData(bytes(gatherer.buffer))
            if gatherer.feed(data):
                unreader.unread(bytes(gatherer.buffer))
                self.gatherer = None
                return True

    @property
    def has_begun(self) -> bool:
        """Whether a part of the next head has been received."""
        return self.gatherer is not None and bool(self.gatherer.buffer)

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


class Waiting:
    """The waiting connections, by descriptor. A thread that takes one out owns it.

    Threads compete for a connection with the main thread, which ends overdue ones. Each operation is one of a
    dict, which is atomic, so they need no lock. Between a check of a connection and its claim a thread may
    have served it, or closed it and accepted another one under its number. So check a claimed one again, and
    give it to *put_back* if it is another.
    """

    def __init__(self, put_back: Callable[[TConn], object]) -> None:
        self._by_fd: dict[int, TConn] = {}
        self._put_back = put_back

    def __len__(self) -> int:
        return len(self._by_fd)

    def park(self, conn: TConn) -> None:
        """Let *conn* wait."""
        self._by_fd[conn.fd] = conn

    def claim(self, fd: int) -> TConn | None:
        """Take out the connection of *fd*; None if another thread was faster."""
        return self._by_fd.pop(fd, None)

    def snapshot(self) -> list[TConn]:
        """Those that wait now, the longest first."""
        return list(self._by_fd.copy().values())

    def claim_expired(self, now: float) -> list[TConn]:
        """Take out those whose deadline has come."""
        return list(self._claim_where(lambda state, deadline: deadline <= now))

    def claim_longest_idle(self, before: float) -> TConn | None:
        """Take out the one that has idled the longest, if its deadline is *before* that moment."""
        idle = self._claim_where(lambda state, deadline: state == State.IDLE and deadline < before)
        return next(idle, None)

    def _claim_where(self, wanted: Callable[[str, float], bool]) -> Iterator[TConn]:
        for seen in self.snapshot():
            if not wanted(seen.state, seen.deadline) or self._by_fd.get(seen.fd) is not seen:
                continue
            conn = self.claim(seen.fd)
            if conn is None:
                continue
            if wanted(conn.state, conn.deadline):
                yield conn
            else:
                self._put_back(conn)

    def cap(self, state: str, deadline: float) -> None:
        """Let those in *state* wait no longer than *deadline*."""
        for conn in self.snapshot():
            if conn.state == state:
                conn.deadline = min(conn.deadline, deadline)

    def nearest(self) -> float:
        """The earliest deadline; infinity if there is none."""
        return min((conn.deadline for conn in self.snapshot()), default=math.inf)


class DaemonThreads:
    """Threads that a process does not wait for at its end: one may hang in the application."""

    def __init__(self) -> None:
        self._count = 0

    def submit(self, fn: Callable[..., object], *args: Any) -> None:
        self._count += 1
        threading.Thread(target=fn, args=args, name=f"gunicorn-thread-{self._count}", daemon=True).start()

    def shutdown(self, wait: bool = False) -> None:
        """Nothing: they end by themselves."""
