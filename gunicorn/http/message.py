# SPDX-License-Identifier: MIT
"""Read a request from a connection: parse its head, and make its body ready to be read."""

from __future__ import annotations

import io
import time
from functools import cached_property
from typing import Any

from . import grammar
from .body import NO_BODY, Body, ChunkedReader, EOFReader, LengthReader
from .errors import ForbiddenProxyRequest, InvalidProxyLine, LimitRequestLine, NoMoreData, ParseException
from .parse import (
    Headers,
    HeadGatherer,
    RequestHead,
    parse_fields,
    parse_head,
    parse_request_line,
    whole_head,
)
from .policy import (
    DEFAULT_MAX_HEADERFIELD_SIZE,
    MAX_HEADERS,
    MAX_REQUEST_LINE,
    RequestPolicy,
    policy_for,
)
from .proxyproto import V1_MAX_LENGTH, ProxyInfo, parse_v1
from .unreader import READ_SIZE, Unreader

__all__ = [
    "DEFAULT_MAX_HEADERFIELD_SIZE",
    "MAX_HEADERS",
    "MAX_REQUEST_LINE",
    "METHOD_BADCHAR_RE",
    "RFC9110_5_5_INVALID_AND_DANGEROUS",
    "RFC9110_5_6_2_TOKEN_SPECIALS",
    "TOKEN_RE",
    "VERSION_RE",
    "Message",
    "Request",
]

RFC9110_5_6_2_TOKEN_SPECIALS = grammar.TOKEN_SPECIALS
TOKEN_RE = grammar.TOKEN_RE
METHOD_BADCHAR_RE = grammar.UNCONVENTIONAL_METHOD_RE
VERSION_RE = grammar.HTTP_VERSION_RE
RFC9110_5_5_INVALID_AND_DANGEROUS = grammar.CONTROLS_RE

# The most to discard of an unread body so that the connection can serve another request.
DRAIN_LIMIT = 256 * 1024


class Message:
    """The base of requests; reads itself from *unreader* at once.

    It is the *req_number*-th of its connection. *policy* and *proxy_info* spare finding them again.
    """

    # Set in parse(). Only declared: until Python 3.12, an attribute that the class has, too, is found slowly.
    version: tuple[int, int]
    head: RequestHead | None
    #: What a proxy says in uWSGI's protocol beside the header fields.
    variables: dict[str, str] | None = None

    def __init__(
        self,
        cfg: Any,
        unreader: Unreader,
        peer_addr: Any,
        req_number: int = 1,
        policy: RequestPolicy | None = None,
        proxy_info: ProxyInfo | None = None,
    ) -> None:
        self.cfg = cfg
        self.unreader = unreader
        self.peer_addr = self.remote_addr = peer_addr
        self.req_number = req_number
        self.policy = policy = policy or policy_for(cfg)
        self.scheme = policy.default_scheme
        self.body: Body
        self._headers: Headers | None = None
        #: As those of the head; None once ``headers`` was read.
        self.fields: dict[str, str] | None = None
        #: None if the parse() of a subclass has read the head in its own way.
        self.head = None
        self.must_close = False
        self.proxy_info = proxy_info
        self.proxy_protocol_info = proxy_info.as_dict() if proxy_info is not None else None
        rest = self.parse(unreader)
        if rest:
            unreader.unread(rest)
        self.set_body_reader()

    @property
    def headers(self) -> Headers:
        """The fields, names in upper case, in the order received."""
        if self._headers is None:
            self._headers = self.head.headers if self.head is not None else []
            self.fields = None  # a hook may change the list
        return self._headers

    @headers.setter
    def headers(self, headers: Headers) -> None:
        self._headers, self.fields = headers, None

    @cached_property
    def trailers(self) -> Headers:
        """The fields after a chunked body, once that has been read."""
        return []

    @cached_property
    def limit_request_fields(self) -> int:
        return self.policy.limit_request_fields

    @cached_property
    def limit_request_field_size(self) -> int:
        return self.policy.limit_request_field_size

    def force_close(self) -> None:
        """Let the connection end with this message."""
        self.must_close = True

    def parse(self, unreader: Unreader) -> bytes:
        """Read the head from *unreader*; return the bytes that came after it."""
        raise NotImplementedError

    def parse_headers(self, data: bytes, from_trailer: bool = False) -> Headers:
        """Parse the fields in *data*; their final empty line is optional."""
        if not data.endswith(b"\r\n\r\n"):
            data += b"\r\n" if data.endswith(b"\r\n") or not data else b"\r\n\r\n"
        trusted = not from_trailer and self.policy.forwarded_allow.allows(self.peer_addr)
        return parse_fields(data, self.policy, trusted)

    def set_body_reader(self) -> None:
        """Decide where the body ends (RFC 9112 section 6.3)."""
        head = self.head
        if head is not None and head.chunked:
            self.body = Body(ChunkedReader(self, self.unreader))
        elif head is not None and head.content_length is not None:
            self.body = Body(LengthReader(self.unreader, head.content_length))
        else:
            self.body = Body(EOFReader(self.unreader))

    def should_close(self) -> bool:
        """Whether no further message follows on the connection."""
        return self.must_close or self.head is None or self.head.should_close


