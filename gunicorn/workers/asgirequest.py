# SPDX-License-Identifier: MIT
"""A request under the asgi worker, as the application, the hooks, the log and the scoreboard see it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any

from gunicorn.http.head import error_response
from gunicorn.workers.cycle import Stopped, answer_for

if TYPE_CHECKING:
    from gunicorn.workers.asgiconnection import Conn

# Fields that need a look if an application sends them.
_HOP_BY_HOP = frozenset((b"transfer-encoding", b"keep-alive"))
_SPECIAL = _HOP_BY_HOP | {b"date", b"server"}

_PHRASES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


class Request:
    """One request, and what was answered. uvicorn calls it as the application."""

    def __init__(self, worker: Any, conn: Conn, scope: dict[str, Any], uri: bytes) -> None:
        self.worker = worker
        self.conn = conn
        self.scope = scope
        self.uri_bytes = uri
        self.since = monotonic()
        #: uvicorn's part of it: keeps what the client sends, and sends the response.
        self.reply: Any = None
        self.task: asyncio.Task[Any] | None = None
        self.status_code: int | None = None
        self.fields: Any = ()
        self.sent = 0
        self.counted = False
        self.timed_out = False
        self._send: Any = None
        self._framing: Framing | None = None

    # -- for hooks, log and scoreboard ---------------------------------------------------

    @property
    def method(self) -> str:
        return self.scope.get("method", "GET")  # type: ignore[no-any-return]

    @property
    def uri(self) -> str:
        return self.uri_bytes.decode("latin-1")

    @property
    def path(self) -> str:
        return self.uri.partition("?")[0]

    @property
    def query(self) -> str:
        return self.uri.partition("?")[2]

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.scope["http_version"].split("."))

    @property
    def remote_addr(self) -> Any:
        return self.scope.get("client") or self.conn.peer

    @property
    def peer_addr(self) -> Any:
        return self.conn.peer

    @property
    def proxy_protocol_info(self) -> dict[str, Any] | None:
        info = self.conn.proxy_info
        return info.as_dict() if info is not None else None

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [(name.decode("latin-1").upper(), _text(value)) for name, value in self.scope["headers"]]

    def environ(self) -> dict[str, Any]:
        """The variables that a WSGI application would have, as far as the access log needs them."""
        client = self.scope.get("client")
        values: dict[str, Any] = {
            "REQUEST_METHOD": self.method,
            "RAW_URI": self.uri,
            "PATH_INFO": self.path,
            "QUERY_STRING": self.query,
            "SERVER_PROTOCOL": f"HTTP/{self.scope['http_version']}",
            "REMOTE_ADDR": client[0] if client else "",
            "REMOTE_PORT": str(client[1]) if client else "",
            "wsgi.url_scheme": self.scope["scheme"],
        }
        values.update((f"HTTP_{name.replace('-', '_')}", value) for name, value in self.headers)
        return values

    # -- the application --------------------------------------------------------------------

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.task = asyncio.current_task()
        self._send = send
        try:
            await self.worker.wsgi(scope, receive, self.send)
        except Stopped as error:
            # uvicorn would take it for an error of the application.
            self.reply.disconnected = True
            self.worker.stop_loop(error)
        except asyncio.CancelledError:
            if self.timed_out:
                await self._fail(503, "Service Unavailable", "The request took too long.")
        except BaseException as error:
            self._log_error(error)
            await self._fail(*answer_for(None))
        else:
            if not self.is_answered and not self.is_gone:
                self._log_error(None)
                await self._fail(*answer_for(None))

    def send(self, message: dict[str, Any]) -> Awaitable[None]:
        """Pass *message* on to the client."""
        kind = message["type"]
        if kind == "http.response.body":
            size = len(message.get("body", b""))
            if self._framing is not None:
                message = self._framing.body(self.reply, message, size)
            else:
                self.sent += size
        elif kind == "http.response.start" and not self.reply.response_started:
            return self._start(message)
        sent: Awaitable[None] = self._send(message)
        return sent

    async def _start(self, message: dict[str, Any]) -> None:
        reply = self.reply
        self.status_code = status = message["status"]
        self.fields = fields = message.get("headers", ())
        # A client that is still sending the body might have to send all of it.
        if reply.more_body or self.conn.hung_up or not self.worker.alive:
            reply.keep_alive = False
        names = {name.lower(): value for name, value in fields}
        length = names.get(b"content-length")
        if length is not None and not (length.isdigit() and _is_single(b"content-length", names, fields)):
            raise ValueError(f"the application sends no valid Content-Length: {length!r}")
        if not _SPECIAL.isdisjoint(names):
            fields = self._without_special(fields, names)
        if status in (204, 304) or self.scope["http_version"] != "1.1" or self.method in ("HEAD", "CONNECT"):
            self._framing, fields = framing_for(reply, self.method, status, fields)
        if fields is not self.fields:
            message = {**message, "headers": fields}
        try:
            await self._send(message)
        except BaseException:
            # The fields cannot be sent, and nothing was: there is room for a page about it.
            reply.response_started, reply.chunked_encoding = False, None
            reply.expected_content_length, self._framing = 0, None
            raise

    def _without_special(self, fields: Any, names: Any) -> list[Any]:
        """Leave out what only concerns this connection, and do not send twice what the server sends, too."""
        reply = self.reply
        reply.default_headers = [field for field in reply.default_headers if field[0] not in names]
        return [field for field in fields if field[0].lower() not in _HOP_BY_HOP]

    @property
    def is_answered(self) -> bool:
        return bool(self.reply.response_complete)

    @property
    def is_gone(self) -> bool:
        return bool(self.reply.disconnected)

    async def _fail(self, status: int, reason: str, text: str) -> None:
        """Answer for the application, or cut off what it has begun to answer."""
        if self.reply.response_started:
            # The client sees that the content is not whole.
            if self._framing is not None and self._framing.to_the_end:
                self.conn.reset()
            else:
                self.conn.close()
            return
        page = error_response(status, reason, text).partition(b"\r\n\r\n")[2]
        headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-length", b"%d" % len(page)),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": page})

    def _log_error(self, error: BaseException | None) -> None:
        log, where = self.worker.log, ascii(f"{self.method} {self.uri}")
        if error is None:
            log.error("The application has not answered %s", where)
        elif self.is_gone and isinstance(error, OSError):
            log.debug("The client went away during %s: %s", where, error)
        else:
            exc_info = type(error), error, error.__traceback__
            log.error("The application failed on %s", where, exc_info=exc_info)

    # -- ends ---------------------------------------------------------------------------------

    def lost(self) -> None:
        """The client has gone: give the application a while to end, and cancel it then."""
        if self.task is not None and not self.task.done():
            self.worker.loop.call_later(self.worker.grace, self.task.cancel)
        self.worker.end_request(self)

    def response(self) -> Response:
        return Response(self)


class Framing:
    """How the content of a response ends where that is neither by its length nor by chunks."""

    def __init__(self, to_the_end: bool) -> None:
        #: Whether it ends with the connection; otherwise there is none.
        self.to_the_end = to_the_end

    def body(self, reply: Any, message: dict[str, Any], size: int) -> dict[str, Any]:
        """Return *message* as uvicorn shall get it, with content of *size* bytes."""
        if not self.to_the_end:
            return {**message, "body": b""}
        if not message.get("more_body", False):
            # So that it does not miss anything.
            reply.expected_content_length = size
        return message


def _is_single(name: bytes, names: Any, fields: Any) -> bool:
    return len(names) == len(fields) or [field[0].lower() for field in fields].count(name) == 1


def framing_for(reply: Any, method: str, status: int, fields: Any) -> tuple[Framing | None, Any]:
    """Prepare uvicorn's *reply* for content of no usual kind, and return the fields to send."""
    if method == "HEAD":
        return None, fields
    if status in (204, 304) or (method == "CONNECT" and 200 <= status < 300):
        if status != 304:
            fields = [field for field in fields if field[0].lower() != b"content-length"]
        to_the_end = method == "CONNECT"
    elif any(name.lower() == b"content-length" for name, _ in fields):
        return None, fields
    else:
        to_the_end = True  # a client of HTTP/1.0 knows no chunks
    reply.chunked_encoding = False
    reply.expected_content_length = math.inf if to_the_end else 0
    if to_the_end:
        reply.keep_alive = False
    return Framing(to_the_end), fields


