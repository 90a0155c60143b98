# SPDX-License-Identifier: MIT
"""A real companion manager on a simulated kernel: processes are entries of a table, and the clock is set.

The run files and the state for the next manager are real ones. The world checks for itself, at each fork,
signal and event, whether that was right.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leaseworld import SimulatedGuard, SimulatedHelper, SimulatedKeeper, Store, alive
from processtools import T0, failure

from gunicorn.companion.checks import Rung
from gunicorn.companion.child.sdnotify import Notice
from gunicorn.companion.config import CompanionConfig, copies
from gunicorn.companion.manager import CompanionManager
from gunicorn.companion.process import (
    GAVE_UP,
    MIN_START_INTERVAL,
    Action,
    Cause,
    CompanionProcess,
    Event,
    State,
)
from gunicorn.companion.runfile import Record, RunFile
from gunicorn.companion.spawn import Launch
from gunicorn.companion.supervise.changes import scale
from gunicorn.companion.supervise.order import DOWN, WebTier
from gunicorn.companion.supervise.sharedstate import SharedState
from gunicorn.companion.table import Change
from gunicorn.unix.kernel import Kernel

LOG = logging.getLogger(__name__)
LOG.setLevel(logging.CRITICAL)

# Larger than any pid of this machine: a look into its /proc finds nobody.
FIRST_PID = 1 << 30

# No schedule has its times closer together.
SHORTEST_SCHEDULE = 7


@dataclass(frozen=True)
class Nature:
    """How processes are that are forked from now on. Times are seconds; none: never."""

    obeys: float | None = 0.0  # from the stop signal to its exit
    dies: float | None = None  # from the fork to an exit of its own
    status: int = failure()
    reason: str | None = None  # the target was not reached
    ready: float | None = 0.5
    beats: bool = True
    leftovers: bool = False  # another process of its session outlives it
    rest_obeys: float | None = None  # what that takes to end, if it is asked
    kill_takes: float = 0.0  # as in an uninterruptible wait
    forks: bool = True  # False: the fork itself is refused
    works: bool = True  # as its `liveness` finds out


CALM = Nature()


@dataclass(eq=False)
class Life:
    """A companion's process, and another one in its session."""

    name: str
    pid: int
    nature: Nature
    parent: int
    run: RunFile | None = None
    alive: bool = True
    status: int = 0
    reaped: bool = False
    rest_alive: bool = False
    rest_reaped: bool = True
    # SIGKILL has been sent to it, and takes its time.
    doomed: bool = False
    # The lease that it was started with, and its token.
    lease: str = ""
    token: int = 0
    # As it was started; otherwise another manager does not find it in the run files.
    singleton: bool = True
    # The stop signals that it has had, and those that it was to have.
    asked: list[int] = field(default_factory=list)
    rungs: tuple[Rung, ...] = ()

    @property
    def rest(self) -> int:
        """The pid of the other process."""
        return self.pid + 1

    @property
    def empty(self) -> bool:
        return not self.alive and not self.rest_alive


class Killed(BaseException):
    """SIGKILL to the manager in the middle of what it does."""


