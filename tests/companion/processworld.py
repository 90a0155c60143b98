# SPDX-License-Identifier: MIT
"""A manager without an operating system: processes are entries of a table, and the clock is set.

It does what the real one does, in the same order, and looks for itself at each fork and each release
whether that was right.
"""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import random
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from processtools import T0, failure

from gunicorn.companion.config import CompanionConfig, copies
from gunicorn.companion.process import (
    GAVE_UP,
    MIN_START_INTERVAL,
    Action,
    Cause,
    CompanionProcess,
    Event,
    State,
)
from gunicorn.companion.supervise.changes import difference, scale
from gunicorn.companion.supervise.memory import Limits
from gunicorn.companion.supervise.order import DOWN, Rolling, Stop, Stops
from gunicorn.companion.supervise.overrides import Scaled

LOG = logging.getLogger(__name__)


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


CALM = Nature()


@dataclass
class Life:
    """A process, and what else is in its session."""

    name: str
    pid: int
    nature: Nature
    alive: bool = True
    leftovers: bool = False
    status: int = 0
    reason: str | None = None

    @property
    def empty(self) -> bool:
        return not self.alive and not self.leftovers


@dataclass
class OlderSelf:
    """What another manager started, gone at *until*. An orphan is ours to wait for as a session."""

    pid: int
    until: float
    orphan: bool


