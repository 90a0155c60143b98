# SPDX-License-Identifier: MIT
"""The limits, switches and trust for requests, taken from the configuration once."""

from __future__ import annotations

import copy
import socket
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .environ import header_key

if TYPE_CHECKING:
    import ipaddress

MAX_REQUEST_LINE = 8190
MAX_HEADERS = 32768
DEFAULT_MAX_HEADERFIELD_SIZE = 8190

# "Unlimited" ends here, and so do products of large limits: one connection must not take all memory.
HARD_MAX_REQUEST_LINE = 1 << 20
HARD_MAX_HEADER_BYTES = 16 << 20

PeerAddress = Any  # a socket address: tuple for TCP, str or bytes for a Unix socket


class AllowList:
    """Addresses and networks of trusted peers. A peer without an address is trusted, too.

    ``*`` trusts every peer. Raises ValueError for an entry that is no address and no network.
    """

    __slots__ = ("_addresses", "_anyone", "_in_networks", "_networks")

    def __init__(self, entries: str | Iterable[str]) -> None:
        if isinstance(entries, str):
            entries = entries.split(",")
        names = [entry.strip() for entry in entries if entry.strip()]
        self._anyone = "*" in names
        single = {name: _canonical(name) for name in names if name != "*"}
        addresses = {address for address in single.values() if address}
        # A dual-stack listener sees IPv4 peers as ::ffff:a.b.c.d.
        addresses |= {f"::ffff:{address}" for address in addresses if "." in address and ":" not in address}
        self._addresses = frozenset(addresses)
        self._networks = [_network(name) for name, address in single.items() if not address]
        # Asked for each request. Nearly all come from the same few proxies.
        self._in_networks = lru_cache(maxsize=256)(self._in_network)

    def allows(self, peer: PeerAddress) -> bool:
        """Whether *peer*, an address as the socket module gives it, is trusted."""
        if self._anyone or not isinstance(peer, tuple):
            # The file mode of a Unix socket has let the peer in.
            return True
        host = peer[0]
        if host in self._addresses:
            return True
        if "%" in host and host.partition("%")[0] in self._addresses:
            return True
        return bool(self._networks) and self._in_networks(host)

    def _in_network(self, host: str) -> bool:
        import ipaddress

        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any(address in net or (mapped is not None and mapped in net) for net in self._networks)


