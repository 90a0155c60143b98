# SPDX-License-Identifier: MIT
"""The manager's side of a helper process, such as the log keeper: start it, and another one if it ends."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gunicorn.companion.helpers.wire import Message, Wire
from gunicorn.unix.poller import READABLE, WRITABLE, Poller
from gunicorn.unix.process import describe_status

# One that dies at once is not started again in a tight loop.
_START_INTERVAL = 1.0


class HelperHandle(Protocol):
    """What the manager's parts ask of the handle of a helper, or of a test's: see `ServingHelper`."""

    pid: int | None
    start_at: float | None
    on_message: Callable[[Message], None]
    on_start: Callable[[], None]

    def start(self) -> None: ...
    def tick(self, now: float) -> None: ...
    def send(self, message: Message, fds: Sequence[int] = ...) -> None: ...
    def reaped(self, pid: int, status: int) -> bool: ...
    def descriptors(self) -> list[int]: ...
    def end(self) -> None: ...


class Helper:
    """A helper at the other end of a wire. If it cannot be started, that is tried again at ``start_at``."""

    title = ""

    def __init__(self, log: Any, poller: Poller) -> None:
        self.log = log
        self.poller = poller
        self.pid: int | None = None
        self.wire: Wire | None = None
        self.start_at: float | None = None
        self.wanted = False
        self._started_at = float("-inf")

    def fork(self, wire: Wire) -> int:
        """Make the process, with its end of the wire; return its pid. Raises OSError."""
        raise NotImplementedError

    def begun(self) -> None:
        """Called when one has started."""

    def hear(self, message: Message) -> None:
        """Take in what it says."""

    def describe_end(self, status: int) -> str:
        return describe_status(status)

    def start(self) -> None:
        """Start it, unless it is there. While one that was stopped still ends, that is done after it."""
        self.wanted = True
        if self.pid is not None:
            return
        now = time.monotonic()
        if now < self._started_at + _START_INTERVAL:
            self.start_at = self._started_at + _START_INTERVAL
            return
        self._started_at, self.start_at = now, None
        ours = theirs = None
        try:
            ours, theirs = Wire.pair()
            self.pid = self.fork(theirs)
        except OSError as exc:
            self.log.error("The %s cannot be started: %s", self.title, exc.strerror)
            self.start_at = now + _START_INTERVAL
            if ours is not None:
                ours.close()
            return
        finally:
            if theirs is not None:
                theirs.close()
        self.wire = ours
        self.poller.add(ours.fileno(), lambda events: self.receive())
        self.begun()

    def tick(self, now: float) -> None:
        """Start it again if that is due."""
        if self.start_at is not None and now >= self.start_at:
            self.start()

    def reaped(self, pid: int, status: int) -> bool:
        """Whether *pid* was this helper. If one is wanted, another one is started."""
        if pid != self.pid:
            return False
        self.pid = None
        if self.wire is not None:
            self.receive()
            self.drop_wire()
            self.log.warning(
                "The %s (pid %d) %s; starting another one", self.title, pid, self.describe_end(status)
            )
        if self.wanted:
            self.start()
        return True

    def drop_wire(self) -> None:
        if self.wire is not None:
            self.poller.remove(self.wire.fileno())
            self.wire.close()
            self.wire = None

    @property
    def answers(self) -> bool:
        """Whether it is there to answer."""
        return self.wire is not None and not self.wire.ended

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        # A next one is told everything at its start.
        if self.wire is not None and not self.wire.ended:
            self.wire.send(message, fds)
            self._flush()

    def receive(self) -> None:
        """Take in what it says, and send what it had no room for."""
        if self.wire is None:
            return
        for message, _ in self.wire.receive():
            if "failed" in message:
                self.log.error("The %s fails:\n%s", self.title, message["failed"])
            else:
                self.hear(message)
        if self.wire.ended:
            self.poller.remove(self.wire.fileno())
        else:
            self._flush()

    def _flush(self) -> None:
        assert self.wire is not None
        self.wire.flush()
        self.poller.modify(self.wire.fileno(), READABLE | (WRITABLE if self.wire.has_unsent else 0))

    def start_now(self) -> None:
        """Start it, if it is not there, without the pause after its last start."""
        if self.pid is None:
            self.drop_wire()
            self._started_at = float("-inf")
            self.start()

    def wait(self, seconds: float) -> bool:
        """Wait a moment for its end; return whether it was killed."""
        deadline = time.monotonic() + seconds
        status = 0
        while self.pid is not None and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if not pid:
                    self.poller.wait(0.01)
                    continue
            self.pid = None
        return os.WIFSIGNALED(status)

    def descriptors(self) -> list[int]:
        """All that no companion is to keep."""
        return [] if self.wire is None else [self.wire.fileno()]


class ServingHelper(Helper):
    """A helper of one part of the manager, which sets *on_message*, and *on_start*: another one has started,
    which knows of nothing yet.
    """

    on_message: Callable[[Message], None]
    on_start: Callable[[], None]

    def begun(self) -> None:
        self.on_start()

    def hear(self, message: Message) -> None:
        self.on_message(message)
