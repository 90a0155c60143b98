# SPDX-License-Identifier: MIT
"""What proxies say of their clients, in the scope of an ASGI application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Forwarded:
    """The rules of *policy* for the fields of trusted proxies."""

    def __init__(self, policy: Any) -> None:
        schemes = policy.secure_scheme_headers.items()
        self._schemes = {name.lower().encode("latin-1"): value.encode("latin-1") for name, value in schemes}
        self._allow = policy.forwarded_allow
        #: The fields that ``apply()`` looks at.
        self.names = frozenset((*self._schemes, b"x-forwarded-for"))

    def may_disagree(self, fields: Mapping[bytes, bytes]) -> bool:
        """Whether several of the *fields* tell a scheme."""
        return len(self._schemes.keys() & fields.keys()) > 1

    def apply(self, scope: dict[str, Any]) -> None:
        """Take scheme and client from what a trusted proxy has sent."""
        hops: list[str] = []
        for name, value in scope["headers"]:
            if name in self._schemes:
                scope["scheme"] = "https" if value == self._schemes[name] else "http"
            elif name == b"x-forwarded-for":
                hops += [hop.strip() for hop in value.decode("latin-1").split(",") if hop.strip()]
        for hop in reversed(hops):
            # The last one that is not a proxy of ours; each proxy adds the address that it has seen.
            client = _address(hop)
            scope["client"] = client
            if not self._allow.allows(client):
                break


def _address(hop: str) -> tuple[str, int]:
    """The address in an X-Forwarded-For field, which may have a port."""
    host, _, port = hop.rpartition(":")
    if hop.startswith("["):
        host, _, port = hop[1:].partition("]")
        return host, int(port[1:]) if port[1:].isdecimal() else 0
    return (host, int(port)) if hop.count(":") == 1 and port.isdecimal() else (hop, 0)
