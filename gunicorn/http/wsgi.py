# SPDX-License-Identifier: MIT
"""Make the environ for an application, and send its response."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import TracebackType
from typing import Any, TypeAlias

from gunicorn import SERVER, SERVER_SOFTWARE

from . import environ as environment
from . import grammar, head
from .chunked import LAST_CHUNK, encode_chunk
from .errors import InvalidHeader, of_connection
from .message import DRAIN_LIMIT
from .policy import RequestPolicy
from .streams import FileWrapper, WSGIErrorsWrapper, file_span

__all__ = [
    "BLKSIZE",
    "HEADER_VALUE_RE",
    "SERVER",
    "SERVER_SOFTWARE",
    "TOKEN_RE",
    "FileWrapper",
    "Response",
    "WSGIErrorsWrapper",
    "base_environ",
    "create",
    "default_environ",
    "proxy_environ",
]

TOKEN_RE: re.Pattern[str] = grammar.TOKEN_RE
HEADER_VALUE_RE: re.Pattern[str] = grammar.FIELD_VALUE_RE
# The most bytes for one call of sendfile().
BLKSIZE = 0x3FFFFFFF

_MSG_MORE = getattr(socket, "MSG_MORE", 0)  # not everywhere; without it, the head is a packet of its own

# Headers that concern the server, too.
_SPECIAL = grammar.HOP_BY_HOP | {"content-length", "server", "date"}
# The framing rules have no exception for these.
_PLAIN_CODES = frozenset({200, 201, 202, 206, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 500, 503})
_PLAIN_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})

# The lines that the server adds, by what they are made of. Most responses of one second begin alike.
_default_headers: dict[tuple[Any, ...], list[str]] = {}
_DEFAULT_HEADERS_MAX = 64

# With more content, joining it to the head costs more than a second send.
JOIN_LIMIT = 256 * 1024
# So much fits into the buffer of a socket whose client has read all before.
HOLD_LIMIT = 16 * 1024

ExcInfo: TypeAlias = "tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]"


def base_environ(cfg: Any) -> dict[str, Any]:
    """Return the part of the environ that is the same for every request of a worker."""
    return {
        "wsgi.errors": WSGIErrorsWrapper(cfg),
        "wsgi.version": (1, 0),
        "wsgi.multithread": False,
        "wsgi.multiprocess": cfg.workers > 1,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.input_terminated": True,
        "SERVER_SOFTWARE": SERVER_SOFTWARE,
    }


_OF_EACH = (
    "wsgi.input",
    "wsgi.url_scheme",
    "wsgi.early_hints",
    "gunicorn.socket",
    "REQUEST_METHOD",
    "QUERY_STRING",
    "RAW_URI",
    "SERVER_PROTOCOL",
    "SERVER_NAME",
    "SERVER_PORT",
    "SCRIPT_NAME",
    "PATH_INFO",
    "REMOTE_ADDR",
)


class _Base:
    """The part of the environ that is the same for every request to a server."""

    __slots__ = ("environ", "has_server", "script_name")

    def __init__(self, cfg: Any, server: Any) -> None:
        # With a place for all that each request adds: a dict that grows is built anew.
        self.environ = {**base_environ(cfg), **dict.fromkeys(_OF_EACH)}
        self.script_name = server_script_name()
        #: False behind a Unix socket, where each request names its server.
        self.has_server = environment.split_server(server) is not None
        if self.has_server:
            environment.add_server(self.environ, server, "")


# There are as many as this host has addresses.
_base_for = lru_cache(maxsize=64)(_Base)


class _Common:
    """The part of the environ that is the same for every request of a connection."""

    __slots__ = ("base", "environ", "sock")

    def __init__(self, sock: Any, client: Any, server: Any, cfg: Any) -> None:
        self.sock = sock
        self.base = base = _base_for(cfg, server)
        self.environ = environ = base.environ.copy()
        environ["gunicorn.socket"] = sock
        environment.add_client(environ, client)


def default_environ(req: Any, sock: Any, cfg: Any) -> dict[str, Any]:
    """Return the base environ with what the request line says."""
    environ = base_environ(cfg)
    environ["gunicorn.socket"] = sock
    _add_request(environ, req)
    return environ


def _add_request(environ: dict[str, Any], req: Any) -> None:
    version = req.version
    environ["wsgi.input"] = req.body
    environ["REQUEST_METHOD"] = req.method
    environ["QUERY_STRING"] = req.query
    environ["RAW_URI"] = req.uri
    environ["SERVER_PROTOCOL"] = "HTTP/1.1" if version == (1, 1) else "HTTP/{}.{}".format(*version)


def proxy_environ(req: Any) -> dict[str, str]:
    """Return the variables for what the PROXY protocol says of the connection."""
    info = req.proxy_protocol_info
    if not info:
        return {}
    return {
        "PROXY_PROTOCOL": info["proxy_protocol"],
        "REMOTE_ADDR": info["client_addr"],
        "REMOTE_PORT": str(info["client_port"]),
        "PROXY_ADDR": info["proxy_addr"],
        "PROXY_PORT": str(info["proxy_port"]),
    }


def create(req: Any, sock: Any, client: Any, server: Any, cfg: Any) -> tuple[Response, dict[str, Any]]:
    """Return the response and the environ for *req*, which came over *sock* from *client* to *server*.

    Raises ConfigurationProblem if the path does not lie below SCRIPT_NAME.
    """
    common: _Common | None = req.unreader.common
    if common is None or common.sock is not sock:
        common = req.unreader.common = _Common(sock, client, server, cfg)
    base = common.base
    environ = common.environ.copy()
    _add_request(environ, req)
    fields = req.fields
    if fields is not None:
        # fast_head() has read it: all are here, and there is no absolute target and no underscore.
        environ.update(fields)
        path = req.path
        if base.script_name or "%" in path:
            environ["SCRIPT_NAME"], environ["PATH_INFO"] = environment.split_script_name(
                path, base.script_name
            )
        else:
            environ["SCRIPT_NAME"] = ""
            environ["PATH_INFO"] = path
    elif req.variables is not None:
        return _create_for_proxy(req, environ, sock, server, cfg)
    else:
        _add_exactly(environ, req, base.script_name)
    environ["wsgi.url_scheme"] = req.scheme
    if not base.has_server:
        environment.add_server(environ, server, req.scheme)
    if req.proxy_protocol_info:
        environ.update(proxy_environ(req))
    resp = Response(req, sock, cfg)
    if not req.body.finished and req.expects_continue:
        req.body.before_read = resp.send_continue
    environ["wsgi.early_hints"] = resp.send_early_hints
    return resp, environ


def _create_for_proxy(
    req: Any, environ: dict[str, Any], sock: Any, server: Any, cfg: Any
) -> tuple[Response, dict[str, Any]]:
    """As create(), for a request in uWSGI's protocol: the proxy has named the variables."""
    environment.add_headers(environ, req.headers)
    base = req.unreader.common.base
    variables = req.variables
    script_name = (variables.get("SCRIPT_NAME") or base.script_name).rstrip("/")
    path = variables.get("PATH_INFO")
    if path is None:
        script_name, path = environment.split_script_name(req.path, script_name)
    elif script_name + path != grammar.unquote_to_wsgi_str(req.path):
        # Not the path behind SCRIPT_NAME but, as in nginx's uwsgi_params, the whole one.
        rest = path[len(script_name) :]
        if path.startswith(script_name) and rest[:1] in ("", "/"):
            path = rest
    if not base.has_server:
        environment.add_server(environ, server, req.scheme)
    environ.update(variables)
    environ["SCRIPT_NAME"], environ["PATH_INFO"] = script_name, path
    environ["wsgi.url_scheme"] = req.scheme
    resp = ProxiedResponse(req, sock, cfg)
    environ["wsgi.early_hints"] = resp.send_early_hints
    return resp, environ