class Request(Message):
    """A request. Raises ParseException for a malformed one, NoMoreData if the connection ends within it.

    At a clean end of the connection, NoMoreData has an empty ``buf``.
    """

    method: str
    uri: str
    path: str
    query: str

    @cached_property
    def fragment(self) -> str:
        """The part of the target after "#"."""
        return self.head.fragment if self.head is not None else ""

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for 100 (Continue) before it sends its body."""
        return self.head is not None and self.head.expect_continue

    @cached_property
    def limit_request_line(self) -> int:
        return self.policy.limit_request_line

    @property
    def trusted_peer(self) -> bool:
        """Whether ``forwarded_allow_ips`` names the peer."""
        return self.policy.forwarded_allow.allows(self.peer_addr)

    @property
    def wants_upgrade(self) -> bool:
        """Whether the client asks for another protocol on this connection."""
        if self.fields is not None:
            return "HTTP_UPGRADE" in self.fields
        return any(name == "UPGRADE" for name, _ in self.headers)

    def parse(self, unreader: Unreader) -> bytes:
        policy = self.policy
        data = unreader.pending
        if data:
            unreader.pending = b""
        else:
            data = unreader.read()
        if end := whole_head(data, policy, self.req_number == 1):
            self._take(parse_head(data[:end], policy, policy.forwarded_allow.allows(self.peer_addr)))
            return data[end:]
        gatherer = HeadGatherer(policy, self.req_number == 1)
        while True:
            if not data:
                raise NoMoreData(bytes(gatherer.buffer))
            if gatherer.feed(data):
                break
            data = unreader.read()
        if gatherer.proxy_seen:
            self.proxy_protocol_access_check()
            self._set_proxy_info(gatherer.proxy_info)
        self._take(parse_head(gatherer.head(), policy, self.trusted_peer))
        return gatherer.rest()

    def _take(self, head: RequestHead) -> None:
        self.head = head
        self.method = head.method
        self.uri = head.target
        self.path = head.path
        self.query = head.query
        self.version = head.version
        self.scheme = head.scheme
        self.fields = head.fields

    def _set_proxy_info(self, info: ProxyInfo | None) -> None:
        self.proxy_info = info
        self.proxy_protocol_info = info.as_dict() if info else None

    def set_body_reader(self) -> None:
        head = self.head
        if head is not None and (head.content_length or head.chunked):
            super().set_body_reader()
        else:
            # A request without framing has no body (RFC 9112 section 6.3, rule 7).
            self.body = NO_BODY

    def drain(self, limit: int = DRAIN_LIMIT, timeout: float | None = None) -> bool:
        """Discard the rest of the body; True if another request can follow.

        Read at most about *limit* bytes, within *timeout* seconds (0: only what has arrived; None: the
        socket's timeout for each read). Read nothing of a body that is known to be longer, or that the client
        holds back until a 100. Raises nothing.
        """
        body = self.body
        if body.finished:
            return True
        if body.before_read is not None and not self.unreader.pending:
            return False
        if body.remaining is not None and body.remaining > limit:
            return False
        sock = getattr(self.unreader, "sock", None)
        try:
            if timeout is None or sock is None:
                return body.discard(limit)
            return self._drain_until(sock, limit, time.monotonic() + timeout)
        except (OSError, ValueError, ParseException):
            return False

    def _drain_until(self, sock: Any, limit: int, deadline: float) -> bool:
        """Discard within a deadline for all reads together; a socket's timeout is for each."""
        before = sock.gettimeout()
        try:
            while limit > 0:
                sock.settimeout(max(0.0, deadline - time.monotonic()))
                if self.body.discard(min(limit, READ_SIZE)):
                    return True
                limit -= READ_SIZE
            return False
        finally:
            sock.settimeout(before)

    # The rest is the public interface, for subclasses that drive the parts by hand.

    def get_data(self, unreader: Unreader, buf: io.BytesIO, stop: bool = False) -> None:
        """Append the next bytes to *buf*; at the end raise StopIteration if *stop*, else NoMoreData."""
        data = unreader.read()
        if not data:
            if stop:
                raise StopIteration
            raise NoMoreData(buf.getvalue())
        buf.write(data)

    def read_line(self, unreader: Unreader, buf: io.BytesIO, limit: int = 0) -> tuple[bytes, bytes]:
        """Split the first line from *buf*, reading on as needed. A *limit* of 0 is none."""
        while True:
            data = buf.getvalue()
            end = data.find(b"\r\n")
            size = end if end >= 0 else len(data) - 1  # a lone CR may be the first half of the end
            if size > limit > 0:
                raise LimitRequestLine(size, limit)
            if end >= 0:
                return data[:end], data[end + 2 :]
            self.get_data(unreader, buf)

    def proxy_protocol(self, line: str) -> bool:
        """Parse *line* if it is a PROXY line and one is expected."""
        if (
            self.policy.proxy_protocol not in ("v1", "auto")
            or self.req_number != 1
            or not line.startswith("PROXY")
        ):
            return False
        self.proxy_protocol_access_check()
        self.parse_proxy_protocol(line)
        return True

    def proxy_protocol_access_check(self) -> None:
        """Raise ForbiddenProxyRequest unless ``proxy_allow_ips`` names the peer."""
        if not self.policy.proxy_allow.allows(self.peer_addr):
            raise ForbiddenProxyRequest(str(self.peer_addr[0]))

    def parse_proxy_protocol(self, line: str) -> None:
        """Take the connection's addresses from a version 1 line. Raises InvalidProxyLine."""
        if len(line) + 2 > V1_MAX_LENGTH:
            raise InvalidProxyLine(line)
        self._set_proxy_info(parse_v1(line))

    def parse_request_line(self, line_bytes: bytes) -> None:
        """Take method, target and version from a request line without its CRLF."""
        self._take(parse_request_line(line_bytes, self.policy))
