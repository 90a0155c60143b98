# SPDX-License-Identifier: MIT
"""Close a connection so that the client gets all of the last answer (RFC 9112 section 9.6).

A socket that is closed with unread bytes, or while bytes still arrive, sends a reset; and a reset destroys
data that the client has received but not read yet. So shut down the sending side first, and discard further
input, within bounds.
"""

from __future__ import annotations

import _socket
import fcntl
import socket
import struct
import termios
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any

# A client that has read the answer closes; one that only sends is cut off.
LINGER_SECONDS = 2.0
LINGER_BYTES = 1 << 20

_CHUNK = 65536

_NO_BYTES = struct.pack("@i", 0)


@lru_cache(maxsize=4)
def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    return struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))


def set_blocking_timeout(sock: Any, seconds: float) -> None:
    """Let each receive and send wait at most *seconds* (0: for ever) in the kernel.

    A timeout of Python's own costs a ``poll()`` for each of them. It fails with BlockingIOError.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))
    set_send_timeout(sock, seconds)


def set_send_timeout(sock: Any, seconds: float) -> None:
    """As ``set_blocking_timeout()``, for sending alone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))


def has_blocking_timeout(sock: Any, seconds: float) -> bool:
    """Whether ``set_blocking_timeout()`` has been called for *sock*, or, on some systems, its listener."""
    value = _timeval(seconds)
    options = socket.SO_RCVTIMEO, socket.SO_SNDTIMEO
    return all(sock.getsockopt(socket.SOL_SOCKET, option, len(value)) == value for option in options)


def peek_now(sock: Any) -> bytes:
    """As ``receive_now()`` for one byte, which is left where it is."""
    return _socket.socket.recv(getattr(sock, "_sock", sock), 1, socket.MSG_DONTWAIT | socket.MSG_PEEK)


def receive_now(sock: Any, size: int = _CHUNK) -> bytes:
    """Receive the bytes on the connection itself, below any TLS. Raises BlockingIOError if there are none."""
    return _socket.socket.recv(getattr(sock, "_sock", sock), size, socket.MSG_DONTWAIT)


def begin_close(sock: Any, more_expected: bool = False) -> bool:
    """Close *sock* and return False; or True if it must linger: its sending side is shut then.

    *more_expected*: the client is known to be still sending.
    """
    try:
        lingers = more_expected or _has_input(sock)
        say_goodbye(sock)
        if not lingers:
            sock.close()
            return False
        sock.shutdown(socket.SHUT_WR)
        return True
    except (OSError, ValueError):
        sock.close()
        return False


def _has_input(sock: Any) -> bool:
    """Whether unread bytes have arrived; end of input does not count."""
    count = bytearray(_NO_BYTES)  # bytes that cannot be changed would be taken only after two errors
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    return count != _NO_BYTES


def say_goodbye(sock: Any) -> None:
    """Send TLS's close_notify: without it the client cannot tell an end from a connection cut by others."""
    unwrap = getattr(sock, "unwrap", None)
    if unwrap is None:
        return
    # It would wait for the client's own goodbye, which may never come.
    sock.settimeout(0)
    with suppress(OSError, ValueError):
        unwrap()


def discard_now(sock: Any, limit: int = LINGER_BYTES) -> tuple[bool, int]:
    """Discard the bytes that have arrived; return (whether the connection is at its end, how many bytes)."""
    count = 0
    try:
        while count < limit:
            data = receive_now(sock)
            if not data:
                return True, count
            count += len(data)
    except BlockingIOError:
        return False, count
    except OSError:
        pass
    return True, count


def linger(sock: Any, seconds: float = LINGER_SECONDS, limit: int = LINGER_BYTES) -> None:
    """Wait for the client's end of a connection that ``begin_close()`` has left open, and close it."""
    deadline = time.monotonic() + seconds
    recv = socket.socket.recv if isinstance(sock, socket.socket) else type(sock).recv
    try:
        while limit > 0 and (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            data = recv(sock, _CHUNK)
            if not data:
                break
            limit -= len(data)
    except (OSError, ValueError):
        pass
    finally:
        sock.close()


def close_gracefully(sock: Any, more_expected: bool = False) -> None:
    """Close *sock*, waiting for a client that is still sending."""
    if begin_close(sock, more_expected):
        linger(sock)


def reset(sock: Any) -> None:
    """Close *sock* with a reset, which alone says that content ending with the connection was cut short."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
