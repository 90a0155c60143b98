# SPDX-License-Identifier: MIT
"""gevent's WSGI server on connections that a worker accepts."""

from __future__ import annotations

import contextlib
import io
import ssl
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from typing import Any

import gevent
from gevent import pywsgi

from gunicorn.http import environ as environment
from gunicorn.http.chunked import LAST_CHUNK
from gunicorn.http.errors import (
    ForbiddenProxyRequest,
    InvalidProxyLine,
    InvalidRequestLine,
    LimitRequestHeaders,
    NoMoreData,
    ParseException,
    is_of_connection,
    of_connection,
)
from gunicorn.http.head import error_response, forbids_length
from gunicorn.http.parse import HEAD_END, MAX_EMPTY_LINES, RequestHead, parse_head
from gunicorn.http.proxyproto import (
    V1_MAX_LENGTH,
    V1_PREFIX,
    V2_HEADER_LENGTH,
    V2_SIGNATURE,
    ProxyInfo,
    split_proxy_header,
    starts_proxy_header,
)
from gunicorn.http.wsgi import Response, forwarded_script_name, proxy_environ, server_script_name
from gunicorn.workers import connection
from gunicorn.workers.cycle import Stopped, answer_for, is_end_of
from gunicorn.workers.gsocket import set_patience


class GeventResponse:
    """A response, as the access log sees it."""

    def __init__(self, status: Any, headers: Any, clength: int) -> None:
        self.status = status
        self.headers = headers
        self.sent = self.response_length = clength


class PyWSGIRequest:
    """A request, as hooks see it."""

    def __init__(self, handler: Any, environ: dict[str, Any]) -> None:
        path, _, query = str(handler.path or "-").partition("?")
        self.method: str = handler.command or "-"
        self.uri: str = handler.path or "-"
        self.path, self.query = path, query
        self._environ = environ
        self._handler = handler
        self.remote_addr = self.peer_addr = handler.peer_address or handler.client_address

    def force_close(self) -> None:
        """Let the connection end with this request."""
        self._handler.close_connection = True

    @cached_property
    def headers(self) -> list[tuple[str, str]]:
        # Made when needed: hardly any hook reads them.
        return [
            (name[5:].replace("_", "-"), value)
            for name, value in self._environ.items()
            if name.startswith("HTTP_")
        ]


_FRAMING = b"transfer-encoding", b"content-length"


class _Refused(BaseException):
    """Raised past the library, which has one answer for all requests that cannot be read."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Input(pywsgi.Input):  # type: ignore[misc]
    """The library's body, where an error of the connection can be told from others."""

    __slots__ = ()

    @property
    def is_held_back(self) -> bool:
        """Whether the client waits for a 100 (Continue), so that its body may never come."""
        return self.socket is not None

    def _discard(self) -> None:
        if not self.is_held_back:
            super()._discard()

    def read(self, length: Any = None) -> Any:
        with _of_connection():
            return super().read(length)

    def readline(self, size: Any = None) -> Any:
        with _of_connection():
            return super().readline(size)


@contextlib.contextmanager
def _of_connection() -> Iterator[None]:
    """Mark errors in its block as those of the connection."""
    try:
        yield
    except OSError as error:
        if type(error) is OSError and error.errno is None:
            # Raised by the library at an early end of the body.
            raise of_connection(NoMoreData(b"")) from None
        raise of_connection(error)


