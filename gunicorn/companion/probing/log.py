# SPDX-License-Identifier: MIT
"""The check ``log``: follow the output of a companion, as a client of the log keeper, and look for a line."""

from __future__ import annotations

import _socket
import json
import re
from collections.abc import Callable

from gunicorn.unix.poller import Poller

_READ = 64 * 1024
# Characters of a line that are looked at: a regular expression may need very long for more.
_LONGEST = 4096
# The longest line of the keeper: one of a companion, with each byte escaped.
_MOST = 1024 * 1024


class LogLines:
    """What the process *pid* writes. ``line`` is the first that matches and is not older than ``since``.

    *found* is called when there is one.
    """

    def __init__(
        self, pattern: str, pid: int, since: float, poller: Poller, found: Callable[[], object]
    ) -> None:
        self.pattern = re.compile(pattern)
        self.pid = pid
        self.since = since
        self.poller = poller
        self.found = found
        self.line: str | None = None
        self._sock: _socket.socket | None = None
        self._buffer = b""

    @property
    def connected(self) -> bool:
        return self._sock is not None

    def follow(self, fd: int) -> None:
        """Read what the keeper sends to the socket *fd*, from now on ours."""
        self.close()
        self._sock = _socket.socket(fileno=fd)
        self._sock.setblocking(False)
        self.poller.add(fd, lambda events: self._read())

    def _read(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # The keeper is gone, and another one has all of this again.
            self.close()
            return
        *lines, rest = (self._buffer + data).split(b"\n")
        self._buffer = rest if len(rest) <= _MOST else b""
        for line in lines:
            if self.line is None:
                self._look_at(line)

    def _look_at(self, message: bytes) -> None:
        try:
            entry = json.loads(message)
        except ValueError:
            # The rest of one that was too long.
            return
        if entry.get("pid") != self.pid or entry.get("time", 0.0) < self.since:
            return
        line = entry["line"][:_LONGEST]
        if self.pattern.search(line):
            self.line = line
            self.found()

    def take(self, now: float) -> str | None:
        """Return the line, and look for another one from *now* on."""
        line, self.line = self.line, None
        self.since = now
        return line

    def close(self) -> None:
        if self._sock is not None:
            self.poller.remove(self._sock.fileno())
            self._sock.close()
            self._sock = None
            self._buffer = b""
