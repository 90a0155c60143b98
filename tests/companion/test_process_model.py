# SPDX-License-Identifier: MIT
"""Companions through anything: random commands, exits, words and clocks, and what must hold all the while.

``COMPANION_MODEL_EXAMPLES`` in the environment sets how many lives are lived, at random then.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from processtools import failure
from processworld import CALM, Nature, OlderSelf, World, expand

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.process import EXITED, GAVE_UP, Event, State

KEYS = st.fixed_dictionaries(
    {
        "startsecs": st.sampled_from([1, 0, 3]),
        "restart_delay": st.sampled_from([1, 0, 5]),
        "autorestart": st.sampled_from(["always", "on-failure", "never"]),
        "start_retries": st.sampled_from([None, 1, 3]),
        "restart_delay_max": st.sampled_from([None, 8, 40]),
        "ready": st.sampled_from(["startsecs", "notify"]),
        "watchdog": st.sampled_from([None, 6]),
        "stop_as_group": st.booleans(),
        "max_lifetime": st.sampled_from([None, 30]),
        "env": st.sampled_from([{}, {"A": "1"}]),
    }
)
STATUS = st.sampled_from([0, failure(), failure(3), int(signal.SIGKILL), int(signal.SIGTERM)])
NATURE = st.builds(
    Nature,
    obeys=st.sampled_from([0.0, 0.3, 4.0, None]),
    dies=st.sampled_from([None, 0.0, 0.02, 0.7, 7.0]),
    status=STATUS,
    reason=st.sampled_from([None, None, "companion_post_fork: no"]),
    ready=st.sampled_from([0.5, 0.0, 3.0, None]),
    beats=st.booleans(),
    leftovers=st.booleans(),
    rest_obeys=st.sampled_from([None, 0.0, 2.0, 9.0]),
    kill_takes=st.sampled_from([0.0, 0.4]),
    forks=st.sampled_from([True, True, True, False]),
)
WHO = st.integers(0, 20)
TIME = st.sampled_from([0.0, 0.01, 0.05, 0.3, 1.0, 2.5, 6.0, 20.0])
COPIES = st.sampled_from([3, 1, 2, 4])


def make_configs(db: dict[str, Any] | None, rq: dict[str, Any], numprocs: int) -> list[CompanionConfig]:
    """A single companion, which may be missing, and a set of copies that comes after it."""
    common = {"stop_timeout": 5, "reload_timeout": 3, "start_timeout": 10, "max_lifetime_jitter": 5}
    after = () if db is None else ("db",)
    singles = [] if db is None else [CompanionConfig("db", "app:db", **common, **db)]
    return expand(*singles, CompanionConfig("rq", "app:rq", numprocs=numprocs, after=after, **common, **rq))


class Companions(RuleBasedStateMachine):
    """What people, clocks and processes do; `World` and its checks are what follows."""

    @initialize(db=st.none() | KEYS, rq=KEYS, numprocs=COPIES, nature=NATURE)
    def begin(self, db: dict[str, Any] | None, rq: dict[str, Any], numprocs: int, nature: Nature) -> None:
        self.world = World(make_configs(db, rq, numprocs), nature=nature)

    def name(self, who: int) -> str:
        names = sorted(self.world.processes)
        return names[who % len(names)]

    # -- people --

    @rule(who=WHO)
    def start(self, who: int) -> None:
        self.world.start(self.name(who))
        self.world.settle()

    @rule(who=WHO)
    def stop(self, who: int) -> None:
        self.world.stop(self.name(who))
        self.world.settle()

    @rule(who=WHO, in_turn=st.booleans())
    def restart(self, who: int, in_turn: bool) -> None:
        self.world.restart(self.name(who), in_turn=in_turn)
        self.world.settle()

    @rule()
    def restart_all_in_turn(self) -> None:
        for name in sorted(self.world.processes):
            self.world.restart(name, in_turn=True)
        self.world.settle()

    @rule(db=st.none() | KEYS, rq=KEYS, numprocs=COPIES)
    def reread(self, db: dict[str, Any] | None, rq: dict[str, Any], numprocs: int) -> None:
        self.world.reread(make_configs(db, rq, numprocs))
        self.world.settle()

    @rule(number=COPIES)
    def scale(self, number: int) -> None:
        self.world.scale("rq", number)
        self.world.settle()
        assert self.world.configured("rq") == number

    # -- processes --

    @rule(nature=NATURE)
    def be_otherwise(self, nature: Nature) -> None:
        self.world.nature = nature

    @rule(who=WHO, status=STATUS)
    def exit(self, who: int, status: int) -> None:
        lives = [life for life in self.world.lives.values() if life.alive]
        if lives:
            self.world.die(lives[who % len(lives)], status)
            self.world.settle()

    @rule(who=WHO, event=st.sampled_from([Event.READY, Event.BEAT, Event.HUNG]))
    def speak(self, who: int, event: Event) -> None:
        self.world.say(self.name(who), event)
        self.world.settle()

    @rule(who=WHO)
    def grow(self, who: int) -> None:
        process = self.world.processes[self.name(who)]
        if process.state is State.RUNNING:
            self.world.rolling.ask(process.name, "memory", process.pid)
            self.world.settle()

    @rule(who=WHO, seconds=TIME, orphan=st.booleans())
    def have_an_older_self(self, who: int, seconds: float, orphan: bool) -> None:
        """Of one that has no process here: another server's, or what a dead manager left."""
        name = self.name(who)
        process = self.world.processes[name]
        if process.session is None and name not in self.world.older:
            self.world.older[name] = OlderSelf(7, self.world.now + min(seconds, 2.5), orphan)
            self.world.settle()

    @rule()
    def replace_the_manager(self) -> None:
        self.world.be_replaced()
        self.world.settle()

    # -- clocks --

    @rule(seconds=TIME)
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(seconds=TIME)
    @precondition(lambda self: bool(self.world.processes))
    def be_suspended(self, seconds: float) -> None:
        """Nobody had the processor for a while; then all of it is due at once."""
        self.world.now += seconds
        self.world.settle()

    # -- the end --

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.check_that_calm_brings_all_back()
            self.check_that_the_end_comes()

    def check_that_calm_brings_all_back(self) -> None:
        """Once nothing is wrong any more, whatever should run does so in time, and every turn has come."""
        world = self.world
        world.nature = CALM
        # What was born before has its nature; a while for that to show.
        world.advance(60)
        world.seen_running.clear()
        world.advance(60)
        blocked = {p.name for p in world.processes.values() if p.held_by}
        for name, process in world.processes.items():
            assert not process.removed, "a removed one that never goes"
            rests = process.manual_stop or process.settled in (EXITED, GAVE_UP)
            assert (name in world.seen_running) is not (rests or name in blocked), process
        for name in blocked:
            assert not world.is_met("db")
            assert world.processes[name].state is State.STARTING
        if not blocked and all(p.config.max_lifetime is None for p in world.processes.values()):
            assert not world.rolling, "a turn that never comes"

    def check_that_the_end_comes(self) -> None:
        world = self.world
        world.stop_all()
        world.settle()
        # Each of a chain of two has 5 s.
        world.advance(15)
        assert all(p.state is State.STOPPED for p in world.processes.values())
        assert all(life.empty for life in world.lives.values())
        assert world.next_moment() is None or world.timers


EXAMPLES = int(os.environ.get("COMPANION_MODEL_EXAMPLES", "0"))

TestCompanions = Companions.TestCase
TestCompanions.settings = settings(
    max_examples=EXAMPLES or 50,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
