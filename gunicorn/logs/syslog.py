# SPDX-License-Identifier: MIT
"""Parse addresses and facilities of syslog."""

from __future__ import annotations

import socket

# RFC 5424 table 1, and the names that syslog.conf(5) gives them.
SYSLOG_FACILITIES: dict[str, int] = {
    "kern": 0,
    "user": 1,
    "mail": 2,
    "daemon": 3,
    "auth": 4,
    "security": 4,
    "syslog": 5,
    "lpr": 6,
    "news": 7,
    "uucp": 8,
    "cron": 9,
    "authpriv": 10,
    "ftp": 11,
    **{f"local{number}": 16 + number for number in range(8)},
}

SyslogAddress = tuple[socket.SocketKind | None, "str | tuple[str, int]"]


def parse_syslog_address(addr: str) -> SyslogAddress:
    """Parse ``udp://HOST:PORT``, ``tcp://…`` or ``unix://PATH[#dgram|#stream]`` into socket type and address.

    The type is None for a Unix path that names none: either may work. Host and port default to ``localhost``
    and 514. Raises RuntimeError for anything else.
    """
    scheme, separator, rest = addr.partition("://")
    if not separator:
        raise RuntimeError(f"syslog address {addr!r} has no udp://, tcp:// or unix:// in front")
    if scheme == "unix":
        path, _, kind = rest.partition("#")
        types = {"": None, "dgram": socket.SOCK_DGRAM, "stream": socket.SOCK_STREAM}
        if not path or kind not in types:
            raise RuntimeError(f"syslog address {addr!r} is not unix://PATH, unix://PATH#dgram or #stream")
        return types[kind], path
    if scheme not in ("udp", "tcp"):
        raise RuntimeError(f"syslog address {addr!r} has an unknown scheme; udp, tcp and unix are known")
    return (socket.SOCK_DGRAM if scheme == "udp" else socket.SOCK_STREAM), _host_and_port(rest, addr)


def _host_and_port(text: str, addr: str) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise RuntimeError(f"syslog address {addr!r} has an unclosed bracket")
        port = port[1:]
    else:
        host, _, port = text.partition(":")
    host = host.lower() or "localhost"
    if not port:
        return host, 514
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise RuntimeError(f"syslog address {addr!r} has a port that is no number from 1 to 65535")
    return host, int(port)
