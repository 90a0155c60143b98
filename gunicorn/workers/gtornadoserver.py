# SPDX-License-Identifier: MIT
"""Tornado's HTTP server on streams that a worker accepts: it tells the worker what becomes of each."""

from __future__ import annotations

import queue
import ssl
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPMessageDelegate, ResponseStartLine
from tornado.iostream import IOStream, SSLIOStream
from tornado.wsgi import WSGIContainer

from gunicorn import SERVER_SOFTWARE
from gunicorn.http.errors import ForbiddenProxyRequest, ParseException
from gunicorn.http.proxyproto import ProxyInfo, split_proxy_header, starts_proxy_header
from gunicorn.http.wsgi import base_environ, proxy_environ
from gunicorn.workers import closing
from gunicorn.workers.connections import State
from gunicorn.workers.parting import Connection, has_input


class Conn(Connection):
    """A connection with what the library has of it."""

    stream: Any = None
    address: Any = None
    reply: Reply | None = None
    # No longer the library's: a WebSocket.
    detached = False
    proxy_info: ProxyInfo | None = None

    def hang_up(self) -> None:
        if isinstance(self.sock, ssl.SSLSocket) and self.state is not State.HANDSHAKE:
            # An end without TLS's goodbye would be answered with an alert.
            if not has_input(self.sock):
                closing.say_goodbye(self.sock)
                self.stream.close()
            return
        super().hang_up()


