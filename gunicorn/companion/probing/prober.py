# SPDX-License-Identifier: MIT
"""The prober's process: it makes the checks, each in its time, and tells the manager what came out.

It is a child of the companion manager and ends with it. What a check does cannot hold up the manager; nor can
it hold up the prober for long: see `STUCK`.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Mapping
from typing import Any, Protocol

from gunicorn.companion.helpers.child import fork_helper
from gunicorn.companion.helpers.wire import Wire
from gunicorn.companion.probe import Probe, parse_tcp, parse_url
from gunicorn.companion.probing.commands import Command, Commands, Program
from gunicorn.companion.probing.connections import Connection, Outcome, Request
from gunicorn.companion.probing.log import LogLines
from gunicorn.settings import redact
from gunicorn.unix.poller import READABLE, WRITABLE, Poller
from gunicorn.unix.signals import SignalInbox, reset_to_default

# Seconds from the first check of a start to the second. The pauses double up to `every`: nobody wants to wait
# ten seconds for what is ready after one.
FIRST_PAUSE = 0.25

# Seconds after which the kernel ends a prober that does not get on: it may hang in a file system. The manager
# starts another one.
STUCK = 10
# So many seconds it waits at most: the alarm begins with the wait.
LONGEST_WAIT = 5

# A check whose time was over so long ago was held up with us (a paused machine): it is made again.
LATE = 1.0

# Seconds by which a file may be older than the process that made it: the clock of file systems is coarse.
COARSE = 0.02

# Seconds between two looks whether a killed command is gone, before the next one.
DYING = 0.02

# Characters of output that the manager is told.
LONGEST_OUTPUT = 2000

# Seconds to wait for killed commands at the end.
_END = 0.5


class Attempt(Protocol):
    """A check that is under way."""

    outcome: Outcome | None

    def expire(self, reason: str) -> None: ...
    def close(self) -> None: ...


class Known:
    """A check whose outcome is there at once."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome: Outcome | None = outcome

    def expire(self, reason: str) -> None:
        pass

    def close(self) -> None:
        pass


class Job:
    """The checks of one process of a companion. ``due``, ``began`` and ``deadline`` are monotonic seconds."""

    def __init__(self, message: Mapping[str, Any], now: float) -> None:
        self.serial: int = message["job"]
        self.probe = Probe._make(message["probe"])
        # Whether it looks for readiness.
        self.first: bool = message["first"]
        # When the process was started, by the clock on the wall.
        self.started: float = message["started"]
        self.directory: str = message["directory"]
        # Those of its commands: see `Program`.
        self.surroundings: Mapping[str, Any] = message["surroundings"]
        delay = self.probe.delay
        if not self.first and self.probe.kind in ("file", "log"):
            # The first sign of life has as much time as the others.
            delay += self.probe.every
        self.earliest = self.due = now + delay
        self.pause = FIRST_PAUSE if self.first else self.probe.every
        if self.first and self.probe.kind == "log":
            # The output has yet to come; the line that is looked for is told at once.
            self.due += FIRST_PAUSE
        self.began = self.deadline = 0.0
        self.attempt: Attempt | None = None
        self.log: LogLines | None = None
        self.command: Command | None = None
        # A file must be newer, by the clock on the wall.
        self.file_since = self.started if self.first else time.time()

    @property
    def next_at(self) -> float:
        return self.due if self.attempt is None else self.deadline

    @property
    def quick(self) -> bool:
        return self.pause < self.probe.every


