# SPDX-License-Identifier: MIT
"""The channel between master and manager: messages, end-of-file when one of them dies, and pings.

Only the master holds its end, and only the manager the other: every other child closes both. End-of-file at
the manager's end therefore means that the master is dead, at once and on every platform.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from gunicorn.companion.control import LineReader, encode
from gunicorn.unix.poller import READABLE, WRITABLE, Poller

# The most seconds that one check of the pulse counts. A master checks at least that often; otherwise it was
# itself held up (a frozen container, a slow configuration file), and the manager is not to blame.
LONGEST_LOOK = 1.0

# The most descriptors that one read takes.
MOST_DESCRIPTORS = 64
CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Link:
    """One end. Messages are JSON objects, and one may come with a socket; nothing blocks."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._reader = LineReader(limit=16 * 1024 * 1024)
        # What is to be sent, each part with its socket, if it has one.
        self._unsent: deque[tuple[memoryview, int | None]] = deque()
        # Sockets that have come, by inode: a message names the one that it came with.
        self._came: dict[int, int] = {}
        self._poller: Poller | None = None
        self.ended = False

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(first), cls(second)

    def fileno(self) -> int:
        return self.sock.fileno()

    def watch(
        self,
        poller: Poller,
        on_message: Callable[[dict[str, Any]], None],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Have *poller* look after this end: call *on_message* with each message, and *on_end* once."""
        self._poller, self._on_message, self._on_end = poller, on_message, on_end
        poller.add(self.fileno(), lambda events: self.read())

    def unwatch(self) -> None:
        if self._poller is not None:
            self._poller.remove(self.fileno())
            self._poller = None

    def read(self) -> None:
        """Pass on what has arrived, if this end is watched."""
        if self._poller is None:
            return
        self.flush()
        for message in self.receive():
            self._on_message(message)
        if self.ended:
            # A descriptor at end-of-file is always readable.
            self.unwatch()
            self._on_end()

    def send(self, message: dict[str, Any], fd: int | None = None) -> bool:
        """Send, or keep for `flush` what the other end does not take now; True when nothing is kept.

        *fd*: a socket to send a copy of.
        """
        copy = None
        if fd is not None:
            # Without a descriptor left, the message goes alone.
            with contextlib.suppress(OSError):
                copy = os.dup(fd)
        self._unsent.append((memoryview(encode(message)), copy))
        return self.flush()

    def flush(self) -> bool:
        """Send queued messages; True when nothing is left. A watched end sends the rest when it can."""
        done = self._flush()
        if self._poller is not None:
            self._poller.modify(self.fileno(), READABLE if done else READABLE | WRITABLE)
        return done

    def _flush(self) -> bool:
        while self._unsent:
            data, fd = self._unsent[0]
            try:
                sent = self.sock.send(data) if fd is None else socket.send_fds(self.sock, [data], [fd])
            except BlockingIOError:
                return False
            except OSError as exc:
                # Too many descriptors are under way: the message goes without its own. Or the other end is
                # closed.
                sent = 0 if exc.errno == errno.ETOOMANYREFS else len(data)
            if fd is not None:
                os.close(fd)
            if sent < len(data):
                self._unsent[0] = data[sent:], None
            else:
                self._unsent.popleft()
        return True

    def receive(self) -> Iterator[dict[str, Any]]:
        """The messages that are here, without what is none; `ended` is set at end-of-file."""
        while not self.ended:
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, 65536, MOST_DESCRIPTORS, CLOSE_ON_EXEC)
            except BlockingIOError:
                break
            except OSError:
                data, fds = b"", []
            for fd in fds:
                os.set_inheritable(fd, False)
                inode = os.fstat(fd).st_ino
                if inode in self._came:
                    os.close(self._came[inode])
                self._came[inode] = fd
            if not data:
                self.ended = True
            self._reader.feed(data)
            for line in self._reader.lines():
                message = None
                with contextlib.suppress(ValueError, RecursionError):
                    message = json.loads(line or b"")
                if isinstance(message, dict):
                    yield message

    def take(self, inode: int) -> int | None:
        """Return the socket that came with a message; None if it was lost because descriptors ran out."""
        return self._came.pop(inode, None)

    def close(self) -> None:
        self.sock.close()
        for fd in [*self._came.values(), *(fd for _, fd in self._unsent if fd is not None)]:
            os.close(fd)
        self._came.clear()
        self._unsent.clear()


class Pulse:
    """Decides when to ping the manager, and how long it has been silent. Times are monotonic seconds.

    One ping is under way at a time. What may hang the manager (a configuration file, say) makes another one
    due, because the answer to an older ping says nothing about it.
    """

    def __init__(self, now: float) -> None:
        self.number = 0
        self.waiting = False
        # Whether a silence has been logged, and whether nothing more is expected.
        self.reported = False
        self.given_up = False
        # How long the master has waited for the answer to the present ping.
        self.silence = 0.0
        self._again = False
        self._asked_at = self._looked_at = now

    def suspect(self) -> None:
        """The manager may hang from now on: ping it as soon as an answer tells something."""
        self._again = True

    def due(self, now: float, interval: float) -> bool:
        """Whether to ping now; else every *interval* seconds."""
        return not self.waiting and (self._again or now >= self._asked_at + interval)

    def ask(self, now: float) -> int:
        """Return the number of the ping that is sent now."""
        self.number += 1
        self.waiting = True
        self._again = False
        self.silence = 0.0
        self._asked_at = self._looked_at = now
        return self.number

    def answered(self, number: object) -> None:
        """Note an answer; one to an older ping does not count."""
        if number == self.number:
            self.waiting = self.reported = False
            self.silence = 0.0

    def look(self, now: float) -> float:
        """Return the seconds of silence; to be called when everything that has arrived is read."""
        if self.waiting:
            self.silence += min(now - self._looked_at, LONGEST_LOOK)
        self._looked_at = now
        return self.silence