class SimulatedKernel(Kernel):
    """The clock, the processes of all managers, and what the manager under test asks of them."""

    def __init__(self) -> None:
        self.time = T0
        self.lives: list[Life] = []
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.pids = itertools.count(FIRST_PID, 2)
        self.order = itertools.count()
        self.supervisors: set[int] = set()
        self.manager = self.new_supervisor()
        # Calls until the manager is killed.
        self.calls_left: int | None = None
        # Called before a signal is sent to a process.
        self.check_signal: Callable[[Life, int], object] = lambda life, signum: None

    def new_supervisor(self) -> int:
        pid = next(self.pids)
        self.supervisors.add(pid)
        return pid

    # -- what happens by itself --

    def at(self, moment: float, what: Callable[[], object]) -> None:
        heapq.heappush(self.timers, (moment, next(self.order), lambda: what() and None))

    def fire_timers(self) -> None:
        while self.timers and self.timers[0][0] <= self.time:
            heapq.heappop(self.timers)[2]()

    def die(self, life: Life, status: int, reason: str | None = None) -> None:
        if not life.alive:
            return
        life.alive, life.status = False, status
        # Whoever is not the manager's child any more is reaped by init.
        life.reaped = life.parent != self.manager
        if reason is not None and life.run is not None and not life.reaped:
            record = life.run.read()
            assert record is not None
            life.run.write(replace(record, error=reason))

    def end_rest(self, life: Life) -> None:
        if life.rest_alive:
            life.rest_alive = False
            life.rest_reaped = life.parent != self.manager

    def life(self, pid: int) -> Life | None:
        return next((life for life in self.lives if pid in (life.pid, life.rest)), None)

    def zombies(self) -> bool:
        return any(not life.alive and not life.reaped for life in self.lives)

    def kill_manager(self) -> None:
        """Its children have asked the kernel for their stop signal at this moment."""
        self.supervisors.discard(self.manager)
        self.manager = self.new_supervisor()
        for life in self.lives:
            if life.alive and life.parent not in self.supervisors:
                self._obey(life)
            life.reaped = life.reaped or not life.alive
            life.rest_reaped = life.rest_reaped or not life.rest_alive
        self.bury()

    def bury(self) -> None:
        self.lives = [life for life in self.lives if not (life.empty and life.reaped and life.rest_reaped)]

    def _obey(self, life: Life) -> None:
        if life.nature.obeys is not None:
            self.at(self.time + life.nature.obeys, lambda: self.die(life, 0))

    def _rest_obeys(self, life: Life) -> None:
        if life.nature.rest_obeys is not None:
            self.at(self.time + life.nature.rest_obeys, lambda: self.end_rest(life))

    # -- what the manager asks --

    def _called(self) -> None:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                self.calls_left = None
                raise Killed

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time + 1e9

    def boottime(self) -> float:
        return self.time

    def wait(self) -> tuple[int, int, float] | None:
        self._called()
        for life in self.lives:
            if not life.alive and not life.reaped:
                life.reaped = True
                return life.pid, life.status, 0.0
            if not life.alive and not life.rest_alive and not life.rest_reaped:
                life.rest_reaped = True
                return life.rest, int(signal.SIGKILL), 0.0
        self.bury()
        return None

    def identity(self, pid: int) -> str | None:
        return f"simulated/{pid}" if self._exists(pid) else None

    def is_alive(self, pid: int, identity: str) -> bool:
        return self.identity(pid) == identity

    def _exists(self, pid: int) -> bool:
        life = self.life(pid)
        if life is None:
            return pid in self.supervisors
        return life.alive if pid == life.pid else life.rest_alive

    def group_of(self, pid: int) -> int:
        life = self.life(pid)
        if life is None:
            raise ProcessLookupError
        return life.pid

    def members(self, sessions: Collection[int]) -> dict[int, list[int]]:
        self._called()
        found = {}
        for life in self.lives:
            if life.pid in sessions and not life.empty:
                found[life.pid] = [pid for pid in (life.pid, life.rest) if self._exists(pid)]
        return found

    def send(self, pid: int, signum: int) -> bool:
        self._called()
        assert signum == signal.SIGKILL
        life = self.life(pid)
        if life is None:
            return False
        self.check_signal(life, signum)
        self.send_by_others(pid, signum)
        return True

    def send_by_others(self, pid: int, signum: int) -> None:
        """SIGKILL, which not the manager sends."""
        life = self.life(pid)
        if life is None:
            return
        life.doomed = True
        if pid == life.rest:
            self.at(self.time + life.nature.kill_takes, lambda: self.end_rest(life))
        else:
            self.at(self.time + life.nature.kill_takes, lambda: self.die(life, int(signal.SIGKILL)))

    def ask_to_stop(self, pid: int, signum: int, as_group: bool = False) -> None:
        self._called()
        life = self.life(pid)
        if life is None:
            return
        if pid == life.rest or as_group:
            self._rest_obeys(life)
        if pid == life.pid and signum == signal.SIGABRT:
            if life.nature.obeys is not None:
                self.die(life, int(signal.SIGABRT))
        elif pid == life.pid and signum != signal.SIGCONT:
            self.check_signal(life, signum)
            self._obey(life)

    def ask_group_to_stop(self, group: int, signum: int) -> None:
        self._called()
        life = self.life(group)
        if life is not None:
            self._rest_obeys(life)

    # -- children, where the kernel lists them --

    fd = -1

    def read(self) -> set[int]:
        ours = [life for life in self.lives if life.parent == self.manager]
        adopted = {life.rest for life in ours if not life.alive and not life.rest_reaped}
        return {life.pid for life in ours if not life.reaped} | adopted

    def close(self) -> None:
        """There is no descriptor."""


