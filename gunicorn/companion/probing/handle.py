# SPDX-License-Identifier: MIT
"""The manager's side of the prober: start it, send it jobs, receive results."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from gunicorn.companion.output.wire import Message, Wire
from gunicorn.companion.probing.prober import STUCK, start_prober
from gunicorn.unix import session
from gunicorn.unix.poller import READABLE, WRITABLE, Poller
from gunicorn.unix.process import describe_status, term_signal

# One that dies at once is not started again in a tight loop.
_START_INTERVAL = 1.0
# Seconds for it to end what it runs.
_END = 1.0


class ProberHandle:
    """Starts the prober, and another one if it ends by itself.

    ``on_message`` gets what it says; ``on_start`` is called when one has started, which knows no jobs.
    """

    def __init__(self, log: Any, poller: Poller) -> None:
        self.log = log
        self.poller = poller
        self.pid: int | None = None
        self.start_at: float | None = None
        # Of the companions, and so of commands: see `Starter.nofile`.
        self.nofile: tuple[int, int] | None = None
        self.on_message: Callable[[Message], None] = lambda message: None
        self.on_start: Callable[[], None] = lambda: None
        self._wire: Wire | None = None
        self._started_at = float("-inf")

    def start(self) -> None:
        """Fork it, unless it is there. If that fails it is tried again when `start_at` comes."""
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
            self.pid = start_prober(theirs, self.nofile)
        except OSError as exc:
            self.log.error("The checks of companions cannot be made, no prober: %s", exc.strerror)
            self.start_at = now + _START_INTERVAL
            if ours is not None:
                ours.close()
            return
        finally:
            if theirs is not None:
                theirs.close()
        self._wire = ours
        self.poller.add(ours.fileno(), lambda events: self._receive())
        self.on_start()

    def tick(self, now: float) -> None:
        """Start it again if that is due."""
        if self.start_at is not None and now >= self.start_at:
            self.start()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        # A next one is told everything at its start.
        if self._wire is not None and not self._wire.ended:
            self._wire.send(message, fds)
            self._flush()

    def _receive(self) -> None:
        if self._wire is None:
            return
        for message, _ in self._wire.receive():
            if "failed" in message:
                self.log.error("The prober fails:\n%s", message["failed"])
            else:
                self.on_message(message)
        if self._wire.ended:
            self.poller.remove(self._wire.fileno())
        else:
            self._flush()

    def _flush(self) -> None:
        assert self._wire is not None
        self._wire.flush()
        self.poller.modify(self._wire.fileno(), READABLE | (WRITABLE if self._wire.has_unsent else 0))

    def reaped(self, pid: int, status: int) -> bool:
        """Whether *pid* was the prober; if it had not been told to end, another one is started."""
        if pid != self.pid:
            return False
        self.pid = None
        if self._wire is None:
            return True
        self._receive()
        self._close()
        why = describe_status(status)
        if term_signal(status) == signal.SIGALRM:
            why = f"hung for {STUCK} s, probably in a file system, and was ended"
        self.log.warning("The prober of companions (pid %d) %s; starting another one", pid, why)
        self.start()
        return True

    def stop(self) -> None:
        """There is nothing left to check."""
        self.start_at = None
        self._close()

    def _close(self) -> None:
        if self._wire is not None:
            self.poller.remove(self._wire.fileno())
            self._wire.close()
            self._wire = None

    def end(self) -> None:
        """The server ends: wait a moment for it to end too, and kill it if it is stuck."""
        self.stop()
        deadline = time.monotonic() + _END
        while self.pid is not None:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                    if time.monotonic() >= deadline:
                        session.send(self.pid, signal.SIGKILL)
                        return
                    self.poller.wait(0.01)
                    continue
            self.pid = None

    def descriptors(self) -> list[int]:
        """All that no companion is to keep."""
        return [] if self._wire is None else [self._wire.fileno()]
