# SPDX-License-Identifier: MIT
"""The socket pair between arbiter and manager: messages, and end-of-file when one of them dies.

Only the arbiter holds its end, and only the manager the other (every other child
closes both). End-of-file at the manager's end therefore means that the arbiter
is dead, at once and on every platform.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

from gunicorn.companion.control import LineReader, encode


class Link:
    """One end. Messages are JSON objects; nothing blocks."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._reader = LineReader(limit=16 * 1024 * 1024)
        self._unsent = bytearray()
        # Messages that a later one of their kind replaces, if no byte of them has been sent.
        self._latest: dict[str, bytes] = {}
        self.ended = False

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(first), cls(second)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: dict[str, Any]) -> bool:
        """Send, or keep for `flush` what the other end does not take now; True when nothing is kept."""
        self._unsent += encode(message)
        return self.flush()

    def send_latest(self, message: dict[str, Any]) -> bool:
        """The same for a message of which only the last one of its kind counts.

        The other end may be busy for long, as in a configuration file; the queue does not grow.
        """
        kind = next(iter(message))
        # It must follow earlier messages.
        self._latest.pop(kind, None)
        self._latest[kind] = encode(message)
        return self.flush()

    def flush(self) -> bool:
        """Send queued messages; True when nothing is left."""
        while self._unsent or self._latest:
            if not self._unsent:
                self._unsent += self._latest.pop(next(iter(self._latest)))
            try:
                sent = self.sock.send(self._unsent)
            except BlockingIOError:
                return False
            except OSError:
                self._unsent.clear()
                self._latest.clear()
                break
            del self._unsent[:sent]
        return True

    def receive(self) -> Iterator[dict[str, Any]]:
        """The messages that are here; `ended` is set at end-of-file."""
        while not self.ended:
            try:
                data = self.sock.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.ended = True
            self._reader.feed(data)
            for line in self._reader.lines():
                if line is not None:
                    yield json.loads(line)

    def close(self) -> None:
        self.sock.close()