class SimulatedProber(SimulatedHelper):
    """Finds a process ready when its nature says so, and alive if it works; a check takes no time."""

    kernel: SimulatedKernel
    nofile = None

    def __init__(self, kernel: SimulatedKernel) -> None:
        super().__init__(kernel)
        self.jobs: dict[int, dict[str, Any]] = {}
        # The pids of those that were found ready.
        self.passed: set[int] = set()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if "stop" in message:
            del self.jobs[message["stop"]]
            return
        self.jobs[message["job"]] = message
        begun = self.kernel.time
        self.kernel.at(begun + 0.01, lambda: self._check(message, begun))

    def _check(self, job: dict[str, Any], begun: float) -> None:
        life = self.kernel.life(job["pid"])
        if job["job"] not in self.jobs or life is None:
            return
        ready, now = life.nature.ready, self.kernel.time
        good = life.nature.works if not job["first"] else ready is not None and now >= begun + ready
        if good and job["first"]:
            self.passed.add(life.pid)
        self.kernel.at(now + job["probe"].every, lambda: self._check(job, begun))
        found = {"good": good, "reason": "" if good else "no", "output": "", "took": 0.0, "quick": False}
        self.on_message({"result": job["job"], **found})

    def stop(self) -> None:
        assert not self.jobs
        self.started = False

    def end(self) -> None:
        """Also after its manager was killed."""
        self.jobs.clear()


