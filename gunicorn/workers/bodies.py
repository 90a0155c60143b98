# SPDX-License-Identifier: MIT
"""Limit how long a worker waits for a request's body while its client pauses.

Uploads stall, and some clients produce a body as they send it. Up to `timeout` the worker just waits. After
that it waits on as long as nothing else needs its thread or its place, and has the kernel probe whether the
client is still there.
"""

from __future__ import annotations

import errno
import math
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# A client that vanished is noticed after a minute in total.
_PROBES = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


class BodyIntake:
    """Receives from sockets that have a timeout or, with *flags* for each ``recv()``, do not wait.

    For the latter the first wait is *patience* seconds; for the others it is their own timeout. After that
    *left* says for how many seconds to wait before it is asked again; 0: no longer.
    """

    def __init__(self, left: Callable[[], float], patience: float = 0.0, flags: int = 0) -> None:
        self._left = left
        self._first = None if patience == math.inf else math.ceil(patience * 1000)
        self._flags = (flags,) if flags else ()

    def receive(self, sock: Any, size: int) -> bytes:
        """At most *size* bytes, waiting for one; empty at the end. TimeoutError if none comes in time."""
        while True:
            try:
                data: bytes = sock.recv(size, *self._flags)
                return data
            except (BlockingIOError, TimeoutError) as error:
                # The caller wants no wait; or the kernel has given the client up.
                if sock.gettimeout() == 0 or error.errno == errno.ETIMEDOUT:
                    raise
            self._wait(sock)

    def _wait(self, sock: Any) -> None:
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        if poll.poll(self._first):
            return
        probe(sock)
        while (left := self._left()) > 0:
            if poll.poll(math.ceil(left * 1000)):
                return
        raise TimeoutError("the body of the request paused for too long")


def probe(sock: Any) -> None:
    """Have the kernel ask a silent client whether it is still there, where it can."""
    with suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES:
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
