# SPDX-License-Identifier: MIT
"""uvicorn's protocol for HTTP, with the checks, limits and counts of this server."""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gunicorn.http.errors import (
    ClientAnswer,
    InvalidRequestLine,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
)
from gunicorn.http.parse import exact_head
from gunicorn.workers.asgirequest import HTTPRequest, Request
from gunicorn.workers.connection import State

try:
    from gunicorn.workers.asgiwebsocket import WebSocket
except ImportError:
    WebSocket = None  # type: ignore[assignment,misc]

if TYPE_CHECKING:
    from gunicorn.workers.asgiconnection import Conn

CRLF = b"\r\n"

_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))

# With one of these fields, a head is read by the exact rules.
RARE = frozenset((b"transfer-encoding", b"expect"))

# Valid values of Host that clients have sent; they choose them, so keep it small.
_HOSTS_MAX = 64


class _Answered:
    """Stands for the request before the first one, where uvicorn asks whether that is answered."""

    response_complete = True


_ANSWERED = _Answered()


class HTTP(HttpToolsProtocol):  # type: ignore[misc]
    """HTTP on one connection."""

    #: The latest request.
    cycle: Any
    #: Its fields; once the head is complete, its trailers.
    headers: list[tuple[bytes, bytes]]

    def __init__(self, worker: Any, conn: Conn) -> None:
        super().__init__(
            config=worker.uvicorn,
            server_state=worker.server_state,
            app_state=worker.lifespan.state,
            _loop=worker.loop,
        )
        self.worker = worker
        self.connection = conn
        if WebSocket is not None:
            self.ws_protocol_class = partial(WebSocket, self)
        #: Requests without a complete response, the oldest first.
        self.requests: deque[HTTPRequest] = deque()
        # How much has been received since the last request was complete.
        self._received = 0
        # How much of that since there was a head or content in it.
        self._without_content = 0
        self._in_head = False
        self.url = b""
        self._root = self.root_path.encode("ascii")
        # Why what was received last is to be refused.
        self._error: ClientAnswer | None = None
        # The same, once it waits for the response to a request before.
        self._refused: ClientAnswer | None = None
        # When a part of a body came.
        self._body_at = 0.0

    def connection_made(self, transport: Any) -> None:
        conn = self.connection
        conn.attach(transport, self)
        super().connection_made(conn)
        self.client = conn.client

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.closing = True
        super().connection_lost(exc)
        self.worker.forget(self.connection)
        while self.requests:
            self.requests.popleft().lost()

    def eof_received(self) -> None:
        cycle = self.cycle
        waits_for_body = cycle is not None and cycle.more_body and not cycle.response_started
        if (self._in_head or waits_for_body) and not self.connection.closing:
            self._refuse(NoMoreData(b""))
        # The application is told of a client that closes while its answer is under way.

    # -- what is received -----------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        conn = self.connection
        if conn.closing or self._refused is not None:
            return
        state = conn.state
        if state is State.IDLE or state is State.NEW:
            self._received = 0
        if state is not State.BUSY and not self._in_head and (self._received or data[0] in CRLF):
            # One empty line may precede a request (RFC 9112 section 2.2). The parser skips all of them.
            before = CRLF[: self._received] + data[: len(data) - len(data.lstrip(CRLF))]
            if before != CRLF and not before == data == b"\r":
                self.url = b""
                self._refuse(InvalidRequestLine(data[:120]))
                return
        self._received += len(data)
        body_at = self._body_at
        # Each request has a context of its own. That of the callback may be the one of another request.
        self.worker.context.copy().run(self._feed, data)
        if conn.state is not State.BUSY and not conn.closing:
            if conn.state is not State.HEAD:
                conn.enter(State.HEAD)
            self._check_size()
        elif self._body_at != body_at:
            self._without_content = 0
        else:
            # Trailers, or the head of the next request while this one is served.
            self._without_content += len(data)
            policy = self.worker.cycle.policy
            if self._without_content > policy.max_line + policy.max_header_bytes:
                self._error = LimitRequestHeaders(f"more than {policy.max_header_bytes} bytes behind content")
                self.send_400_response("")

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            elif self.parser.get_method() != b"CONNECT":
                self._go_on_without_upgrade(data[upgrade.args[0] :])
        except HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Read a request again without its Upgrade, which nobody here understands.

        The parser takes what follows such a head for another protocol, but it is the body, or the next
        request (RFC 9110 section 7.8). Clients that prefer HTTP/2 send ``Upgrade: h2c`` with any request.
        """
        if self.cycle is _ANSWERED:
            self.cycle = None
        lines = [self._request_line()]
        lines += [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = HttpRequestParser(self)
        self._feed(b"\r\n".join((*lines, b"", rest)))

    def _check_size(self) -> None:
        policy = self.worker.cycle.policy
        if self._in_head and len(self.url) > policy.max_line:
            self._refuse(LimitRequestLine(len(self.url), policy.max_line))
        elif self._received > policy.max_line + policy.max_header_bytes:
            text = f"header fields of more than {policy.max_header_bytes} bytes"
            self._refuse(LimitRequestHeaders(text))

    def on_message_begin(self) -> None:
        self._in_head = True
        HttpToolsProtocol.on_message_begin(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        # uvicorn looks for Expect here; _check_exactly() does it.
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        worker, conn, scope, parser = self.worker, self.connection, self.scope, self.parser
        method, version = parser.get_method(), parser.get_http_version()
        upgrades = parser.should_upgrade()
        if upgrades and method != b"CONNECT" and not self._should_upgrade():
            # See _go_on_without_upgrade(), which the parser leads to now.
            self.cycle = self.cycle or _ANSWERED
            return
        try:
            path, query = self._check_head(method, version)
        except ParseException as error:
            self._error = error
            raise
        scope["method"] = method.decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        if upgrades and self._should_upgrade():
            return  # handle_websocket_upgrade() is next
        scope["query_string"] = query
        if path.startswith(b"/"):
            scope["raw_path"] = self._root + path
            text = path.decode("ascii")
            scope["path"] = self.root_path + (unquote(text) if "%" in text else text)
        else:
            # The target of CONNECT, or the asterisk of OPTIONS.
            scope["raw_path"], scope["path"] = path, path.decode("ascii")
        keep_alive = (
            version != "1.0"
            and parser.should_keep_alive()
            and not (conn.hung_up or upgrades)
            and worker.alive
            and worker.keepalive > 0
        )
        self.cycle = request = HTTPRequest(self, keep_alive)
        conn.state, conn.since = State.BUSY, request.since
        self._body_at = request.since
        self.requests.append(request)
        worker.begin_request(request)
        # Trailers come by the same way as fields. Drop them: by the time they come, the fields were checked.
        self.headers = []
        if self.requests[0] is request:
            self._start(request)
        else:
            # The client does not wait for answers.
            self.flow.pause_reading()

    def _start(self, request: HTTPRequest) -> None:
        """Have the application serve *request*."""
        request.task = task = self.loop.create_task(request.run(request.scope, request.receive))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _check_head(self, method: bytes, version: str) -> tuple[bytes, bytes]:
        """Check the head as the other worker classes do. Returns path and query as the client has sent them.

        Raises ParseException.
        """
        worker, url = self.worker, self.url
        headers = self.headers
        fields = dict(headers)
        usual = worker.unusual.isdisjoint(fields)
        if (
            self._received <= worker.small_head
            and len(fields) == len(headers) <= worker.max_fields
            and url[:1] == b"/"
            and b"#" not in url
            and url.isascii()
            and fields.get(b"host") in worker.hosts
            and method in _METHODS
            and (usual or (RARE.isdisjoint(fields) and not worker.forwarded.may_disagree(fields)))
            and b"_" not in b"".join(fields)
            and version == "1.1"
        ):
            path, _, query = url.partition(b"?")
        else:
            path, query = self._check_exactly()
        if not usual and self.connection.trusted:
            worker.forwarded.apply(self.scope)
        return path, query

    def _request_line(self) -> bytes:
        parser = self.parser
        return b"%s %s HTTP/%s" % (parser.get_method(), self.url, parser.get_http_version().encode())

    def _check_exactly(self) -> tuple[bytes, bytes]:
        worker, headers = self.worker, self.headers
        lines = [self._request_line()]
        lines += [b"%s: %s" % field for field in headers]
        block = b"\r\n".join((*lines, b"", b""))
        head = exact_head(block, worker.cycle.policy, self.connection.trusted)
        self.expect_100_continue = head.expect_continue
        # Without those that header_map drops.
        headers[:] = [(_encoded(name.lower()), _encoded(value)) for name, value in head.headers]
        if head.authority is not None:
            headers[:] = [
                (b"host", _encoded(head.authority)),
                *(field for field in headers if field[0] != b"host"),
            ]
        for name, value in headers:
            if name == b"host" and len(worker.hosts) < _HOSTS_MAX and len(value) < 256:
                worker.hosts.add(value)
        return head.path.encode("ascii"), head.query.encode("ascii")

    def on_body(self, body: bytes) -> None:
        self._body_at = monotonic()
        super().on_body(body)

    # -- answers -----------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        conn = self.connection
        if self.requests:
            self.worker.end_request(self.requests.popleft())
        if conn.closing:
            return
        if self.requests:
            # Read no more until they have their answers.
            self.worker.context.copy().run(self._start, self.requests[0])
            return
        self.flow.resume_reading()
        if self._refused is not None:
            self._refuse(self._refused)
        else:
            conn.state = State.HEAD if self._in_head else State.IDLE
            conn.since = monotonic()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed; called by uvicorn."""
        error = self._error or InvalidRequestLine(self.url[:120] if self._in_head else msg)
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            self._refuse(error)
        else:
            # The requests before have their answers first.
            self._refused = error

    def _refuse(self, error: ClientAnswer) -> None:
        """Answer instead of the application, and close."""
        conn, cycle = self.connection, self.cycle
        request: Request | None = None
        if cycle is not None and not cycle.response_complete and self.requests:
            # It has begun, and its body is malformed or does not come.
            request = self.requests.pop()
            self.worker.forget_request(request)
            request.disconnect()
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.worker.handle_error(request or self._refused_request(), conn, conn.peer, error)
        conn.close()
        if request is not None and request.task is not None:
            self.worker.loop.call_later(self.worker.grace, request.task.cancel)

    def _refused_request(self) -> Request | None:
        if not self.url:
            return None
        self.scope.setdefault("method", self.parser.get_method().decode("ascii"))
        return Request(self)

    def give_up(self, error: ClientAnswer) -> None:
        """The client has stopped sending, or taking what is sent."""
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_started:
            self._refuse(error)
        else:
            self.connection.abort()

    @property
    def more_expected(self) -> bool:
        """Whether the client is known to be still sending."""
        if self._in_head or self._refused is not None or self._error is not None:
            return True
        return self.cycle is not None and bool(self.cycle.more_body)

    def waits_since(self, now: float) -> float:
        """For how many seconds the rest of the body has not come, though it may."""
        cycle = self.cycle
        if not cycle.more_body or cycle.waiting_for_100_continue or self.flow.read_paused:
            return 0.0
        return now - self._body_at


def log_library(log: logging.Logger) -> None:
    """Have uvicorn log its errors to *log*.

    What it warns of is logged here, too. Below that it logs what WebSockets receive and send.
    """
    library = logging.getLogger("uvicorn.error")
    library.handlers = list(log.handlers)
    library.setLevel(max(log.level, logging.ERROR))
    library.propagate = False

    def mistakes_of_clients(record: logging.LogRecord) -> bool:
        if record.exc_info is None or not isinstance(record.exc_info[1], UnicodeDecodeError):
            return True
        record.exc_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return log.isEnabledFor(logging.WARNING)

    library.filters = [mistakes_of_clients]


def _encoded(text: str) -> bytes:
    return text.encode("latin-1")
