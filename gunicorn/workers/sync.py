# SPDX-License-Identifier: MIT
"""One request at a time, one request a connection."""

from __future__ import annotations

import _socket
import math
import select
import socket
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from gunicorn import sock as listening
from gunicorn.http.errors import NoMoreData
from gunicorn.http.parse import whole_head
from gunicorn.workers import connection
from gunicorn.workers.base import TICK, Worker
from gunicorn.workers.bodies import BodyIntake
from gunicorn.workers.connection import State
from gunicorn.workers.cycle import CLOSE, LINGER, RESET, Outcome, Stopped, may_leave_http
from gunicorn.workers.retiring import LAST_WAIT, close_listener, end_by, retire

if TYPE_CHECKING:
    import ssl
else:
    from gunicorn.unix import maybessl as ssl

# For `timeout = 0`. Not for ever: a signal interrupts only a wait that has a limit (signal(7)).
FOREVER = 86400.0

# For how many clients at once a worker that ends waits: for the requests of so many, and for so many that are
# answered to close their ends.
_MOST_WAITING = 64

_PEEK = 65536


class _Accepted(NamedTuple):
    """A connection that waits, until *deadline*."""

    listener: Any
    sock: Any
    addr: Any
    deadline: float


class StopWaiting(Exception):
    """Raised by ``wait()`` when the worker is to end."""