class PyWSGIHandler(pywsgi.WSGIHandler):  # type: ignore[misc]
    """Serves the requests of one connection.

    The library reads bodies and writes responses. The rules for requests and answers are those of the other
    worker classes.
    """

    _head_timer: Any = None
    _served = 0
    _head: RequestHead
    # Its fields as received, and in the library's form.
    _fields = b"\r\n"
    _message: Any = None
    # An application has connections of its own, whose ends are its errors.
    ignored_socket_errors = ()
    response_headers: Any
    _orig_status: Any
    # The application's response, checked, with its framing; None before start_response.
    _answer: Response | None = None
    # Whether another protocol may follow on the connection.
    _leaves_http = False
    # Whether the application has answered on the socket itself; what it sent is unknown here.
    _taken_over = False
    # The content of a page for an error.
    _page_size = 0
    # The request as the scoreboard has it, and since when it is served.
    _begun: tuple[PyWSGIRequest, float]
    # The client behind a proxy, then the peer.
    client_address: Any
    peer_address: Any = None
    proxy_protocol_info: dict[str, Any] | None = None

    @cached_property
    def _script_name(self) -> str:
        return server_script_name()

    def handle(self) -> None:
        try:
            super().handle()
        finally:
            self._end_of_head()

    def read_requestline(self) -> Any:
        worker = self.server.worker
        if not self._has_buffered() and not worker.await_request(self.socket, first=not self._served):
            return ""
        # The socket's own timeout is for each of many reads.
        self._head_timer = gevent.Timeout.start_new(worker.cfg.timeout or None, TimeoutError("slow head"))
        try:
            if self._served or not worker.cycle.policy.proxy_protocol:
                return self._read_line().decode("latin-1")
            return self._read_behind_proxy_header()
        except (ParseException, OSError) as error:
            raise _Refused(error) from None

    def _read_line(self) -> bytes:
        """The request line, behind the few empty ones that may precede it; empty at the end."""
        limit = self.server.worker.cycle.policy.max_line + 3
        line: bytes = self.rfile.readline(limit)
        for _ in range(MAX_EMPTY_LINES):
            if line == b"\r\n":
                line = self.rfile.readline(limit)
        if line == b"\r\n":
            raise InvalidRequestLine(line)
        if line.rstrip(b"\r\n") and not line.endswith(b"\n") and len(line) < limit:
            raise NoMoreData(line)
        return line

    def _read_behind_proxy_header(self) -> Any:
        """The request line of the first request, which a PROXY header may precede."""
        if getattr(self.socket, "proxy_seen", False):
            # It came before the TLS handshake; a second one, behind that, would be the client's.
            self._speak_for(self.socket.proxy_info)
            return self._read_line().decode("latin-1")
        # By lines nothing is received that the request would lack, if there is no header.
        is_v1 = self.rfile.peek(1).startswith(V1_PREFIX)
        line = self.rfile.readline(V1_MAX_LENGTH if is_v1 else pywsgi.MAX_REQUEST_LINE)
        while line and starts_proxy_header(line) is None and line.endswith(b"\n"):
            line += self.rfile.readline(pywsgi.MAX_REQUEST_LINE)
        if not starts_proxy_header(line):
            return line.decode("latin-1").lstrip("\r\n")
        policy = self.server.worker.cycle.policy
        if not policy.proxy_allow.allows(self.client_address):
            raise ForbiddenProxyRequest(str(self.client_address[0]))
        if line.startswith(V2_SIGNATURE):
            line += self.rfile.read(V2_HEADER_LENGTH - len(V2_SIGNATURE))
            line += self.rfile.read(int.from_bytes(line[-2:], "big"))
        found = split_proxy_header(line, policy.proxy_protocol)
        if found is None:
            raise InvalidProxyLine(line[:V1_MAX_LENGTH])
        self._speak_for(found[1])
        return self._read_line().decode("latin-1")

    def read_request(self, raw_requestline: str) -> bool:
        """Read what follows the request line, and set what the library needs of the head."""
        line = raw_requestline.encode("latin-1")
        policy = self.server.worker.cycle.policy
        try:
            fields = self._read_fields(policy.max_header_bytes) if line.endswith(b"\n") else b"\r\n"
            trusted = policy.forwarded_allow.allows(self.peer_address or self.client_address)
            head = self._head = parse_head(line + fields, policy, trusted)
        except (ParseException, OSError) as error:
            raise _Refused(error) from None
        self.requestline = raw_requestline.rstrip()
        self.command, self.path = head.method, head.target
        self.request_version = "HTTP/{}.{}".format(*head.version)
        self._message, self._fields = None, fields
        self.content_length = head.content_length
        self.close_connection = head.should_close
        return True

    def _read_fields(self, limit: int) -> bytes:
        """The lines of the head behind the first, with the empty one."""
        # Nearly always they came with it.
        received = self.rfile.peek(1)
        end = 2 if received.startswith(b"\r\n") else received.find(HEAD_END) + len(HEAD_END)
        if len(HEAD_END) <= end <= limit + 2:
            return bytes(self.rfile.read(end))
        data = bytearray()
        # A bare LF ends no head, as will be found.
        while (line := self.rfile.readline(limit + 3 - len(data))) not in (b"\r\n", b"\n"):
            data += line
            if len(data) > limit:
                raise LimitRequestHeaders(f"header fields of more than {limit} bytes")
            if not line.endswith(b"\n"):
                raise NoMoreData(bytes(data))
        return bytes(data + line)

    @property
    def headers(self) -> Any:
        """The fields in the library's form, for foreign handlers."""
        if self._message is None:
            self._message = self.MessageClass(io.BytesIO(self._fields), 0)
        return self._message

    @headers.setter
    def headers(self, headers: Any) -> None:
        self._message = headers

    def handle_one_request(self) -> Any:
        self._answer = self._orig_status = None
        self._page_size = 0
        more_expected = False
        try:
            result = super().handle_one_request()
        except _Refused as refused:
            self._end_of_head()
            req = PyWSGIRequest(self, {})
            self.server.worker.handle_error(req, self.socket, self.client_address, refused.error)
            result, more_expected = None, True
        if result is None:
            # The library would close it now, without waiting for a client that is still sending.
            more_expected |= getattr(self.wsgi_input, "is_held_back", False)
            connection.close_gracefully(self.socket, more_expected)
        return result

    def _speak_for(self, info: ProxyInfo | None) -> None:
        if info is not None:
            self.proxy_protocol_info = info.as_dict()
            self.peer_address = self.client_address
            self.client_address = (info.client_addr, info.client_port)

    def _has_buffered(self) -> bool:
        """Whether a part of the next request came along with the last one."""
        if not self._served:
            return False
        before = self.socket.gettimeout()
        self.socket.settimeout(0)
        try:
            return bool(self.rfile.peek(1))
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except (OSError, ValueError):
            return True  # reading will raise it again
        finally:
            self.socket.settimeout(before)

    def _end_of_head(self) -> None:
        timer, self._head_timer = self._head_timer, None
        if timer is not None:
            timer.close()

    def get_environ(self) -> Any:
        """Called once the head of a request was read."""
        self._end_of_head()
        head = self._head
        environ = self.server.get_environ()
        environ["REQUEST_METHOD"] = head.method
        environ["SERVER_PROTOCOL"] = self.request_version
        environ["QUERY_STRING"] = head.query
        environ["RAW_URI"] = head.target
        environ["wsgi.url_scheme"] = head.scheme
        environ["gunicorn.socket"] = environ["gunicorn.sock"] = self.socket
        if head.fields is not None:
            environ.update(head.fields)
        else:
            environment.add_headers(environ, head.headers)
        if head.authority is not None:
            environ["HTTP_HOST"] = head.authority
        environment.add_client(environ, self.client_address)
        environ.update(proxy_environ(self))
        try:
            environ["SCRIPT_NAME"], environ["PATH_INFO"] = self._split_path(head)
        except ParseException as error:
            raise _Refused(error) from None
        sock = self.socket if head.expect_continue else None
        self.wsgi_input = _Input(self.rfile, head.content_length, sock, head.chunked)
        # The next protocol, such as WebSocket, has no length.
        has_content = head.content_length or head.chunked
        upgrades = "HTTP_UPGRADE" in environ and not has_content
        environ["wsgi.input"] = self.rfile if upgrades else self.wsgi_input
        environ["wsgi.input_terminated"] = not upgrades
        self._served += 1
        worker = self.server.worker
        req = PyWSGIRequest(self, environ)
        worker.begin_request(self.socket, req)
        if worker.slot is not None:
            self._begun = req, time.monotonic()
            worker.slot.begin(*self._begun)
        worker.nr += 1
        if worker.nr >= worker.max_requests:
            worker.retire()
        self._leaves_http = upgrades or (self.command == "CONNECT" and not has_content)
        if self._leaves_http:
            # The next protocol may be silent for long.
            set_patience(self.socket, None)
        return environ

    def _split_path(self, head: RequestHead) -> tuple[str, str]:
        """SCRIPT_NAME and PATH_INFO. Raises ConfigurationProblem for a path that lies outside."""
        script_name = self._script_name
        policy = self.server.worker.cycle.policy
        if head.fields is None and policy.forwarded_allow.allows(self.peer_address or self.client_address):
            script_name = forwarded_script_name(head.headers, policy, script_name)
        return environment.split_script_name(head.path, script_name)

    def handle_one_response(self) -> None:
        worker = self.server.worker
        cycle = worker.cycle
        req = None
        if cycle.pre_request is not None or cycle.post_request is not None:
            req = PyWSGIRequest(self, self.environ)
        if cycle.pre_request is not None:
            with _logged(worker, "pre_request"):
                cycle.pre_request(worker, req)
        try:
            super().handle_one_response()
        finally:
            if worker.slot is not None:
                status = None if self._taken_over else int((self._orig_status or self.status or "0")[:3])
                sent = self._answer.sent if self._answer is not None else 0
                worker.slot.end(*self._begun, status, sent + self._page_size)
        if cycle.post_request is not None:
            with _logged(worker, "post_request"):
                cycle.post_request(worker, req, self.environ, self._response())

    # -- the response --------------------------------------------------------------------

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        """As the library's, with the checks of ``Response``."""
        answer = Response(self._head, None, self.server.worker.cfg)
        answer.start_response(status, headers)
        pairs = answer.headers
        if answer.upgrade:
            pairs = [*pairs, ("Connection", "Upgrade")]
        if answer.status_code == 304:
            # RFC 9110 section 8.6 allows a Content-Length here, but the library does not.
            pairs = [pair for pair in pairs if pair[0].lower() != "content-length"]
        super().start_response(status, pairs, exc_info)
        self._answer = answer
        return self.write

    def write(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            raise AssertionError("content was given before start_response was called")
        if data and not isinstance(data, bytes):
            raise TypeError(f"an application must give bytes, not {type(data).__name__}")
        if not answer.has_body:
            data = b""
        elif answer.response_length is not None:
            data = data[: answer.response_length - answer.sent]
        if data or not self.headers_sent:
            answer.sent += len(data)
            super().write(data)

    def _sendall(self, data: bytes) -> None:
        with _of_connection():
            super()._sendall(data)

    def process_result(self) -> None:
        for data in self.result:
            answer = self._answer
            if answer is not None and (answer.sent == answer.response_length or not answer.has_body):
                break
            # An empty item sends no head: the application may still replace it.
            if data or answer is None:
                self.write(data)
        answer = self._answer
        if answer is None:
            raise AssertionError("the application did not call start_response")
        if not self.headers_sent:
            self.write(b"")
        if self.response_use_chunked:
            with _of_connection():
                self.socket.sendall(LAST_CHUNK)
        if answer.has_body and answer.sent < (answer.response_length or 0):
            # The client waits for the rest until the connection ends.
            self.close_connection = True

    def finalize_headers(self) -> None:
        super().finalize_headers()
        worker, answer = self.server.worker, self._answer
        if not worker.alive:
            worker.cycle.end_fork(None)
        headers: list[tuple[bytes, bytes]] = list(self.response_headers)
        if not (worker.alive and worker.keeps_alive()) or getattr(self.wsgi_input, "is_held_back", False):
            self.close_connection = True
        if answer is not None:
            if not answer.has_body or forbids_length(self.command, answer.status_code):
                # The library adds framing, whatever the method and the status.
                self.response_use_chunked = False
                dropped = _FRAMING[:1] if self.command == "HEAD" else _FRAMING
                headers = [pair for pair in headers if pair[0].lower() not in dropped]
            elif not any(name.lower() in _FRAMING for name, _ in headers):
                self.close_connection = True  # nothing else ends the content
            if answer.ends_connection:
                self.close_connection = True
        if self.close_connection and self.code != 101:
            headers = [pair for pair in headers if pair[0].lower() != b"connection"]
            headers.append((b"Connection", b"close"))
        self.response_headers = headers

    def handle_error(self, kind: Any, error: Any, trace: Any) -> None:
        """Log what ended a response, and answer it if that has not begun."""
        self.close_connection = True
        if isinstance(error, Stopped):
            raise error
        cycle, answer = self.server.worker.cycle, self._answer
        where = f"{self.command} {self.path}"
        if isinstance(error, StopIteration) and not self.headers_sent:
            self._taken_over = True
            cycle.log_taken_over(error, where, self._leaves_http)
            return
        taken = answer is None and self._leaves_http
        from_client = is_of_connection(error) or (taken and is_end_of(self.socket, error))
        if not isinstance(error, gevent.GreenletExit):
            cycle.log_failure(error, from_client, where, self.client_address)
        if self.headers_sent:
            if not self.response_use_chunked and answer is not None and answer.response_length is None:
                # A plain end of the connection would look like the end of the content.
                connection.reset(self.socket)
            return
        status, reason, text = answer_for(error if from_client else None)
        self._orig_status, self.response_headers = f"{status} {reason}", []
        if taken:
            return
        with contextlib.suppress(OSError):
            page = error_response(status, reason, text)
            if self.command == "HEAD":
                page = page.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            self.response_length = len(page)
            self._page_size = len(page.partition(b"\r\n\r\n")[2])
            self.socket.sendall(page)

    def log_error(self, msg: str, *args: Any) -> None:
        """The library calls this for an error of the client: a body whose framing is broken."""
        self.server.worker.log.warning("Bad request: %s", ascii(msg % args if args else msg))

    def log_request(self) -> None:
        worker = self.server.worker
        if not worker.cycle.wants_access or self._taken_over:
            return
        environ = self.environ or {
            "REMOTE_ADDR": self.client_address[0] if isinstance(self.client_address, tuple) else "",
            "REQUEST_METHOD": self.command or "-",
            "RAW_URI": self.path or "-",
            "SERVER_PROTOCOL": self.request_version or "-",
        }
        took = timedelta(seconds=max(0.0, (self.time_finish or self.time_start) - self.time_start))
        with _logged(worker, "the access log"):
            worker.log.access(self._response(), PyWSGIRequest(self, environ), environ, took)

    def _response(self) -> GeventResponse:
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in self.response_headers or ()
        ]
        return GeventResponse(self._orig_status or self.status or "-", headers, self.response_length)


class PyWSGIServer(pywsgi.WSGIServer):  # type: ignore[misc]
    """gevent's server; ``worker`` accepts connections and hands them over."""

    worker: Any = None


@contextlib.contextmanager
def _logged(worker: Any, name: str) -> Iterator[None]:
    """Log an exception in the block, which is called *name*."""
    try:
        yield
    except Exception:
        worker.log.exception("%s failed", name)
