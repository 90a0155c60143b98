# SPDX-License-Identifier: MIT
"""Who may use the monitor: the host names that requests give, and the token for actions. Pure.

A page elsewhere can have a visitor's browser send requests here. It may let its own name resolve to this
address (DNS rebinding); then ``Host`` has that name. Or it posts from its own origin; then ``Origin`` is
another than the monitor's.
"""

from __future__ import annotations

import hmac
import socket
from collections.abc import Iterable


class Hosts:
    """The names in *names* (``HOST``, ``HOST:PORT``, ``unix:PATH``), localhost, and IP addresses.

    An address cannot be rebound: a page that has it as its host comes from there.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {host_of(name) for name in names if not name.startswith("unix:")} | {"localhost"}

    def allow(self, header: str | None) -> bool:
        """Whether a request with this ``Host`` may be answered."""
        host = host_of(header or "")
        return host in self._names or host.endswith(".localhost") or _is_address(host)


def host_of(text: str) -> str:
    """The host in ``HOST:PORT``, without port, brackets and the dot of the root."""
    text = text.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    host, _, port = text.rpartition(":")
    if host and port.isdecimal() and ":" not in host:
        text = host
    return text.rstrip(".")


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False


def same_origin(origin: str | None, host: str | None) -> bool:
    """Whether *origin*, which browsers send, is that of *host*; programs send none.

    The scheme does not count: a proxy may end TLS.
    """
    if origin is None:
        return True
    scheme, separator, rest = origin.partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme, "")
    given, own = (text.lower().removesuffix(default) for text in (rest, host or ""))
    return bool(separator and own) and given == own


def has_token(authorization: str | None, token: str) -> bool:
    """Whether the header ``Authorization`` has *token*; takes as long for every wrong one."""
    scheme, _, given = (authorization or "").partition(" ")
    # Environ strings are Latin-1 for bytes.
    return scheme.lower() == "bearer" and hmac.compare_digest(
        given.strip().encode("latin-1", "replace"), token.encode()
    )
