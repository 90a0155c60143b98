# SPDX-License-Identifier: MIT
"""One connection's life, from accept() to a close that lets the client read all of the last answer.

A socket that is closed with unread bytes, or while bytes still arrive, sends a reset; and a reset destroys
data that the client has received but not read yet (RFC 9112 section 9.6). So shut down the sending side
first, and discard further input, within bounds.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import math
import select
import socket
import struct
import termios
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from gunicorn.unix.unpatched import original

# A client that has read the answer closes; one that only sends is cut off. No number of bytes is the bound:
# nginx looks for an answer only when it can send no more, and it sends a buffered upload as fast as we read.
LINGER_SECONDS = 2.0

# So that one client does not hold up the others.
_DISCARDED_AT_ONCE = 1 << 20

# How long a connection must have idled to be closed in favour of a new one.
IDLE_AT_LEAST = 1.0

# Deadlines are kept to within this, so that not each of a thousand connections wakes the main loop.
PUNCTUALITY = 0.1

# How often the log says, at most, that no connection can be accepted.
_LOG_SECONDS = 30.0

_CHUNK = 65536

_NO_BYTES = struct.pack("@i", 0)


class State:
    """What a connection waits for; in BUSY, its request is being served."""

    HANDSHAKE: Final = "handshake"  # TLS is being set up
    NEW: Final = "new"  # nothing of the first request has come
    HEAD: Final = "head"  # a part of a request's head has come
    IDLE: Final = "idle"  # kept alive, nothing of the next request has come
    BUSY: Final = "busy"
    SENDING: Final = "sending"  # the client has not read a small answer yet
    LINGER: Final = "linger"  # answered for good; what the client still sends is thrown away


class Connection:
    """A connection in an event loop: what it waits for, and since when."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.request: Any = None
        self.reported = False
        #: Whether its answer is the last one: a request came just when it was hung up.
        self.hung_up = False
        #: The loop's watcher for what arrives, where the worker keeps one for the connection.
        self.arrival: Any = None
        self.enter(State.NEW)

    def enter(self, state: str) -> None:
        """Wait for something else from now on."""
        self.state = state
        self.since = time.monotonic()

    def hang_up(self) -> None:
        """Let the code that waits find the end of input, after the bytes that have arrived."""
        self.enter(State.LINGER)
        self.hung_up = True
        # Below gevent, whose own shutdown() would throw an error into the greenlet that waits.
        sock = getattr(self.sock, "_sock", self.sock)
        if isinstance(sock, _socket.socket):  # gevent replaces that of a closed one
            with suppress(OSError, ValueError):
                _socket.socket.shutdown(sock, socket.SHUT_RD)


def hang_up_longest_idle(conns: Iterable[Connection]) -> None:
    """Close the connection that has idled the longest, to make room for a new one.

    Spare one that was answered just now: its next request may be on the way.
    """
    before = time.monotonic() - IDLE_AT_LEAST
    idle = (conn for conn in conns if conn.state is State.IDLE and conn.since < before)
    longest = min(idle, key=lambda conn: conn.since, default=None)
    if longest is not None:
        longest.hang_up()


# -- accepting -------------------------------------------------------------------------------

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

# The standard library's own, even where gevent has patched it. Its poll() lets greenlets run, which a signal
# handler must not do; and its sockets keep no timeouts of the kernel.
_Poll = original("select", "poll")
_Socket = original("socket", "socket")

# Plain numbers: attributes of an enumeration are slower to look up.
_family = _socket.socket.family.__get__
_kind = _socket.socket.type.__get__
_proto = _socket.socket.proto.__get__


def accept(listener: Any) -> tuple[Any, Any]:
    """As ``listener.accept()``, without most of what the standard library adds to the system call.

    The socket is one of the standard library, and blocks.
    """
    sock = getattr(listener, "sock", listener)
    if not isinstance(sock, _socket.socket):
        sock = sock._sock  # below gevent's
    fd, addr = sock._accept()
    client = _Socket(_family(sock), _kind(sock), _proto(sock), fileno=fd)
    if _socket.getdefaulttimeout() is not None:
        # An application sets it for the connections that it makes itself.
        client.settimeout(None)
    return client, addr