class SyncWorker(Worker):
    """Accepts a connection, answers its request, closes it, and only then looks for another.

    A slow client or a slow application holds the worker, and the master ends it after `timeout`.
    """

    @classmethod
    def speaks(cls, protocol: str) -> bool:
        return True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tls: Any = None
        self._names: dict[Any, Any] = {}
        self._serving = False
        self._accept_errors = connection.AcceptErrors(self.log)
        # TLS connections that shake hands, by descriptor.
        self._handshakes: dict[int, _Accepted] = {}
        # Those without a request yet, while the worker ends: silent clients must not delay others.
        self._silent: dict[int, _Accepted] = {}
        # Answered clients that still send: the worker waits for them last of all.
        self._lingering: list[Any] = []
        # The connection whose request the worker waits for.
        self._awaited: Any = None
        # Short of the master's timeout, so that a silent client costs itself and not the worker.
        self._patience = self.timeout or FOREVER
        self._receive_body = BodyIntake(self._left_for_body).receive

    def accept(self, listener: Any) -> None:
        """Accept one connection and serve it. Raises BlockingIOError if none is waiting."""
        client, addr = connection.accept(listener)
        if self._tls is None:
            self._handle_or_wait(listener, client, addr)
        else:
            self._begin_handshake(listener, client, addr)

    def wait(self, timeout: float) -> list[Any]:
        """The listeners that have a connection waiting, none of them after *timeout* seconds.

        Raises StopWaiting if the worker has been told to end, or the master is gone.
        """
        ready = self._poll_once(timeout)
        # Even if clients wait: under a steady load some always do.
        if not self.alive or not self.is_parent_alive():
            raise StopWaiting
        self._continue_handshakes(ready)
        return [listener for listener in self.sockets if listener.fileno() in ready]

    def _poll_once(self, timeout: float) -> set[int]:
        """Send a heartbeat and return the descriptors that are ready, none after *timeout* seconds."""
        self.notify()
        ready = set()
        for fd, events in self._poll.poll(timeout * 1000):
            if events & select.POLLNVAL:
                # A listener that was closed: it would end every later wait.
                self._poll.unregister(fd)
            else:
                ready.add(fd)
        if self.PIPE and self.PIPE[0] in ready:
            self.drain_pipe()
        return ready

    def run(self) -> None:
        self._tls = listening.ssl_context(self.cfg) if self.cfg.is_ssl else None
        self._names = {listener: listener.getsockname() for listener in self.sockets}
        self._poll = select.poll()
        for listener in self.sockets:
            listener.setblocking(False)
            self._poll.register(listener.fileno(), select.POLLIN)
        if self.PIPE:
            self._poll.register(self.PIPE[0], select.POLLIN)
        self._serving = True
        if self.slot is not None:
            self.slot.single = True
        # The wait ends often enough for heartbeats and to notice that the master has gone.
        timeout = min(TICK, self.timeout / 2 or TICK)
        if len(self.sockets) > 1 or self._tls is not None:
            # Check pending handshakes between two new connections.
            self.run_for_multiple(timeout)
        else:
            self.run_for_one(timeout)
        for seconds in retire(self):
            ready = self._poll_once(seconds)
            self._continue_handshakes(ready)
            self._handle_silent()
            for listener in self.sockets:
                if listener.fileno() in ready:
                    self.take(listener)
        until = min(
            time.monotonic() + connection.LINGER_SECONDS, (end_by(self) + self.graceful_deadline()) / 2
        )
        for client in self._lingering:
            connection.linger(client, until - time.monotonic())

    def run_for_one(self, timeout: float) -> None:
        """Serve a single listener: as long as connections are waiting, without asking whether they are."""
        listener = self.sockets[0]
        notified = 0.0
        beat = timeout / 4 if self.slot is None else min(timeout / 4, self.slot.WRITE_INTERVAL)
        while self.alive:
            now = time.monotonic()
            if now - notified > beat:
                self.notify()
                notified = now
                if not self.is_parent_alive():
                    return
            if self.take(listener):
                continue
            try:
                self.wait(timeout)
            except StopWaiting:
                return
            notified = time.monotonic()

    def run_for_multiple(self, timeout: float) -> None:
        """Serve several listeners in turn."""
        while self.alive:
            try:
                ready = self.wait(timeout)
            except StopWaiting:
                return
            for listener in ready:
                if not self.alive:
                    return
                self.notify()
                self.take(listener)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM, in a request maybe: new clients are refused, not left to wait for its end."""
        super().handle_exit(sig, frame)
        if self._awaited is not None:
            # The signal has interrupted the wait, which continues with the new values.
            self._hurry()
        # Before that, run() is about to use them, and then closes them itself.
        for listener in self.sockets if self._serving else ():
            if not connection.is_readable(listener):
                close_listener(listener)

    # -- the graceful end, as retire() wants it --------------------------------------------

    @property
    def conns(self) -> dict[int, Any]:
        """The connections that wait; any other is served at once and closed."""
        return {**self._handshakes, **self._silent}

    def at_work(self) -> list[Any]:
        return []

    def close_silent(self, retired_at: float) -> None:
        until = time.monotonic() + LAST_WAIT[State.HANDSHAKE]
        for fd, waiting in self._handshakes.items():
            self._handshakes[fd] = waiting._replace(deadline=min(waiting.deadline, until))

    def stop_accepting(self) -> None:
        """Nothing: clients are served from the queue as before."""

    def has_room(self) -> bool:
        return len(self._silent) < _MOST_WAITING

    def take(self, listener: Any) -> bool:
        """Serve a connection from the accept queue; False if there is none."""
        try:
            self.accept(listener)
        except BlockingIOError:
            return False
        except OSError as error:
            if listener.fileno() < 0:
                return False  # closed by the signal to end
            if not self._accept_errors.is_transient(error):
                time.sleep(0.1)
        return True

    # -- TLS -----------------------------------------------------------------------------

    def _begin_handshake(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Begin a handshake. It continues when the client does, and blocks nothing meanwhile."""
        client.setblocking(False)
        try:
            tls = connection.wrap_accepted(self._tls, client, self.cfg)
        except OSError:
            client.close()  # it has left
            return
        if len(self._handshakes) >= self.cfg.worker_connections:
            self._end_handshake(next(iter(self._handshakes)))
        deadline = time.monotonic() + (self.timeout or math.inf)
        self._handshakes[tls.fileno()] = _Accepted(listener, tls, addr, deadline)
        self._poll.register(tls.fileno(), select.POLLIN)
        self._shake_hands(tls.fileno())

    def _continue_handshakes(self, ready: set[int]) -> None:
        """Continue the handshakes of *ready* descriptors, and end those whose time is up."""
        for fd in ready & self._handshakes.keys():
            self._shake_hands(fd)
        now = time.monotonic()
        for fd in [fd for fd, waiting in self._handshakes.items() if waiting.deadline <= now]:
            # Its bytes may have come while another client was served.
            if fd in self._poll_once(0):
                self._shake_hands(fd)
            else:
                self._end_handshake(fd)

    def _shake_hands(self, fd: int) -> None:
        listener, tls, addr, _ = self._handshakes[fd]
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._poll.modify(fd, select.POLLIN)
        except ssl.SSLWantWriteError:
            self._poll.modify(fd, select.POLLOUT)
        except OSError as error:
            self.handle_error(None, tls, addr, error)
            self._end_handshake(fd)
        else:
            del self._handshakes[fd]
            self._poll.unregister(fd)
            tls.settimeout(self.timeout or None)
            if not self.timeout:
                connection.set_blocking_timeout(tls, self._patience)
            self._handle_or_wait(listener, tls, addr)

    def _end_handshake(self, fd: int) -> None:
        waiting = self._handshakes.pop(fd)
        self._poll.unregister(fd)
        waiting.sock.close()

    # -- the clients at the end --------------------------------------------------------------

    def _handle_or_wait(self, listener: Any, client: Any, addr: Any) -> None:
        """Handle *client*; at the end of the worker only once its request is there."""
        if self.alive or self._has_request(client):
            self.handle(listener, client, addr)
        else:
            deadline = min(time.monotonic() + LAST_WAIT[State.NEW], end_by(self))
            self._silent[client.fileno()] = _Accepted(listener, client, addr, deadline)

    def _handle_silent(self) -> None:
        """Handle clients whose requests have come meanwhile, and refuse those whose time is up."""
        for fd, (listener, client, addr, deadline) in list(self._silent.items()):
            if self._has_request(client):
                del self._silent[fd]
                self.handle(listener, client, addr)
            elif deadline <= time.monotonic():
                del self._silent[fd]
                self.handle_error(None, client, addr, TimeoutError())
                self._close(client, LINGER)

    def _has_request(self, client: Any) -> bool:
        """Whether reading a request from *client* would not wait, as far as that can be known."""
        if self._tls is not None:
            return client.pending() > 0 or connection.is_readable(client)
        try:
            data = client.recv(_PEEK, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError as error:
            return not isinstance(error, BlockingIOError)
        policy = self.cycle.policy
        if policy.begins_otherwise or len(data) in (0, _PEEK):
            return True
        return whole_head(data, policy, first=True) > 0

    # -- one connection ------------------------------------------------------------------

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve the connection *client* from *addr* and close it."""
        outcome: Outcome = CLOSE
        try:
            if self._tls is None:
                connection.set_blocking_timeout(client, self._patience)
            elif not isinstance(client, ssl.SSLSocket):
                # A subclass has accepted it in its own way.
                client.settimeout(self.timeout or None)
                client = connection.wrap_accepted(self._tls, client, self.cfg)
                client.do_handshake()
            self._awaited = client
            if not self.alive:
                self._hurry()
            parser = self.cycle.parser_class(self.cfg, client, addr, self.cycle.policy)
            parser.unreader.receive = self._receive_body  # type: ignore[attr-defined]
            try:
                req = next(parser)
            except StopIteration:
                return
            self._awaited = None
            leaves_http = may_leave_http(req)
            if leaves_http or not self.alive:
                # The next protocol may be silent for long. Otherwise undo the hurry.
                seconds = 0 if leaves_http else self._patience
                if self._tls is not None:
                    client.settimeout(seconds or None)
                connection.set_blocking_timeout(client, seconds)
            answer = self.handle_request(listener, req, client, addr)
            outcome = answer if isinstance(answer, str) else CLOSE
        except Stopped:
            client.close()
            raise
        except Exception as error:
            if isinstance(error, NoMoreData):
                self.log.debug("The connection ended during a request: %s", error)
            self.handle_error(None, client, addr, error)
            outcome = LINGER
        finally:
            self._awaited = None
            self._close(client, outcome)

    def _close(self, client: Any, outcome: Outcome) -> None:
        if outcome == RESET:
            connection.reset(client)
        elif not connection.begin_close(client, more_expected=outcome == LINGER):
            return
        elif self.alive:
            # The request may have taken nearly all of the time until the master misses a heartbeat.
            self.notify()
            connection.linger(client, min(connection.LINGER_SECONDS, self.timeout or math.inf))
        else:
            # Later, for all such clients at once: others wait for their answers.
            if len(self._lingering) == _MOST_WAITING:
                self._lingering.pop(0).close()
            self._lingering.append(client)

    def _hurry(self) -> None:
        """Wait only a moment more for a request that has not come yet, because the worker is to end."""
        client = self._awaited
        # The rest is for others. Not 0, which would be for ever.
        seconds = max(0.01, min(LAST_WAIT[State.NEW], (end_by(self) - time.monotonic()) / 2))
        if self._tls is not None:
            # A read that has begun keeps the timeout that it has begun with.
            timer = threading.Timer(seconds, self._cut_short, (client,))
            timer.daemon = True
            timer.start()
            return
        with suppress(OSError):
            connection.set_blocking_timeout(client, seconds)

    def _cut_short(self, client: Any) -> None:
        """End the wait for the request of *client*, if it still lasts; what has arrived is read."""
        if self._awaited is client:
            with suppress(OSError):
                # Below TLS, which would take it for the end of the encryption.
                _socket.socket.shutdown(client, socket.SHUT_RD)

    def _left_for_body(self) -> float:
        """How much longer to wait for a body: until shortly before the master misses a heartbeat."""
        if not self.alive:
            return 0
        limit = float(self.cfg.timeout)
        if not limit:
            return TICK
        left = self.tmp.last_update() + limit - min(1.0, limit / 10) - time.monotonic()
        return min(TICK, max(0.0, left))

    def handle_request(self, listener: Any, req: Any, client: Any, addr: Any) -> Outcome:
        """Have the application answer *req*; returns what becomes of the connection."""
        server = self._names.get(listener) or listener.getsockname()
        return self.cycle.serve(req, client, addr, server, keep=False)
