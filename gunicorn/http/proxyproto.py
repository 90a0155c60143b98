# SPDX-License-Identifier: MIT
"""Parse the PROXY protocol, versions 1 (a line of text) and 2 (binary), by HAProxy's specification.

Pure: bytes in, the described connection out. The caller checks whether the peer is trusted.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from .errors import InvalidProxyLine

V1_PREFIX = b"PROXY "
V1_MAX_LENGTH = 107  # with CRLF; the specification's own worst case
V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V2_HEADER_LENGTH = 16
# Addresses of Unix sockets take 216 bytes, the rest is TLVs (TLS certificates' names among them).
V2_MAX_PAYLOAD = 4096

_PORT_RE = re.compile(r"0|[1-9][0-9]{0,4}")


class ProxyInfo(NamedTuple):
    """The connection that the proxy accepted: from *client* to *proxy*."""

    protocol: str
    client_addr: str
    client_port: int
    proxy_addr: str
    proxy_port: int

    def as_dict(self) -> dict[str, str | int]:
        """Return it as ``Request.proxy_protocol_info`` has it."""
        return {
            "proxy_protocol": self.protocol,
            "client_addr": self.client_addr,
            "client_port": self.client_port,
            "proxy_addr": self.proxy_addr,
            "proxy_port": self.proxy_port,
        }


def starts_proxy_header(buffer: bytes | bytearray) -> bool | None:
    """Whether *buffer* starts with a PROXY header; None while there are too few bytes to tell."""
    for prefix in (V1_PREFIX, V2_SIGNATURE):
        if buffer.startswith(prefix):
            return True
        if prefix.startswith(bytes(buffer[: len(prefix)])):
            return None
    return False


def split_proxy_header(buffer: bytes | bytearray, mode: str) -> tuple[int, ProxyInfo | None] | None:
    """Return the length and the content of the PROXY header at the start of *buffer*; None while incomplete.

    *mode*: the version that is accepted, ``v1`` or ``v2``, or ``auto`` for both. The content is None for
    ``UNKNOWN`` and ``LOCAL``: the addresses of the socket hold. Raises InvalidProxyLine as soon as no further
    bytes can make it valid.
    """
    is_v2 = V2_SIGNATURE.startswith(bytes(buffer[: len(V2_SIGNATURE)]))
    if mode == ("v1" if is_v2 else "v2"):
        raise InvalidProxyLine(bytes(buffer[:V2_HEADER_LENGTH]))
    if is_v2:
        return _split_v2(buffer)
    end = buffer.find(b"\n", 0, V1_MAX_LENGTH)
    if end < 0:
        if len(buffer) >= V1_MAX_LENGTH:
            raise InvalidProxyLine(bytes(buffer[:V1_MAX_LENGTH]))
        return None
    line = bytes(buffer[: end + 1])
    if not line.endswith(b"\r\n"):
        raise InvalidProxyLine(line)
    return end + 1, parse_v1(line[:-2].decode("latin-1"))


def parse_v1(line: str) -> ProxyInfo | None:
    """Parse a version 1 line, without its CRLF. Raises InvalidProxyLine."""
    fields = line.split(" ")
    if fields[0] != "PROXY" or len(fields) < 2:
        raise InvalidProxyLine(line)
    if fields[1] == "UNKNOWN":
        return None
    # Python would read a zone, and anything may be in its name.
    if len(fields) != 6 or fields[1] not in ("TCP4", "TCP6") or "%" in line:
        raise InvalidProxyLine(line)
    import ipaddress

    family = ipaddress.IPv4Address if fields[1] == "TCP4" else ipaddress.IPv6Address
    try:
        client, proxy = str(family(fields[2])), str(family(fields[3]))
    except ValueError:
        raise InvalidProxyLine(line) from None
    return ProxyInfo(fields[1], client, _port(fields[4], line), proxy, _port(fields[5], line))


def _port(text: str, line: str) -> int:
    if not _PORT_RE.fullmatch(text) or int(text) > 65535:
        raise InvalidProxyLine(line)
    return int(text)


def _split_v2(buffer: bytes | bytearray) -> tuple[int, ProxyInfo | None] | None:
    if len(buffer) < V2_HEADER_LENGTH:
        return None
    version_command, family, length = struct.unpack_from("!BBH", buffer, len(V2_SIGNATURE))
    version, command = version_command >> 4, version_command & 15
    if version != 2 or command > 1 or length > V2_MAX_PAYLOAD:
        raise InvalidProxyLine(bytes(buffer[:V2_HEADER_LENGTH]))
    total = V2_HEADER_LENGTH + length
    if len(buffer) < total:
        return None
    if command == 0:  # LOCAL: the proxy speaks for itself, a health check for one
        return total, None
    return total, _v2_addresses(family, bytes(buffer[V2_HEADER_LENGTH:total]))


def _v2_addresses(family: int, payload: bytes) -> ProxyInfo | None:
    if family == 0x11:
        size, name = 4, "TCP4"
    elif family == 0x21:
        size, name = 16, "TCP6"
    elif family in (0x00, 0x12, 0x22, 0x31, 0x32):
        # Unspecified, datagrams, Unix sockets: valid, but an environ has no place for them.
        return None
    else:
        raise InvalidProxyLine(bytes([family]))
    if len(payload) < 2 * size + 4:
        raise InvalidProxyLine(payload)
    import ipaddress

    ports = struct.unpack_from("!HH", payload, 2 * size)
    client, proxy = (str(ipaddress.ip_address(payload[at : at + size])) for at in (0, size))
    return ProxyInfo(name, client, ports[0], proxy, ports[1])
