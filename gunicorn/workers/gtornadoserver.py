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
from gunicorn.http.wsgi import base_environ
from gunicorn.workers import closing
from gunicorn.workers.connections import State
from gunicorn.workers.parting import Connection, has_input


class Conn(Connection):
    """A connection with what the library has of it."""

    stream: Any = None
    reply: Reply | None = None
    # No longer the library's: a WebSocket.
    detached = False

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

    def read_from_fd(self, buf: Any) -> Any:
        count = super().read_from_fd(buf)  # type: ignore[misc]
        if count and self.conn is not None and self.conn.state in (State.NEW, State.IDLE):
            self.conn.enter(State.HEAD)
        return count


class Stream(_Noticing, IOStream):  # type: ignore[misc]
    pass


class TLSStream(_Noticing, SSLIOStream):  # type: ignore[misc]
    pass


class RequestInfo:
    """What hooks and the access log want to know of a request."""

    def __init__(self, start_line: Any, headers: Any, address: Any) -> None:
        self.method: str = start_line.method
        self.uri: str = start_line.path
        self.path, _, self.query = str(start_line.path).partition("?")
        self.version: str = start_line.version
        self.headers = [(name.upper(), value) for name, value in headers.get_all()]
        self.remote_addr = self.peer_addr = address

    def environ(self) -> dict[str, Any]:
        address = self.remote_addr
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
        self._worker.begin_request(start_line, headers, self._reply)
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
