# SPDX-License-Identifier: MIT
"""Tornado's HTTP server on streams that a worker accepts; it reports the end of each to the worker."""

from __future__ import annotations

import asyncio
import queue
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.iostream import IOStream, SSLIOStream

from gunicorn.http.errors import ForbiddenProxyRequest, NoMoreData, ParseException
from gunicorn.http.head import check_header, encode_head, field_lines
from gunicorn.http.parse import RequestHead
from gunicorn.http.proxyproto import ProxyInfo, split_proxy_header, starts_proxy_header
from gunicorn.workers import connection
from gunicorn.workers.connection import Connection, State, has_input


class Conn(Connection):
    """A connection with what the library has of it."""

    stream: Any = None
    address: Any = None
    reply: Reply | None = None
    # Whether the application has taken it over, as for a WebSocket.
    detached = False
    proxy_info: ProxyInfo | None = None
    # Whether a response has announced the end: what follows its request is not answered.
    ended = False
    # Whether a part of the body of the current request is missing.
    reading_body = False

    @property
    def has_begun(self) -> bool:
        """Whether a part of a request has come, and nothing was answered."""
        if self.state == State.HEAD:
            return True
        return self.reading_body and self.reply is not None and self.reply.status is None

    def hang_up(self) -> None:
        self.hung_up = True
        if self.state != State.HANDSHAKE:
            if has_input(self.sock):
                # At the end of input the library closes the stream, even if a request has come before.
                return
            if isinstance(self.sock, ssl.SSLSocket):
                # TLS would answer an end without close_notify with an alert.
                connection.send_close_notify(self.sock)
                self.stream.close()
                return
        super().hang_up()


