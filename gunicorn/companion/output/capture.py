# SPDX-License-Identifier: MIT
"""The manager's side of captured output: pipes for each start, and the log keeper that reads them.

The manager holds the reading ends too, and never reads: nothing is lost while there is no keeper.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from gunicorn.companion.checks import OutputFile
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.output.keeper import Feed, start_keeper
from gunicorn.companion.output.ring import STDERR, STDOUT, Counters, RingFile
from gunicorn.companion.output.wire import Message, Wire
from gunicorn.unix.poller import READABLE, WRITABLE, Poller
from gunicorn.unix.process import describe_status

# A keeper that dies at once is not started again in a tight loop.
_START_INTERVAL = 1.0
# Seconds for the keeper to write out the last lines when the server ends.
_END = 1.5

Destinations = Mapping[int, OutputFile | None]
# The writing ends of a companion's pipes, by descriptor in its process.
Pipes = dict[int, int]


class Capture:
    """Gives companions their pipes, and keeps the log keeper alive. *on_event* is told what it reports."""

    def __init__(
        self,
        log: Any,
        poller: Poller,
        *,
        line_format: str,
        most_lines: int,
        on_event: Callable[[Message], None] = lambda event: None,
    ) -> None:
        """Raises OSError where there is no memory for it."""
        self.log = log
        self.poller = poller
        self.line_format = line_format
        self.most_lines = most_lines
        self.on_event = on_event
        self.pid: int | None = None
        self.rings = RingFile()
        self.wire: Wire | None = None
        self._slots: dict[str, int] = {}
        # The counters of rings that companions had before.
        self._earlier: dict[str, Counters] = {}
        # What the keeper reads: by serial. And where the output of each companion went last.
        self._feeds: dict[int, Feed] = {}
        self._last: dict[str, Feed] = {}
        # Of companions that are not configured any more: rings that the keeper may still use.
        self._forgotten: set[int] = set()
        self._serials = itertools.count(1)
        # Reading ends of pipes whose process is not forked yet, by the writing end.
        self._reading: dict[int, int] = {}
        self._started_at = float("-inf")
        self.start_at: float | None = None

    # -- for each start of a companion -----------------------------------------

    def open(self, config: CompanionConfig) -> Pipes:
        """Make the pipes of a process. Raises OSError."""
        if config.name not in self._slots:
            self._slots[config.name] = self.rings.take()
        pipes: Pipes = {}
        try:
            for kind in destinations_of(config):
                reading, writing = os.pipe()
                pipes[kind + 1] = writing
                self._reading[writing] = reading
                os.set_blocking(reading, False)
        except BaseException:
            self.discard(pipes)
            raise
        return pipes

    def discard(self, pipes: Mapping[int, int]) -> None:
        """There is no process for them."""
        for fd in pipes.values():
            os.close(self._reading.pop(fd))
            os.close(fd)

    def started(self, config: CompanionConfig, pid: int, pipes: Mapping[int, int]) -> None:
        """The process *pid* writes to *pipes* from now on, and the manager does not."""
        name = config.name
        reading = {number - 1: self._reading.pop(fd) for number, fd in pipes.items()}
        feed = Feed(next(self._serials), name, pid, self._slots[name], reading, destinations_of(config))
        for fd in pipes.values():
            os.close(fd)
        self._feeds[feed.serial] = feed
        self._last[name] = feed._replace(pipes={})
        self._send(feed.message(), list(reading.values()))

    def forget(self, names: Collection[str]) -> None:
        """Only the companions *names* are configured; nothing is kept of others that have ended."""
        gone = [name for name in self._slots if name not in names]
        busy = {feed.name for feed in self._feeds.values()} if gone else set()
        for name in [name for name in gone if name not in busy]:
            self._earlier[name] = self.counters(name)
            slot = self._slots.pop(name)
            self._forgotten.add(slot)
            self._last.pop(name, None)
            self._send({"forget": name, "slot": slot})

    def counters(self, name: str) -> Counters:
        """What *name* has written, also before it was removed from the configuration and came back."""
        slot = self._slots.get(name)
        earlier = self._earlier.get(name, Counters(0, 0, 0))
        if slot is None:
            return earlier
        return Counters(*map(sum, zip(earlier, self.rings.counters(slot), strict=True)))

    # -- the keeper --------------------------------------------------------------

    def start(self) -> None:
        """Fork the keeper. If that fails it is tried again when `start_at` comes; the pipes wait."""
        now = time.monotonic()
        self._started_at, self.start_at = now, None
        for slot in self._forgotten:
            self.rings.give_back(slot)
        self._forgotten.clear()
        ours = theirs = None
        try:
            ours, theirs = Wire.pair()
            # The last destination of each counts, also for what an older process of it still writes.
            feeds = [*self._feeds.values(), *self._last.values()]
            self.pid = start_keeper(theirs, self.rings, feeds, self.line_format, self.most_lines)
        except OSError as exc:
            self.log.error("The log keeper cannot be started: %s", exc.strerror)
            self.start_at = now + _START_INTERVAL
            if ours is not None:
                ours.close()
            return
        finally:
            if theirs is not None:
                theirs.close()
        self.wire = ours
        self.poller.add(self.wire.fileno(), lambda events: self.receive())

    def tick(self, now: float) -> None:
        """Start the keeper again if that is due."""
        if self.start_at is not None and now >= self.start_at:
            self.start()

    def reaped(self, pid: int, status: int) -> bool:
        """Whether *pid* was the keeper. Another one starts at once, if this one has lived for a while."""
        if pid != self.pid:
            return False
        self.pid = None
        self.receive()
        self._drop_wire()
        self.log.warning("The log keeper (pid %d) %s; starting another one", pid, describe_status(status))
        now = time.monotonic()
        self.start_at = max(now, self._started_at + _START_INTERVAL)
        self.tick(now)
        return True

    def _drop_wire(self) -> None:
        if self.wire is not None:
            self.poller.remove(self.wire.fileno())
            self.wire.close()
            self.wire = None

    def receive(self) -> None:
        """Take in what the keeper says, and send what it had no room for."""
        if self.wire is None:
            return
        for message, _ in self.wire.receive():
            self._hear(message)
        if self.wire.ended:
            self.poller.remove(self.wire.fileno())
        else:
            self._flush()

    def _hear(self, message: Message) -> None:
        if "closed" in message:
            feed = self._feeds.pop(message["closed"], None)
            for fd in feed.pipes.values() if feed is not None else ():
                os.close(fd)
        elif "free" in message:
            self._forgotten.discard(message["free"])
            self.rings.give_back(message["free"])
        elif "failed" in message:
            self.log.error("The log keeper fails:\n%s", message["failed"])
        elif "failing" in message:
            self.log.error(
                "Output of companions is lost: %s: %s (this is said once a minute)",
                message["failing"],
                message["why"],
            )
        elif "dropped" in message:
            self.log.warning(
                "Output of companion %s is lost: %d lines (%d bytes) could not be written to %s",
                message["dropped"],
                message["lines"],
                message["bytes"],
                message["sink"],
            )
            self.on_event(message)

    def _send(self, message: Message, fds: list[int] | None = None) -> None:
        # A next keeper is told everything at its start.
        if self.wire is not None and not self.wire.ended:
            self.wire.send(message, fds or [])
            self._flush()

    def _flush(self) -> None:
        assert self.wire is not None
        self.wire.flush()
        self.poller.modify(self.wire.fileno(), READABLE | (WRITABLE if self.wire.has_unsent else 0))

    # -- for the manager -----------------------------------------------------------

    @property
    def answers(self) -> bool:
        """Whether there is a keeper."""
        return self.wire is not None and not self.wire.ended

    def answer(self, request: Mapping[str, Any], client: socket.socket) -> None:
        """Have the keeper answer a request for lines at *client*, which the caller closes."""
        self._send({"logs": dict(request)}, [client.fileno()])

    def reopen(self) -> None:
        """Begin new files; the server's own output may be another one too."""
        self._send({"reopen": True}, [1, 2])

    def descriptors(self) -> list[int]:
        """All that no companion is to keep."""
        fds = [self.rings.fd, *self._reading.keys(), *self._reading.values()]
        fds.extend(fd for feed in self._feeds.values() for fd in feed.pipes.values())
        if self.wire is not None:
            fds.append(self.wire.fileno())
        return fds

    def end(self) -> None:
        """All companions have ended: wait a moment for the last lines to be written."""
        self._send({"end": True})
        deadline = time.monotonic() + _END
        while self.pid is not None and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                    self.poller.wait(0.01)
                    continue
            self.pid = None


def destinations_of(config: CompanionConfig) -> Destinations:
    """Where a companion's output goes, by kind. Both kinds in one pipe keep the order of writing."""
    kinds = {STDOUT: "stdout"} if config.stderr == "stdout" else {STDOUT: "stdout", STDERR: "stderr"}
    found = {kind: config.output(key) for kind, key in kinds.items()}
    return {
        kind: None
        if one is None
        else one._replace(file=os.path.abspath(os.path.join(config.cwd or "", one.file)))
        for kind, one in found.items()
    }
