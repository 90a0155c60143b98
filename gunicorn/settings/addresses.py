# SPDX-License-Identifier: MIT
"""Parse addresses for the socket calls. No name is looked up."""

from __future__ import annotations

import re

Address = tuple[str, int] | str | int

_PORT_RE = re.compile(r"[0-9]{1,5}")


def is_ipv6(addr: str) -> bool:
    """Whether *addr* is an IPv6 address, without brackets; a zone (``%eth0``) may follow."""
    import socket

    try:
        socket.inet_pton(socket.AF_INET6, addr.partition("%")[0])
    except (OSError, ValueError, UnicodeError):
        return False
    return True


def parse_address(netloc: str, default_port: str = "8000") -> Address:
    """Parse *netloc* to (host, port), the path of a Unix socket, or a descriptor's number.

    ``HOST``, ``HOST:PORT``, ``:PORT``, ``[IPv6]``, ``[IPv6]:PORT`` with an optional ``tcp://``;
    ``unix:PATH`` and ``unix://PATH``; ``fd://N``. A host that is left out is ``0.0.0.0``.
    Raises RuntimeError with what is wrong.
    """
    scheme, separator, rest = netloc.partition("://")
    if netloc.startswith("unix:"):
        path = rest if netloc.startswith("unix://") else netloc[len("unix:") :]
        if not path:
            raise RuntimeError(f"{netloc!r} has no path; write unix:/path/to/socket")
        return path
    if netloc.startswith("fd://"):
        if not rest.isdecimal():
            raise RuntimeError(f"{rest!r} is not the number of a file descriptor")
        return int(rest)
    if separator:
        if scheme.lower() != "tcp":
            raise RuntimeError(f"the scheme {scheme!r} of {netloc!r} is not one of tcp, unix, fd")
        netloc = rest
    host, port = _split_port(netloc, default_port)
    if not _PORT_RE.fullmatch(port) or int(port) > 65535:
        raise RuntimeError(f"port {port!r} is not a number from 0 to 65535")
    return host.lower() or "0.0.0.0", int(port)


def _split_port(netloc: str, default_port: str) -> tuple[str, str]:
    if netloc.startswith("["):
        host, bracket, after = netloc[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise RuntimeError(f"{netloc!r} is not of the form [IPv6]:PORT")
        return host, after[1:] if after else default_port
    if netloc.count(":") > 1:
        # Bare IPv6; with a port it needs brackets, because it would be ambiguous.
        if is_ipv6(netloc):
            return netloc, default_port
        raise RuntimeError(f"{netloc!r} has too many colons; write an IPv6 address as [ADDRESS]:PORT")
    host, colon, port = netloc.partition(":")
    return host, port if colon else default_port
