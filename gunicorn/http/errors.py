# SPDX-License-Identifier: MIT
"""The errors of a message, each with its own answer.

Every class has ``status`` and ``reason`` for the status line, and ``text``, a sentence for the client that
never repeats what it sent. ``str(error)`` is for the log.
"""

from __future__ import annotations

from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


def of_connection(error: E) -> E:
    """Mark *error*, where it arises, as one of the client's connection, and return it.

    Its class does not tell: an application has connections of its own.
    """
    marked: Any = error
    marked.of_connection = True
    return error


def is_of_connection(error: BaseException) -> bool:
    """Whether *error* arose in reading a request or in sending its response."""
    return getattr(error, "of_connection", False)


class ClientAnswer:
    """The answer to an error; mixed into every class of this module."""

    status: int = 400
    reason: str = "Bad Request"
    text: str = "The request could not be understood."
    #: What the log says, filled in with the attributes of the error.
    log_text: str = ""

    def __str__(self) -> str:
        if not self.log_text:
            return super().__str__()
        return self.log_text.format_map({name: _shown(value) for name, value in vars(self).items()})


class ParseException(ClientAnswer, Exception):
    """The request cannot be served as it was sent."""


class NoMoreData(ClientAnswer, OSError):
    """The peer ended the connection in the middle of a message; *buf* is what came of it."""

    text = "The request ended early."

    def __init__(self, buf: bytes | None = None) -> None:
        super().__init__(buf)  # only an OSError needs that for its args
        self.buf = buf

    def __str__(self) -> str:
        return f"connection ended after {_shown(self.buf or b'')}"


class RequestTimeout(ParseException):
    """The head of the request did not arrive in time."""

    status = 408
    reason = "Request Timeout"
    text = "The request took too long to arrive."


class ConfigurationProblem(ParseException):
    """The request is fine; the configuration cannot serve it."""

    status = 500
    reason = "Internal Server Error"
    text = "The server is not configured for this request."

    def __init__(self, info: str) -> None:
        self.info = info

    def __str__(self) -> str:
        return f"configuration problem: {self.info}"


class InvalidRequestLine(ParseException):
    text = "The request line is malformed."
    log_text = "malformed request line {req}"

    def __init__(self, req: str | bytes) -> None:
        self.req = req


class InvalidRequestMethod(ParseException):
    text = "The request method is malformed."
    log_text = "malformed request method {method}"

    def __init__(self, method: str) -> None:
        self.method = method


class InvalidHTTPVersion(ParseException):
    """A version that is malformed (400) or well-formed and not spoken here (505)."""

    status = 505
    reason = "HTTP Version Not Supported"
    text = "This server speaks HTTP/1.0 and HTTP/1.1."

    def __init__(self, version: str | tuple[int, int]) -> None:
        self.version = version
        if isinstance(version, str):
            self.status, self.reason = ParseException.status, ParseException.reason

    def __str__(self) -> str:
        if isinstance(self.version, str):
            return f"malformed protocol version {_shown(self.version)}"
        return "unsupported protocol version HTTP/{}.{}".format(*self.version)


class InvalidHeader(ParseException):
    text = "A header field is malformed."
    log_text = "invalid header field {hdr}"

    def __init__(self, hdr: str | bytes, req: object = None) -> None:
        self.hdr = hdr
        self.req = req


class ObsoleteFolding(ParseException):
    text = "A header field is folded over several lines."
    log_text = "header field {hdr} is folded over several lines"

    def __init__(self, hdr: str | bytes) -> None:
        self.hdr = hdr


class InvalidHeaderName(ParseException):
    text = "The name of a header field is malformed."
    log_text = "invalid header field name {hdr}"

    def __init__(self, hdr: str | bytes) -> None:
        self.hdr = hdr


class UnsupportedTransferCoding(ParseException):
    status = 501
    reason = "Not Implemented"
    text = "The transfer coding is not supported."
    log_text = "unsupported transfer coding {hdr}"

    def __init__(self, hdr: str | bytes) -> None:
        self.hdr = hdr


class ExpectationFailed(ParseException):
    status = 417
    reason = "Expectation Failed"
    text = "The expectation of the request cannot be met."
    log_text = "unknown expectation {value}"

    def __init__(self, value: str) -> None:
        self.value = value


class InvalidChunkSize(ClientAnswer, OSError):
    text = "A chunk of the request body is malformed."
    log_text = "malformed chunk size line {data}"

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class ChunkMissingTerminator(ClientAnswer, OSError):
    text = "A chunk of the request body is malformed."
    log_text = "chunk data is followed by {term} in place of CRLF"

    def __init__(self, term: bytes) -> None:
        super().__init__(term)
        self.term = term


class LimitRequestLine(ParseException):
    status = 414
    reason = "URI Too Long"
    text = "The request line is too long."

    def __init__(self, size: int, max_size: int) -> None:
        self.size = size
        self.max_size = max_size

    def __str__(self) -> str:
        return f"request line of {self.size} bytes or more, the limit is {self.max_size}"


class LimitRequestHeaders(ParseException):
    status = 431
    reason = "Request Header Fields Too Large"
    text = "The header fields are too many or too large."

    def __init__(self, msg: str) -> None:
        self.msg = msg

    def __str__(self) -> str:
        return self.msg


class InvalidProxyLine(ParseException):
    text = "The PROXY protocol header is malformed."
    log_text = "malformed PROXY protocol header {line}"

    def __init__(self, line: str | bytes) -> None:
        self.line = line


class ForbiddenProxyRequest(ParseException):
    status = 403
    reason = "Forbidden"
    text = "The PROXY protocol is not accepted from this address."

    def __init__(self, host: str) -> None:
        self.host = host

    def __str__(self) -> str:
        return f"PROXY protocol from {self.host}, which proxy_allow_ips does not name"


class InvalidUwsgiPacket(ParseException):
    text = "The packet of uWSGI's protocol is malformed."

    def __init__(self, info: str) -> None:
        self.info = info

    def __str__(self) -> str:
        return f"malformed packet of uWSGI's protocol: {self.info}"


class ForbiddenUwsgiRequest(ParseException):
    status = 403
    reason = "Forbidden"
    text = "uWSGI's protocol is not accepted from this address."

    def __init__(self, host: str) -> None:
        self.host = host

    def __str__(self) -> str:
        return f"uWSGI's protocol from {self.host}, which uwsgi_allow_ips does not name"


class InvalidSchemeHeaders(ParseException):
    text = "The forwarded headers disagree about the scheme."
    log_text = "forwarded headers disagree about the scheme"


def _shown(data: object, limit: int = 120) -> str:
    """Return *data* for a log line: printable and short, whatever a client sent."""
    text = data.decode("latin-1") if isinstance(data, (bytes, bytearray)) else str(data)
    return ascii(text) if len(text) <= limit else f"{text[:limit]!a}... ({len(text)} long)"
