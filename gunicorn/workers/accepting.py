# SPDX-License-Identifier: MIT
"""Accept connections, handle the errors of accept(), and check for waiting ones."""

from __future__ import annotations

import _socket
import errno
import math
import select
import socket
import time
from typing import Any

#: The connection ended before it was accepted, or another worker has it: no reason to stop accepting.
#: accept(2) passes on the errors of the network that wait on the new connection: "treat them like EAGAIN".
TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        "EAGAIN",
        "ECONNABORTED",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "EINTR",
        "ENETDOWN",
        "ENETUNREACH",
        "ENONET",
        "ENOPROTOOPT",
        "EOPNOTSUPP",
        "EPERM",
        "EPROTO",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
)

# How often the log says, at most, that no connection can be accepted.
_LOG_SECONDS = 30.0

# A server that is overloaded has never an empty queue.
_DRAIN_SECONDS = 5.0


# Plain numbers: attributes of an enumeration are slower to look up.
_family = _socket.socket.family.__get__
_kind = _socket.socket.type.__get__
_proto = _socket.socket.proto.__get__


def accept(listener: Any) -> tuple[Any, Any]:
    """As ``listener.accept()``, without most of what the standard library adds to the system call."""
    sock = getattr(listener, "sock", listener)
    if type(sock) is not socket.socket:
        accepted: tuple[Any, Any] = listener.accept()
        return accepted
    fd, addr = sock._accept()  # type: ignore[attr-defined]
    return socket.socket(_family(sock), _kind(sock), _proto(sock), fileno=fd), addr


class Failures:
    """Failed accepts: decide which need a pause, and which to log."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._logged = -math.inf

    def is_transient(self, error: OSError) -> bool:
        """Whether to go on at once. Else it stays in the queue: a loop without a pause would spin.

        That the process has no descriptor left is the usual reason.
        """
        if error.errno in TRANSIENT:
            return True
        now = time.monotonic()
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            self._log.error("No connection can be accepted: %s", error)
        return False


def drain_seconds(cfg: Any) -> float:
    """Return how long a worker that stops still serves waiting clients; then it needs time to finish."""
    return min(float(cfg.graceful_timeout) / 2, _DRAIN_SECONDS)


def has_queue(listener: Any) -> bool:
    """Whether somebody waits to be accepted; never that of a listener that is closed."""
    fd = listener.fileno()
    if fd < 0:
        return False
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))
