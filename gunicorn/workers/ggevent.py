# SPDX-License-Identifier: MIT
"""The gevent worker: a greenlet for each connection, all in one thread.

Blocking calls must be gevent's, so each worker patches the standard library after its fork; the master and
the companions stay unpatched.
"""

from __future__ import annotations

import contextlib
import math
import os
import ssl
import sys
import time
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

from gunicorn import __version__
from gunicorn import sock as listening
from gunicorn.http.errors import RequestTimeout
from gunicorn.http.parse import whole_head
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import READ_SIZE
from gunicorn.http.wsgi import base_environ
from gunicorn.workers import connection
from gunicorn.workers.base import TICK
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.connection import (
    IDLE_AT_LEAST,
    PUNCTUALITY,
    Connection,
    State,
    hang_up_longest_idle,
    has_input,
    wrap_accepted,
)
from gunicorn.workers.cycle import Outcome, may_leave_http
from gunicorn.workers.retiring import close_silent, retire

try:
    # With what patching needs: imported in the master, so that not each worker has to.
    import gevent
    import gevent.event
    import gevent.events
    import gevent.hub
    import gevent.monkey
    import gevent.queue
    import gevent.select
    import gevent.socket
    import gevent.ssl
    import gevent.subprocess
    import gevent.threading

    from gunicorn.workers.gpywsgi import GeventResponse, PyWSGIHandler, PyWSGIServer
    from gunicorn.workers.gsocket import ClientSocket, patient_class, set_patience
except ImportError as error:
    raise RuntimeError(f"the gevent worker classes need the library gevent ({error})") from error

__all__ = [
    "VERSION",
    "GeventPyWSGIWorker",
    "GeventResponse",
    "GeventWorker",
    "PyWSGIHandler",
    "PyWSGIServer",
]

VERSION = f"gunicorn/{__version__} gevent/{gevent.__version__}"

# The limit of a TLS handshake where `timeout` sets none.
HANDSHAKE_SECONDS = 30.0

_READ = 1  # of gevent's watchers


