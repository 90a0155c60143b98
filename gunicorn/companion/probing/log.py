# SPDX-License-Identifier: MIT
"""The check ``log``: follow the output of a companion, as a client of the log keeper, and look for a line."""

from __future__ import annotations

import _socket
import contextlib
import json
import re
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from gunicorn.unix.poller import Poller
from gunicorn.unix.signals import set_handler

_READ = 64 * 1024
# Characters of a line that are looked at: a regular expression may need very long for more.
_LONGEST = 4096
# Processor seconds that it may need.
_SLOW = 0.25
# The longest line of the keeper: one of a companion, with each byte escaped.
_MOST = 1024 * 1024


class TooSlow(Exception):
    """Raised at SIGVTALRM."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Have SIGVTALRM sent if the block needs more than *seconds* of the processor: `re` looks for signals."""
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise TooSlow


class LogLines:
    """What the process *pid* writes. ``line`` is the first that matches and is not older than ``since``.

    *told* is called when there is one, or ``too_slow`` is set: it looks no more then.
    """

    def __init__(
        self, pattern: str, pid: int, since: float, poller: Poller, told: Callable[[], object]
    ) -> None:
        set_handler(signal.SIGVTALRM, _interrupt, restart=True)
        self.pattern = re.compile(pattern)
        self.pid = pid
        self.since = since
        self.poller = poller
        self.told = told
        self.line: str | None = None
        # Whether its regular expression takes too long.
        self.too_slow = False
        # Whether lines were left out, because there were more than could be read.
        self.missed = False
        self._sock: _socket.socket | None = None
        self._buffer = b""

    @property
    def connected(self) -> bool:
        return self._sock is not None

    def follow(self, fd: int) -> None:
        """Read what the keeper sends to the socket *fd*, from now on ours."""
        self.close()
        self.missed = False
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
            if self.line is None and not self.too_slow:
                self._look_at(line)

    def _look_at(self, message: bytes) -> None:
        try:
            entry = json.loads(message)
        except (ValueError, RecursionError):
            # The rest of one that was too long.
            return
        if not isinstance(entry, dict):
            return
        self.missed = self.missed or "left_out" in entry
        if entry.get("pid") != self.pid or entry.get("time", 0.0) < self.since:
            return
        line = entry["line"][:_LONGEST]
        try:
            with limited(_SLOW):
                found = self.pattern.search(line)
        except TooSlow:
            # The next line would hold up all other checks again.
            self.too_slow = True
            self.close()
            self.told()
            return
        if found:
            self.line = line
            self.told()

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