class _Noticing:
    """A stream that notices when something of the next request arrives."""

    conn: Conn | None = None
    worker: Any = None
    # Takes the first bytes if the PROXY protocol is on.
    intake: ProxyIntake | None = None

    def read_from_fd(self, buf: Any) -> Any:
        if self.intake is not None:
            # Leave room for the bytes that were held back.
            count = super().read_from_fd(memoryview(buf)[: len(buf) // 2])  # type: ignore[misc]
            if count is not None:
                count = self.intake.pass_on(buf, count)
        else:
            count = super().read_from_fd(buf)  # type: ignore[misc]
        conn = self.conn
        if count and conn is not None and conn.state in (State.NEW, State.IDLE):
            if bytes(buf[: min(count, 4)]).strip(b"\r\n"):
                conn.enter(State.HEAD)
        elif count == 0 and conn is not None:
            return self._end_of_input(conn)
        return count

    def _end_of_input(self, conn: Conn) -> int | None:
        """The library closes the stream for a 0, though the client may have ended its own side alone."""
        stream: Any = self
        if stream.reading():
            if conn.has_begun:
                conn.reading_body = False
                if conn.reply is not None:
                    conn.reply.forget()  # what follows counts it
                self.worker.handle_error(None, conn.sock, conn.address, NoMoreData(b""))
        elif self.worker.serves_wsgi and conn.state in (State.HEAD, State.BUSY):
            # The client waits for its answer. A WSGI application, unlike one of Tornado's, is not told of the
            # end; the next read finds it again. Until then the loop would report it without a pause.
            loop = stream.io_loop
            loop.update_handler(stream.fileno(), loop.WRITE if stream.writing() else loop.ERROR)
            return None
        return 0


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
        """Take the header from the *count* bytes just received into *buf*; returns how many are left.

        As in ``read_from_fd()``, None says that there is nothing yet, 0 that the connection is to be closed.
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
        # If nothing follows the header, 0 would end the connection.
        return count or None

    def _is_over(self) -> bool:
        """Remove the header, if there is one; False while it is not complete."""
        starts = starts_proxy_header(self._held)
        if not starts:
            return starts is False
        policy = self._worker.cycle.policy
        if not policy.proxy_allow.allows(self._address):
            raise ForbiddenProxyRequest(str(self._address[0]))
        found = split_proxy_header(self._held, policy.proxy_protocol)
        if found is None:
            return False
        del self._held[: found[0]]
        self._stream.conn.proxy_info = found[1]
        return True


class RequestInfo:
    """A request, as hooks and the access log see it."""

    def __init__(self, start_line: Any, headers: Any, peer: Any, client: Any) -> None:
        self.method: str = start_line.method
        self.uri: str = start_line.path
        self.path, _, self.query = str(start_line.path).partition("?")
        self.version: str = start_line.version
        self.headers = [(name.upper(), value) for name, value in headers.get_all()]
        self.remote_addr = self.peer_addr = peer
        # The client behind a proxy.
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
    """Passes a response on to the library's connection, and keeps its status and fields."""

    proxy_protocol_info: dict[str, Any] | None = None
    #: The head of its request.
    head: RequestHead

    def __init__(self, worker: Any, inner: Any) -> None:
        self._worker = worker
        self._inner = inner
        self._tunnel: Any = None
        self.conn: Any = None
        self.status: str | None = None
        self.headers: list[tuple[str, str]] = []
        self.sent = 0
        self.closes = False
        self.on_finish: Callable[[], None] | None = None
        #: Since when its request is being served, where the scoreboard shows that.
        self.began: float | None = None

    @property
    def response_length(self) -> int:
        return self.sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_headers(self, start_line: Any, headers: Any, chunk: bytes | None = None) -> Any:
        is_tunnel = (
            self.head.method == "CONNECT" and 200 <= start_line.code < 300 and not self.stream.closed()
        )
        ends = self.closes or not self._worker.alive or self.conn.hung_up
        if is_tunnel or (ends and start_line.code != 101):
            # The library decided when the request came; the worker may have been told to end since then.
            headers["Connection"] = "close"
            self.closes = True
        self.status = f"{start_line.code} {start_line.reason}"
        self.sent += len(chunk or b"")
        if is_tunnel:
            # RFC 9110 section 9.3.6. The library would announce chunks.
            for name in ("Content-Length", "Transfer-Encoding"):
                headers.pop(name, None)
            self.headers = [(name, check_header(name, value)[1]) for name, value in headers.get_all()]
            data = encode_head(f"HTTP/1.1 {self.status}\r\n" + field_lines(self.headers))
            self._tunnel = self.stream.write(data + (chunk or b""))
            return self._tunnel
        self.headers = list(headers.get_all())
        return self._inner.write_headers(start_line, headers, chunk)

    def write(self, chunk: bytes) -> Any:
        self.sent += len(chunk)
        if self._tunnel is not None and not self.stream.closed():
            self._tunnel = self.stream.write(chunk)
            return self._tunnel
        return self._inner.write(chunk)

    def finish(self) -> None:
        if self._tunnel is not None:
            # The connection is not HTTP any more; close it once pending output is sent.
            self._tunnel.add_done_callback(lambda _: self._inner.close())
        else:
            self._inner.finish()
        self._finished()

    def cut_off(self) -> None:
        """Close the connection, because the response is not whole."""
        self.conn.ended = True
        self._inner.close()
        self._finished()

    def _finished(self) -> None:
        done, self.on_finish = self.on_finish, None
        if done is not None:
            done()
        self.count(int(self.status[:3]) if self.status is not None else None)

    def count(self, status: int | None) -> None:
        """Count the request, once, which was answered with *status*."""
        began, self.began = self.began, None
        if began is not None:
            self._worker.slot.end(self.head, began, status, self.sent)

    def forget(self) -> None:
        """Show the request no more, and do not count it."""
        began, self.began = self.began, None
        if began is not None:
            self._worker.slot.forget(self.head)

    def refuse(self, start_line: Any, headers: Any, error: ParseException) -> None:
        """Answer a request that cannot be served as it was sent, without calling the application."""
        self.on_finish = None  # what follows puts it into the access log
        self.forget()
        conn = self.conn
        conn.ended = True
        request = RequestInfo(start_line, headers, conn.address, conn.address)
        self._worker.handle_error(request, conn.sock, conn.address, error)


async def _linger(stream: Any) -> None:
    """Discard what the client still sends, within bounds, and close *stream*, whose request is answered."""
    until = time.monotonic() + connection.LINGER_SECONDS
    try:
        connection.send_close_notify(stream.socket)
        stream.socket.shutdown(socket.SHUT_WR)
        while (left := until - time.monotonic()) > 0:
            await asyncio.wait_for(stream.read_bytes(65536, partial=True), left)
            await asyncio.sleep(0)  # what has arrived is read without giving way to others
    except (OSError, asyncio.TimeoutError):
        pass  # the end, or too slow
    finally:
        stream.close()


class Intake(HTTPMessageDelegate):  # type: ignore[misc]
    """Passes a request on to the application, and reports it to the worker."""

    def __init__(self, worker: Any, conn: Conn, reply: Reply, inner: Any) -> None:
        self._worker = worker
        self._conn = conn
        self._reply = reply
        self._inner = inner

    def headers_received(self, start_line: Any, headers: Any) -> Awaitable[None] | None:
        conn, reply = self._conn, self._reply
        if conn.ended:
            reply.detach().close()
            return None
        conn.enter(State.BUSY)
        try:
            start_line = self._worker.begin_request(start_line, headers, conn, reply)
        except ParseException as error:
            stream = reply.detach()
            reply.refuse(start_line, headers, error)
            return _linger(stream)
        conn.reading_body = True
        found: Awaitable[None] | None = self._inner.headers_received(start_line, headers)
        return found

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        found: Awaitable[None] | None = self._inner.data_received(chunk)
        return found

    def finish(self) -> None:
        self._conn.reading_body = False
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
