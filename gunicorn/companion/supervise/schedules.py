# SPDX-License-Identifier: MIT
"""Start companions with a `schedule` at their times, and remember their runs.

What is remembered is in a file of the run directory, one for each companion. Its lock is the right to keep
the schedule: of two managers, over an upgrade or a reload of all, only one starts a run, and the next one
goes on where the first has stopped. A manager that is killed loses its locks, and its successor finds in the
files which times are dealt with.

With a `lease`, all servers of a fleet ask for it at each time. The first one notes the time in the store
before it starts the run; the others find that note when they get the lease, and have nothing to do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import secrets
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Any

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.process import Cause, CompanionProcess, Event, State
from gunicorn.companion.runfile import MAX_RECORD, RunFile, run_path
from gunicorn.companion.schedule import GRACE, Clock, Due, Moment, Note, clock_time, is_time
from gunicorn.companion.status import ScheduleStatus, format_age
from gunicorn.companion.supervise.leases import Leases
from gunicorn.companion.supervise.overrides import KeptState
from gunicorn.companion.supervise.rights import StartRights
from gunicorn.companion.table import Change, ProcessTable
from gunicorn.unix.kernel import KERNEL, Kernel

SUFFIX = ".schedule"

# Runs of a companion that are remembered.
RUNS_KEPT = 20
# Seconds between two looks at a clock that somebody may set, and after which the machine may have slept.
LOOK_INTERVAL = 60.0
# Seconds between two attempts to take over a schedule from another manager.
TAKE_INTERVAL = 0.5

# The server has ended these runs, and not their time.
CUT_SHORT = (Cause.SERVER, Cause.RELOAD, Cause.UPGRADE, Cause.LEASE)


@dataclass
class Memory:
    """What is remembered of a companion. *through*: the times up to it are dealt with, by the wall clock.

    *owed*: a run is due that has not begun. *runs*: the latest ones, the last one last; ``good`` is None
    while it runs. The others count all runs, and times without one.
    """

    spec: list[str | None]
    through: float
    owed: bool = False
    runs: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    failed: int = 0
    failed_in_a_row: int = 0
    skipped: int = 0
    missed: int = 0
    last_success: float | None = None
    # Unique, for the notes of a fleet.
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @classmethod
    def of(cls, file: RunFile, spec: list[str | None], now: float) -> Memory:
        """What *file* says, which another version of the server may have written."""
        fresh = cls(spec, now)
        try:
            found = json.loads(os.pread(file.fd, MAX_RECORD, 0).partition(b"\n")[0])
            memory = cls(**{name: found[name] for name in asdict(fresh)})
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return fresh
        if not memory.is_sound():
            return fresh
        if memory.spec != spec:
            # Times of another schedule, and those before the change, do not count.
            memory.spec, memory.through, memory.owed = spec, now, False
        return memory

    def is_sound(self) -> bool:
        """Whether the values are of their types, in a file that others may have written."""
        times = (self.through, 0.0 if self.last_success is None else self.last_success)
        counts = (self.count, self.failed, self.failed_in_a_row, self.skipped, self.missed)
        return (
            all(map(is_time, times))
            and all(isinstance(count, int) for count in counts)
            and isinstance(self.id, str)
            and isinstance(self.runs, list)
            and all(map(_is_sound_run, self.runs))
        )

    def write(self, file: RunFile) -> None:
        """Raises OSError."""
        data = json.dumps(asdict(self), separators=(",", ":")).encode() + b"\n"
        if os.pwrite(file.fd, data, 0) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(file.fd, len(data))

    def add(self, run: dict[str, Any]) -> None:
        self.runs = [*self.runs, run][-RUNS_KEPT:]
        self.count += 1

    def end(self, *, good: bool, took: float, how: str, at: float) -> None:
        """Note how the last run has ended; nothing if its begin was not noted here."""
        if self.runs and self.runs[-1]["good"] is None:
            self.runs[-1] |= {"good": good, "took": round(took, 3), "how": how}
        self.failed += not good
        self.failed_in_a_row = 0 if good else self.failed_in_a_row + 1
        if good:
            self.last_success = round(at, 3)

    @property
    def last(self) -> dict[str, Any] | None:
        """The latest run that has ended."""
        return next((run for run in reversed(self.runs) if run["good"] is not None), None)

    @property
    def counts(self) -> dict[str, Any]:
        names = ("count", "failed", "failed_in_a_row", "skipped", "missed", "last_success")
        return {name: getattr(self, name) for name in names}


def _is_sound_run(run: Any) -> bool:
    return (
        isinstance(run, dict)
        and {"good", "took", "how"} <= run.keys()
        and is_time(run.get("started"))
        and isinstance(run.get("why"), str)
        and isinstance(run["good"], bool | None)
        and (run["took"] is None or is_time(run["took"]))
        and isinstance(run["how"], str | None)
    )


@dataclass(eq=False)
class Job:
    """A companion whose schedule this manager keeps.

    *asked*: the start of the run that is owed was asked for. *late*: that run makes up for missed times.
    *off*: the schedule does not count. *noted*: the token of the lease with which the run of *time* was
    noted. *told*: that the present run lasts beyond its next time.
    """

    file: RunFile
    memory: Memory
    clock: Clock
    asked: bool = False
    late: bool = False
    off: bool = False
    noted: int = 0
    time: float = 0.0
    told: bool = False
    # The next time for people, and what it was made of: that takes a while.
    _shown: tuple[float, float] | None = None
    _text: str | None = None

    def next_clock(self, now: Moment, config: CompanionConfig) -> str | None:
        """``03:30``; None if the wall clock does not matter."""
        if self.clock.times.by_wall and self._shown != (self.clock.next_at, now.wall // LOOK_INTERVAL):
            self._shown = self.clock.next_at, now.wall // LOOK_INTERVAL
            self._text = clock_time(self.clock.next_at, now.wall, config.schedule_timezone)
        return self._text if self.clock.times.by_wall else None


def _spec(config: CompanionConfig) -> list[str | None]:
    return [config.schedule, config.schedule_timezone]


@dataclass(eq=False, repr=False)
class Schedules:
    """Starts the companions of *table* that have a schedule. ``due``: when it must look again."""

    table: ProcessTable
    log: Any
    _: KW_ONLY
    kept: KeptState
    start_rights: StartRights
    leases: Leases
    kernel: Kernel = KERNEL
    chance: Callable[[], float] = random.random
    due: float | None = field(default=None, init=False)
    _jobs: dict[str, Job] = field(default_factory=dict, init=False)
    # Why runs could not be noted, as the log has it.
    _complaints: set[str | None] = field(default_factory=set, init=False)

    def step(self, now: float, *, stopping: bool = False) -> None:
        """Start what is due; with *stopping* only let go of the schedules of what has stopped."""
        self.due = None
        scheduled = [p for p in self.table.values() if p.config.schedule is not None and not p.removed]
        for name in self._jobs.keys() - {process.name for process in scheduled}:
            process = self.table.get(name)
            if process is None or process.state is State.STOPPED or not process.removed:
                self._jobs.pop(name).file.release()
        if not scheduled:
            return
        moment = self._moment()
        for process in scheduled:
            if not stopping:
                self._step_one(process, now, moment)
            elif process.state is State.STOPPED:
                self._let_go(process.name)

    def _moment(self) -> Moment:
        return Moment(self.kernel.wall(), self.kernel.boottime())

    def _step_one(self, process: CompanionProcess, now: float, moment: Moment) -> None:
        job = self._jobs.get(process.name) or self._take(process, moment)
        if job is None:
            process.timing = ScheduleStatus(kept_elsewhere=True)
            self._look_at(now + TAKE_INTERVAL)
            return
        memory = job.memory
        if memory.spec != _spec(process.config):
            memory.spec, memory.through = _spec(process.config), moment.wall
            job.clock = self._make_clock(process.config, memory, moment)
            self._save(process, job)
        if not self._is_wanted(process):
            job.off = True
            process.timing.next_at = None
            if memory.owed:
                memory.owed = job.asked = False
                self._save(process, job)
        else:
            if job.off:
                # Times at which it was stopped are not made up for.
                job.off = False
                job.clock.skip_to(moment)
                memory.through = moment.wall
                self._save(process, job)
            if (due := job.clock.look(moment)) is not None:
                self._on_time(process, job, due, now, moment)
            if memory.owed and not job.asked and process.state is State.STOPPED:
                job.asked = True
                self.table.send(process, Event.START, now)
            left = job.clock.seconds_left(moment)
            self._look_at(now + min(left, LOOK_INTERVAL))
            if left < float("inf"):
                process.timing.next_at = now + left
                process.timing.clock = job.next_clock(moment, process.config)

    def _look_at(self, moment: float) -> None:
        self.due = moment if self.due is None else min(self.due, moment)

    def _is_wanted(self, process: CompanionProcess) -> bool:
        """Whether its schedule counts: it was not stopped by command, or is yet to be started by one."""
        stopped = self.kept.overrides.stopped.get(process.name, not process.config.autostart)
        return not stopped and not process.manual_stop

    def _on_time(self, process: CompanionProcess, job: Job, due: Due, now: float, moment: Moment) -> None:
        """A time has come: have a run, or say why there is none."""
        memory, config = job.memory, process.config
        job.clock.delay = self.chance() * config.schedule_jitter
        memory.through = job.clock.wall_of_through(moment)
        at = clock_time(due.at, moment.wall, config.schedule_timezone)
        if due.is_missed and not config.schedule_catch_up:
            # With a lease, other servers may have run.
            if config.lease_name is None:
                memory.missed += 1
                self._tell(process, "missed", f"nothing ran at {at}")
        elif process.state is State.STOPPED or memory.owed or config.schedule_overlap != "skip":
            memory.owed, job.late = True, due.is_missed
        else:
            memory.skipped += 1
            if not job.told:
                # Once for each run that lasts too long: the history is short.
                self._tell(process, "skipped", f"at {at} the run before had not ended")
            job.told = True
        self._save(process, job)
        if memory.owed and config.schedule_overlap == "restart" and process.state is not State.STOPPED:
            job.asked = True
            self.table.send(process, Event.RESTART, now, cause=Cause.SCHEDULE, reason="its next run is due")

    def _tell(self, process: CompanionProcess, event: str, why: str) -> None:
        self.log.warning("Companion %s: a run was %s: %s", process.name, event, why)
        self.kept.history.add(event, process.name, cause=Cause.SCHEDULE, reason=why)

    # -- runs of a fleet -----------------------------------------------------------------

    def may_run(self, process: CompanionProcess) -> bool:
        """Whether *process*, which holds its lease or needs none, is to be forked now.

        A run by its schedule must be noted in the store, so that no other server makes it, too.
        """
        job, lease = self._jobs.get(process.name), self.leases.of(process.config)
        if job is None or lease is None or not job.asked:
            return True
        if job.noted == lease.token:
            process.standby = not lease.noted
            return lease.noted
        moment = self._moment()
        note = Note.of(lease.note)
        if note is not None and note.deals_with(
            job.memory.through,
            job.clock.times,
            moment.wall,
            by=job.memory.id,
            catch_up=process.config.schedule_catch_up,
        ):
            self._have_no_run(process, job, moment, note.through)
            return False
        config, late = process.config, moment.wall > job.memory.through + GRACE
        # With another overlap it may have waited for the run before.
        if late and not config.schedule_catch_up and config.schedule_overlap == "skip":
            job.memory.missed += 1
            self._tell(process, "missed", "no server had its lease in time")
            self._have_no_run(process, job, moment, job.memory.through)
            return False
        job.noted, job.time = lease.token, job.memory.through
        # The lease is kept for it meanwhile.
        process.standby = True
        self.leases.store(lease, Note(job.time, "begun", job.memory.id).text())
        return False

    def _have_no_run(self, process: CompanionProcess, job: Job, moment: Moment, through: float) -> None:
        """Go on from the time *through*, which is dealt with."""
        memory = job.memory
        memory.owed = job.asked = job.late = False
        if through > memory.through or not job.clock.times.by_wall:
            memory.through = through
            job.clock = self._make_clock(process.config, memory, moment)
            job.clock.seen = moment
        self._save(process, job)
        self.table.send(process, Event.STOP, self.kernel.now())

    def _note_end(self, process: CompanionProcess, job: Job, state: str) -> None:
        """Note in the store what has become of the run, for the server that gets the lease next."""
        lease = self.leases.of(process.config)
        if lease is not None and job.noted == lease.token != 0:
            # Times that were skipped meanwhile are dealt with, too; one that waits is not.
            skips = process.config.schedule_overlap == "skip"
            through = job.memory.through if skips else job.time
            self.leases.store(lease, Note(through, state, job.memory.id).text())

    # -- runs ------------------------------------------------------------------------

    def observe(self, change: Change) -> None:
        """Note the begin and the end of each run."""
        process = change.process
        job = self._jobs.get(process.name)
        if job is None:
            return
        if change.event is Event.FORKED:
            self._begin(process, job)
        elif change.event is Event.START_FAILED:
            self._begin(process, job)
            how = process.reason or "not started"
            self._note_end(process, job, "done")
            self._end(process, job, good=False, took=0.0, how=how, cause=Cause.START_FAILED)
        elif change.event is Event.EXITED:
            self._on_exit(change, job)

    def _begin(self, process: CompanionProcess, job: Job) -> None:
        why = "command"
        if job.asked:
            why = "catch-up" if job.late else "schedule"
            job.memory.owed = job.asked = job.late = False
        elif len(process.tries) > 1:
            why = "retry"
        job.told = False
        started = round(self.kernel.wall(), 3)
        job.memory.add({"started": started, "why": why, "good": None, "took": None, "how": None})
        self._save(process, job)

    def _on_exit(self, change: Change, job: Job) -> None:
        process, good = change.process, change.process.ended_well
        how, state = process.cause_text or process.last_exit, "done"
        asked = change.before.state is State.STOPPING and not process.failing
        if not good and process.cause in CUT_SHORT:
            state = "cut"
            if process.config.schedule_catch_up and process.state is not State.BACKOFF:
                job.memory.owed = job.late = True
        if asked or state == "cut":
            how = process.last_exit if good else f"cut short: {process.cause_text}"
        self._note_end(process, job, state)
        cause = None if asked else process.cause
        self._end(process, job, good=good, took=process.latest_run, how=how, cause=cause)

    def _end(
        self, process: CompanionProcess, job: Job, *, good: bool, took: float, how: str, cause: Cause | None
    ) -> None:
        """Note an end; with a *cause*, nobody has asked for it."""
        job.memory.end(good=good, took=took, how=how, at=self.kernel.wall())
        self._save(process, job)
        if not good and cause is not None:
            self.log.error("Companion %s: its run failed after %s: %s", process.name, format_age(took), how)
            self.kept.history.add("run failed", process.name, cause=cause, reason=how)

    # -- the files -------------------------------------------------------------------

    def _take(self, process: CompanionProcess, moment: Moment) -> Job | None:
        """Take the schedule of *process*; None while another manager keeps it."""
        config = process.config
        try:
            file = RunFile.claim(self.start_rights.usable_run_dir(), config.name, SUFFIX)
        except OSError as exc:
            self._complain(config.name, exc)
            file = RunFile.claim(None, config.name)
        if file is None:
            return None
        memory = Memory.of(file, _spec(config), moment.wall)
        if memory.runs and memory.runs[-1]["good"] is None:
            # Its manager was killed, and it with it.
            memory.end(good=False, took=0.0, how="cut short: its manager was killed", at=moment.wall)
            memory.owed = memory.owed or config.schedule_catch_up
        elif memory.owed and moment.wall > memory.through + GRACE and not config.schedule_catch_up:
            memory.owed = False
            memory.missed += 1
            self._tell(process, "missed", "nothing ran in time")
        job = Job(file, memory, self._make_clock(config, memory, moment), late=memory.owed)
        self._jobs[config.name] = job
        self._save(process, job)
        return job

    def _make_clock(self, config: CompanionConfig, memory: Memory, moment: Moment) -> Clock:
        assert config.times is not None
        clock = Clock.since(config.times, memory.through, moment)
        clock.delay = self.chance() * config.schedule_jitter
        return clock

    def _save(self, process: CompanionProcess, job: Job) -> None:
        """Write down what is remembered, before what follows from it is done; show it."""
        memory = job.memory
        process.timing = ScheduleStatus(last=memory.last, runs=memory.runs, facts=memory.counts)
        try:
            if not job.file.in_place:
                fresh = RunFile.claim(self.start_rights.usable_run_dir(), process.name, SUFFIX)
                if fresh is not None:
                    job.file.close()
                    job.file = fresh
            memory.write(job.file)
        except OSError as exc:
            self._complain(process.name, exc)

    def _complain(self, name: str, exc: OSError) -> None:
        """Log each reason once: it may be that of many companions, at each of their times."""
        if exc.strerror not in self._complaints:
            self._complaints.add(exc.strerror)
            directory = self.start_rights.run_dir
            self.log.warning(
                "The runs of companion %s cannot be noted in %s: %s. If the manager is killed, a run may be "
                "lost or repeated",
                name,
                directory if directory is None else run_path(directory, name, SUFFIX),
                exc.strerror,
            )

    def _let_go(self, name: str) -> None:
        """Leave the schedule of *name* to another manager, and its file where it is."""
        job = self._jobs.pop(name, None)
        if job is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(job.file.fd, fcntl.LOCK_UN)
            job.file.close()

    def descriptors(self) -> list[int]:
        return [fd for job in self._jobs.values() for fd in job.file.descriptors()]

    def close(self) -> None:
        for name in list(self._jobs):
            self._let_go(name)
