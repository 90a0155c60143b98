# SPDX-License-Identifier: MIT
"""The log keeper's process: it reads what companions write, keeps it, and writes it to its destinations.

It is a child of the companion manager and outlives it until its companions have ended. If it is killed, the
manager starts another one, which goes on with the same pipes and rings.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import stat
import termios
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from gunicorn.companion.checks import OutputFile
from gunicorn.companion.helpers.child import fork_helper
from gunicorn.companion.helpers.wire import Message, Wire
from gunicorn.companion.output.files import FileSink, open_output
from gunicorn.companion.output.followers import Followers
from gunicorn.companion.output.lines import Cutter, Lines, make_format
from gunicorn.companion.output.ring import (
    CAPACITY,
    KINDS,
    STDERR,
    STDOUT,
    Record,
    Ring,
    RingFile,
    footprint,
)
from gunicorn.companion.output.sinks import Channel, Piece, Sink, StreamSink
from gunicorn.unix.poller import READABLE, WRITABLE, Poller

# What one read takes at most: what a pipe holds.
_READ = 64 * 1024
# With less room in the ring nothing is read.
_LEAST = 8 * 1024
# Seconds for what is still to be written at the server's end, and until a lasting failure is told again.
_END = 1.0
_TELL_AGAIN = 60.0


class Feed(NamedTuple):
    """What one process of a companion writes: its pipes, by kind, and where that goes.

    *destinations*: by kind a file, or None for the server's own output.
    """

    serial: int
    name: str
    pid: int
    slot: int
    pipes: Mapping[int, int]
    destinations: Mapping[int, OutputFile | None]

    def message(self) -> Message:
        """As it is sent; the pipes go beside it."""
        return {
            "feed": [self.serial, self.name, self.pid, self.slot],
            "kinds": list(self.pipes),
            "destinations": [[kind, options] for kind, options in self.destinations.items()],
        }

    @classmethod
    def of(cls, message: Message, fds: list[int]) -> Feed:
        serial, name, pid, slot = message["feed"]
        return cls(
            serial,
            name,
            pid,
            slot,
            dict(zip(message["kinds"], fds, strict=True)),
            {kind: None if one is None else OutputFile(*one) for kind, one in message["destinations"]},
        )


class Source:
    """One pipe."""

    def __init__(self, feed: Feed, kind: int, fd: int, channel: Channel) -> None:
        self.feed = feed
        self.kind = kind
        self.fd = fd
        self.channel = channel
        self.cutter = Cutter()
        self.paused = False


class Keeper:
    """The loop. *wire* leads to the manager; *line_format* shapes lines at the server's own output."""

    def __init__(self, wire: Wire, rings: RingFile, line_format: str, most_lines: int) -> None:
        self.wire = wire
        self.ring_file = rings
        self.line_format = line_format
        self.most_lines = most_lines
        self.poller = Poller()
        self.rings: dict[str, Ring] = {}
        self.channels: dict[tuple[str, int], Channel] = {}
        self.sources: dict[int, Source] = {}
        self.sinks: dict[str, Sink] = {}
        self.followers = Followers(self.poller)
        self._woken, self._wake = os.pipe()
        for fd in (self._woken, self._wake):
            os.set_blocking(fd, False)
        self.poller.add(self._woken, lambda events: self._on_wake())
        self.poller.add(wire.fileno(), lambda events: self._on_message())
        # When the last failure of each sink was told.
        self._told: dict[str, float] = {}
        self._end_at: float | None = None
        # Of companions that are not configured any more: by slot what is still to be written.
        self._leaving: dict[int, list[Channel]] = {}

    # -- the loop ------------------------------------------------------------

    def run(self) -> None:
        """Until the manager is gone and nothing is left to read or to write."""
        while not self._finished():
            self.poller.wait(self._timeout())
            self._report()
            self._free_rings()
            now = time.monotonic()
            for source in [source for source in self.sources.values() if source.paused]:
                self._read(source, now)
            if not self.wire.ended:
                self.wire.flush()
                self.poller.modify(self.wire.fileno(), READABLE | (WRITABLE if self.wire.has_unsent else 0))

    def _finished(self) -> bool:
        if self._end_at is not None and time.monotonic() >= self._end_at:
            return True
        if not self.wire.ended or self.sources:
            return False
        if self._end_at is None:
            # What does not go out now never does.
            self._end_at = time.monotonic() + _END
        return all(sink.idle for sink in self.sinks.values())

    def _timeout(self) -> float | None:
        now = time.monotonic()
        times = [] if self._end_at is None else [self._end_at]
        for source in self.sources.values():
            if source.paused:
                # By then the output that it waits for has moved, or is stuck.
                times += [max(sink.stuck_at, now + 0.05) for sink in self._outputs_of(source.feed)]
        return max(0.0, min(times) - now) if times else None

    def _outputs_of(self, feed: Feed) -> list[StreamSink]:
        channels = (self.channels[feed.name, kind] for kind in (STDOUT, STDERR))
        return [channel.sink for channel in channels if isinstance(channel.sink, StreamSink)]

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 65536)
        for sink in self.sinks.values():
            sink.step()

    # -- what the manager says -------------------------------------------------

    def _on_message(self) -> None:
        for message, fds in self.wire.receive():
            if "feed" in message:
                self.add(Feed.of(message, fds))
            elif "logs" in message:
                self._answer(message["logs"], socket.socket(fileno=fds[0]))
            elif "reopen" in message:
                self._reopen(fds)
            elif "forget" in message:
                self._forget(message["forget"], message["slot"])
            elif "end" in message:
                self._end()
        if self.wire.ended:
            self.poller.remove(self.wire.fileno())

    def _answer(self, request: Mapping[str, Any], client: socket.socket) -> None:
        self.followers.answer(client, request, self.rings, self.most_lines)

    def _reopen(self, fds: list[int]) -> None:
        """Begin new files; *fds* are the server's output and error output as they are now."""
        for number, fd in enumerate(fds, start=1):
            os.dup2(fd, number)
            os.close(fd)
        used = {id(channel.sink) for channel in self.channels.values()}
        for key, sink in list(self.sinks.items()):
            sink.reopen()
            if id(sink) not in used and sink.idle:
                del self.sinks[key]
            elif key in KINDS and isinstance(sink, StreamSink):
                sink.format = self._format_for(sink.fd)

    def _forget(self, name: str, slot: int) -> None:
        """The companion is not configured any more, and has ended. Its ring may get another use."""
        self.rings.pop(name, None)
        channels = (self.channels.pop((name, kind), None) for kind in (STDOUT, STDERR))
        self._leaving[slot] = [channel for channel in channels if channel is not None]

    def _free_rings(self) -> None:
        """Give back the rings whose last lines have been written."""
        for slot, channels in list(self._leaving.items()):
            if not any(channel.waiting or channel.writing for channel in channels):
                del self._leaving[slot]
                self.wire.send({"free": slot})

    def _end(self) -> None:
        """The server ends, and its companions have ended. What else may write, nobody waits for."""
        self._end_at = time.monotonic() + _END
        self.wire.ended = True

    # -- sources ---------------------------------------------------------------

    def recover(self, feeds: list[Feed]) -> None:
        """Go on where the last keeper was killed, if there was one, with *feeds*."""
        for feed in feeds:
            self._ring_of(feed)
        for ring in self.rings.values():
            ring.recover()
        for feed in feeds:
            self.add(feed, recovering=True)
        for name in self.rings:
            for kind in (STDOUT, STDERR):
                self._replay(name, kind)

    def _ring_of(self, feed: Feed) -> Ring:
        if feed.name not in self.rings:
            ring = self.rings[feed.name] = self.ring_file.map(feed.slot)
            for kind in (STDOUT, STDERR):
                self.channels[feed.name, kind] = Channel(feed.name, kind, ring, self._tell_loss)
        return self.rings[feed.name]

    def add(self, feed: Feed, recovering: bool = False) -> None:
        """Read what the process of *feed* writes."""
        self._ring_of(feed)
        for kind, options in feed.destinations.items():
            channel = self.channels[feed.name, kind]
            sink = self._sink_for(kind, options)
            if channel.sink is not sink:
                channel.connect(sink)
        for kind, fd in feed.pipes.items():
            source = self.sources[fd] = Source(feed, kind, fd, self.channels[feed.name, kind])
            if not recovering:
                self._watch(source)

    def _watch(self, source: Source) -> None:
        self.poller.add(source.fd, lambda events: self._read(source, time.monotonic()))

    def _replay(self, name: str, kind: int) -> None:
        """Take up what was read and not written."""
        ring, channel = self.rings[name], self.channels[name, kind]
        sources = {s.feed.pid: s for s in self.sources.values() if s.channel is channel}
        sink, channel.sink = channel.sink, None
        others: dict[int, Cutter] = {}
        start = ring.out(kind)
        for record in ring.records():
            if record.kind == kind and record.end > start:
                data = ring.data(record)[max(0, start - record.data) :]
                source = sources.get(record.pid)
                cutter = source.cutter if source is not None else others.setdefault(record.pid, Cutter())
                self._cut(channel, cutter, record, data, tell=False)
        for pid, cutter in others.items():
            # Its process has ended, and so has its line.
            self._pass_on_rest(channel, cutter, pid, tell=False)
        channel.sink = sink
        if isinstance(sink, FileSink):
            sink.resume(channel)
        elif sink is not None and channel.waiting:
            sink.ready(channel)
        for source in sources.values():
            self._watch(source)

    def _read(self, source: Source, now: float) -> bool:
        """Read once from *source*; False if there was nothing, or no room for it."""
        waiting = array.array("i", [0])
        fcntl.ioctl(source.fd, termios.FIONREAD, waiting)
        if not waiting[0]:
            self._close(source)
            return False
        length = self._make_room(source, min(waiting[0], _READ), now)
        if not length:
            if not source.paused:
                source.paused = True
                # Its hang-up would be reported again and again.
                self.poller.remove(source.fd)
            return False
        if source.paused:
            source.paused = False
            self._watch(source)
        record, data = source.channel.ring.read_from(
            source.fd,
            length,
            pid=source.feed.pid,
            kind=source.kind,
            continues=bool(source.cutter.rest),
            now=time.time(),
        )
        self._cut(source.channel, source.cutter, record, data)
        return True

    def _make_room(self, source: Source, length: int, now: float) -> int:
        """Return how much of *length* bytes fits into the ring; 0: wait until more has been written.

        Lines wait for an output that moves. One that is stuck loses the oldest.
        """
        ring = source.channel.ring
        both = [self.channels[source.feed.name, kind] for kind in (STDOUT, STDERR)]
        while True:
            slowest = min(both, key=lambda channel: channel.floor(now))
            room = CAPACITY - (ring.head - slowest.floor(now))
            if footprint(length) <= room:
                return length
            if slowest.waiting and slowest.sink is not None and slowest.sink.is_stuck(now):
                slowest.drop_one()
            else:
                return room - footprint(0) if room > _LEAST else 0

    def _cut(self, channel: Channel, cutter: Cutter, record: Record, data: bytes, tell: bool = True) -> None:
        """Pass on the lines that end in *data*, which is of *record*."""
        if not cutter.rest:
            cutter.begin = record.position
        text = cutter.feed(data)
        if text:
            begin, cutter.begin = cutter.begin, record.position
            self._pass_on(channel, record, text, begin, record.end - len(cutter.rest), tell)

    def _pass_on(
        self, channel: Channel, record: Record, text: bytes, begin: int, end: int, tell: bool
    ) -> None:
        """Have lines written, and show them to those who follow."""
        lines = Lines(text, channel.name, record.pid, record.kind, record.time)
        channel.add(Piece(lines, begin, end))
        if tell:
            self.followers.tell(lines)

    def _pass_on_rest(self, channel: Channel, cutter: Cutter, pid: int, tell: bool = True) -> None:
        """Pass on what a stream has ended with."""
        if cutter.rest:
            head = channel.ring.head
            last = Record(head, time.time(), 0, pid, True, channel.kind)
            self._pass_on(channel, last, cutter.end(), cutter.begin, head, tell)

    def _close(self, source: Source) -> None:
        """All have closed it that could write."""
        self._pass_on_rest(source.channel, source.cutter, source.feed.pid)
        self.poller.remove(source.fd)
        del self.sources[source.fd]
        os.close(source.fd)
        if all(other.feed.serial != source.feed.serial for other in self.sources.values()):
            self.wire.send({"closed": source.feed.serial})

    # -- destinations ------------------------------------------------------------

    def _sink_for(self, kind: int, options: OutputFile | None) -> Sink:
        if options is None:
            return self._server_output(kind)
        sink = self.sinks.get(options.file)
        if sink is None:
            sink = self.sinks[options.file] = self._open(options)
        elif isinstance(sink, FileSink):
            sink.use(options)
        return sink

    def _server_output(self, kind: int) -> Sink:
        number = kind + 1
        if kind == STDERR and os.path.samestat(os.fstat(1), os.fstat(2)):
            # In the order in which the lines came.
            kind, number = STDOUT, 1
        if KINDS[kind] not in self.sinks:
            self.sinks[KINDS[kind]] = StreamSink(
                f"the server's {KINDS[kind]}", number, self._format_for(number), self._wake
            )
        return self.sinks[KINDS[kind]]

    def _format_for(self, fd: int) -> Any:
        colored = os.isatty(fd) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return make_format(self.line_format, colored)

    def _open(self, options: OutputFile) -> Sink:
        sink = FileSink(options, self._wake)
        try:
            fd = open_output(options.file)
        except OSError as exc:
            sink.error = exc
            return sink
        if stat.S_ISREG(os.fstat(fd).st_mode):
            sink.fd = fd
            return sink
        return StreamSink(options.file, fd, make_format("raw"), self._wake)

    def _report(self) -> None:
        """Tell of destinations that fail, each once a minute, and of those that work again."""
        now = time.monotonic()
        for key, sink in self.sinks.items():
            told = self._told.get(key)
            if sink.error is not None and (told is None or now >= told + _TELL_AGAIN):
                self._told[key] = now
                self.wire.send({"failing": sink.name, "why": sink.error.strerror or str(sink.error)})
            elif sink.error is None and told is not None and now >= told + _TELL_AGAIN:
                del self._told[key]

    def _tell_loss(self, channel: Channel, size: int, lines: int) -> None:
        where = channel.sink.name if channel.sink is not None else ""
        self.wire.send({"dropped": channel.name, "bytes": size, "lines": lines, "sink": where})


def start_keeper(wire: Wire, rings: RingFile, feeds: list[Feed], line_format: str, most_lines: int) -> int:
    """Fork the log keeper at the other end of *wire*; return its pid. Raises OSError."""

    def life() -> None:
        keeper = Keeper(wire, rings, line_format, most_lines)
        keeper.recover(feeds)
        keeper.run()

    kept = [rings.fd, *(fd for feed in feeds for fd in feed.pipes.values())]
    return fork_helper("companion log keeper", wire, life, kept)
