# SPDX-License-Identifier: MIT
"""A request under the asgi worker, as the application, the hooks, the log and the scoreboard see it."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

from gunicorn.http.head import error_response
from gunicorn.workers.asgireply import COPIED, NONE, STATUSES, TO_THE_END, Head
from gunicorn.workers.cycle import Stopped, answer_for

if TYPE_CHECKING:
    from gunicorn.workers.asgiconnection import Conn

# Of the requests for whose content nobody waits, which are most.
_UNUSED_EVENT = asyncio.Event()


class Request:
    """One request, and what was answered."""

    # Defaults of the class, because each attribute that is set takes time.

    task: asyncio.Task[Any] | None = None
    status_code: int | None = None
    fields: Any = ()
    sent = 0
    #: Whether it was counted and logged.
    counted = False
    timed_out = False

    def __init__(self, http: Any) -> None:
        self.worker = http.worker
        self.conn: Conn = http.connection
        self.scope: dict[str, Any] = http.scope
        self.uri_bytes: bytes = http.url
        self.since = monotonic()

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

    async def run(self, scope: dict[str, Any], receive: Any) -> None:
        """Call the application, and answer for it if it fails."""
        try:
            await self.worker.wsgi(scope, receive, self.send)
        except Stopped as error:
            self.disconnect()
            self.worker.stop_loop(error)
        except asyncio.CancelledError:
            if self.timed_out:
                await self._fail(503, "Service Unavailable", "The request took too long.")
        except BaseException as error:
            self.worker.cycle.end_fork(error)
            self._log_error(error)
            await self._fail(*answer_for(None))
        else:
            if not self.is_answered and not self.is_gone:
                self._log_error(None)
                await self._fail(*answer_for(None))

    async def send(self, message: dict[str, Any]) -> None:
        raise NotImplementedError

    async def _fail(self, status: int, reason: str, text: str) -> None:
        """Answer for the application, or cut off what it has begun to answer."""
        raise NotImplementedError

    def disconnect(self) -> None:
        """From now on there is no client to answer."""
        raise NotImplementedError

    @property
    def is_answered(self) -> bool:
        raise NotImplementedError

    @property
    def is_gone(self) -> bool:
        raise NotImplementedError

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


class HTTPRequest(Request):
    """A request of HTTP: receives its content, and sends its response.

    uvicorn's protocol has it in the place of its own RequestResponseCycle, and changes disconnected, body,
    more_body and message_event.
    """

    disconnected = False
    more_body = True
    message_event = _UNUSED_EVENT
    #: Whether the application has been told that its content is complete.
    _told_end = False
    #: The response.
    head: Head | None = None
    response_started = False
    response_complete = False

    def __init__(self, http: Any, keep_alive: bool) -> None:
        Request.__init__(self, http)  # cheaper than super()
        self.http = http
        self.flow = http.flow
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = http.expect_100_continue
        self.body = bytearray()

    async def receive(self) -> dict[str, Any]:
        """Wait for content, or for the end of the request."""
        if self.waiting_for_100_continue:
            self.waiting_for_100_continue = False
            self.conn.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.disconnected or self.response_complete):
            if self.http.requests[-1] is self:
                # There is no next request to be read before this one is answered.
                self.flow.resume_reading()
            if self.body or not (self.more_body or self._told_end):
                content, self.body = bytes(self.body), bytearray()
                self._told_end = not self.more_body
                return {"type": "http.request", "body": content, "more_body": self.more_body}
            if self.message_event is _UNUSED_EVENT:
                self.message_event = asyncio.Event()
            self.message_event.clear()
            await self.message_event.wait()
        # An application that goes on receiving, or sending, may wait nowhere else: let the others run.
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """Send a part of the response: the head once the first part of the content is there, too.

        A coroutine, because a thread of the application may call it, for the loop to run it: only the
        loop's own thread may touch the transport.
        """
        if self.flow.write_paused:
            await self.flow.drain()
        if self.disconnected:
            await asyncio.sleep(0)
            return
        kind = message["type"]
        if kind == "http.response.start" and self.head is None:
            self._start(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.head is not None and not self.response_complete:
            more = message.get("more_body", False)
            self._write(message.get("body", b""), more)
            if more and self.head.framing == NONE:
                await asyncio.sleep(0)
        else:
            raise RuntimeError(f"the application sends {kind!r} where it is not expected")

    def _start(self, status: int, fields: Any) -> None:
        worker = self.worker
        if not worker.alive:
            worker.cycle.end_fork(None)
        # A client that is still sending the body might have to send all of it.
        keeps = self.keep_alive and not (self.more_body or self.conn.hung_up) and worker.alive
        old = self.scope["http_version"] != "1.1"
        self.head = Head(self.scope["method"], old, status, fields, keeps, worker.default_lines)
        self.status_code, self.fields = status, fields
        # From now on the client need not send a body that waits for "100 Continue".
        self.waiting_for_100_continue = False

    def _write(self, body: Any, more: bool) -> None:
        head, conn = self.head, self.conn
        assert head is not None
        data = head.content(body, more)
        if not self.response_started:
            self.response_started = True
            if len(data) < COPIED:
                data = b"".join((head.data, data))
            else:
                conn.write(head.data)
        if data:
            conn.write(data)
        if head.framing != NONE:
            self.sent += len(body)
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not head.keeps:
                conn.close()
            self.http.on_response_complete()

    @property
    def is_answered(self) -> bool:
        return self.response_complete

    @property
    def is_gone(self) -> bool:
        return self.disconnected

    async def _fail(self, status: int, reason: str, text: str) -> None:
        if self.response_complete:
            # Leave the connection alone: it may serve another request by now.
            return
        if self.head is not None and self.response_started:
            # The client sees that the content is not whole.
            if self.head.framing == TO_THE_END:
                self.conn.reset()
            else:
                self.conn.close()
            return
        page = error_response(status, reason, text).partition(b"\r\n\r\n")[2]
        self.keep_alive = False
        fields = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", b"%d" % len(page))]
        self._start(status, fields)
        if not self.disconnected:
            self._write(page, False)

    def disconnect(self) -> None:
        self.disconnected = True
        self.message_event.set()

    def lost(self) -> None:
        self.disconnect()
        super().lost()


class Response:
    """What was answered, as hooks and the access log take it from a WSGI response."""

    def __init__(self, request: Request) -> None:
        self.status_code = request.status_code
        self.status = STATUSES.get(request.status_code or 0) or f"{request.status_code} -"
        self.headers = [
            (bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in request.fields
        ]
        self.sent = self.response_length = request.sent
        self.proxy_protocol_info = request.proxy_protocol_info


def _text(value: bytes) -> str:
    return bytes(value).decode("latin-1")