def _canonical(text: str) -> str:
    """Return the address *text* as the system writes it; "" if it is no single address."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, text))
        except (OSError, ValueError):
            pass
    return ""


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    # Not at the top: most lists have no network.
    import ipaddress

    return ipaddress.ip_network(text, strict=False)


class RequestPolicy:
    """How to read a request.

    A limit of 0 is none, up to the hard bounds of this module. Sizes are bytes; that of the line without its
    CRLF, that of a field with it.
    """

    def __init__(
        self,
        *,
        limit_request_line: int = 4094,
        limit_request_fields: int = 100,
        limit_request_field_size: int = 8190,
        permit_obsolete_folding: bool = False,
        strip_header_spaces: bool = False,
        permit_unconventional_http_method: bool = False,
        permit_unconventional_http_version: bool = False,
        casefold_http_method: bool = False,
        header_map: str = "drop",
        forwarder_headers: frozenset[str] = frozenset({"SCRIPT_NAME", "PATH_INFO"}),
        secure_scheme_headers: Mapping[str, str] | None = None,
        forwarded_allow: AllowList | None = None,
        proxy_protocol: str = "",
        proxy_allow: AllowList | None = None,
        default_scheme: str = "http",
        protocol: str = "http",
        uwsgi_allow: AllowList | None = None,
    ) -> None:
        line, fields, size = normalize_limits(
            limit_request_line, limit_request_fields, limit_request_field_size
        )
        self.limit_request_line = line
        self.limit_request_fields = fields
        self.limit_request_field_size = size
        self.permit_obsolete_folding = permit_obsolete_folding
        self.strip_header_spaces = strip_header_spaces
        self.permit_unconventional_http_method = permit_unconventional_http_method
        self.permit_unconventional_http_version = permit_unconventional_http_version
        self.casefold_http_method = casefold_http_method
        self.header_map = header_map
        self.forwarder_headers = forwarder_headers
        self.secure_scheme_headers = secure_scheme_headers or {}
        self.forwarded_allow = forwarded_allow or AllowList("127.0.0.1,::1")
        self.proxy_protocol = proxy_protocol
        if proxy_protocol:
            # Import what parses a header before the fork, not in each worker within a request.
            import ipaddress  # noqa: F401
        self.proxy_allow = proxy_allow or AllowList("127.0.0.1,::1")
        self.default_scheme = default_scheme
        self.protocol = protocol
        self.uwsgi_allow = uwsgi_allow or AllowList("127.0.0.1,::1")
        #: Whether something other than a head of HTTP may begin a connection.
        self.begins_otherwise = proxy_protocol != "" or protocol != "http"
        # So that each request compares plain numbers.
        self.max_line = line or HARD_MAX_REQUEST_LINE
        self.max_field = size or HARD_MAX_HEADER_BYTES
        product = fields * (size + 2) + 4 if size else HARD_MAX_HEADER_BYTES
        self.max_header_bytes = min(product, HARD_MAX_HEADER_BYTES)
        # By keys of the environ, where a name with an underscore has none of its own.
        schemes = self.secure_scheme_headers.items()
        self.scheme_fields = tuple([(header_key(name), value) for name, value in schemes if "_" not in name])
        self.scheme_keys = frozenset(key for key, _ in self.scheme_fields)

    def forwards(self, name: str) -> bool:
        """Whether a trusted proxy may send the header *name*, which has an underscore."""
        return name in self.forwarder_headers or "*" in self.forwarder_headers

    def without_proxy_protocol(self) -> RequestPolicy:
        """Return the policy for a connection that has had its PROXY header."""
        policy = copy.copy(self)
        policy.proxy_protocol = ""
        policy.begins_otherwise = False
        return policy


def normalize_limits(line: int, fields: int, size: int) -> tuple[int, int, int]:
    """Bring the three ``limit_request_*`` settings into their documented range."""
    if line < 0 or line > MAX_REQUEST_LINE:
        line = MAX_REQUEST_LINE
    if fields <= 0 or fields > MAX_HEADERS:
        fields = MAX_HEADERS
    if size < 0:
        size = DEFAULT_MAX_HEADERFIELD_SIZE
    return line, fields, size


def policy_for(cfg: Any) -> RequestPolicy:
    """Return the policy that *cfg* asks for. Do this once for a worker, not for each request."""
    return RequestPolicy(
        limit_request_line=cfg.limit_request_line,
        limit_request_fields=cfg.limit_request_fields,
        limit_request_field_size=cfg.limit_request_field_size,
        permit_obsolete_folding=bool(cfg.permit_obsolete_folding),
        strip_header_spaces=bool(cfg.strip_header_spaces),
        permit_unconventional_http_method=bool(cfg.permit_unconventional_http_method),
        permit_unconventional_http_version=bool(cfg.permit_unconventional_http_version),
        casefold_http_method=bool(cfg.casefold_http_method),
        header_map=cfg.header_map,
        forwarder_headers=frozenset(_names(cfg.forwarder_headers)),
        secure_scheme_headers={name.upper(): value for name, value in cfg.secure_scheme_headers.items()},
        forwarded_allow=AllowList(cfg.forwarded_allow_ips),
        proxy_protocol=proxy_mode(cfg),
        proxy_allow=AllowList(cfg.proxy_allow_ips),
        default_scheme="https" if cfg.is_ssl else "http",
        protocol=cfg.protocol,
        uwsgi_allow=AllowList(cfg.uwsgi_allow_ips),
    )


def proxy_mode(cfg: Any) -> str:
    """Return the version of the PROXY protocol to read: ``v1``, ``v2``, ``auto`` for both, or "" for none."""
    mode: str = cfg.proxy_protocol
    return "" if mode == "off" else mode


def _names(value: str | Iterable[str] | None) -> list[str]:
    entries = value.split(",") if isinstance(value, str) else list(value or ())
    return [entry.strip().upper() for entry in entries if entry.strip()]