class GeventWorker(AsyncWorker):
    """Serves up to `worker_connections` connections, each in a greenlet.

    A subclass may set ``server_class`` to one of gevent's WSGI servers, and ``wsgi_handler`` to its handler.
    The server then parses requests and answers them, on connections that are accepted here.
    """

    server_class: Any = None
    wsgi_handler: Any = None

    @classmethod
    def speaks(cls, protocol: str) -> bool:
        return cls.server_class is None or super().speaks(protocol)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conns: dict[Any, Connection] = {}
        self._servers: dict[Any, Any] = {}
        self._accept_errors = connection.AcceptErrors(self.log)
        self._tls: Any = None
        self._patience: float | None = float(self.cfg.timeout) or None
        # The master waits for twice `timeout`.
        self._beat = min(TICK, self.timeout / 2 or TICK)
        self._request_timeout = float(self.cfg.request_timeout)

    # -- the start -----------------------------------------------------------------------

    def init_process(self) -> None:
        # A preloaded application may have used gevent in the master.
        gevent.reinit()
        self.patch()
        for listener in self.sockets:
            _make_cooperative(listener)
        super().init_process()

    def patch(self) -> None:
        """Patch the standard library, and warn if that comes too late.

        A subclass that patches more calls this first.
        """
        if not gevent.monkey.is_module_patched("socket"):
            self._warn_if_late()
        with warnings.catch_warnings(), _entry_points_read_once():
            # _warn_if_late() has named the modules that hold something of the unpatched ssl.
            warnings.simplefilter("ignore", gevent.monkey.MonkeyPatchWarning)
            gevent.monkey.patch_all()

    def _warn_if_late(self) -> None:
        if self.app.callable is not None:
            self.log.warning(
                "The application was preloaded before gevent could patch the standard library; the"
                " unpatched parts it uses block the whole worker. Turn preload_app off, or"
                " patch in the configuration file"
            )
            return
        holders = [
            name
            for name, module in list(sys.modules.items())
            if name != "ssl" and getattr(module, "__dict__", {}).get("SSLContext") is ssl.SSLContext
        ]
        if holders:
            self.log.warning(
                "gevent patches the standard library only now; these modules of the configuration file "
                "hold the unpatched SSLContext: %s",
                ", ".join(sorted(holders)),
            )

    def timeout_ctx(self) -> Any:
        """Ends its block quietly after `keepalive` seconds."""
        return gevent.Timeout(self.keepalive, False)

    # -- the main greenlet ---------------------------------------------------------------

    def run(self) -> None:
        if self.cfg.is_ssl:
            self._tls = listening.ssl_context(self.cfg)
            if isinstance(self._tls, gevent.ssl.SSLContext):
                self._tls.sslsocket_class = patient_class(self._tls.sslsocket_class)
        for listener in self.sockets:
            self.address_of(listener)
        if self.server_class is not None:
            self._servers = {listener: self._make_server(listener) for listener in self.sockets}
        self._alarm = gevent.get_hub().loop.io(self.PIPE[0], _READ)
        self._ended = gevent.event.Event()
        if self.slot is not None:
            timer = gevent.get_hub().loop.timer(self.slot.WRITE_INTERVAL)
            self.slot.write_later = lambda write=self.slot.write: timer.start(write)
        self._acceptors = [gevent.spawn(self._accept_forever, listener) for listener in self.sockets]
        while self.alive and self.is_parent_alive():
            self._tick(self._beat)
        self.alive = False
        for seconds in retire(self):
            self._tick(seconds)
        if self.conns:
            with contextlib.suppress(gevent.Timeout):  # an application may catch what ends it
                gevent.killall(list(self.conns), block=True, timeout=0.2)

    def _tick(self, seconds: float) -> None:
        """Send a heartbeat and wait for a wake-up, at most *seconds*."""
        self.notify()
        if self._request_timeout:
            self._look_for_slow_requests()
        seconds = min(seconds, self._hang_up_overdue())
        with contextlib.suppress(TimeoutError):
            gevent.socket.wait(self._alarm, timeout=seconds)
            self.drain_pipe()

    def _hang_up_overdue(self) -> float:
        """Close connections that are silent for too long; return the seconds until the next one is."""
        now = time.monotonic()
        patience = self._patience or math.inf
        nearest = min(self.keepalive or patience, patience)
        for conn in list(self.conns.values()):
            limit = self.keepalive if conn.state == State.IDLE else patience
            if conn.state in (State.IDLE, State.NEW):
                left = conn.since + limit - now
                # A request may have come while the process was suspended, and must be answered.
                if left <= 0 and not has_input(conn.sock):
                    conn.hang_up()
                else:
                    nearest = min(nearest, left)
        return max(nearest, PUNCTUALITY)

    def _look_for_slow_requests(self) -> None:
        """Log where requests hang that take longer than `request_timeout`, and retire."""
        before = time.monotonic() - self._request_timeout
        for greenlet, conn in list(self.conns.items()):
            if conn.state == State.BUSY and conn.since < before and not conn.reported:
                conn.reported = True
                self.log_slow_request(conn.request, self._request_timeout, greenlet.gr_frame)
                self.leave("timeout")

    def suspended_frames(self) -> list[Any]:
        """Where each request waits: for a dump of stacks, which shows threads by itself."""
        return [greenlet.gr_frame for greenlet in self.at_work()]

    # -- the graceful end, as retire() wants it --------------------------------------------

    def at_work(self) -> list[Any]:
        return [greenlet for greenlet, conn in self.conns.items() if conn.state == State.BUSY]

    def close_silent(self, retired_at: float) -> None:
        close_silent(self.conns.values(), retired_at)

    def stop_accepting(self) -> None:
        gevent.killall(self._acceptors)

    def has_room(self) -> bool:
        return len(self.conns) < self.worker_connections

    def take(self, listener: Any) -> bool:
        """Begin to serve a connection from the accept queue; False if there is none."""
        try:
            client, addr = _accept(listener.sock)
        except BlockingIOError:
            return False
        except OSError as error:
            if not self._accept_errors.is_transient(error):
                gevent.sleep(IDLE_AT_LEAST / 10)
            return True
        greenlet = gevent.Greenlet(self._serve, listener, client, addr)
        self.conns[greenlet] = Connection(client)
        self.count_connections()
        greenlet.rawlink(self._forget)
        greenlet.start()
        return True

    # -- signals -------------------------------------------------------------------------

    def _handle_forks(self) -> None:
        super()._handle_forks()
        # The library does so only after the fork, and would wait for ever for a child that has ended by then.
        os.register_at_fork(before=lambda: gevent.get_hub().loop.install_sigchld())

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        self.alive = False
        # A hook may wait, which the hub cannot. And in a greenlet of gevent's server, the exception would
        # be taken for an error of the application.
        if _is_hub() or (self.server_class is not None and gevent.getcurrent().parent is not None):
            gevent.spawn(super().handle_quit, sig, frame)
        else:
            super().handle_quit(sig, frame)

    def handle_usr1(self, sig: int, frame: FrameType | None) -> None:
        if _is_hub():
            # A log handler may be locked, and the hub cannot wait for it.
            gevent.spawn(super().handle_usr1, sig, frame)
        else:
            super().handle_usr1(sig, frame)

    # -- connections ---------------------------------------------------------------------

    def _accept_forever(self, listener: Any) -> None:
        arrival = gevent.get_hub().loop.io(listener.fileno(), _READ)
        # Among several workers each takes one at a time, so that a burst is spread over them.
        takes_more = self.cfg.workers == 1
        while True:
            try:
                gevent.socket.wait(arrival)
                while not self.has_room():
                    hang_up_longest_idle(self.conns.values())
                    self._ended.clear()
                    self._ended.wait(IDLE_AT_LEAST)
                while self.take(listener) and takes_more and self.has_room():
                    pass
            except Exception:
                self.log.exception("An error while accepting connections")
                gevent.sleep(IDLE_AT_LEAST)

    def _serve(self, listener: Any, client: Any, addr: Any) -> None:
        try:
            self.handle(listener, client, addr)
        except Exception:
            self.log.exception("Closing a connection after an error")
            client.close()

    def _forget(self, greenlet: Any) -> None:
        conn = self.conns.pop(greenlet, None)
        self.count_connections()
        if conn is not None and conn.arrival is not None:
            conn.arrival.close()
        self._ended.set()
        if not self.alive:
            self.wake()

    def _connection(self, sock: Any) -> Connection:
        """The record of the connection that the current greenlet serves."""
        return self.conns.get(gevent.getcurrent()) or Connection(sock)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        conn = self._connection(client)
        if self._tls is None:
            set_patience(client, self._patience, self._may_pause_on)
        else:
            conn.enter(State.HANDSHAKE)
            try:
                # Wrapping closes the socket below: record the one that waits from here on.
                client = conn.sock = self._wrap(client)
                self._shake_hands(client)
            except (OSError, ValueError) as error:
                self.handle_error(None, client, addr, error)
                client.close()
                return
            set_patience(client, self._patience, self._may_pause_on)
            conn.enter(State.NEW)
        if self.server_class is not None:
            self._servers[listener].handle(client, addr)
        else:
            super().handle(listener, client, addr)

    def _wrap(self, client: Any) -> Any:
        kind = None
        if not isinstance(self._tls, gevent.ssl.SSLContext):
            # The hook ssl_context made it of an unpatched class, whose sockets would block.
            kind = patient_class(listening.tls_socket_class(self.cfg, gevent.ssl.SSLSocket))
        return wrap_accepted(self._tls, client, self.cfg, kind)

    def _shake_hands(self, tls: Any) -> None:
        try:
            late = ssl.SSLError("the handshake was not completed in time")
            with gevent.Timeout(self._patience or HANDSHAKE_SECONDS, late):
                tls.do_handshake()
        except BaseException:
            tls.close()
            raise

    def await_request(self, sock: Any, first: bool) -> bool:
        """Wait until something of a request, or the end of the connection, arrives.

        False if `keepalive` is over before. The main greenlet ends the wait by a hang-up: a timer for each
        wait would cost as much as a request.
        """
        conn = self._connection(sock)
        conn.enter(State.NEW if first else State.IDLE)
        if self._tls is None or not sock.pending():
            hub = gevent.get_hub()
            if conn.arrival is None:
                conn.arrival = hub.loop.io(sock.fileno(), _READ)
            # A check before the wait would hardly ever find a request. And other connections may end
            # meanwhile, which decides whether this one may be kept.
            hub.wait(conn.arrival)
            # Do not read after a hang-up: TLS would answer the missing close_notify with an alert.
            if conn.state == State.LINGER and not has_input(sock):
                return False
        conn.enter(State.HEAD)
        return True

    def begin_request(self, sock: Any, req: Any) -> None:
        """The head of *req* has been read."""
        conn = self._connection(sock)
        conn.request = req
        conn.enter(State.BUSY)
        if conn.hung_up and hasattr(req, "force_close"):
            req.force_close()

    def _next_request(self, parser: RequestParser) -> Any:
        unreader: Any = parser.unreader
        sock = unreader.sock
        first = not parser.req_count
        while not unreader.pending:
            if not self.await_request(sock, first):
                return None
            if self._tls is not None:
                break
            with contextlib.suppress(BlockingIOError):
                data = getattr(sock, "_sock", sock).recv(READ_SIZE)
                if not data:
                    return None
                unreader.unread(data)
                if whole_head(data, parser.policy, first=first):
                    # Nearly always: nothing more is waited for, so there is nothing to time.
                    req = next(parser, None)
                    self.begin_request(sock, req)
                    return req
        req = None
        with contextlib.suppress(StopIteration), gevent.Timeout(self._patience, RequestTimeout()):
            req = next(parser)
        self.begin_request(sock, req)
        return req

    def keeps_alive(self) -> bool:
        # A connection stays open only if there is room for another one.
        return self.keepalive > 0 and self.has_room()

    def _may_pause_on(self) -> bool:
        """Whether a client that has paused for `timeout` within a body may keep its place."""
        return self.alive and self.has_room()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Outcome | bool:
        if not may_leave_http(req):
            return super().handle_request(listener_name, req, sock, addr)
        # The next protocol, such as WebSocket, may be silent for long.
        set_patience(sock, None)
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            set_patience(sock, self._patience, self._may_pause_on)

    # -- gevent's own servers --------------------------------------------------------------

    def _make_server(self, listener: Any) -> Any:
        """gevent's server for *listener*. It is never started: this worker hands it connections."""
        handler = self.wsgi_handler or PyWSGIHandler
        if not issubclass(handler, PyWSGIHandler):
            # A foreign one: with ours as its base it takes part in the graceful stop.
            handler = type(handler.__name__, (handler, PyWSGIHandler), {})
        server = self.server_class(
            listener.sock,
            application=self.wsgi,
            log=self.log,
            error_log=self.log,
            handler_class=handler,
            environ=_server_environ(self.cfg, self.address_of(listener)),
        )
        server.worker = self
        server.update_environ()
        return server