@dataclass
class World:
    """The companions of *configs*, their manager, and their processes."""

    configs: list[CompanionConfig]
    nature: Nature = CALM
    # The companions that web workers come after. A master is simulated only as far as these are concerned.
    web_after: tuple[str, ...] = ()
    web_started: bool = False
    web_ready: bool = False
    # How long the web tier takes to stop, when it is told.
    web_stops_in: float = 0.0
    web_told: bool = False
    web_there: bool = True
    # Whether descendants that lose their parent become the manager's children.
    adopts: bool = False
    stop_order: str = "reverse"
    suspended: bool = False
    kernel: SimulatedKernel = field(default_factory=SimulatedKernel)
    log: logging.Logger = LOG
    launches: list[Launch] = field(default_factory=list)
    #: Those that were stopped by hand, and those that have settled: nobody may fork them unasked.
    at_rest: set[str] = field(default_factory=set)
    #: Those among them that only wait for a first start, with `autostart` of False.
    unstarted: set[str] = field(default_factory=set)
    #: Those that have given up with an `on_give_up` of "shutdown", and those that the master was told of.
    ends_server: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    forked_at: dict[CompanionProcess, float] = field(default_factory=dict)
    #: Starts since somebody asked for one.
    tries: dict[CompanionProcess, list[float]] = field(default_factory=dict)
    #: Runs by a schedule, and not by a command, a retry or to make up for another one.
    runs: dict[str, int] = field(default_factory=dict)
    seen_running: set[str] = field(default_factory=set)
    counts: dict[CompanionProcess, tuple[int, ...]] = field(default_factory=dict)
    #: What the manager has kept for the next one, and the version of that.
    kept: dict[str, Any] = field(default_factory=dict)
    kept_version: bytes = b""
    checks: int = 0

    def __post_init__(self) -> None:
        self.run_dir = tempfile.mkdtemp(prefix="world")
        self.shared = SharedState.create()
        self.kernel.check_signal = self._check_signal
        self.store = Store(self.kernel)
        self.store.on_rival = self._check_rival
        # By lease the largest token of a process.
        self.used_tokens: dict[str, int] = {}
        self.manager = self._new_manager()
        self._note_unstarted()
        self._begin()
        self.settle()

    def close(self) -> None:
        self._let_the_manager_go()
        self.shared.close()
        shutil.rmtree(self.run_dir)

    # -- the manager -------------------------------------------------------------

    def _new_manager(self) -> CompanionManager:
        self.prober = SimulatedProber(self.kernel)
        self.keeper = SimulatedKeeper(self.kernel, self.store)
        manager = CompanionManager(
            self.configs,
            self.log,
            load_configs=lambda: self.configs,
            follow_log=lambda: None,
            run_dir=self.run_dir,
            shared=self.shared,
            prober=self.prober,
            lease_keeper=self.keeper,
            lease_guard=SimulatedGuard(self.kernel),
            web_tier=WebTier(self.web_after, waiting=not self.web_started),
            stop_order=self.stop_order,
            kernel=self.kernel,
            fork=self._fork_all,
        )
        manager.tell_master = self._hear  # type: ignore[method-assign]
        manager.sessions.tell = self._hear
        manager.table.observers.insert(0, self._observe)
        manager.sessions.left = lambda run_dir: {}
        if self.adopts:
            manager.sessions.adopt(self.kernel)  # type: ignore[arg-type]
        return manager

    def _let_the_manager_go(self) -> None:
        """What the kernel does for a process that is killed: its descriptors are closed, its locks gone."""
        self.prober.end()
        self.keeper.end()
        for fd in (*self.manager.start_rights.descriptors(), *self.manager.schedules.descriptors()):
            os.close(fd)
        for name in self.processes:
            self.manager.notifications.close(name)

    def kill_the_manager(self) -> None:
        """SIGKILL to it; the next one has what it has written down, and old processes to wait for."""
        self._let_the_manager_go()
        self.kernel.kill_manager()
        self.counts.clear()
        # The master lets a second pass between two managers.
        self.forked_at.clear()
        state = self.shared.read()
        stopped = {name for name, by_command in state["stopped"].items() if by_command}
        self.manager = self._new_manager()
        settled = {name for name in state["settled"] if not self.has_schedule(name)}
        self.at_rest = (stopped | settled) & self.processes.keys()
        self._note_unstarted(state["stopped"])
        for life in self.kernel.lives:
            life.run = None
        self._begin()

    def _note_unstarted(self, stopped: Mapping[str, bool] | None = None) -> None:
        """Note which of the first companions of a manager it must not start."""
        self.unstarted = {
            name
            for name, process in self.processes.items()
            if not process.config.autostart
            and process.config.schedule is None
            and process.settled is None
            and (stopped or {}).get(name, True)
        }
        self.at_rest |= self.unstarted

    def _wake(self, name: str) -> None:
        """Somebody asks for a start of *name*."""
        self.at_rest.discard(name)
        self.unstarted.discard(name)

    def _begin(self) -> None:
        with self._mortal():
            self.manager.begin()
            self._tell_web_ready()

    @contextlib.contextmanager
    def _mortal(self) -> Iterator[None]:
        """Have a next manager if the present one is killed by what is done in the block."""
        try:
            yield
        except Killed:
            self.kill_the_manager()

    @property
    def processes(self) -> dict[str, CompanionProcess]:
        return dict(self.manager.table)

    @property
    def stopping(self) -> bool:
        return self.manager.steering.stopping

    def has_schedule(self, name: str) -> bool:
        return name in self.processes and self.processes[name].config.schedule is not None

    def ours(self, name: str) -> list[Life]:
        """The processes of *name* that this manager has started."""
        return [life for life in self.everybody(name) if life.parent == self.kernel.manager]

    def everybody(self, name: str) -> list[Life]:
        return [life for life in self.kernel.lives if life.name == name and not life.empty]

    def _fork_all(self, launches: Sequence[Launch]) -> list[int | OSError]:
        outcomes: list[int | OSError] = []
        for launch in launches:
            try:
                outcomes.append(self._fork(launch))
            except OSError as exc:
                outcomes.append(exc)
        return outcomes

    def _fork(self, launch: Launch) -> int:
        name = launch.config.name
        process = self.processes[name]
        self.launches.append(launch)
        assert self.ours(name) == [], "two of one name"
        older = [life for life in self.everybody(name) if life.singleton]
        assert not (older and launch.config.singleton), "two of one name"
        assert not self.stopping, "started during the end"
        assert name not in self.at_rest, "nobody has asked for this start"
        assert not process.removed
        assert all(map(self.is_met, launch.config.after)), "too early"
        if not self.nature.forks:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        now = self.kernel.time
        assert now - self.forked_at.get(process, 0) > MIN_START_INTERVAL - 1e-6, "a fork loop"
        self.forked_at[process] = now
        life = self._make_life(name, self.nature, self.kernel.manager)
        life.run, life.singleton = launch.run, launch.config.singleton
        self._check_lease_of(life, launch)
        life.run.write(self._record(life, launch.config))
        self._foretell(life, launch.config)
        return life.pid

    def _check_lease_of(self, life: Life, launch: Launch) -> None:
        """A process starts with a lease that is held, and with another token than all before it."""
        lease = launch.config.lease_name
        if lease is None:
            assert launch.grant is None
            return
        assert launch.grant is not None
        owner, token, _ = self.store.get(lease)
        assert (owner, token) == (self.keeper.owner, launch.grant.token), "started without its lease"
        used = self.used_tokens.get(lease, 0)
        shared = any(each.token == token and not each.empty for each in self.kernel.lives)
        assert token > used or (token == used and shared), "an old token"
        self.used_tokens[lease], life.lease, life.token = token, lease, token

    def _check_rival(self, lease: str) -> None:
        if self.suspended:
            return
        # A reread may have given what ends another lease.
        names = [name for name, p in self.processes.items() if p.config.lease_on_loss != "keep"]
        lives = [life for life in alive(self.kernel.lives, names) if life.token and life.lease == lease]
        assert not lives, f"the rival takes {lease}, and {lives} live"

    def _make_life(self, name: str, nature: Nature, parent: int) -> Life:
        life = Life(name, next(self.kernel.pids), nature, parent, rest_alive=nature.leftovers)
        life.rest_reaped = not nature.leftovers or not self.adopts
        self.kernel.lives.append(life)
        return life

    def _record(self, life: Life, config: CompanionConfig) -> Record:
        return Record(
            life.name,
            life.pid,
            f"simulated/{life.pid}",
            life.pid,
            life.parent,
            f"simulated/{life.parent}",
            int(config.stop_signal),
            config.stop_timeout,
            signalled=True,
            stop_as_group=config.stop_as_group,
            later_signals=config.later_signals,
        )

    def _foretell(self, life: Life, config: CompanionConfig) -> None:
        """What the new process will do by itself."""
        kernel, nature = self.kernel, life.nature
        if nature.dies is not None:
            kernel.at(kernel.time + nature.dies, lambda: kernel.die(life, nature.status, nature.reason))
        if nature.ready is not None:
            kernel.at(kernel.time + nature.ready, lambda: self._say_of(life, Notice(ready=True)))
        if config.watchdog is not None and nature.beats:
            kernel.at(kernel.time + config.watchdog / 3, lambda: self._beat(life, config.watchdog / 3))

    def _beat(self, life: Life, interval: float) -> None:
        if life.alive:
            self._say_of(life, Notice(watchdog=True))
            self.kernel.at(self.kernel.time + interval, lambda: self._beat(life, interval))

    def _say_of(self, life: Life, notice: Notice) -> None:
        process = self.processes.get(life.name)
        if life.alive and process is not None and process.pid == life.pid:
            self.manager.notifications.take(process, notice)

    def say(self, name: str, notice: Notice) -> None:
        """A process tells something of itself."""
        with self._mortal():
            for life in self.ours(name):
                self._say_of(life, notice)

    # -- time ----------------------------------------------------------------------

    def next_moment(self) -> float | None:
        timeout = self.manager.timeout(self.kernel.time)
        times = [] if timeout is None else [self.kernel.time + timeout]
        if self.kernel.timers:
            times.append(self.kernel.timers[0][0])
        return min(times, default=None)

    def settle(self) -> None:
        """Pass after pass, until nothing more happens at this moment."""
        for _ in range(40):
            with self._mortal():
                self.kernel.fire_timers()
                self.manager.step(self.kernel.time)
            moment = self.next_moment()
            if not self.kernel.zombies() and (moment is None or moment > self.kernel.time):
                break
        else:
            raise AssertionError("no end of things to do at one moment")
        self.check()

    def advance(self, seconds: float) -> None:
        """Let time pass as the manager's wait does: from one deadline to the next."""
        end = self.kernel.time + seconds
        while (moment := self.next_moment()) is not None and moment <= end:
            self.kernel.time = max(self.kernel.time, moment)
            self.settle()
        self.kernel.time = end
        self.settle()

    def suspend(self, seconds: float) -> None:
        """Nobody here has the processor for a while; then all that was due meanwhile is due at once.

        On another machine the rival may take a lease whose end has come. What has lost it does nothing more:
        the guard kills it before anybody else has a turn.
        """
        self.kernel.time += seconds
        self.suspended = True
        with self._mortal():
            self.kernel.fire_timers()
        self.suspended = False
        for name in self.store.rivals:
            self._check_rival(name)
        self.settle()

    # -- commands --------------------------------------------------------------------

    def ask(self, cmd: str, **request: Any) -> Any:
        """A request to the control socket."""
        reply: Any = {}
        with self._mortal():
            reply = self.manager.commands.answer({"cmd": cmd, **request})
        assert "internal error" not in str(reply.get("error")), reply
        return reply

    def start(self, name: str) -> None:
        if self.processes[name].state is not State.STOPPING:
            self._wake(name)
        self.ask("start", name=name)

    def stop(self, name: str) -> None:
        self.at_rest.add(name)
        self.ask("stop", name=name)

    def restart(self, name: str, *, in_turn: bool = False) -> None:
        if self.processes[name].state is not State.STOPPING:
            self._wake(name)
        self.ask("restart", name=name, rolling=in_turn)

    def reread(self, configs: Iterable[CompanionConfig]) -> None:
        before, self.configs = self.configs, list(configs)
        found = self.ask("reread", dry_run=True)
        if not found:
            # Killed, and the next manager begins with what the master has.
            self.configs = before
            return
        # One that has settled begins anew with a schedule.
        scheduled = [config.name for config in self.configs if config.schedule is not None]
        for name in (*found["restarted"], *scheduled):
            self._is_wanted(name)
        for config in scale(self.configs, dict(self.manager.kept.overrides.scaled)):
            if config.name in found["added"]:
                self._is_added(config.name, config)
        self.ask("reread")
        wanted = {config.name for config in scale(self.configs, dict(self.manager.kept.overrides.scaled))}
        assert {name for name, p in self.processes.items() if not p.removed} == wanted

    def is_set(self, group: str) -> bool:
        copies = [p for p in self.processes.values() if p.config.group == group and not p.removed]
        return any(process.config.index is not None for process in copies)

    def scale(self, group: str, number: int) -> None:
        if not self.is_set(group):
            return
        copies = [process for process in self.processes.values() if process.config.group == group]
        one = next((self.manager.rolling.config_of(p) for p in copies if not p.removed), copies[0].config)
        for index in range(one.index_start, one.index_start + number):
            name = f"{group}:{index}"
            if name not in self.processes or self.processes[name].removed:
                self._is_added(name, one)
        self.ask("scale", name=group, numprocs=number)

    def _is_wanted(self, name: str) -> None:
        process = self.processes.get(name)
        if process is None or not process.manual_stop:
            self._wake(name)

    def _is_added(self, name: str, config: CompanionConfig) -> None:
        self._is_wanted(name)
        if not config.autostart and config.schedule is None:
            self.unstarted.add(name)
            self.at_rest.add(name)

    def grow(self, name: str) -> None:
        """A process exceeds its memory."""
        process = self.processes[name]
        if process.state is State.RUNNING:
            self.manager.rolling.ask(name, "memory", process.pid, Cause.MEMORY)
            self.manager.table.changed = True

    def have_an_older_process(self, name: str, seconds: float, *, orphan: bool) -> None:
        """Let another server run *name*, or a dead one have left it, where no manager has the right to."""
        process = self.processes[name]
        run = RunFile.claim(self.run_dir, name) if not self.everybody(name) else None
        if run is None:
            return
        kernel = self.kernel
        life = self._make_life(name, replace(CALM, ready=None), kernel.new_supervisor())
        run.write(self._record(life, process.config))
        if orphan:
            kernel.supervisors.discard(life.parent)
            run.close()
        kernel.at(kernel.time + seconds, lambda: kernel.die(life, 0))
        if not orphan:
            kernel.at(kernel.time + seconds, run.release)

    def stop_all(self) -> None:
        """SIGTERM to the manager."""
        self.manager.inbox.receive(signal.SIGTERM)

    def stop_server(self) -> None:
        """The same, and the web workers stop when the manager says so."""
        self.manager._on_message({"web_stopping": True})
        self.stop_all()

    # -- the master ------------------------------------------------------------------

    def be_ready(self, ready: bool) -> None:
        """All web workers have booted, or one is gone."""
        self.web_ready = ready and self.web_started
        with self._mortal():
            self._tell_web_ready()

    def _tell_web_ready(self) -> None:
        self.manager._on_message({"web_ready": self.web_ready})

    def _hear(self, message: dict[str, Any], fd: int | None = None) -> None:
        if "gave_up" in message:
            self.given_up.append(message["gave_up"])
        if "web_may_start" in message:
            assert not self.web_started
            assert all(map(self.serves, self.web_after)), "web workers start too early"
            self.web_started = True
            self.kernel.at(self.kernel.time + 1, lambda: self.be_ready(True))
        if "web_may_stop" in message:
            assert self.stopping and not self.web_told
            users = [name for name, process in self.processes.items() if "web" in process.config.after]
            needed = self.stop_order == "reverse" and any(map(self.ours, users))
            assert not needed, "web workers stop while a companion needs them"
            self.web_told = True
            self.kernel.at(self.kernel.time + self.web_stops_in, self._web_is_gone)

    def _web_is_gone(self) -> None:
        self.web_there = False
        self.manager._on_message({"web_stopping": False})

    def serves(self, name: str) -> bool:
        """Whether web workers find all of *name*, or it is done."""
        found = [p for p in self.processes.values() if name in (p.name, p.config.group)]
        return all(p.done or (p.state is State.RUNNING and not p.config.is_job) for p in found)

    # -- what must hold -----------------------------------------------------------------

    def _observe(self, change: Change) -> None:
        process, state = change.process, change.process.state
        if change.event in (Event.FORKED, Event.START_FAILED):
            self.tries.setdefault(process, []).append(change.now)
        elif change.event is Event.RESTART and state is State.STARTING:
            # The start that is pending is the one asked for.
            self.tries[process] = []
        for action in change.actions:
            if action is Action.KILL:
                assert not process.draining, "killed while it may finish"
            elif action is Action.RELEASE:
                assert self.ours(process.name) == [], "released while something of it lives"
            elif action is Action.GIVE_UP:
                assert process.settled == GAVE_UP
                self.ends_server.extend([process.name] * (process.config.on_give_up == "shutdown"))
                self._check_give_up(process)
        if state is State.STARTING and change.before.state is not State.STARTING:
            self._check_start(change)
        elif change.event is Event.EXITED:
            self._check_exit(change)
        if state is State.BACKOFF and change.before.state is not State.BACKOFF:
            self._check_backoff(process)
        if state is State.STOPPED and process.settled is not None and process.config.schedule is None:
            self.at_rest.add(process.name)
        if change.event is Event.FORKED and process.config.schedule is not None:
            self._check_run(process)
        if state is State.RUNNING and change.before.state is State.STARTING:
            assert process.config.probe is None or process.pid in self.prober.passed, "not ready"
        if change.before.state is State.RUNNING and process.restart_pending:
            self._check_turn(process)

    def _check_run(self, process: CompanionProcess) -> None:
        """A time has one run, whatever becomes of managers."""
        job = self.manager.schedules._jobs[process.name]
        if job.asked and not job.late:
            self.runs[process.name] = self.runs.get(process.name, 0) + 1
            most = (self.kernel.time - T0) / SHORTEST_SCHEDULE
            assert self.runs[process.name] <= most + 1e-3, "a time with two runs"

    def _check_give_up(self, process: CompanionProcess) -> None:
        config = process.config
        if config.start_retries is not None and process.failed_starts >= config.start_retries:
            return
        assert config.start_limit is not None, "given up without a limit"
        since = self.kernel.time - config.start_limit.seconds
        assert sum(t > since for t in self.tries[process]) >= config.start_limit.starts, "given up too soon"

    def _check_exit(self, change: Change) -> None:
        """What ends by itself, and is a job, comes back after a failure alone."""
        process = change.process
        if change.before.state not in (State.STARTING, State.RUNNING) or process.draining:
            return
        if process.config.autorestart == "on-failure" and process.settled != GAVE_UP:
            assert (process.settled is None) is not process.ended_well
            success = process.last_exit_code in process.config.success_exit_codes
            assert process.ended_well is (success and process.reason is None)

    def _check_start(self, change: Change) -> None:
        process, config, before = change.process, change.process.config, change.before.state
        if before is State.BACKOFF and change.event is Event.DELAY_PASSED:
            return
        self.tries[process] = []
        if before is State.STOPPED and change.event is Event.DELAY_PASSED:
            assert not self.stopping
            assert config.retry_after is not None, "tried again after a give-up"
            assert change.now >= (process.exited_at or 0) + config.retry_after or process.exited_at is None
            self.at_rest.discard(process.name)

    def _check_turn(self, process: CompanionProcess) -> None:
        limit = process.cause in (Cause.MEMORY, Cause.LIFETIME)
        if not limit and process.cause_text != "by command, in turn":
            return
        for other in self.processes.values():
            if other is process or other.config.group != process.config.group or other.state not in DOWN:
                continue
            failing = other.state is not State.STOPPING and other.failures.persist
            assert limit and failing, "its turn has come while another copy is down"

    def _check_signal(self, life: Life, signum: int) -> None:
        process = self.processes.get(life.name)
        if process is None or process.session != life.pid or process.waiting_for is not None:
            return
        if signum == signal.SIGKILL:
            assert not process.draining, "killed while it may finish"
            last = None if process.rung is None or not process.killed else process.config.rungs[-1][0]
            if life.rungs == process.config.rungs and life.alive and process.state is State.STOPPING:
                assert last is None or life.asked[-1] == last, "killed before its last stop signal"
            return
        life.rungs = process.config.rungs
        life.asked.append(signum)
        # What was ending before the stop goes on with it.
        first = len(life.asked) == 1
        if self.stopping and first and not process.failing and self.stop_order == "reverse":
            own, group = process.config, process.config.group
            needed_by = [p.name for p in self.processes.values() if {*own.labels} & {*p.config.after}]
            needed_by += [p.name for p in self.processes.values() if {*p.config.labels} & {*own.stop_after}]
            assert not any(map(self.ours, needed_by)), "told to stop while another companion needs it"
            if group in self.web_after or "web" in own.stop_after:
                assert not self.web_there, "told to stop while web workers need it"

    def is_met(self, name: str) -> bool:
        if name == "web":
            return self.web_ready
        found = [p for p in self.processes.values() if name in p.config.labels]
        return bool(found) and all(p.has_been_running for p in found)

    def check(self) -> None:
        """What holds whenever the manager waits."""
        for name, process in self.processes.items():
            ours = self.ours(name)
            assert len(ours) <= 1, "two of one name"
            assert (process.pid is None) == (not any(life.alive for life in ours))
            assert bool(ours) <= (process.session is not None), "a session that nobody waits for"
            assert process.state is not State.RUNNING or process.pid is not None
            run = self.manager.start_rights.held(name)
            assert run is None or process.state is not State.STOPPED, "a right to start that nobody needs"
            assert run is None or process.session is not None or run.read() is None, "a record of nobody"
            self._check_progress(process)
            self._check_counts(process)
            if process.state is State.RUNNING:
                self.seen_running.add(name)
        for process in list(self.processes.values())[self.checks % 5 :: 5]:
            # Not all of them each time, because it takes long.
            shown = process.status_dict(self.kernel.time, 0.0)
            assert shown["description"]
            assert shown["state"] == process.state.value
        self.checks += 1
        assert self.given_up == self.ends_server
        ours_alone = [life for life in self.kernel.lives if life.parent == self.kernel.manager]
        assert {life.name for life in ours_alone if not life.empty} <= self.processes.keys()
        self._check_kept()
        self._check_jobs()

    def _check_jobs(self) -> None:
        """Whoever is to be checked is, and nobody else."""
        wanted = []
        for process in self.processes.values():
            config, state = process.config, process.state
            if state is State.STARTING and process.pid and config.probe and not process.probed:
                wanted.append((process.pid, True, config.probe))
            elif state is State.RUNNING and config.liveness:
                wanted.append((process.pid, False, config.liveness))
        found = [(job["pid"], job["first"], job["probe"]) for job in self.prober.jobs.values()]
        assert sorted(found) == sorted(wanted)

    def _check_kept(self) -> None:
        """The next manager would know what has been asked, and what has settled."""
        if self.shared.version() != self.kept_version:
            self.kept_version, self.kept = self.shared.version(), self.shared.read()
        state = self.kept
        for name, process in self.processes.items():
            if name not in self.manager.steering.stops:
                assert state["stopped"].get(name, False) is process.manual_stop, f"{process} by command"
            assert (name in state["settled"]) is (process.settled is not None), f"{process} has settled"

    def _check_progress(self, process: CompanionProcess) -> None:
        """Nothing is pending of which no clock and nobody else will tell."""
        due = process.next_deadline(self.kernel.time)
        config = process.config
        if process.state is State.STOPPED:
            tries_again = process.settled == GAVE_UP and config.retry_after is not None and not self.stopping
            assert (due is not None) is tries_again
            meant = process.manual_stop or process.settled or process.removed or not config.autostart
            meant = meant or config.schedule is not None or process.name in self.unstarted
            assert meant or self.stopping, "lost"
        elif process.state is State.RUNNING:
            uptime = self.kernel.time - (process.started_at or 0)
            assert not process.failures.count or uptime <= process.failures.proof, "failures for ever"
            assert config.watchdog is None or due is not None
            waits = config.max_lifetime is not None and due is None
            assert not waits or process.name in self.manager.rolling or self.stopping
        elif process.standby:
            assert process.config.lease_name is not None and process.state is State.STARTING
            assert self.manager.leases.next_deadline(self.kernel.time) is not None
        elif process.state is State.STARTING and process.pid is None and process.held_by:
            assert {*process.held_by} <= {*config.after}, "held by what is not its matter any more"
            assert not any(map(self.is_met, process.held_by))
        elif process.state is State.STOPPING and process.pid is not None and process.killed:
            assert any(life.nature.kill_takes for life in self.ours(process.name)), "killed and not dead"
        else:
            assert due is not None, f"{process} waits for nothing"
        if process.draining:
            assert self.kernel.time < (process.stop_deadline or 0), "let finish for ever"
        assert not process.held_by or process.state is State.STARTING
        assert not process.restart_pending or process.state is State.STOPPING
        assert not process.failing or process.state is State.STOPPING

    def _check_counts(self, process: CompanionProcess) -> None:
        counts = (process.start_count, process.restart_count, process.exit_count, process.kill_count)
        before = self.counts.get(process, counts)
        assert all(old <= new for old, new in zip(before, counts, strict=True)), "a count that shrinks"
        self.counts[process] = counts
        assert process.exit_count <= process.start_count <= process.exit_count + 1

    def _check_backoff(self, process: CompanionProcess) -> None:
        config, now = process.config, self.kernel.time
        assert config.start_retries is None or process.failed_starts < config.start_retries
        longest = max(config.restart_delay, config.restart_delay_max or 0)
        assert config.restart_delay <= process.delay <= longest
        assert process.next_retry_at is not None
        if (limit := config.start_limit) is not None:
            recent = [t for t in self.tries.get(process, []) if t > process.next_retry_at - limit.seconds]
            assert len(recent) < limit.starts, "it would start too often"
        # Two starts have their least interval, too.
        assert now + process.delay <= process.next_retry_at
        assert process.next_retry_at <= now + max(process.delay, process.failures.start_interval)

    def configured(self, group: str) -> int:
        return sum(1 for p in self.processes.values() if p.config.group == group and not p.removed)


def expand(*configs: CompanionConfig) -> list[CompanionConfig]:
    return [copy for config in configs for copy in copies(config, config.numprocs)]
