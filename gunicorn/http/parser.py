# SPDX-License-Identifier: MIT
"""Iterate over the requests of one connection."""

from __future__ import annotations

from typing import Any

from .errors import NoMoreData
from .message import Request
from .parse import HeadGatherer
from .policy import RequestPolicy, policy_for
from .proxyproto import ProxyInfo
from .unreader import IterUnreader, SocketUnreader, Unreader


class Parser:
    """Iterates over the messages of *source*: a socket, an iterable of bytes, or an Unreader.

    Before the next message it drains the last one, within bounds. If that fails, and after a message that
    closes the connection, the iteration ends. *policy* spares finding it again.
    """

    mesg_class: type[Request] = Request

    def __init__(self, cfg: Any, source: Any, source_addr: Any, policy: RequestPolicy | None = None) -> None:
        self.cfg = cfg
        self.policy = policy or policy_for(cfg)
        self.unreader: Unreader
        if hasattr(source, "recv"):
            self.unreader = SocketUnreader(source)
        elif isinstance(source, Unreader):
            self.unreader = source
        else:
            self.unreader = IterUnreader(source)
        self.mesg: Request | None = None
        self.source_addr = source_addr
        self.req_count = 0
        self._proxy_info: ProxyInfo | None = None
        if getattr(source, "proxy_seen", False):
            self.after_handshake(source)

    def after_handshake(self, source: Any) -> None:
        """Use the PROXY header that came before the TLS handshake of *source*, if one did."""
        if getattr(source, "proxy_seen", False):
            # A second PROXY header, after the handshake, would be the client's.
            self.policy = self.policy.without_proxy_protocol()
            self._proxy_info = source.proxy_info

    def __iter__(self) -> Parser:
        return self

    def __next__(self) -> Request:
        last = self.mesg
        if last is not None and (last.should_close() or not (last.body.finished or last.drain())):
            raise StopIteration
        self.req_count += 1
        try:
            mesg = self.mesg = self.mesg_class(
                self.cfg, self.unreader, self.source_addr, self.req_count, self.policy, self._proxy_info
            )
        except NoMoreData as end:
            # Some clients send an empty line after a body.
            if end.buf and end.buf.strip(b"\r\n"):
                raise
            raise StopIteration from None  # between two messages
        # A PROXY header holds for the connection, not for its first request alone.
        self._proxy_info = mesg.proxy_info
        return mesg

    next = __next__

    def gatherer(self) -> Any:
        """Return what collects the bytes of the next head, for a worker that receives them itself."""
        return HeadGatherer(self.policy, first=self.req_count == 0)


class RequestParser(Parser):
    """The requests of a client's connection."""