class GeventPyWSGIWorker(GeventWorker):
    """The same on the HTTP of gevent's WSGI server."""

    server_class = PyWSGIServer
    wsgi_handler = PyWSGIHandler


@contextlib.contextmanager
def _entry_points_read_once() -> Iterator[None]:
    """Let gevent read the installed entry points once, and not for each of two dozen events.

    Reading them takes most of a worker's start, while clients may be waiting.
    """
    from importlib import metadata

    original = metadata.entry_points
    found = original()
    try:
        metadata.entry_points = found.select
        yield
    finally:
        metadata.entry_points = original


def _is_hub() -> bool:
    """Whether the hub runs, which must not wait, and not a greenlet.

    A signal may come while the worker boots: this must not create the hub, and import its modules, in the
    middle of another import.
    """
    return isinstance(gevent.getcurrent(), gevent.hub.Hub)


def _accept(listener: Any) -> tuple[Any, Any]:
    fd, addr = listener._accept()
    client = ClientSocket(listener.family, listener.type, listener.proto, fileno=fd)
    # An application sets a default for the connections that it makes itself.
    client.timeout = None
    return client, addr


def _make_cooperative(listener: Any) -> None:
    """Give *listener* a socket of gevent's, with the same descriptor."""
    plain = listener.sock
    if not isinstance(plain, gevent.socket.socket):
        family, kind, proto = plain.family, plain.type, plain.proto
        listener.sock = gevent.socket.socket(family, kind, proto, fileno=plain.detach())
    listener.sock.settimeout(0)


def _server_environ(cfg: Any, address: Any) -> dict[str, Any]:
    """The part of the environ that is the same for all requests to gevent's server."""
    host, port = address[:2] if isinstance(address, tuple) else (str(address), "")
    return {
        **base_environ(cfg),
        "wsgi.multithread": True,
        "wsgi.url_scheme": "https" if cfg.is_ssl else "http",
        "SERVER_SOFTWARE": VERSION,
        # Otherwise the server would ask the DNS.
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
    }
