# SPDX-License-Identifier: MIT
"""A connection of the threaded worker, and the threads that serve it."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gunicorn import sock as listening
from gunicorn.http.errors import NoMoreData
from gunicorn.http.parse import HeadGatherer, whole_head
from gunicorn.http.parser import RequestParser
from gunicorn.http.policy import RequestPolicy, policy_for
from gunicorn.workers import closing
from gunicorn.workers.connections import State
from gunicorn.workers.tls import wrap_accepted

if TYPE_CHECKING:
    import ssl
else:
    from gunicorn.unix import maybessl as ssl

_RECEIVE = 65536


class TConn:
    """A connection: the bytes of its next request so far, and its deadline for more."""

    def __init__(self, cfg: Any, sock: Any, client: Any, server: Any) -> None:
        self.cfg = cfg
        self.sock = sock
        self.client = client
        self.server = server
        self.fd: int = sock.fileno()
        self.state = self.was = State.NEW
        self.deadline = math.inf
        self.timeout: float | None = None
        self.parser: Any = None
        self.initialized = False
        self.is_tls = False
        self.gatherer: HeadGatherer | None = None
        #: Whether ``gather()`` has received all that had arrived.
        self.received_all = True
        # The current request, if `request_timeout` limits it: since when, and by which thread.
        self.request: Any = None
        self.since = math.inf
        self.thread = 0

    def init(self, context: ssl.SSLContext | None = None, policy: RequestPolicy | None = None) -> None:
        """Prepare for reading; with TLS the handshake is still to come. A second call does nothing."""
        if self.initialized:
            return
        self.initialized = True
        if self.cfg.is_ssl:
            self.is_tls = True
            self.sock.settimeout(0)
            self.sock = wrap_accepted(context or listening.ssl_context(self.cfg), self.sock, self.cfg)
        self.parser = RequestParser(self.cfg, self.sock, self.client, policy=policy or policy_for(self.cfg))

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
            elif self.is_tls:
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
                gatherer = self.gatherer = HeadGatherer(parser.policy, first=parser.req_count == 0)
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

    def has_input(self) -> bool:
        """Whether unread input has arrived, including the end of input."""
        try:
            closing.peek_now(self.sock)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


class DaemonThreads:
    """Threads that a process does not wait for at its end: one may hang in the application."""

    def __init__(self) -> None:
        self._count = 0

    def submit(self, fn: Callable[..., object], *args: Any) -> None:
        self._count += 1
        threading.Thread(target=fn, args=args, name=f"gunicorn-thread-{self._count}", daemon=True).start()

    def shutdown(self, wait: bool = False) -> None:
        """Nothing: they end by themselves."""
