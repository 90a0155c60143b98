# SPDX-License-Identifier: MIT
"""Messages between the manager and a helper: JSON, with descriptors beside it."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

# SCM_MAX_FD of Linux is 253; no message has more than this.
_MOST = 8

Message = dict[str, Any]


class Wire:
    """One end. Nothing blocks: what the other end does not take waits, with copies of the descriptors."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.ended = False
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._buffer = b""
        self._received: deque[int] = deque()

    @classmethod
    def pair(cls) -> tuple[Wire, Wire]:
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(first), cls(second)

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send *message*; the caller may close *fds* afterwards."""
        line = json.dumps({**message, "fds": len(fds)}).encode() + b"\n"
        if not self._unsent and (count := self._send(line, fds)):
            line, fds = line[count:], ()
        if line:
            # All descriptors went with the first byte.
            self._unsent.append((line, [os.dup(fd) for fd in fds]))

    def flush(self) -> None:
        while self._unsent:
            line, fds = self._unsent.popleft()
            count = self._send(line, fds)
            if not count:
                self._unsent.appendleft((line, fds))
                return
            for fd in fds:
                os.close(fd)
            if count < len(line):
                self._unsent.appendleft((line[count:], []))

    def _send(self, line: bytes, fds: Sequence[int]) -> int:
        """Return how much was sent; all of it where nobody is left to read."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return self.sock.sendmsg([line], rights)
        except BlockingIOError:
            return 0
        except OSError:
            return len(line)

    def receive(self) -> Iterator[tuple[Message, list[int]]]:
        """The messages that are here, each with its descriptors; `ended` is set at end-of-file."""
        size = _MOST * array.array("i").itemsize
        while not self.ended:
            try:
                data, ancillary, _, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(size))
            except BlockingIOError:
                return
            except OSError:
                data, ancillary = b"", []
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers = array.array("i")
                    numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                    for fd in numbers:
                        os.set_inheritable(fd, False)
                        self._received.append(fd)
            self.ended = not data
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                yield message, [self._received.popleft() for _ in range(message.pop("fds"))]

    def close(self) -> None:
        for _, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        self._unsent.clear()
        with contextlib.suppress(OSError):
            self.sock.close()
