# SPDX-License-Identifier: MIT
"""Close idle connections when a worker retires."""

from __future__ import annotations

import _socket
import contextlib
import socket
import time
from collections.abc import Iterable
from typing import Any

from gunicorn.workers import closing
from gunicorn.workers.connections import State

# How long a connection must have idled to be closed in favour of a new one.
IDLE_AT_LEAST = 1.0


class Connection:
    """A client's connection: what it waits for, and since when."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.request: Any = None
        self.reported = False
        #: Whether its answer is the last one: a request came just when it was hung up.
        self.hung_up = False
        #: Tells of what arrives, where the worker keeps one for the connection.
        self.arrival: Any = None
        self.enter(State.NEW)

    def enter(self, state: State) -> None:
        """Wait for something else from now on."""
        self.state = state
        self.since = time.monotonic()

    def hang_up(self) -> None:
        """Let the waiting code find the end of input, after the bytes that have arrived."""
        self.enter(State.LINGER)
        self.hung_up = True
        # Below gevent, whose own would throw an error into the greenlet that waits.
        sock = getattr(self.sock, "_sock", self.sock)
        if isinstance(sock, _socket.socket):  # gevent replaces that of a closed one
            with contextlib.suppress(OSError, ValueError):
                _socket.socket.shutdown(sock, socket.SHUT_RD)


def has_input(sock: Any) -> bool:
    """Whether bytes have arrived on *sock*, below any TLS; the end of the connection is none."""
    try:
        return bool(closing.peek_now(sock))
    except (OSError, ValueError):
        return False


def make_room(conns: Iterable[Connection]) -> None:
    """Close the connection that has idled the longest, for a new one.

    One that was answered just now is spared: its next request may be on the way.
    """
    before = time.monotonic() - IDLE_AT_LEAST
    idle = (conn for conn in conns if conn.state is State.IDLE and conn.since < before)
    longest = min(idle, key=lambda conn: conn.since, default=None)
    if longest is not None:
        longest.hang_up()
