# SPDX-License-Identifier: MIT
"""Have the prober check companions, and send them the events that follow from what it finds."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple, Protocol

from gunicorn.companion.child.mark import VARIABLE, Mark
from gunicorn.companion.helpers.handle import HelperHandle
from gunicorn.companion.helpers.wire import Message
from gunicorn.companion.output.capture import Capture
from gunicorn.companion.probe import Findings, Probe, Result
from gunicorn.companion.process import Cause, CompanionProcess, Event, State
from gunicorn.companion.spawn import SERVER_VARIABLES
from gunicorn.companion.table import History, ProcessTable
from gunicorn.unix import session
from gunicorn.unix.kernel import KERNEL, Kernel

# Seconds by which the manager may be late to note a start.
LATE_NOTE = 1.0

# All lines of the output: the keeper has as many as it has room for.
ALL_LINES = 1_000_000
# Bytes of output that the log keeper holds for the prober: some programs write a lot while they start.
MOST_UNREAD = 16 * 1024 * 1024


class Prober(HelperHandle, Protocol):
    """What makes the checks: `probing.handle.ProberHandle`, or that of a test."""

    nofile: tuple[int, int] | None

    def stop(self) -> None: ...


class Job(NamedTuple):
    """What the prober is to do for one process. *first*: find out whether it is ready."""

    serial: int
    pid: int
    first: bool
    probe: Probe


@dataclass(eq=False, repr=False)
class Probes:
    """Keeps the prober's jobs in step with *table*.

    A STARTING companion has its `probe` checked, a RUNNING one its `liveness`.

    *run_dir* marks the processes of commands, for a next manager to find. *capture*: what has the output.
    """

    table: ProcessTable
    log: Any
    _: KW_ONLY
    prober: Prober
    history: History
    run_dir: str | None = None
    capture: Capture | None = None
    kernel: Kernel = KERNEL
    _jobs: dict[str, Job] = field(default_factory=dict, init=False)
    _serials: itertools.count[int] = field(default_factory=lambda: itertools.count(1), init=False)
    _used: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.prober.on_message = self._receive
        self.prober.on_start = self._begin_all

    # -- jobs ------------------------------------------------------------------

    def step(self) -> None:
        """Begin and stop checks as the states and the configuration of companions ask for it."""
        configured = [p for p in self.table.values() if p.config.probe or p.config.liveness]
        wanted = {p.name: found for p in configured if (found := _wanted(p)) is not None}
        for name, job in list(self._jobs.items()):
            if wanted.get(name) != job[1:]:
                del self._jobs[name]
                self.prober.send({"stop": job.serial})
        if wanted:
            self._used = True
            # Before there are jobs: it is told of them when it starts.
            self.prober.start()
        elif self._used and not configured:
            self._used = False
            self.prober.stop()
        for name in wanted.keys() - self._jobs.keys():
            self._jobs[name] = Job(next(self._serials), *wanted[name])
            self._begin(self.table[name], self._jobs[name])

    def _begin_all(self) -> None:
        """Another prober has started."""
        for name, job in self._jobs.items():
            self._begin(self.table[name], job)

    def _begin(self, process: CompanionProcess, job: Job) -> None:
        config = process.config
        here = _own_directory()
        mark = Mark.of(self.run_dir, label(process.name), os.getpid())
        environment = {name: value for name, value in os.environ.items() if name not in SERVER_VARIABLES}
        environment["GUNICORN_COMPANION_NAME"] = process.name
        environment["GUNICORN_COMPANION_PID"] = str(job.pid)
        if config.index is not None:
            environment["GUNICORN_COMPANION_INDEX"] = str(config.index)
        self.prober.send(
            {
                "job": job.serial,
                "pid": job.pid,
                "first": job.first,
                "probe": job.probe,
                "started": time.time() - self._age(process),
                "directory": os.path.join(here, config.cwd or ""),
                "surroundings": {
                    "environment": environment,
                    "env_files": [os.path.join(here, path) for path in config.env_file],
                    "env": {**config.env, VARIABLE: str(mark)},
                },
            }
        )

    def _age(self, process: CompanionProcess) -> float:
        """Seconds since the fork of *process*, rather more than less.

        What it does at once may come before the manager notes its start. The kernel knows better.
        """
        with contextlib.suppress(OSError, AttributeError):
            info = session.read_stat(process.pid or 0)
            if info is not None:
                began = int(info.start) / os.sysconf("SC_CLK_TCK")
                return time.clock_gettime(time.CLOCK_BOOTTIME) - began
        return self.kernel.now() - (process.started_at or 0.0) + LATE_NOTE

    # -- results ---------------------------------------------------------------

    def _receive(self, message: Message) -> None:
        serial = message.get("result") or message.get("follow")
        found = [(name, job) for name, job in self._jobs.items() if job.serial == serial]
        # Of one that was stopped meanwhile nobody wants to know.
        for name, job in found:
            if "follow" in message:
                self._connect(name, job)
            else:
                values = {key: message[key] for key in Result._fields}
                self.take(self.table[name], job, Result(**values))

    def _connect(self, name: str, job: Job) -> None:
        """Have the log keeper send the lines of *name* to the prober."""
        if self.capture is None or not self.capture.answers:
            return
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            # Without a descriptor for it: the prober asks again at its next look.
            ours, theirs = map(stack.enter_context, socket.socketpair())
            request = {"names": [name], "lines": ALL_LINES, "since": 0, "stream": None, "follow": True}
            self.capture.answer({**request, "resume": True, "unread": MOST_UNREAD}, ours)
            self.prober.send({"log": job.serial}, [theirs.fileno()])

    def take(self, process: CompanionProcess, job: Job, result: Result) -> None:
        """Note *result*, and send the event that follows."""
        now = self.kernel.now()
        if process.pid != job.pid:
            return
        if job.first:
            self._take_readiness(process, job.probe, result, now)
        elif process.state is State.RUNNING:
            self._take_liveness(process, job.probe, result, now)

    def _take_readiness(self, process: CompanionProcess, probe: Probe, result: Result, now: float) -> None:
        found = process.probe_findings
        before = found.failures
        found.note(result, probe, now)
        if found.passed(probe) and process.state is State.STARTING:
            self.table.send(process, Event.PROBED, now)
        elif before < probe.failures <= found.failures:
            self.log.warning("Companion %s is not ready yet: %s: %s", process.name, probe, found.trouble)

    def _take_liveness(self, process: CompanionProcess, probe: Probe, result: Result, now: float) -> None:
        found = process.liveness_findings
        before = found.failures
        found.note(result, probe, now)
        if found.failures and not before:
            self.log.warning(
                "Companion %s: liveness fails (1 of %d): %s: %s",
                process.name,
                probe.failures,
                probe,
                found.trouble,
            )
            self._tell("liveness fails", process, found)
        elif before and not found.failures:
            self.log.warning("Companion %s: liveness succeeds again: %s", process.name, probe)
            self._tell("liveness succeeds", process, found)
        if found.failed(probe) and not result.good:
            times = "once" if found.failures == 1 else f"{found.failures} times in a row"
            reason = f"liveness failed {times}: {found.trouble}"
            self.table.send(process, Event.HUNG, now, cause=Cause.LIVENESS, reason=reason)

    def _tell(self, event: str, process: CompanionProcess, found: Findings) -> None:
        self.history.add(event, process.name, cause=Cause.LIVENESS, reason=found.trouble)


def _own_directory() -> str:
    """Ours now: a reload may have changed it since the prober was forked."""
    try:
        return os.getcwd()
    except OSError:
        # It was removed.
        return "/"


def label(name: str) -> str:
    """What the mark of a command for the companion *name* says, which no companion can be called."""
    return f"probe of {name}"


def _wanted(process: CompanionProcess) -> tuple[int, bool, Probe] | None:
    """The pid, whether it is about readiness, and the check that *process* needs now."""
    config = process.config
    if process.pid is None:
        return None
    if process.state is State.STARTING and config.probe is not None and not process.probed:
        return process.pid, True, config.probe
    if process.state is State.RUNNING and config.liveness is not None:
        return process.pid, False, config.liveness
    return None
