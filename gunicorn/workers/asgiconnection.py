# SPDX-License-Identifier: MIT
"""Connections of the asgi worker: what uvicorn's protocols get for a transport."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gunicorn.http.errors import ForbiddenProxyRequest, NoMoreData, RequestTimeout
from gunicorn.http.proxyproto import ProxyInfo, split_proxy_header, starts_proxy_header
from gunicorn.workers.connection import (
    LINGER_SECONDS,
    Connection,
    State,
    begin_close,
    discard_input,
    has_input,
)

# How often to look whether more has come, where nothing reports it.
_TICK = 0.02


class Conn(Connection):
    """An accepted connection, and the transport of its protocol: it closes so that the answer arrives.

    A socket that is closed with unread bytes sends a reset, which can destroy the answer. So while the client
    may still be sending, close the sending side, and discard what comes until the client has closed too.
    """

    def __init__(self, worker: Any, sock: Any, peer: Any) -> None:
        super().__init__(sock)
        self.worker = worker
        self.peer = peer
        self.client: tuple[str, int] | None = None
        if isinstance(peer, tuple):
            self.client = str(peer[0]), int(peer[1])
        self.trusted = worker.cycle.policy.forwarded_allow.allows(peer)
        self.proxy_info: ProxyInfo | None = None
        #: The task that prepares it, up to the end of the TLS handshake.
        self.opening: asyncio.Task[None] | None = None
        self.transport: Any = None
        #: uvicorn's protocol, for HTTP at first and then perhaps for a WebSocket.
        self.protocol: Any = None
        # The transport's own methods: they are called for each piece of a response, or each message.
        self.write: Callable[[Any], object] = _ignore
        self.pause_reading: Callable[[], object] = _ignore
        self.resume_reading: Callable[[], object] = _ignore
        self.closing = False
        self.is_websocket = False
        # What the last sweep has seen of the bytes to send, and since when.
        self._unsent = (0, self.since)

    def attach(self, transport: Any, protocol: Any) -> None:
        """Use *transport* from now on."""
        self.transport, self.protocol = transport, protocol
        self.write = transport.write
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading
        if not self.hung_up:
            self.enter(State.NEW)

    # -- the transport -------------------------------------------------------------------

    def sendall(self, data: bytes) -> None:
        self.write(data)

    def is_closing(self) -> bool:
        return self.closing or bool(self.transport.is_closing())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.transport.get_extra_info(name, default)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol
        self.transport.set_protocol(protocol)

    def close(self) -> None:
        """Send what was written, and close."""
        if self.closing:
            return
        self._end()
        self.enter(State.LINGER)
        transport = self.transport
        if transport.is_closing():
            return
        # TLS has an end of its own, which waits for the client's.
        if transport.can_write_eof() and (self.protocol.more_expected or has_input(self.sock)):
            transport.write_eof()
            # The protocol may have stopped reading.
            transport.resume_reading()
        else:
            transport.close()

    def _end(self) -> None:
        self.closing = True
        self.write = self.pause_reading = self.resume_reading = _ignore

    def abort(self) -> None:
        """Cut the connection off."""
        self._end()
        if self.opening is not None:
            self.opening.cancel()
        if self.transport is not None:
            self.transport.abort()

    def reset(self) -> None:
        """Cut it off so that the client sees that the content was not whole."""
        linger = struct.pack("ii", 1, 0)
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.abort()

    async def linger(self) -> None:
        """Close it before it had a transport, once its client has closed or stopped sending."""
        deadline = time.monotonic() + LINGER_SECONDS
        if begin_close(self.sock, more_expected=True):
            while not discard_input(self.sock) and time.monotonic() < deadline:
                await asyncio.sleep(_TICK)

    # -- ends ------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Close it, unless something has arrived: that is answered first, and the answer says close."""
        self.hung_up = True
        if self.transport is None:
            self.abort()
        elif not has_input(self.sock):
            self.close()

    def is_overdue(self, now: float) -> bool:
        """Whether the client has kept the connection waiting for too long, and nothing has arrived.

        After a pause of the process, a request may be there that was not read yet.
        """
        waited = now - self.since
        patience = self.worker.patience
        if self.state == State.IDLE:
            return waited > self.worker.keepalive and not has_input(self.sock)
        if self.state in (State.NEW, State.HEAD):
            return bool(patience) and waited > patience and not has_input(self.sock)
        if self.state == State.LINGER:
            # What is sent in the background may take longer.
            return waited > LINGER_SECONDS and not self._is_sending(now, LINGER_SECONDS)
        if self.state == State.BUSY and patience:
            stalled = self.protocol.waits_since(now) > patience and not has_input(self.sock)
            return stalled or (self._unsent[0] > 0 and not self._is_sending(now, patience))
        return False

    def _is_sending(self, now: float, patience: float) -> bool:
        """Whether the client has taken a part of what is to be sent, within *patience* seconds."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent[0]:
            self._unsent = unsent, now
        return unsent > 0 and now - self._unsent[1] <= patience

    def sweep(self, now: float) -> None:
        """End it if it is overdue."""
        if self.transport is None:
            return
        if self.state in (State.BUSY, State.LINGER):
            # From the first moment on, so that its patience is not added to that of the state.
            self._is_sending(now, 0)
        if not self.is_overdue(now):
            return
        if self.state == State.BUSY:
            self.protocol.give_up(RequestTimeout())
        elif self.state == State.LINGER:
            self.abort()
        else:
            if self.state == State.HEAD:
                self.worker.handle_error(None, self, self.peer, RequestTimeout())
            self.hang_up()


def _ignore(*data: Any) -> None:
    pass


async def read_proxy_header(conn: Conn, mode: str) -> None:
    """Take the PROXY header off what *conn* receives first, before any TLS.

    Raises ParseException, and OSError if the client has left.
    """
    loop = asyncio.get_running_loop()
    deadline = time.monotonic() + (conn.worker.patience or conn.worker.handshake_seconds)
    while True:
        try:
            # Leave it in the queue, because what follows is for others.
            data = conn.sock.recv(8192, socket.MSG_PEEK)
        except BlockingIOError:
            await _readable(loop, conn.sock, deadline - time.monotonic())
            continue
        if not data:
            raise NoMoreData(b"")
        starts = starts_proxy_header(data)
        if starts is False:
            return
        if starts and not conn.worker.cycle.policy.proxy_allow.allows(conn.peer):
            raise ForbiddenProxyRequest(str(conn.peer[0]))
        found = split_proxy_header(data, mode) if starts else None
        if found is not None:
            size, conn.proxy_info = found
            conn.sock.recv(size)
            if conn.proxy_info is not None:
                conn.client = conn.proxy_info.client_addr, conn.proxy_info.client_port
            return
        if time.monotonic() > deadline:
            raise RequestTimeout()
        await asyncio.sleep(_TICK)


async def _readable(loop: asyncio.AbstractEventLoop, sock: Any, seconds: float) -> None:
    """Wait until *sock* has bytes. Raises RequestTimeout after *seconds*."""
    ready = asyncio.Event()
    loop.add_reader(sock.fileno(), ready.set)
    try:
        await asyncio.wait_for(ready.wait(), max(seconds, 0))
    except asyncio.TimeoutError:
        raise RequestTimeout() from None
    finally:
        loop.remove_reader(sock.fileno())
