# SPDX-License-Identifier: MIT
"""Read requests in uWSGI's protocol, which nginx speaks to ``uwsgi_pass``.

A packet of variables takes the place of the head: modifier1 (0 for a request), the size of what follows in 16
bits, modifier2, then names and values, each after its own size in 16 bits. All numbers are little-endian. The
body follows the packet. The answer is one of HTTP, and the connection ends with it.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from . import grammar
from .errors import (
    ForbiddenUwsgiRequest,
    InvalidHTTPVersion,
    InvalidRequestLine,
    InvalidUwsgiPacket,
    NoMoreData,
)
from .message import Request
from .parse import Headers, RequestHead, checked_head
from .parser import RequestParser
from .policy import PeerAddress, RequestPolicy
from .unreader import Unreader

Variables = dict[str, str]

PREFIX_LENGTH = 4

# A name with a dot could replace what is the server's, such as wsgi.input.
_NAME_RE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
# A token as the proxy maps it. With a dash or in lower case it would be another spelling of a mapped name.
_HEADER_RE = re.compile("[!#$%&'*+.^_`|~0-9A-Z]+")
_PROTOCOL_RE = re.compile(r"HTTP/[0-9](\.[0-9])?")

# Two of these could be read in two ways. Of any other variable the last one counts.
_ONLY_ONCE = frozenset(
    {"CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_HOST", "REQUEST_METHOD", "REQUEST_URI", "SERVER_PROTOCOL"}
)
# The client's words about its own connection, which the proxy has dealt with: CONTENT_LENGTH alone counts.
_OF_THE_CLIENT = frozenset({"CONTENT_LENGTH", "CONTENT_TYPE", "EXPECT", "TRANSFER_ENCODING"})


class PacketGatherer:
    """Collects the bytes of one packet in ``buffer``; the counterpart of HeadGatherer."""

    def __init__(self, policy: RequestPolicy, peer: PeerAddress) -> None:
        self.policy = policy
        self.peer = peer
        self.buffer = bytearray()

    def feed(self, data: bytes) -> bool:
        """Add *data*, at least a byte; True once the packet is complete.

        Raises ForbiddenUwsgiRequest if the peer may not send one, InvalidUwsgiPacket if it is no request.
        """
        if not self.policy.uwsgi_allow.allows(self.peer):
            raise ForbiddenUwsgiRequest(str(self.peer[0]))
        self.buffer += data
        if self.buffer[0] != 0:
            # Most likely a client that speaks HTTP.
            raise InvalidUwsgiPacket(f"modifier1 is {self.buffer[0]}, not 0; does the client speak HTTP?")
        return len(self.buffer) >= self.end

    @property
    def end(self) -> int:
        """Where the body begins, as far as that is known yet."""
        return PREFIX_LENGTH + int.from_bytes(self.buffer[1:3], "little")

    def packet(self) -> bytes:
        """Return the variables of the complete packet."""
        return bytes(self.buffer[PREFIX_LENGTH : self.end])

    def rest(self) -> bytes:
        """Return the bytes received after the packet."""
        return bytes(self.buffer[self.end :])


def parse_packet(data: bytes) -> list[tuple[str, str]]:
    """Split *data* into names and values, with one character for each byte. Raises InvalidUwsgiPacket."""
    items: list[str] = []
    offset = 0
    while offset < len(data):
        begin = offset + 2
        offset = begin + int.from_bytes(data[offset:begin], "little")
        if offset > len(data):
            raise InvalidUwsgiPacket("a name or a value is longer than the packet")
        items.append(data[begin:offset].decode("latin-1"))
    if len(items) % 2:
        raise InvalidUwsgiPacket(f"the last variable has no value: {items[-1][:120]!a}")
    return list(zip(items[::2], items[1::2], strict=True))


def read_head(
    pairs: list[tuple[str, str]], policy: RequestPolicy, trusted: bool = False
) -> tuple[RequestHead, Variables]:
    """Return the head that the variables *pairs* describe, and those of them that are no header fields.

    Raises ParseException, as for a head of HTTP.
    """
    headers, variables = _sort(pairs)
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        # nginx sends empty ones for a request without a body.
        if value := variables.pop(name, ""):
            headers.append((name.replace("_", "-"), value))
    method = variables.pop("REQUEST_METHOD", "")
    if not method:
        raise InvalidUwsgiPacket("REQUEST_METHOD is missing")
    target = variables.get("REQUEST_URI") or _target(variables)
    if grammar.TARGET_BADCHAR_RE.search(target):
        raise InvalidRequestLine(target)
    protocol = variables.get("SERVER_PROTOCOL")
    if protocol is not None and not _PROTOCOL_RE.fullmatch(protocol):
        raise InvalidHTTPVersion(protocol)
    # What the client spoke is the proxy's concern. By the rules of 1.0, Host may be missing, as with HTTP/3.
    head = checked_head((method, target, "HTTP/1.0"), headers, policy, trusted)
    head.version = (1, 1)
    head.should_close = True
    head.query = variables.get("QUERY_STRING", head.query)
    head.scheme = _scheme(variables) or head.scheme
    return head, variables


def _sort(pairs: list[tuple[str, str]]) -> tuple[Headers, Variables]:
    headers: Headers = []
    variables: Variables = {}
    seen: set[str] = set()
    for name, value in pairs:
        is_header = name.startswith("HTTP_")
        if not (_HEADER_RE.fullmatch(name, 5) if is_header else _NAME_RE.fullmatch(name)):
            raise InvalidUwsgiPacket(f"malformed name {name[:120]!a}")
        if "\0" in value or ((is_header or name == "CONTENT_TYPE") and grammar.CONTROLS_RE.search(value)):
            raise InvalidUwsgiPacket(f"malformed value of {name[:120]}")
        if name in seen and name in _ONLY_ONCE:
            raise InvalidUwsgiPacket(f"{name} comes twice")
        seen.add(name)
        if not is_header:
            variables[name] = value
        elif name[5:] not in _OF_THE_CLIENT:
            headers.append((name[5:].replace("_", "-"), value.strip(" \t")))
    return headers, variables


def _target(variables: Variables) -> str:
    path = variables.get("PATH_INFO", "")
    if not path:
        raise InvalidUwsgiPacket("REQUEST_URI and PATH_INFO are missing")
    query = variables.get("QUERY_STRING", "")
    return quote(path.encode("latin-1")) + (f"?{query}" if query else "")


def _scheme(variables: Variables) -> str:
    """Return the scheme as the proxy has it; "" if it does not say. A header of the client's counts less."""
    if https := variables.get("HTTPS"):
        return "https" if https.lower() in ("on", "1") else "http"
    scheme = variables.get("REQUEST_SCHEME")
    return "" if not scheme else "https" if scheme == "https" else "http"


class UwsgiRequest(Request):
    """A request whose head is a packet of uWSGI's protocol."""

    def parse(self, unreader: Unreader) -> bytes:
        policy = self.policy
        gatherer = PacketGatherer(policy, self.peer_addr)
        while True:
            data = unreader.read()
            if not data:
                raise NoMoreData(bytes(gatherer.buffer))
            if gatherer.feed(data):
                break
        head, self.variables = read_head(parse_packet(gatherer.packet()), policy, self.trusted_peer)
        self._take(head)
        return gatherer.rest()


class UwsgiParser(RequestParser):
    """The one request of a proxy's connection."""

    mesg_class = UwsgiRequest

    def gatherer(self) -> Any:
        return PacketGatherer(self.policy, self.source_addr)
