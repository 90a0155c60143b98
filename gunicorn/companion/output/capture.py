# SPDX-License-Identifier: MIT
"""The manager's side of captured output: pipes for each start, and the log keeper that reads them.

The manager holds the reading ends too, and never reads: nothing is lost while there is no keeper.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Collection, Mapping
from typing import Any

from gunicorn.companion.checks import OutputFile
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.helpers.handle import Helper
from gunicorn.companion.helpers.wire import Message, Wire
from gunicorn.companion.output.keeper import Feed, start_keeper
from gunicorn.companion.output.ring import STDERR, STDOUT, Counters, RingFile
from gunicorn.unix.poller import Poller

# Seconds for the keeper to write out the last lines when the server ends.
_END = 1.5

Destinations = Mapping[int, OutputFile | None]
# The writing ends of a companion's pipes, by descriptor in its process.
Pipes = dict[int, int]


class Capture(Helper):
    """Gives companions their pipes, and keeps the log keeper alive. *on_event* is told what it reports."""

    title = "log keeper"

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
        super().__init__(log, poller)
        self.line_format = line_format
        self.most_lines = most_lines
        self.on_event = on_event
        self.rings = RingFile()
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
        self.send(feed.message(), list(reading.values()))

    def forget(self, names: Collection[str]) -> None:
        """Only the companions *names* are configured; nothing is kept of others that have ended."""
        gone = [name for name in self._slots if name not in names]
        busy = {feed.name for feed in self._feeds.values()} if gone else set()
        for name in [name for name in gone if name not in busy]:
            self._earlier[name] = self.counters(name)
            slot = self._slots.pop(name)
            self._forgotten.add(slot)
            self._last.pop(name, None)
            self.send({"forget": name, "slot": slot})

    def counters(self, name: str) -> Counters:
        """What *name* has written, also before it was removed from the configuration and came back."""
        slot = self._slots.get(name)
        earlier = self._earlier.get(name, Counters(0, 0, 0))
        if slot is None:
            return earlier
        return Counters(*map(sum, zip(earlier, self.rings.counters(slot), strict=True)))

    # -- the keeper --------------------------------------------------------------

    def fork(self, wire: Wire) -> int:
        for slot in self._forgotten:
            self.rings.give_back(slot)
        self._forgotten.clear()
        # The last destination of each counts, also for what an older process of it still writes.
        feeds = [*self._feeds.values(), *self._last.values()]
        return start_keeper(wire, self.rings, feeds, self.line_format, self.most_lines)

    def hear(self, message: Message) -> None:
        if "closed" in message:
            feed = self._feeds.pop(message["closed"], None)
            for fd in feed.pipes.values() if feed is not None else ():
                os.close(fd)
        elif "free" in message:
            self._forgotten.discard(message["free"])
            self.rings.give_back(message["free"])
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

    # -- for the manager -----------------------------------------------------------

    def answer(self, request: Mapping[str, Any], client: socket.socket) -> None:
        """Have the keeper answer a request for lines at *client*, which the caller closes."""
        self.send({"logs": dict(request)}, [client.fileno()])

    def reopen(self) -> None:
        """Begin new files; the server's own output may be another one too."""
        self.send({"reopen": True}, [1, 2])

    def descriptors(self) -> list[int]:
        """All that no companion is to keep."""
        fds = [self.rings.fd, *self._reading.keys(), *self._reading.values()]
        fds.extend(fd for feed in self._feeds.values() for fd in feed.pipes.values())
        return fds + super().descriptors()

    def end(self) -> None:
        """All companions have ended: wait a moment for the last lines to be written."""
        for _ in range(2):
            # One that was just killed has not written all that is in the pipes.
            self.start_now()
            self.send({"end": True})
            if not self.wait(_END):
                return


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