class _Noticing:
    """A stream that notices when something of the next request arrives."""

    conn: Conn | None = None
    # Takes what comes first, where the PROXY protocol is spoken.
    intake: ProxyIntake | None = None

    def read_from_fd(self, buf: Any) -> Any:
        if self.intake is not None:
            # Room is left for what was held back.
            count = super().read_from_fd(memoryview(buf)[: len(buf) // 2])  # type: ignore[misc]
            if count is not None:
                count = self.intake.pass_on(buf, count)
        else:
            count = super().read_from_fd(buf)  # type: ignore[misc]
        if count and self.conn is not None and self.conn.state in (State.NEW, State.IDLE):
            self.conn.enter(State.HEAD)
        return count


class Stream(_Noticing, IOStream):  # type: ignore[misc]
    pass


class TLSStream(_Noticing, SSLIOStream):  # type: ignore[misc]
    pass


class ProxyIntake:
    """Takes the PROXY header off what a stream receives first."""

    def __init__(self, worker: Any, stream: Any, address: Any) -> None:
        self._worker = worker
        self._stream = stream
        self._address = address
        self._held = bytearray()

    def pass_on(self, buf: Any, count: int) -> int | None:
        """Leave in *buf*, of whose bytes *count* were just received, what is no header; returns its length.

        As ``read_from_fd()`` does: None while there is none, 0 where the connection is to be closed.
        """
        if not count:
            return 0
        self._held += memoryview(buf)[:count]
        try:
            if not self._is_over():
                return None
        except ParseException as error:
            self._worker.handle_error(None, self._stream.socket, self._address, error)
            return 0
        self._stream.intake = None
        count = len(self._held)
        buf[:count] = self._held
        # Nothing behind the header: a length of 0 would be the end of the connection.
        return count or None

    def _is_over(self) -> bool:
        """Take the header away, if there is one; False while it is not complete."""
        starts = starts_proxy_header(self._held)
        if not starts:
            return starts is False
        if not self._worker.cycle.policy.proxy_allow.allows(self._address):
            raise ForbiddenProxyRequest(str(self._address[0]))
        found = split_proxy_header(self._held)
        if found is None:
            return False
        del self._held[: found[0]]
        self._stream.conn.proxy_info = found[1]
        return True


class RequestInfo:
    """What hooks and the access log want to know of a request."""

    def __init__(self, start_line: Any, headers: Any, peer: Any, client: Any) -> None:
        self.method: str = start_line.method
        self.uri: str = start_line.path
        self.path, _, self.query = str(start_line.path).partition("?")
        self.version: str = start_line.version
        self.headers = [(name.upper(), value) for name, value in headers.get_all()]
        self.remote_addr = self.peer_addr = peer
        # Whom a proxy speaks for, where it does.
        self._client = client

    def environ(self) -> dict[str, Any]:
        address = self._client
        values = {
            "REQUEST_METHOD": self.method,
            "RAW_URI": self.uri,
            "PATH_INFO": self.path,
            "QUERY_STRING": self.query,
            "SERVER_PROTOCOL": self.version,
            "REMOTE_ADDR": str(address[0]) if isinstance(address, tuple) else "",
        }
        values.update((f"HTTP_{name.replace('-', '_')}", value) for name, value in self.headers)
        return values


class Reply(HTTPConnection):  # type: ignore[misc]
    """Passes a response on to the library's connection, and remembers what was said in it."""

    proxy_protocol_info: dict[str, Any] | None = None

    def __init__(self, worker: Any, inner: Any) -> None:
        self._worker = worker
        self._inner = inner
        self.status: str | None = None
        self.headers: list[tuple[str, str]] = []
        self.sent = 0
        self.closes = False
        self.on_finish: Callable[[], None] | None = None

    @property
    def response_length(self) -> int:
        return self.sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_headers(self, start_line: Any, headers: Any, chunk: bytes | None = None) -> Any:
        if not self._worker.alive and start_line.code != 101:
            # The library decided when the request came; since then the worker was told to end.
            headers["Connection"] = "close"
            self.closes = True
        self.status = f"{start_line.code} {start_line.reason}"
        self.headers = list(headers.get_all())
        self.sent += len(chunk or b"")
        return self._inner.write_headers(start_line, headers, chunk)

    def write(self, chunk: bytes) -> Any:
        self.sent += len(chunk)
        return self._inner.write(chunk)

    def finish(self) -> None:
        self._inner.finish()
        done, self.on_finish = self.on_finish, None
        if done is not None:
            done()


class Intake(HTTPMessageDelegate):  # type: ignore[misc]
    """Passes a request on to the application, and tells the worker that it has come."""

    def __init__(self, worker: Any, conn: Conn, reply: Reply, inner: Any) -> None:
        self._worker = worker
        self._conn = conn
        self._reply = reply
        self._inner = inner

    def headers_received(self, start_line: Any, headers: Any) -> Awaitable[None] | None:
        self._conn.enter(State.BUSY)
        self._worker.begin_request(start_line, headers, self._conn, self._reply)
        found: Awaitable[None] | None = self._inner.headers_received(start_line, headers)
        return found

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        found: Awaitable[None] | None = self._inner.data_received(chunk)
        return found

    def finish(self) -> None:
        self._inner.finish()

    def on_connection_close(self) -> None:
        self._inner.on_connection_close()


class Server(HTTPServer):  # type: ignore[misc]
    """The library's server; ``worker`` gives it streams."""

    worker: Any

    def start_request(self, server_conn: Any, request_conn: Any) -> Any:
        reply = Reply(self.worker, request_conn)
        conn = self.worker.await_request(server_conn.stream, reply)
        return Intake(self.worker, conn, reply, super().start_request(server_conn, reply))

    def on_close(self, server_conn: Any) -> None:
        super().on_close(server_conn)
        self.worker.connection_lost(server_conn.stream)


class DaemonThreads(Executor):
    """Threads that a process does not wait for at its end: one may hang in the application."""

    def __init__(self, count: int) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        for number in range(count):
            threading.Thread(target=self._run, name=f"gunicorn-thread-{number + 1}", daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._work.put((future, lambda: fn(*args, **kwargs)))
        return future

    def _run(self) -> None:
        while True:
            future, work = self._work.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)


class Container(WSGIContainer):  # type: ignore[misc]
    """A WSGI application as the library runs it, with the environ of this server."""

    def __init__(self, worker: Any, application: Any, executor: Any) -> None:
        super().__init__(application, executor)
        self._worker = worker
        self._base = base_environ(worker.cfg)

    def environ(self, request: Any) -> dict[str, Any]:
        environ = {**self._base, **super().environ(request)}
        for name in ("wsgi.errors", "wsgi.multiprocess"):
            environ[name] = self._base[name]
        environ["SERVER_SOFTWARE"] = SERVER_SOFTWARE
        environ["RAW_URI"] = request.uri
        address = request.connection.context.address
        if isinstance(address, tuple):
            environ["REMOTE_PORT"] = str(address[1])
        environ.update(proxy_environ(request.connection))
        return environ

    async def handle_request(self, request: Any) -> None:
        reply = request.connection
        try:
            await super().handle_request(request)
        except Exception:
            self._worker.log.exception("The application failed on %s %a", request.method, request.uri)
            if reply.status is not None:
                reply.stream.close()
                return
            text = b"Internal Server Error\n"
            headers = HTTPHeaders(
                {"Content-Type": "text/plain", "Content-Length": str(len(text)), "Connection": "close"}
            )
            reply.closes = True
            reply.write_headers(ResponseStartLine("HTTP/1.1", 500, "Internal Server Error"), headers, text)
            reply.finish()