class WebSocketRequest(Request):
    """The handshake of a WebSocket. What follows is no request any more."""

    def send(self, message: dict[str, Any]) -> Awaitable[None]:
        if self.status_code is None:
            kind = message["type"]
            if kind == "websocket.accept":
                self.answered(101, message.get("headers") or ())
            elif kind == "websocket.close":
                self.answered(403)
            elif kind == "websocket.http.response.start":
                self.answered(message["status"], message.get("headers") or ())
        sent: Awaitable[None] = self._send(message)
        return sent

    def answered(self, status: int, fields: Any = ()) -> None:
        self.status_code, self.fields = status, fields
        self.worker.end_request(self)

    @property
    def is_answered(self) -> bool:
        return self.status_code is not None

    @property
    def is_gone(self) -> bool:
        return bool(self.reply.disconnected)

    async def _fail(self, status: int, reason: str, text: str) -> None:
        if self.status_code is not None:
            # The application is done: uvicorn closes.
            if not self.is_gone and not self.reply.close_sent:
                await self._send({"type": "websocket.close", "code": 1011})
            return
        self.answered(status)
        self.reply.send_500_response()


class Response:
    """What was answered, as hooks and the access log take it from a WSGI response."""

    def __init__(self, request: Request) -> None:
        self.status_code = request.status_code
        self.status = _PHRASES.get(request.status_code or 0) or f"{request.status_code} -"
        self.headers = [
            (bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in request.fields
        ]
        self.sent = self.response_length = 0 if request.method == "HEAD" else request.sent
        self.proxy_protocol_info = request.proxy_protocol_info


def _text(value: bytes) -> str:
    return bytes(value).decode("latin-1")