class AcceptErrors:
    """Decide which errors of accept() need a pause, and log those, but not each."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._logged = -math.inf

    def is_transient(self, error: OSError) -> bool:
        """Whether to go on at once. If not, pause: the connection stays in the queue, and a loop would spin.

        The usual reason is that the process has no descriptor left.
        """
        if error.errno in TRANSIENT:
            return True
        now = time.monotonic()
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            self._log.error("No connection can be accepted: %s", error)
        return False


def wrap_accepted(context: Any, sock: Any, cfg: Any, kind: Any = None) -> Any:
    """*sock*, just accepted, as the server's end of a TLS connection. The handshake is still to come.

    *kind* is a class of sockets to use instead of the context's. Raises OSError or ValueError if the client
    has left.
    """
    options = {
        "server_side": True,
        "suppress_ragged_eofs": cfg.suppress_ragged_eofs,
        "do_handshake_on_connect": False,
    }
    if kind is not None:
        return kind(sock, _context=context, **options)
    return context.wrap_socket(sock, **options)


# -- waiting ---------------------------------------------------------------------------------


def is_readable(sock: Any) -> bool:
    """Whether *sock* has bytes, the end of input or, for a listener, a client in the accept queue.

    False for a closed one.
    """
    fd = sock.fileno()
    if fd < 0:
        return False
    poll = _Poll()
    poll.register(fd, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


def has_input(sock: Any) -> bool:
    """Whether unread bytes have arrived on *sock*, below any TLS; the end of input does not count."""
    count = bytearray(_NO_BYTES)  # bytes that cannot be changed would be taken only after two errors
    try:
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    except (OSError, ValueError):
        return False
    return count != _NO_BYTES


# Seconds, three decades.
_LONGEST_WAIT = 10**9


@lru_cache(maxsize=4)
def _timeval(seconds: float) -> bytes:
    # A longer time may not fit into a C long.
    seconds = min(seconds, _LONGEST_WAIT)
    whole = int(seconds)
    return struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))


def set_blocking_timeout(sock: Any, seconds: float) -> None:
    """Let each receive and send wait at most *seconds* (0: for ever) in the kernel.

    A timeout of Python's own costs a ``poll()`` for each of them. It fails with BlockingIOError.
    """
    value = _timeval(seconds)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def set_send_timeout(sock: Any, seconds: float) -> None:
    """As ``set_blocking_timeout()``, for sending alone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))


# -- closing ---------------------------------------------------------------------------------


def begin_close(sock: Any, more_expected: bool = False) -> bool:
    """Close *sock* and return False; or True if it must linger: its sending side is shut then.

    *more_expected*: the client is known to be still sending.
    """
    try:
        lingers = more_expected or has_input(sock)
        send_close_notify(sock)
        if not lingers:
            sock.close()
            return False
        sock.shutdown(socket.SHUT_WR)
        return True
    except (OSError, ValueError):
        sock.close()
        return False


def send_close_notify(sock: Any) -> None:
    """End TLS, if there is any. Without that the client takes the connection for one that others have cut."""
    unwrap = getattr(sock, "unwrap", None)
    if unwrap is None:
        return
    with suppress(OSError, ValueError):
        # It would wait for the client's own close_notify, which may never come.
        sock.settimeout(0)
        unwrap()


def discard_input(sock: Any) -> bool:
    """Discard the bytes that have arrived, without waiting; True at the end."""
    plain = getattr(sock, "_sock", sock)
    left = _DISCARDED_AT_ONCE
    try:
        while left > 0:
            # Below any TLS.
            data = _socket.socket.recv(plain, _CHUNK, socket.MSG_DONTWAIT)
            if not data:
                return True
            left -= len(data)
    except BlockingIOError:
        pass
    except OSError:
        return True
    return False


def linger(sock: Any, seconds: float = LINGER_SECONDS) -> None:
    """Wait for the client's end of a connection that ``begin_close()`` has left open, and close it."""
    deadline = time.monotonic() + seconds
    recv = socket.socket.recv if isinstance(sock, socket.socket) else type(sock).recv
    try:
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            if not recv(sock, _CHUNK):
                break
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
