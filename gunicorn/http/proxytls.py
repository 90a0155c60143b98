# SPDX-License-Identifier: MIT
"""Read a PROXY header that comes in the clear before the TLS handshake.

The specification of the protocol puts it there, and so do proxies that pass TLS on unread. A socket of these
classes receives it as the first part of the handshake, and not one byte more: TLS reads the descriptor.
"""

from __future__ import annotations

import _socket
import select
import socket
import ssl
from functools import lru_cache
from typing import Any

from .errors import ForbiddenProxyRequest, InvalidProxyLine
from .policy import RequestPolicy, policy_for
from .proxyproto import V1_PREFIX, V2_SIGNATURE, ProxyInfo, split_proxy_header, starts_proxy_header

# More than the longest header.
_PEEK = 8192
# No TLS record begins with them.
_FIRST_BYTES = (V1_PREFIX[:1], V2_SIGNATURE[:1])


class ProxiedSocket:
    """A mixin for TLS sockets that reads a PROXY header before the handshake.

    ``proxy_seen`` tells whether there was one, ``proxy_info`` its content. ``do_handshake()`` raises
    SSLError for a header that is malformed, or that the peer may not send.
    """

    policy: RequestPolicy
    proxy_seen = False
    proxy_info: ProxyInfo | None = None
    _header = b""
    _header_over = False

    def do_handshake(self, *args: Any, **kwargs: Any) -> None:
        sock: Any = self
        while not self._header_over:
            try:
                self._receive_header(sock)
            except BlockingIOError:
                if sock.gettimeout() == 0:
                    raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the PROXY header") from None
                _wait(sock)
            except (InvalidProxyLine, ForbiddenProxyRequest) as error:
                raise ssl.SSLError(ssl.SSL_ERROR_SSL, str(error)) from error
        super().do_handshake(*args, **kwargs)  # type: ignore[misc]

    def _receive_header(self, sock: Any) -> None:
        """Receive the part of a header that has arrived. Raises BlockingIOError if there is none."""
        plain = getattr(sock, "_sock", sock)
        data = _socket.socket.recv(plain, _PEEK, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if not self._header and data[:1] not in _FIRST_BYTES:
            self._header_over = True  # none, or the end of the connection, which TLS will find
            return
        header = self._header + data
        if not self._header and not self.policy.proxy_allow.allows(peer := sock.getpeername()):
            raise ForbiddenProxyRequest(str(peer[0]))
        if not data or starts_proxy_header(header) is False:
            raise InvalidProxyLine(header[:120])
        found = split_proxy_header(header, self.policy.proxy_protocol)
        # All that has arrived belongs to an incomplete header.
        end = len(header) if found is None else found[0]
        self._header += _socket.socket.recv(plain, end - len(self._header), socket.MSG_DONTWAIT)
        if found is not None:
            self.proxy_info = found[1]
            self.proxy_seen = self._header_over = True


def _wait(sock: Any) -> None:
    """Wait for input, as long as the timeout of the socket says."""
    # By attribute of the module: gevent replaces it there.
    waiting = select.poll()
    waiting.register(sock.fileno(), select.POLLIN)
    timeout = sock.gettimeout()
    if not waiting.poll(None if timeout is None else timeout * 1000):
        raise TimeoutError("the handshake timed out")


@lru_cache(maxsize=4)
def proxied_class(base: Any, cfg: Any) -> Any:
    """Return *base*, a class of TLS sockets, with the PROXY protocol for peers in ``proxy_allow_ips``."""
    return type(f"Proxied{base.__name__}", (ProxiedSocket, base), {"policy": policy_for(cfg)})