def _add_exactly(environ: dict[str, Any], req: Any, script_name: str) -> None:
    """Add the fields and the paths of a request that fast_head() has not read."""
    environment.add_headers(environ, req.headers)
    authority = req.head.authority if req.head is not None else None
    if authority is not None:
        # RFC 9112 section 3.2.2: the host in the target overrides Host.
        environ["HTTP_HOST"] = authority
    if "HTTP_SCRIPT_NAME" in environ and req.trusted_peer:
        script_name = forwarded_script_name(req.headers, req.policy, script_name)
    environ["SCRIPT_NAME"], environ["PATH_INFO"] = environment.split_script_name(req.path, script_name)


def server_script_name() -> str:
    """Return SCRIPT_NAME of the server's environment as WSGI text."""
    return os.fsencode(os.environ.get("SCRIPT_NAME", "")).decode("latin-1")


def forwarded_script_name(headers: Iterable[tuple[str, str]], policy: RequestPolicy, default: str) -> str:
    """Return SCRIPT_NAME from the *headers* of a trusted proxy, else *default*.

    No header replaces the path: a proxy that passes on unknown fields has checked the request line alone.
    """
    if policy.forwards("SCRIPT_NAME"):
        for name, value in headers:
            if name == "SCRIPT_NAME":
                default = value
    return default


