# SPDX-License-Identifier: MIT
"""Where the lines of companions go: channels, and the sinks that empty them.

A channel is one output of one companion. Its lines wait until its sink, which it may share with others, has
written them. `StreamSink` writes to what may block: the server's own output, a terminal, a named pipe. Files
are in `files`.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from gunicorn.companion.output.lines import Format, Lines
from gunicorn.companion.output.ring import Ring

# What one turn of a channel writes at most, unless a single piece is longer.
_TURN = 32 * 1024
# What a pipe takes in one piece, so that the server's own log does not tear a line: PIPE_BUF of Linux.
_ATOMIC = 4096
# Seconds without progress after which an output counts as stuck.
STUCK = 1.0


class Piece(NamedTuple):
    """Lines that wait, and the part of the ring that they come from."""

    lines: Lines
    start: int
    end: int


class Sink(Protocol):
    """A destination. ``error`` is why the last lines could not be written, if they could not."""

    name: str
    error: OSError | None

    def ready(self, channel: Channel) -> None:
        """*channel* has lines."""

    def step(self) -> None:
        """Settle what a thread has finished."""

    def is_stuck(self, now: float) -> bool:
        """Whether nothing has moved for so long that lines should not wait any more."""

    @property
    def stuck_at(self) -> float:
        """When it will count as stuck, if nothing moves."""

    @property
    def idle(self) -> bool:
        """Whether all is written."""

    def reopen(self) -> None:
        """Begin a new file, if it is one."""


class Channel:
    """The lines of one output of a companion, from the ring to its sink."""

    def __init__(
        self, name: str, kind: int, ring: Ring, on_loss: Callable[[Channel, int, int], None]
    ) -> None:
        self.name = name
        self.kind = kind
        self.ring = ring
        # Called with bytes and lines when lines are written again after some were lost.
        self.on_loss = on_loss
        self.sink: Sink | None = None
        self._next_sink: Sink | None = None
        self.waiting: deque[Piece] = deque()
        # What the sink writes just now.
        self.writing: list[Piece] = []
        # What could not be written since the last line that tells of it, and what such a line on its way
        # tells: bytes, lines.
        self.lost = (0, 0)
        self._told = (0, 0)

    def connect(self, sink: Sink) -> None:
        """Write to *sink* from now on, also what waits already, but for what is being written."""
        if self.writing:
            self._next_sink = sink
            return
        self.sink, self._next_sink = sink, None
        if self.waiting:
            sink.ready(self)

    def add(self, piece: Piece) -> None:
        self.waiting.append(piece)
        if self.sink is not None:
            self.sink.ready(self)

    def floor(self, now: float) -> int:
        """The position in the ring from which on it must not be overwritten."""
        if self.writing and self.sink is not None and not self.sink.is_stuck(now):
            return self.writing[0].start
        return self.waiting[0].start if self.waiting else self.ring.head

    def take(self, limit: int = _TURN) -> list[Lines]:
        """Move about *limit* bytes from what waits to what is written; return the lines to write.

        The first of them tells what is missing, if anything is.
        """
        size = 0
        while self.waiting and (not size or size + len(self.waiting[0].lines.text) <= limit):
            self.writing.append(self.waiting.popleft())
            size += len(self.writing[-1].lines.text)
        lines = [piece.lines for piece in self.writing]
        self._told = self.lost
        if self.lost[1]:
            text = "[{} bytes in {} lines could not be written here]\n".format(*self.lost)
            lines.insert(0, lines[0]._replace(text=text.encode()))
        return lines

    def written(self) -> None:
        self.ring.set_out(self.kind, self.writing[-1].end)
        self.writing = []
        self._loss_is_told()
        self._change_sink()

    def _change_sink(self) -> None:
        if self._next_sink is not None:
            self.connect(self._next_sink)

    def _loss_is_told(self) -> None:
        if self._told[1]:
            self.lost = (self.lost[0] - self._told[0], self.lost[1] - self._told[1])
            self.on_loss(self, *self._told)
            self._told = (0, 0)

    def failed(self, kept: int = 0) -> None:
        """What was being written is lost, but for the first *kept* lines."""
        if kept and self._told[1]:
            self._loss_is_told()
            kept -= 1
        pieces, self.writing = self.writing, []
        for piece in pieces:
            kept = self._lose(piece, kept)
        self._change_sink()

    def drop_one(self) -> None:
        self._lose(self.waiting.popleft(), 0)

    def _lose(self, piece: Piece, kept: int) -> int:
        """Count the loss of *piece* but for *kept* lines; return how many more are kept."""
        number, size = piece.lines.number, len(piece.lines.text)
        if kept < number:
            size = len(piece.lines.text.split(b"\n", kept)[-1])
            self.lost = (self.lost[0] + size, self.lost[1] + number - kept)
            self.ring.count_dropped(size, number - kept)
        self.ring.set_out(self.kind, piece.end)
        return max(0, kept - number)


class StreamSink:
    """Writes to descriptor *fd* in a thread of its own, because that may block for any time.

    The descriptor is shared with other processes, so it cannot be made non-blocking. *wake* is a descriptor
    to write a byte to when a turn is over.
    """

    def __init__(self, name: str, fd: int, render: Format, wake: int) -> None:
        self.name = name
        self.fd = fd
        self.format = render
        self.error: OSError | None = None
        self._wake = wake
        self._queue: deque[Channel] = deque()
        self._current: Channel | None = None
        self._parts: list[bytes] = []
        # Set by the thread.
        self._done = False
        self._failure: OSError | None = None
        self._progress = 0.0
        # Where a byte begins a turn.
        self._start: int | None = None

    @property
    def idle(self) -> bool:
        return self._current is None and not self._queue

    def is_stuck(self, now: float) -> bool:
        return self._current is not None and not self._done and now - self._progress >= STUCK

    @property
    def stuck_at(self) -> float:
        """When it will count as stuck, if nothing moves."""
        return self._progress + STUCK

    def ready(self, channel: Channel) -> None:
        if channel not in self._queue and channel is not self._current:
            self._queue.append(channel)
        self._begin()

    def step(self) -> None:
        """Settle the turn if it is over, and begin the next."""
        channel = self._current
        if not self._done or channel is None:
            return
        self._current, self._done = None, False
        self.error, self._failure = self._failure, None
        if self.error is None:
            channel.written()
        else:
            channel.failed()
        if channel.waiting:
            self._queue.append(channel)
        self._begin()

    def _begin(self) -> None:
        while self._queue and self._current is None:
            channel = self._queue.popleft()
            # It may have dropped what it had, or have another sink now.
            if channel.waiting and channel.sink is self:
                self._current = channel
                self._parts = cut(b"".join(map(self.format, channel.take())))
                self._progress = time.monotonic()
                self._wake_thread()

    def _wake_thread(self) -> None:
        if self._start is None:
            reading, self._start = os.pipe()
            _thread.start_new_thread(self._write_turns, (reading,))
        os.write(self._start, b"\0")

    def reopen(self) -> None:
        """It is not ours to open."""

    def _write_turns(self, reading: int) -> None:
        """The thread: it is woken for each turn, and touches nothing but this turn's parts."""
        while os.read(reading, 1):
            try:
                for part in self._parts:
                    self._write(part)
            except OSError as exc:
                self._failure = exc
            self._done = True
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake, b"\0")

    def _write(self, part: bytes) -> None:
        left = memoryview(part)
        while left:
            try:
                count = os.write(self.fd, left)
            except BlockingIOError:
                # Another process has made it non-blocking.
                poll = select.poll()
                poll.register(self.fd, select.POLLOUT)
                poll.poll()
                continue
            left = left[count:]
            self._progress = time.monotonic()


def cut(text: bytes) -> list[bytes]:
    """*text* in parts that a pipe takes whole, as far as its lines are short enough for that."""
    parts = []
    start = 0
    while start < len(text):
        end = text.rfind(b"\n", start, start + _ATOMIC) + 1
        if not end:
            end = text.find(b"\n", start + _ATOMIC) + 1 or len(text)
        parts.append(text[start:end])
        start = end
    return parts