@dataclass
class World:
    """The companions of *configs*, their manager, and their processes."""

    configs: list[CompanionConfig]
    now: float = T0
    nature: Nature = CALM
    processes: dict[str, CompanionProcess] = field(default_factory=dict)
    lives: dict[int, Life] = field(default_factory=dict)
    older: dict[str, OlderSelf] = field(default_factory=dict)
    scaled: Scaled = field(default_factory=dict)
    stopping: bool = False
    #: Those that were stopped by hand, and those that have settled: nobody may fork them unasked.
    at_rest: set[str] = field(default_factory=set)
    forked_at: dict[str, float] = field(default_factory=dict)
    seen_running: set[str] = field(default_factory=set)
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rolling = Rolling()
        self.limits = Limits(self.rolling, LOG)
        self.stops = Stops()
        self.chance = random.Random(1).random
        self.pids = itertools.count(100)
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        for config in scale(self.configs, self.scaled):
            self.processes[config.name] = self._new(config)
        for process in list(self.processes.values()):
            self.send(process, Event.START)
        self.settle()

    def _new(self, config: CompanionConfig) -> CompanionProcess:
        return CompanionProcess(config, lambda: self.chance())

    # -- the operating system --------------------------------------------------

    def at(self, moment: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (moment, next(self.order), what))

    def die(self, life: Life, status: int, reason: str | None = None) -> None:
        if life.alive:
            life.alive, life.status, life.reason = False, status, reason

    def kill(self, life: Life) -> None:
        def end() -> None:
            self.die(life, int(signal.SIGKILL))
            life.leftovers = False

        if life.nature.kill_takes:
            self.at(self.now + life.nature.kill_takes, end)
        else:
            end()

    def beat(self, life: Life, interval: float) -> None:
        process = self.processes.get(life.name)
        if life.alive and process is not None and process.pid == life.pid and life.nature.beats:
            self.send(process, Event.BEAT)
            self.at(self.now + interval, lambda: self.beat(life, interval))

    def say(self, name: str, event: Event) -> None:
        """A process tells something of itself."""
        process = self.processes.get(name)
        life = self.lives.get((process and process.pid) or 0)
        if process is not None and life is not None and life.alive:
            self.send(process, event)

    def ours(self, name: str) -> list[Life]:
        return [life for life in self.lives.values() if life.name == name and not life.empty]

    # -- the manager -------------------------------------------------------------

    def send(self, process: CompanionProcess, event: Event, **details: Any) -> None:
        before = process.state
        for action in process.handle(event, self.now, **details):
            self.act(process, action)
        if process.state is State.BACKOFF and before is not State.BACKOFF:
            self._check_backoff(process)
        if process.state is State.STOPPED and process.settled is not None:
            self.at_rest.add(process.name)

    def act(self, process: CompanionProcess, action: Action) -> None:
        life = self.lives.get(process.pid or process.session or 0)
        if action is Action.SIGNAL:
            assert life is not None and (life.alive or process.config.stop_as_group)
            if life.nature.obeys is not None:
                self.at(self.now + life.nature.obeys, lambda: self.die(life, 0))
            if life.nature.rest_obeys is not None and process.config.stop_as_group:
                self.at(self.now + life.nature.rest_obeys, lambda: setattr(life, "leftovers", False))
        elif action is Action.ABORT:
            assert life is not None
            if life.nature.obeys is not None:
                self.die(life, int(signal.SIGABRT))
        elif action is Action.KILL:
            assert not process.draining
            if process.session in self.lives:
                self.kill(self.lives[process.session])
        elif action is Action.RELEASE:
            assert self.ours(process.name) == [], "released while something of it lives"
        elif action is Action.GIVE_UP:
            assert process.settled == GAVE_UP

    def step(self) -> None:
        """One pass of the manager."""
        self._reap()
        self._enforce_deadlines()
        self._end_sessions()
        self._stop_due()
        for process in self.processes.values():
            if process.due_event(self.now) is Event.ALIVE:
                self.send(process, Event.ALIVE)
        self._take_turns()
        self._start()
        for name, process in list(self.processes.items()):
            if process.removed and process.state is State.STOPPED:
                assert self.ours(name) == []
                del self.processes[name]
                self.at_rest.discard(name)
                self.forked_at.pop(name, None)
                self.counts.pop(name, None)
                self.older.pop(name, None)

    def _reap(self) -> None:
        for life in list(self.lives.values()):
            process = self.processes.get(life.name)
            if not life.alive and process is not None and process.pid == life.pid:
                self.send(process, Event.EXITED, status=life.status, reason=life.reason)
            if life.empty:
                del self.lives[life.pid]

    def _enforce_deadlines(self) -> None:
        for process in self.processes.values():
            due = process.due_event(self.now)
            if due in (Event.DEADLINE, Event.NOT_READY, Event.HUNG):
                self.send(process, due)

    def _end_sessions(self) -> None:
        for process in self.processes.values():
            if not process.ending:
                continue
            if process.waiting_for is not None:
                if self.older_self(process.name) is None:
                    self.send(process, Event.EMPTY)
                continue
            life = self.lives.get(process.session or 0)
            if life is None or life.empty:
                self.send(process, Event.EMPTY)
            elif process.draining:
                assert self.now < (process.stop_deadline or 0), "let finish for ever"
            else:
                self.send(process, Event.LEFTOVERS_KILLED, count=1)
                self.kill(life)

    def _take_turns(self) -> None:
        if self.stopping:
            return
        self.limits.check(self.processes.values(), self.now)
        down_before = {p.name for p in self.processes.values() if p.state in DOWN}
        groups: list[str] = []
        for process, _reason, cause in list(self.rolling.turns(self.processes)):
            if process.state is State.RUNNING:
                copies_down = [
                    name
                    for name in down_before
                    if self.processes[name].config.group == process.config.group
                    and (cause is Cause.COMMAND or not self.processes[name].failures.persist)
                ]
                assert copies_down == [], "its turn has come while another copy is down"
                assert process.config.group not in groups, "two copies at once"
                groups.append(process.config.group)
            self.send(process, Event.RESTART)

    def _start(self) -> None:
        for process in list(self.processes.values()):
            if process.due_event(self.now) is Event.DELAY_PASSED:
                self.send(process, Event.DELAY_PASSED)
            after = process.config.after or process.held_by
            if after and process.state is State.STARTING and process.pid is None:
                process.held_by = tuple(name for name in process.config.after if not self.is_met(name))
            if process.can_start(self.now):
                self._fork(process)

    def is_met(self, name: str) -> bool:
        found = [p for p in self.processes.values() if name in (p.name, p.config.group)]
        return bool(found) and all(p.has_been_running for p in found)

    def older_self(self, name: str) -> OlderSelf | None:
        older = self.older.get(name)
        if older is not None and older.until <= self.now:
            del self.older[name]
            return None
        return older

    def _fork(self, process: CompanionProcess) -> None:
        name = process.name
        older = self.older_self(name)
        if older is not None:
            self.send(process, Event.BLOCKED, pid=older.pid, session=older.pid if older.orphan else None)
            return
        assert self.ours(name) == [], "two of one name"
        assert not self.stopping, "started during the end"
        assert name not in self.at_rest, "nobody has asked for this start"
        assert not process.removed
        assert all(map(self.is_met, process.config.after)), "too early"
        if not self.nature.forks:
            self.send(process, Event.START_FAILED, reason="cannot fork")
            return
        assert self.now - self.forked_at.get(name, 0) > MIN_START_INTERVAL - 1e-6, "a fork loop"
        self.forked_at[name] = self.now
        life = Life(name, next(self.pids), self.nature, leftovers=self.nature.leftovers)
        self.lives[life.pid] = life
        self.send(process, Event.FORKED, pid=life.pid)
        self._foretell(life, process.config)

    def _foretell(self, life: Life, config: CompanionConfig) -> None:
        """What the new process will do by itself."""
        nature = life.nature
        if nature.dies is not None:
            self.at(self.now + nature.dies, lambda: self.die(life, nature.status, nature.reason))
        if nature.ready is not None:
            self.at(
                self.now + nature.ready,
                lambda: self.say(life.name, Event.READY) if life.alive and self._is_current(life) else None,
            )
        if config.watchdog is not None:
            self.at(self.now + config.watchdog / 3, lambda: self.beat(life, config.watchdog / 3))

    def _is_current(self, life: Life) -> bool:
        process = self.processes.get(life.name)
        return process is not None and process.pid == life.pid

    def be_replaced(self) -> None:
        """SIGKILL to the manager: the next one has what the master was told, and old selves to wait for."""
        manual = {name for name, process in self.processes.items() if process.manual_stop}
        legacies = {
            name: legacy for name, p in self.processes.items() if (legacy := p.settled_state) is not None
        }
        for life in self.lives.values():
            if not life.empty:
                self.older[life.name] = OlderSelf(life.pid, self.now + 1.0, orphan=True)
        self.lives.clear()
        self.rolling = Rolling()
        self.limits = Limits(self.rolling, LOG)
        self.counts.clear()
        # The master lets a second pass between two managers.
        self.forked_at.clear()
        self.processes = {c.name: self._new(c) for c in scale(self.configs, self.scaled)}
        self.at_rest = (manual | legacies.keys()) & self.processes.keys()
        for name, process in self.processes.items():
            process.manual_stop = name in manual
            if name in legacies:
                process.restore_settled(json.loads(json.dumps(legacies[name])))
            if name not in self.at_rest:
                self.send(process, Event.START)
            elif self.older_self(name) is not None:
                self._end_old_self(process)

    def _end_old_self(self, process: CompanionProcess) -> None:
        older = self.older[process.name]
        if not older.orphan:
            return
        manual, legacy = process.manual_stop, process.settled_state
        self.send(process, Event.START)
        self.send(process, Event.BLOCKED, pid=older.pid, session=older.pid)
        self.send(process, Event.STOP, manual=manual)
        if legacy is not None:
            process.restore_settled(legacy)

    # -- time ----------------------------------------------------------------------

    def next_moment(self) -> float | None:
        times = [t for p in self.processes.values() if (t := p.next_deadline(self.now)) is not None]
        if self.timers:
            times.append(self.timers[0][0])
        return min(times, default=None)

    def settle(self) -> None:
        """Pass after pass, until nothing more happens at this moment."""
        for _ in range(20):
            while self.timers and self.timers[0][0] <= self.now:
                heapq.heappop(self.timers)[2]()
            before = self._picture()
            self.step()
            if self._picture() == before:
                break
        else:
            raise AssertionError("no end of things to do at one moment")
        moment = self.next_moment()
        assert moment is None or moment > self.now, "a deadline that has passed and is not acted on"
        self.check()

    def _picture(self) -> list[Any]:
        return [
            *((p.name, p.state, p.pid, p.session, p.held_by, p.killed) for p in self.processes.values()),
            *((life.pid, life.alive, life.leftovers) for life in self.lives.values()),
        ]

    def advance(self, seconds: float) -> None:
        """Let time pass as the manager's wait does: from one deadline to the next."""
        end = self.now + seconds
        while (moment := self.next_moment()) is not None and moment <= end:
            self.now = max(self.now, moment)
            self.settle()
        self.now = end
        self.settle()

    # -- commands --------------------------------------------------------------------

    def start(self, name: str) -> None:
        process = self.processes[name]
        if process.state in (State.STOPPED, State.BACKOFF):
            self.at_rest.discard(name)
            self.send(process, Event.START)

    def stop(self, name: str) -> None:
        self.send(self.processes[name], Event.STOP, manual=True)
        self.at_rest.add(name)

    def restart(self, name: str, *, in_turn: bool = False) -> None:
        process = self.processes[name]
        if process.state is State.STOPPING:
            return
        if in_turn and process.state is not State.STOPPED:
            self.rolling.ask(name, "by command")
            return
        self.at_rest.discard(name)
        self.send(process, Event.RESTART)

    def stop_all(self, timeout: float | None = None) -> None:
        self.stopping = True
        for process in self.processes.values():
            limit = process.config.stop_timeout if timeout is None else timeout
            self.stops.ask(process.name, Stop(limit))
        self._stop_due()

    def _stop_due(self) -> None:
        while found := self.stops.due(self.processes):
            for process, stop in found:
                needed_by = [
                    p.name for p in self.processes.values() if process.config.group in p.config.after
                ]
                if process.pid is not None and self.stopping:
                    assert not any(map(self.ours, needed_by)), "told to stop while somebody needs it"
                self.send(process, Event.STOP, timeout=stop.timeout)

    def reread(self, configs: Iterable[CompanionConfig]) -> None:
        self.configs = list(configs)
        self._apply(scale(self.configs, self.scaled))

    def scale(self, group: str, number: int) -> None:
        (configured,) = {c.numprocs for c in self.configs if c.group == group}
        assert configured is not None
        self.scaled[group] = number, configured
        self._apply(scale(self.configs, self.scaled))

    def _apply(self, configs: list[CompanionConfig]) -> None:
        found = difference(self.processes, configs)
        for name in reversed(found.removed):
            self.processes[name].removed = True
            self.send(self.processes[name], Event.STOP)
        for config in configs:
            name = config.name
            if name in found.added:
                process = self.processes.setdefault(name, self._new(config))
                process.config = config
                process.removed = False
                if not process.manual_stop:
                    self.at_rest.discard(name)
                    self.send(process, Event.START)
                continue
            process = self.processes[name]
            process.config = config
            if name in found.restarted:
                self.at_rest.discard(name)
                self.send(process, Event.RESTART)
        wanted = {config.name for config in configs}
        assert {name for name, p in self.processes.items() if not p.removed} == wanted

    # -- what must hold -----------------------------------------------------------------

    def check(self) -> None:
        """What holds whenever the manager waits."""
        for name, process in self.processes.items():
            assert len(self.ours(name)) <= 1, "two of one name"
            assert (process.pid is None) == (not any(life.alive for life in self.ours(name)))
            assert bool(self.ours(name)) <= (process.session is not None), "a session that nobody waits for"
            assert process.state is not State.RUNNING or process.pid is not None
            self._check_progress(process)
            self._check_counts(process)
            if process.state is State.RUNNING:
                self.seen_running.add(name)
            shown = process.status_dict(self.now, 0.0)
            assert shown["description"]
            assert shown["state"] == process.state.value
        assert {life.name for life in self.lives.values() if not life.empty} <= self.processes.keys()

    def _check_progress(self, process: CompanionProcess) -> None:
        """Nothing is pending of which no clock and nobody else will tell."""
        due = process.next_deadline(self.now)
        config = process.config
        if process.state is State.STOPPED:
            assert due is None
            assert process.manual_stop or process.settled or process.removed or self.stopping, "lost"
        elif process.state is State.RUNNING:
            assert config.watchdog is None or due is not None
            waits = config.max_lifetime is not None and due is None
            assert not waits or process.name in self.rolling or self.stopping
        elif process.state is State.STARTING and process.pid is None and process.held_by:
            assert {*process.held_by} <= {*config.after}, "held by what is not its matter any more"
            assert not any(map(self.is_met, process.held_by))
        elif process.state is State.STOPPING and process.pid is not None and process.killed:
            assert any(life.nature.kill_takes for life in self.ours(process.name)), "killed and not dead"
        else:
            assert due is not None, f"{process} waits for nothing"
        assert not process.held_by or process.state is State.STARTING
        assert not process.restart_pending or process.state is State.STOPPING
        assert not process.failing or process.state is State.STOPPING

    def _check_counts(self, process: CompanionProcess) -> None:
        counts = (process.start_count, process.restart_count, process.exit_count, process.kill_count)
        before = self.counts.get(process.name, counts)
        assert all(old <= new for old, new in zip(before, counts, strict=True)), "a count that shrinks"
        self.counts[process.name] = counts
        assert process.exit_count <= process.start_count <= process.exit_count + 1

    def _check_backoff(self, process: CompanionProcess) -> None:
        config = process.config
        assert config.start_retries is None or process.failed_starts < config.start_retries
        longest = config.restart_delay if config.restart_delay_max is None else config.restart_delay_max
        assert config.restart_delay <= process.delay <= longest
        assert process.next_retry_at is not None
        # Two starts have their least interval, too.
        assert self.now + process.delay <= process.next_retry_at
        assert process.next_retry_at <= self.now + max(process.delay, process.failures.start_interval)

    def configured(self, group: str) -> int:
        return sum(1 for p in self.processes.values() if p.config.group == group and not p.removed)


def expand(*configs: CompanionConfig) -> list[CompanionConfig]:
    return [copy for config in configs for copy in copies(config, config.numprocs)]