def _make_default_headers(
    date: str,
    status: str | None,
    request_version: tuple[int, int],
    server: str,
    connection: str,
    chunked: bool,
    own_names: tuple[str, ...],
) -> list[str]:
    minor = 0 if request_version == (1, 0) else 1
    # RFC 9112 section 4: the space stays, even without a reason.
    space = " " if status is not None and len(status) == 3 else ""
    lines = [f"HTTP/1.{minor} {status}{space}\r\n"]
    if "server" not in own_names:
        lines.append(f"Server: {server}\r\n")
    if "date" not in own_names:
        lines.append(f"Date: {date}\r\n")
    lines.append(f"Connection: {connection}\r\n")
    if chunked:
        lines.append("Transfer-Encoding: chunked\r\n")
    return lines


class Response:
    """The response of an application to *req*, sent over *sock* as it comes.

    ``sent`` counts bytes of content, ``response_length`` is the Content-Length or None,
    ``status_code`` the number of ``status``, ``has_body`` whether content may go out.
    Errors of the socket pass through, marked as those of the connection.
    """

    def __init__(self, req: Any, sock: Any, cfg: Any) -> None:
        self.req = req
        self.sock = sock
        self.cfg = cfg
        self.version = SERVER
        self.status: str | None = None
        self.status_code: int | None = None
        self.headers: list[tuple[str, str]] = []
        self.headers_sent = False
        self.chunked = False
        self.must_close = False
        self.response_length: int | None = None
        self.sent = 0
        #: Takes an answer that is complete, to send it soon.
        self.hold: Callable[[bytes], object] | None = None
        self.upgrade = False
        self._own_names: tuple[str, ...] = ()  # "server" and "date", if the application sets them
        self._app_closes = False
        self.has_body = True
        #: Whether the head announced the end of the connection; None if default_headers() was replaced.
        self.announced_close: bool | None = None

    def force_close(self) -> None:
        """Let the connection end with this response."""
        self.must_close = True

    @property
    def ends_connection(self) -> bool:
        """Whether the application ends the connection, or no HTTP follows."""
        return self._app_closes

    def should_close(self) -> bool:
        """Whether the connection ends with this response (RFC 9112 section 9.3)."""
        if self.must_close or self._app_closes or self.req.should_close():
            return True
        # Only the end of the connection can end such content.
        return self.response_length is None and not self.chunked and self.has_body

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """The start_response of PEP 3333. Sends nothing: that waits for content.

        Raises AssertionError for a second call without *exc_info*, TypeError, ValueError,
        InvalidHeader or InvalidHeaderName for what cannot be sent.
        """
        if exc_info:
            try:
                if self.headers_sent and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # PEP 3333: no circular reference through the frame
        elif self.status is not None:
            raise AssertionError("start_response was called a second time without exc_info")
        code = head.check_status(status)
        if self.status_code is not None:
            # Forget the answer that the application takes back, or that could not be sent.
            self.headers, self.response_length = [], None
            self.upgrade = self._app_closes = False
            self.has_body = True
            self._own_names = ()
        self.status_code = code
        self.process_headers(headers)
        self.status = status
        if code not in _PLAIN_CODES or self.req.method not in _PLAIN_METHODS:
            self._settle_framing(code)
        self.chunked = self.response_length is None and self.is_chunked()
        return self.write

    def process_headers(self, headers: Iterable[tuple[str, str]]) -> None:
        """Check *headers*: keep those that may be sent, and note what they say of the connection."""
        upgrades: list[tuple[str, str]] = []
        kept = self.headers
        for name, value in headers:
            if (
                name == "Content-Length"  # in nearly every response, and quick to check
                and self.response_length is None
                and type(value) is str
                and value.isdecimal()
                and value.isascii()
                and len(value) < 20
            ):
                self.response_length = int(value)
                kept.append((name, value))
                continue
            lower, value = head.check_header(name, value)
            if lower not in _SPECIAL or self._takes(lower, value):
                kept.append((name, value))
            elif lower == "upgrade":
                upgrades.append((name, value))
        if self.upgrade:
            kept += upgrades

    def _takes(self, lower: str, value: str) -> bool:
        """Note what a header says of the connection or the framing; whether to send it."""
        if lower == "content-length":
            if not grammar.CONTENT_LENGTH_RE.fullmatch(value):
                raise InvalidHeader(f"Content-Length: {value}")
            length = int(value)
            known, self.response_length = self.response_length, length
            if known is not None and known != length:
                raise InvalidHeader(f"Content-Length: {known}, {value}")
            return known is None
        if lower == "connection":
            options = grammar.list_members(value)
            self._app_closes |= "close" in options
            self.upgrade |= "upgrade" in options
        elif lower in ("server", "date"):
            self._own_names += (lower,)
            return True
        return False

    def _settle_framing(self, code: int) -> None:
        method = self.req.method
        self.has_body = head.has_body(method, code)
        if head.forbids_length(method, code) and self.response_length is not None:
            self.response_length = None
            self.headers = [pair for pair in self.headers if pair[0].lower() != "content-length"]
        if code < 200 or (method == "CONNECT" and code < 300):
            self._app_closes = True  # no HTTP of ours follows on the connection

    def is_chunked(self) -> bool:
        """Whether to send the content in chunks: its length is unknown, and the client knows how."""
        if self.response_length is not None or not self.has_body or self.req.version <= (1, 0):
            return False
        return not (self.req.method == "CONNECT" and (self.status_code or 0) < 300)

    def default_headers(self) -> list[str]:
        """Return lines: the status line and the headers that the server adds."""
        closes = self.announced_close = self.should_close()
        if self.upgrade:
            # After 101, the new protocol ends the connection.
            connection = "upgrade, close" if closes and self.status_code != 101 else "upgrade"
        else:
            connection = "close" if closes else "keep-alive"
        date = head.current_date()
        key = date, self.status, self.req.version, self.version, connection, self.chunked, self._own_names
        lines = _default_headers.get(key)
        if lines is None:
            if len(_default_headers) >= _DEFAULT_HEADERS_MAX:
                _default_headers.clear()
            lines = _default_headers[key] = _make_default_headers(*key)
        return list(lines)

    def send_headers(self) -> None:
        """Send the head, unless it was sent."""
        if not self.headers_sent:
            self._send(self._take_head())

    def _send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise of_connection(error)

    def _take_head(self) -> bytes:
        """Return the bytes of the head, for the caller to send now."""
        if not self.req.body.finished:
            self._settle_request_body()
        lines = [*self.default_headers(), head.field_lines(self.headers), "\r\n"]
        data = "".join(lines).encode("latin-1")
        self.headers_sent = True
        return data

    def _settle_request_body(self) -> None:
        """Announce close if the rest of the request's body could not be drained later."""
        body = self.req.body
        if body.before_read is not None and not self.req.unreader.pending:
            # RFC 9110 section 10.1.1: without a 100 the body may never come.
            body.before_read = None
            self.must_close = True
        elif body.remaining is not None and body.remaining > DRAIN_LIMIT:
            self.must_close = True

    def write(self, arg: bytes) -> None:
        """Send *arg*, and the head before it if that was not sent.

        Drop bytes beyond Content-Length, and all bytes where no content is allowed.
        """
        if not isinstance(arg, bytes):
            raise TypeError(f"an application must give bytes, not {type(arg).__name__}")
        if self.status is None:
            raise AssertionError("content was given before start_response was called")
        size = len(arg)
        length = self.response_length
        if length is not None and size > length - self.sent:
            arg = arg[: length - self.sent]
            size = len(arg)
        if not size:
            return
        if not self.has_body:
            self.send_headers()
            return
        self.sent += size
        data = encode_chunk(arg) if self.chunked else arg
        if not self.headers_sent:
            first = self._take_head()
            if self.hold is not None and size == length and size <= HOLD_LIMIT:
                self.hold(first + data)
                return
            if size <= JOIN_LIMIT:
                data = first + data
            else:
                self._send(first)
        try:
            # As _send(), in the place of most calls.
            self.sock.sendall(data)
        except OSError as error:
            raise of_connection(error)

    def can_sendfile(self) -> bool:
        """Whether the system may copy files to the socket."""
        return (
            self.cfg.sendfile is not False
            and not self.cfg.is_ssl
            and hasattr(self.sock, "sendfile")
            and not hasattr(self.sock, "unwrap")  # TLS: the system would send plain text
        )

    def sendfile(self, respiter: FileWrapper) -> bool:
        """Let the system copy the file; False, with nothing sent, if it cannot."""
        # If the file became shorter, the size of a chunk would be wrong.
        if self.chunked or not self.can_sendfile():
            return False
        span = file_span(respiter.filelike)
        if span is None:
            return False
        offset, count = span
        if self.response_length is not None:
            count = min(count, self.response_length - self.sent)
        if not self.has_body or count <= 0:
            self.send_headers()
            return True
        try:
            if not self.headers_sent:
                # Held back by the system until the file's first bytes join it.
                self.sock.sendall(self._take_head(), _MSG_MORE)
            # Fewer than *count* if the file became shorter: close() notices.
            self.sent += self.sock.sendfile(respiter.filelike, offset, count)
        except OSError as error:
            raise of_connection(error)
        return True

    def write_file(self, respiter: FileWrapper) -> None:
        """Send a file, and announce its length if it is known and the application has not."""
        if self.status is None:
            raise AssertionError("content was given before start_response was called")
        self._adopt_file_length(respiter)
        if not self.sendfile(respiter):
            for item in respiter:
                self.write(item)
                if self.sent == self.response_length or not self.has_body:
                    break

    def _adopt_file_length(self, respiter: FileWrapper) -> None:
        if self.headers_sent or self.response_length is not None:
            return
        if not (self.has_body or self.req.method == "HEAD") or self.status_code in (204, 304):
            return
        span = file_span(respiter.filelike)
        if span is not None and not head.forbids_length(self.req.method, self.status_code):
            self.response_length = span[1]
            self.headers.append(("Content-Length", str(span[1])))
            self.chunked = False

    def close(self) -> None:
        """End the response: send the head if it was not sent, and the last chunk."""
        if self.status is None:
            raise AssertionError("the application did not call start_response")
        if not self.headers_sent:
            data = self._take_head()
            if self.chunked:
                data += LAST_CHUNK
            if self.hold is not None:
                self.hold(data)
            else:
                self._send(data)
        elif self.chunked:
            self._send(LAST_CHUNK)
        if self.has_body and self.response_length is not None and self.sent < self.response_length:
            # Only the end of the connection tells the client that the rest will not come.
            self.must_close = True

    def send_continue(self) -> None:
        """Ask the client for the body that it holds back, unless it sends already or has its answer."""
        if not self.headers_sent and not self.req.unreader.pending:
            self._send(head.CONTINUE)

    def send_early_hints(self, headers: Iterable[tuple[str, str]]) -> None:
        """``wsgi.early_hints``: send *headers* ahead in a 103 response (RFC 8297).

        Does nothing once the response has started, nor for HTTP/1.0, which knows no interim responses.
        """
        if self.headers_sent or self.req.version < (1, 1):
            return
        checked = [(name, head.check_header(name, value)[1]) for name, value in headers]
        self._send(head.encode_head("HTTP/1.1 103 Early Hints\r\n" + head.field_lines(checked)))


class ProxiedResponse(Response):
    """The response to a proxy that speaks uWSGI's protocol: it knows no chunks and no interim responses."""

    def is_chunked(self) -> bool:
        return False

    def send_early_hints(self, headers: Iterable[tuple[str, str]]) -> None:
        """Send nothing: nginx would take a 103 for the response."""
