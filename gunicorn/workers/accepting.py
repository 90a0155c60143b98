# SPDX-License-Identifier: MIT
"""What can go wrong when a connection is accepted, and how many wait for it."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from typing import Any

#: The connection ended before it was accepted, or another worker has it: no reason to stop accepting.
TRANSIENT = frozenset(
    (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM, errno.ENETDOWN)
)
#: The connection stays in the queue until there is room: a loop without a pause would spin.
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

# linux/tcp.h: of a listening socket, tcpi_unacked is the length of its accept queue.
_TCP_INFO_SIZE = 104
_TCP_INFO_UNACKED = 24

# A server that is overloaded has never an empty queue.
_DRAIN_SECONDS = 5.0


def drain_seconds(cfg: Any) -> float:
    """For how long a worker that ends still serves who has been waiting; then it needs time to finish."""
    return min(float(cfg.graceful_timeout) / 2, _DRAIN_SECONDS)


def queue_length(listener: Any) -> int:
    """How many connections wait to be accepted; where the system does not tell, as many as ever can."""
    if listener.fileno() < 0:
        return 0
    with suppress(OSError, AttributeError, struct.error, ValueError):
        if listener.family != socket.AF_UNIX:
            info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
            return int(struct.unpack_from("@I", info, _TCP_INFO_UNACKED)[0])
    return int(listener.conf.backlog) if hasattr(listener, "conf") else socket.SOMAXCONN
