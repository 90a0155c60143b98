# SPDX-License-Identifier: MIT
"""The pair of sockets between arbiter and manager: messages, and each one's sign of the other's life.

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

    def flush(self) -> bool:
        """Send what was kept; True when nothing is left."""
        while self._unsent:
            try:
                sent = self.sock.send(self._unsent)
            except BlockingIOError:
                return False
            except OSError:
                self._unsent.clear()
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
