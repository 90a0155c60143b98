# SPDX-License-Identifier: MIT
"""The tornado worker: Tornado's event loop and HTTP server, also for WSGI.

The library parses requests, answers them and keeps connections open. The worker accepts connections, tracks
what each waits for, counts requests, and ends as every worker does.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

from gunicorn import sock as listening
from gunicorn.http.errors import InvalidRequestLine, RequestTimeout
from gunicorn.http.parse import RequestHead, checked_head
from gunicorn.workers.base import TICK
from gunicorn.workers.connection import State, has_input, wrap_accepted
from gunicorn.workers.cycle import shown
from gunicorn.workers.loopworker import HANDSHAKE_SECONDS, SWEEP, LoopWorker
from gunicorn.workers.retiring import LAST_WAIT, close_silent, retire

try:
    import tornado
    from tornado.httputil import HTTPServerConnectionDelegate
    from tornado.ioloop import IOLoop, PeriodicCallback

    from gunicorn.workers.gtornadoserver import (
        Conn,
        DaemonThreads,
        ProxyIntake,
        Reply,
        RequestInfo,
        Server,
        Stream,
        TLSStream,
    )
    from gunicorn.workers.gtornadowsgi import Container
except ImportError as error:
    raise RuntimeError(f"the tornado worker class needs the library tornado ({error})") from error

TORNADO5: bool = tornado.version_info >= (5, 0)

# How far a head may exceed the limits and still be read, so that its client gets an answer.
HEADER_SLACK = 65536


class TornadoWorker(LoopWorker):
    """Serves a Tornado application, or a WSGI one, in the loop or in `threads` threads beside it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cfg = self.cfg
        self.conns: dict[Any, Conn] = {}
        self.server: Any = None
        self.serves_wsgi = False
        self._tls: Any = None
        self._keepalive = float(cfg.keepalive)
        self._patience = float(cfg.timeout) or None
        self._retiring: Any = None

    @classmethod
    def setup(cls) -> None:
        """Called in the master when the class is chosen; nothing is to be prepared there."""

    def init_process(self) -> None:
        # The application may use it while it loads. Workers must not share a loop of the master's.
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        super().init_process()

    # -- the loop ------------------------------------------------------------------------

    def run(self) -> None:
        self.ioloop = IOLoop.current()
        if self.cfg.is_ssl:
            self._tls = listening.ssl_context(self.cfg)
        self.server = self._make_server()
        self._changed_conns = asyncio.Event()
        if self.slot is not None:
            self.slot.write_later = partial(self.loop.call_later, self.slot.WRITE_INTERVAL, self.slot.write)
        # The master waits for twice `timeout`.
        beat = min(TICK, self.timeout / 2 or TICK)
        callbacks = [
            PeriodicCallback(self.heartbeat, beat * 1000),
            PeriodicCallback(self.watchdog, beat * 1000),
            PeriodicCallback(self._sweep, SWEEP * 1000),
        ]
        for callback in callbacks:
            callback.start()
        self.ioloop.add_handler(self.PIPE[0], self._on_signal, IOLoop.READ)
        self._listen()
        # A predecessor waits for the first heartbeat, and periodic callbacks begin with a pause.
        self.notify()
        self.ioloop.start()
        for callback in callbacks:
            callback.stop()

    def _make_server(self) -> Any:
        application = self.wsgi
        # An application of the library's own takes requests from its server.
        self.serves_wsgi = not isinstance(application, HTTPServerConnectionDelegate)
        if self.serves_wsgi:
            threads = self.cfg.threads
            executor = DaemonThreads(threads) if threads > 1 else None
            application = Container(self, application, executor)
        policy = self.cycle.policy
        server = Server(
            application,
            # Beyond this it closes the connection without an answer.
            max_header_size=policy.max_line + policy.max_header_bytes + HEADER_SLACK,
            no_keep_alive=self._keepalive <= 0,
            protocol="https" if self.cfg.is_ssl else None,
        )
        server.worker = self
        return server

    def heartbeat(self) -> None:
        """Send a heartbeat."""
        self.notify()

    def watchdog(self) -> None:
        """Begin to end when told to, or when the master is gone."""
        if self.alive and not self.is_parent_alive():
            self.alive = False
        if not self.alive and self._retiring is None:
            self._retiring = self._begin(self._retire_gracefully())

    def _on_signal(self, fd: int, events: int) -> None:
        self.drain_pipe()
        self.watchdog()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # If an application has added signal handlers to the loop, ours no longer wakes it.
        self.wake()

    # -- the graceful end, as retire() wants it --------------------------------------------

    async def _retire_gracefully(self) -> None:
        self.server.conn_params.no_keep_alive = True
        try:
            for seconds in retire(self):
                self._changed_conns.clear()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed_conns.wait(), seconds)
                self._prune()
        finally:
            self.ioloop.stop()

    def at_work(self) -> list[Any]:
        return [key for key, conn in self.conns.items() if conn.state == State.BUSY and not conn.detached]

    def close_silent(self, retired_at: float) -> None:
        close_silent(self.conns.values(), retired_at)
        if time.monotonic() - retired_at >= LAST_WAIT[State.NEW]:
            for conn in self.conns.values():
                if conn.detached and conn.state != State.LINGER:
                    conn.hang_up()

    # -- connections ---------------------------------------------------------------------

    def _watch(self, fd: int) -> None:
        self.ioloop.add_handler(fd, lambda fd, events: self._accept(fd), IOLoop.READ)

    def _unwatch(self, fd: int) -> None:
        self.ioloop.remove_handler(fd)

    def current_conns(self) -> Iterable[Conn]:
        return self.conns.values()

    def serve(self, client: Any, peer: Any) -> None:
        conn = Conn(client)
        try:
            if self._tls is not None:
                conn.sock = client = wrap_accepted(self._tls, client, self.cfg)
                conn.enter(State.HANDSHAKE)
                conn.stream = TLSStream(client)
                self._begin(self._shake_hands(conn, peer))
            else:
                conn.stream = Stream(client)
        except (OSError, ValueError):
            # The client has left already.
            client.close()
            return
        self.conns[conn.stream] = conn
        self.count_connections()
        if self._tls is None:
            self._serve(conn, peer)

    async def _shake_hands(self, conn: Conn, addr: Any) -> None:
        try:
            await conn.stream.wait_for_handshake()
        except OSError as error:
            # Tornado's StreamClosedError has the reason.
            reason = getattr(error, "real_error", None) or error
            log = self.log.warning if isinstance(reason, ssl.SSLError) else self.log.debug
            log("TLS with %s failed: %s", shown(addr), reason)
            conn.stream.close()
            self._forget(conn.stream)
        else:
            self._serve(conn, addr)

    def _serve(self, conn: Conn, addr: Any) -> None:
        conn.stream.conn, conn.stream.worker = conn, self
        conn.address = addr
        if self.cycle.policy.proxy_protocol:
            if getattr(conn.sock, "proxy_seen", False):
                conn.proxy_info = conn.sock.proxy_info
            else:
                conn.stream.intake = ProxyIntake(self, conn.stream, addr)
        self.server.handle_stream(conn.stream, addr)

    def await_request(self, stream: Any, reply: Reply) -> Conn:
        """The library waits for the next request on *stream*, whose answer will be *reply*."""
        conn = self.conns[stream]
        conn.enter(State.NEW if conn.state in (State.NEW, State.HANDSHAKE) else State.IDLE)
        last, conn.reply, reply.conn = conn.reply, reply, conn
        if last is not None and last.closes:
            # The library may keep the connection open, and it reads what came before it closed one.
            conn.ended = True
            conn.hang_up()
        return conn

    def connection_lost(self, stream: Any) -> None:
        """The library is done with *stream*, which is closed or now speaks something else."""
        conn = self.conns.get(stream)
        if conn is not None and not stream.closed():
            conn.detached = True
        else:
            self._forget(stream)

    def _forget(self, stream: Any) -> None:
        conn = self.conns.pop(stream, None)
        self.count_connections()
        if conn is not None and conn.reply is not None:
            # The client may have left before the answer.
            conn.reply.count(None)
        self._changed_conns.set()
        self._resume_accepting()

    def _prune(self) -> None:
        for stream in [stream for stream, conn in self.conns.items() if conn.detached and stream.closed()]:
            self._forget(stream)

    def _sweep(self) -> None:
        """End connections that have waited for too long."""
        self._prune()
        now = time.monotonic()
        patience = self._patience
        for stream, conn in list(self.conns.items()):
            waited = now - conn.since
            if conn.state == State.HANDSHAKE:
                if waited > (patience or HANDSHAKE_SECONDS):
                    stream.close()
            elif (conn.state == State.IDLE and waited > self._keepalive) or (
                conn.state in (State.NEW, State.HEAD) and patience and waited > patience
            ):
                # After a pause of the process, a request may be there that was not read yet.
                if has_input(conn.sock):
                    continue
                if conn.state == State.HEAD:
                    self.handle_error(None, conn.sock, conn.address, RequestTimeout())
                conn.hang_up()
        # If clients wait, accept again: that closes an idle connection to make room.
        self._resume_accepting(anyway=True)

    # -- requests ------------------------------------------------------------------------

    def handle_request(self) -> None:
        """Count a request."""
        self.nr += 1
        if self.nr >= self.max_requests:
            self.retire()

    def begin_request(self, start_line: Any, headers: Any, conn: Conn, reply: Reply) -> Any:
        """Check the head of a request, count it, call the hooks, and prepare for the access log.

        Returns the request line for the library. Raises ParseException for a head that the other worker
        classes would refuse.
        """
        started = time.monotonic()
        head = reply.head = self._check(start_line, headers, conn)
        reply.closes = head.should_close
        if head.fragment or (head.authority is not None and head.method != "CONNECT"):
            # RFC 9112 section 3.2.2. The library would take the whole target for the path.
            query = head.target.partition("#")[0].partition("?")[1:]
            start_line = start_line._replace(path=head.path + "".join(query))
        context = reply.context
        context.protocol = head.scheme
        if conn.proxy_info is not None:
            reply.proxy_protocol_info = conn.proxy_info.as_dict()
            context.address = conn.proxy_info.client_addr, conn.proxy_info.client_port
            context.remote_ip = conn.proxy_info.client_addr
        self.handle_request()
        if self.slot is not None:
            reply.began = started
            self.slot.begin(head, started)
        cycle = self.cycle
        if not (cycle.pre_request or cycle.post_request or cycle.wants_access):
            return start_line
        info = RequestInfo(start_line, headers, conn.address, context.address)

        def finished() -> None:
            environ = info.environ()
            try:
                if cycle.wants_access:
                    self.log.access(reply, info, environ, timedelta(seconds=time.monotonic() - started))
                if cycle.post_request is not None:
                    cycle.post_request(self, info, environ, reply)
            except Exception:
                self.log.exception("The code after a request failed")

        reply.on_finish = finished
        if cycle.pre_request is not None:
            try:
                cycle.pre_request(self, info)
            except Exception:
                self.log.exception("The hook pre_request failed")
        return start_line

    def _check(self, start_line: Any, headers: Any, conn: Conn) -> RequestHead:
        policy = self.cycle.policy
        trusted = policy.forwarded_allow.allows(conn.address)
        if not start_line.path.isascii():
            raise InvalidRequestLine(start_line.path)
        head = checked_head(tuple(start_line), list(headers.get_all()), policy, trusted)
        if head.authority is not None:
            headers["Host"] = head.authority
        if "Expect" in headers:
            # The library looks for one spelling, whatever the version of HTTP.
            del headers["Expect"]
            if head.expect_continue:
                headers["Expect"] = "100-continue"
        return head