class Prober:
    """The loop. *wire* leads to the manager; *nofile* are the limits of open files of a command."""

    def __init__(self, wire: Wire, nofile: tuple[int, int] | None) -> None:
        self.wire = wire
        self.nofile = nofile
        self.poller = Poller()
        self.inbox = SignalInbox([signal.SIGCHLD])
        self.inbox.install()
        self.commands = Commands(self.poller)
        self.jobs: dict[int, Job] = {}
        self.poller.add(self.inbox.fileno(), lambda events: None)
        self.poller.add(wire.fileno(), lambda events: self._on_message())

    def run(self) -> None:
        """Until the manager is gone."""
        while not self.wire.ended:
            timeout = self._timeout()
            # The poller calls what may hang, but without jobs nothing can.
            signal.alarm(0 if timeout is None else STUCK + LONGEST_WAIT)
            self.poller.wait(timeout)
            signal.alarm(STUCK)
            if self.inbox.drain():
                self.commands.reap()
            for job in list(self.jobs.values()):
                self._step(job)
            if not self.wire.ended:
                self.wire.flush()
                self.poller.modify(self.wire.fileno(), READABLE | (WRITABLE if self.wire.has_unsent else 0))
        self._end()

    def _timeout(self) -> float | None:
        if not self.jobs:
            return None
        wait = min(job.next_at for job in self.jobs.values()) - time.monotonic()
        return max(0.0, min(wait, LONGEST_WAIT))

    def _end(self) -> None:
        deadline = time.monotonic() + _END
        self.commands.end()
        while self.commands.running and time.monotonic() < deadline:
            self.poller.wait(0.05)
            self.inbox.drain()
            self.commands.reap()

    # -- what the manager says ---------------------------------------------------

    def _on_message(self) -> None:
        for message, fds in self.wire.receive():
            if "job" in message:
                self._add(Job(message, time.monotonic()), message["pid"])
            elif "stop" in message:
                self._drop(message["stop"])
            elif (
                "log" in message
                and (job := self.jobs.get(message["log"])) is not None
                and job.log is not None
            ):
                job.log.follow(fds.pop())
            for fd in fds:
                os.close(fd)
        if self.wire.ended:
            self.poller.remove(self.wire.fileno())

    def _add(self, job: Job, pid: int) -> None:
        self.jobs[job.serial] = job
        if job.probe.kind == "log":
            # Liveness asks for lines from now on.
            since = job.started if job.first else time.time()
            pattern, serial = str(job.probe.what), job.serial
            job.log = LogLines(pattern, pid, since, self.poller, lambda: self._on_line(serial))
            self.wire.send({"follow": job.serial})

    def _on_line(self, serial: int) -> None:
        """There is something to tell of the output: readiness need not wait for the next look."""
        job = self.jobs[serial]
        if job.first:
            job.due = max(job.earliest, min(job.due, time.monotonic()))

    def _drop(self, serial: int) -> None:
        job = self.jobs.pop(serial, None)
        if job is not None:
            if job.attempt is not None:
                job.attempt.close()
            if job.log is not None:
                job.log.close()

    # -- checks --------------------------------------------------------------------

    def _step(self, job: Job) -> None:
        now = time.monotonic()
        if job.attempt is None and now >= job.due:
            if job.command is not None and job.command.alive and now < job.deadline + LATE:
                # It has just been killed.
                job.due = now + DYING
                return
            job.began, job.deadline = now, now + job.probe.timeout
            try:
                job.attempt = self._begin(job)
            except (OSError, ValueError) as exc:
                self._finish(job, Outcome(False, (getattr(exc, "strerror", None) or str(exc)).lower()))
        if job.attempt is None:
            return
        if job.attempt.outcome is None and now >= job.deadline:
            if now >= job.deadline + LATE:
                job.attempt.close()
                job.attempt = None
                job.due = now
                return
            job.attempt.expire(f"no answer within {job.probe.timeout:g}s")
        if job.attempt.outcome is not None:
            self._finish(job, job.attempt.outcome)

    def _begin(self, job: Job) -> Attempt:
        """Raises OSError."""
        what = job.probe.what
        if job.probe.kind == "command":
            if job.command is not None and job.command.alive:
                # It waits for a disk or a file server.
                return Known(Outcome(False, f"the command before (pid {job.command.pid}) does not end"))
            job.command = self.commands.run(
                Program(what, job.directory, nofile=self.nofile, **job.surroundings)
            )
            return job.command
        assert isinstance(what, str)
        if job.probe.kind == "http":
            return Request(parse_url(what), job.probe.status, self.poller)
        if job.probe.kind == "tcp":
            address = parse_tcp(what)
            if isinstance(address, str):
                address = os.path.join(job.directory, address)
            return Connection(address, self.poller)
        return Known(self._look_at_file(job, what) if job.probe.kind == "file" else self._look_at_log(job))

    def _look_at_file(self, job: Job, path: str) -> Outcome:
        """Readiness wants the file to be newer than the process, liveness newer than the last check."""
        info = os.stat(os.path.join(job.directory, path))
        since, job.file_since = job.file_since, job.file_since if job.first else time.time()
        age = since - COARSE - max(info.st_mtime, info.st_ctime)
        if age <= 0:
            return Outcome(True)
        return Outcome(False, "it is older than the process" if job.first else "it was not touched")

    def _look_at_log(self, job: Job) -> Outcome:
        log = job.log
        assert log is not None
        if log.too_slow:
            return Outcome(False, "its regular expression takes too long for a line of the output")
        line = log.take(log.since if job.first else time.time())
        if not log.connected or log.missed:
            # The keeper has no connection to us yet, or no more; or it still keeps what we have missed.
            self.wire.send({"follow": job.serial})
        return Outcome(False, "no such line") if line is None else Outcome(True, output=line)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        if job.attempt is not None:
            job.attempt.close()
            job.attempt = None
        now = time.monotonic()
        job.due = max(now, job.began + min(job.pause, job.probe.every))
        quick, job.pause = job.quick, 2 * job.pause
        if self.wire.has_unsent:
            # The manager does not read. What it will need then are the results of then.
            return
        self.wire.send(
            {
                "result": job.serial,
                "good": outcome.good,
                "reason": outcome.reason,
                "output": shown(outcome.output),
                "took": round(now - job.began, 4),
                "quick": quick,
            }
        )


def shown(text: str) -> str:
    """*text* for people: without secrets and control characters."""
    text = "".join(c for c in text.expandtabs() if c.isprintable() or c == "\n").strip()
    return redact.in_text(text)[-LONGEST_OUTPUT:]


def start_prober(wire: Wire, nofile: tuple[int, int] | None) -> int:
    """Fork the prober at the other end of *wire*; return its pid. Raises OSError."""

    def life() -> None:
        reset_to_default([signal.SIGALRM])
        # What it makes from here on may have cycles; the manager's objects are frozen.
        gc.enable()
        Prober(wire, nofile).run()

    return fork_helper("companion prober", wire, life)
