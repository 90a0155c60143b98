# SPDX-License-Identifier: MIT
"""The real manager on a simulated kernel: random commands, exits, messages and clocks, and what must hold.

``COMPANION_MODEL_EXAMPLES`` in the environment sets how many runs there are, at random then.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from processtools import T0, failure
from processworld import CALM, Nature, World, expand

from gunicorn.companion.checks import StartLimit
from gunicorn.companion.child.sdnotify import Notice
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.probe import Probe
from gunicorn.companion.process import EXITED, GAVE_UP, Cause, State
from gunicorn.companion.runfile import RunFile
from gunicorn.companion.schedule import Note
from gunicorn.companion.supervise.overrides import KeptState
from gunicorn.companion.supervise.starter import STARTS_AT_ONCE

KEYS = st.fixed_dictionaries(
    {
        "startsecs": st.sampled_from([1, 0, 3]),
        "restart_delay": st.sampled_from([1, 0, 5]),
        "autorestart": st.sampled_from(["always", "on-failure", "never"]),
        "start_retries": st.sampled_from([None, 1, 3]),
        "restart_delay_max": st.sampled_from([None, 8, 40]),
        "ready": st.sampled_from(["startsecs", "notify"]),
        "watchdog": st.sampled_from([None, 6]),
        "probe": st.sampled_from([None, Probe("tcp", "[::1]:7", every=2)]),
        "liveness": st.sampled_from([None, Probe("tcp", "[::1]:7", every=2, failures=2)]),
        "stop_as_group": st.booleans(),
        "max_lifetime": st.sampled_from([None, 30]),
        "env": st.sampled_from([{}, {"A": "1"}, {"A": "%(index)d"}]),
        "index_start": st.sampled_from([0, 2]),
        "groups": st.sampled_from([(), ("jobs",)]),
        "success_exit_codes": st.sampled_from([(0,), (0, 3)]),
        "start_limit": st.sampled_from([None, StartLimit(1, 3), StartLimit(4, 20)]),
        "retry_after": st.sampled_from([None, 4, 15]),
        "max_runtime": st.sampled_from([None, None, 5]),
        "stop_signals": st.sampled_from([None, ((15, 3.0), (3, 2.0))]),
        "lease": st.sampled_from([None, True, "shop"]),
        "lease_ttl": st.sampled_from([6, 12]),
        "lease_margin": st.sampled_from([1, None]),
        "lease_on_loss": st.sampled_from(["stop", "stop", "keep"]),
        "autostart": st.sampled_from([True, True, True, False]),
        "start_timeout": st.sampled_from([10, 3]),
        "reload_timeout": st.sampled_from([3, 8]),
        "max_lifetime_jitter": st.sampled_from([5, 0]),
        "on_give_up": st.sampled_from(["ignore", "shutdown"]),
        "singleton": st.sampled_from([True, True, True, False]),
    }
)
# Of a companion with a schedule, which may lose it; None: there is none.
TICK = st.fixed_dictionaries(
    {
        "schedule": st.sampled_from(["every 7s", "every 7s", "every 11s", None]),
        "schedule_overlap": st.sampled_from(["skip", "queue", "restart"]),
        "schedule_catch_up": st.booleans(),
        "schedule_jitter": st.sampled_from([0, 3]),
        "schedule_retries": st.sampled_from([0, 2]),
        "autostart": st.sampled_from([True, True, False]),
        "autorestart": st.just("never"),
        "env": st.sampled_from([{}, {"A": "1"}]),
        "max_runtime": st.sampled_from([None, 5]),
        "lease": st.sampled_from([None, True]),
        "lease_ttl": st.sampled_from([6, 12]),
        "lease_on_loss": st.sampled_from(["stop", "keep"]),
    }
)
# What else shapes the process; no two of them at once, so that not every reread is a restart.
SHAPES: list[dict[str, Any]] = [
    {},
    {"env_file": ("rq.env",)},
    {"umask": 0o27},
    {"oom_score_adj": 500},
    {"rlimits": {"core": (0, None)}},
    {"cpu_affinity": (0,)},
    {"nice": 5},
    {"cwd": "/"},
    {"stdout": "/dev/null"},
]
KEYS = st.builds(lambda keys, shape: {**keys, **shape}, KEYS, st.sampled_from(SHAPES))
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
    works=st.sampled_from([True, True, False]),
)
WHO = st.integers(0, 20)
TIME = st.sampled_from([0.0, 0.01, 0.05, 0.3, 1.0, 2.5, 6.0, 20.0])
COPIES = st.sampled_from([3, 1, 2, 4])
# None: it is no set.
NUMPROCS = st.sampled_from([3, 1, 2, 4, None])


# By which key the two companions below have their order; and where in it the web workers are.
ORDER = st.sampled_from(["after", "stop_after", "after a group", "tick after"])
WEB = st.sampled_from([None, "web after db", "rq after web"])


def make_configs(
    db: dict[str, Any] | None,
    rq: dict[str, Any],
    numprocs: int | None,
    order: str = "after",
    web: str | None = None,
    tick: dict[str, Any] | None = None,
) -> list[CompanionConfig]:
    """A companion that may be missing, a set of copies after it, and one that may have a schedule."""
    common: dict[str, Any] = {"lease_store": "file:///nowhere", "stop_timeout": 5}
    after: tuple[str, ...] = ()
    if db is not None and order == "stop_after":
        db = {**db, "stop_after": ("rq",)}
    elif db is not None and order == "after a group":
        db, after = {**db, "groups": ("stores",)}, ("@stores",)
    elif db is not None:
        after = ("db",)
    if web == "rq after web":
        after += ("web",)
    if db is not None and db["lease"] == rq["lease"] == "shop":
        # A lease has one time, whoever uses it.
        rq = {**rq, "lease_ttl": db["lease_ttl"], "lease_margin": db["lease_margin"]}
    # A lease contradicts a `singleton` of False.
    rq = {**rq, "singleton": rq["singleton"] or bool(rq["lease"])}
    db = db and {**db, "singleton": db["singleton"] or bool(db["lease"])}
    singles = [] if db is None else [CompanionConfig("db", "app:db", **common, **db)]
    if tick is not None:
        # Without a schedule nothing would start it, even when it is True again.
        tick = {**tick, "autostart": tick["autostart"] or tick["schedule"] is None}
        its = after if order == "tick after" else ()
        singles.append(CompanionConfig("tick", "app:tick", after=its, **common, **tick))
    if numprocs is None:
        rq = {**rq, "index_start": 0}
    return expand(*singles, CompanionConfig("rq", "app:rq", numprocs=numprocs, after=after, **common, **rq))


class Companions(RuleBasedStateMachine):
    """What people, clocks and processes do; `World` checks what follows."""

    @initialize(
        db=st.none() | KEYS,
        rq=KEYS,
        numprocs=NUMPROCS,
        nature=NATURE,
        adopts=st.booleans(),
        order=ORDER,
        web=WEB,
        tick=st.none() | TICK,
        obeys=st.sampled_from([0.0, 2.0]),
        stop_order=st.sampled_from(["reverse", "reverse", "together"]),
        luck=st.integers(0, 99),
    )
    def begin(
        self,
        db: dict[str, Any] | None,
        rq: dict[str, Any],
        numprocs: int | None,
        nature: Nature,
        adopts: bool,
        order: str,
        web: str | None,
        tick: dict[str, Any] | None,
        obeys: float,
        stop_order: str,
        luck: int,
    ) -> None:
        # For jitter.
        random.seed(luck)
        self.order, self.web, self.calm = order, web, replace(CALM, obeys=obeys)
        self.world = World(
            make_configs(db, rq, numprocs, order, web, tick),
            nature=nature,
            adopts=adopts,
            web_after=("db",) if web == "web after db" and db is not None else (),
            web_stops_in=obeys,
            stop_order=stop_order,
        )

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
            # A manager that is killed meanwhile may have no such companion in the next one.
            if name in self.world.processes:
                self.world.restart(name, in_turn=True)
        self.world.settle()

    @rule(db=st.none() | KEYS, rq=KEYS, numprocs=NUMPROCS, tick=st.none() | TICK)
    def reread(
        self, db: dict[str, Any] | None, rq: dict[str, Any], numprocs: int | None, tick: dict[str, Any] | None
    ) -> None:
        if db is None and self.world.web_after:
            # An error of the configuration.
            return
        self.world.reread(make_configs(db, rq, numprocs, self.order, self.web, tick))
        self.world.settle()

    @rule(number=COPIES)
    def scale(self, number: int) -> None:
        self.world.scale("rq", number)
        self.world.settle()
        if self.world.is_set("rq"):
            assert self.world.configured("rq") == number

    @rule(ready=st.booleans())
    def web_workers_come_and_go(self, ready: bool) -> None:
        self.world.be_ready(ready)
        self.world.settle()

    # -- processes --

    @rule(nature=NATURE)
    def be_otherwise(self, nature: Nature) -> None:
        self.world.nature = nature

    @rule(who=WHO, status=STATUS)
    def exit(self, who: int, status: int) -> None:
        lives = [life for life in self.world.kernel.lives if life.alive]
        if lives:
            self.world.kernel.die(lives[who % len(lives)], status)
            self.world.settle()

    @rule(who=WHO, notice=st.sampled_from([Notice(ready=True), Notice(watchdog=True), Notice(trigger=True)]))
    def speak(self, who: int, notice: Notice) -> None:
        self.world.say(self.name(who), notice)
        self.world.settle()

    @rule(who=WHO)
    def grow(self, who: int) -> None:
        self.world.grow(self.name(who))
        self.world.settle()

    @rule(who=WHO, seconds=TIME, orphan=st.booleans())
    def have_an_older_process(self, who: int, seconds: float, orphan: bool) -> None:
        """Of one that has no process here: another server's, or what a dead manager left."""
        self.world.have_an_older_process(self.name(who), min(seconds, 2.5), orphan=orphan)
        self.world.settle()

    @rule()
    def kill_the_manager(self) -> None:
        self.world.kill_the_manager()
        self.world.settle()

    @rule(calls=st.integers(0, 12))
    def kill_the_manager_soon(self, calls: int) -> None:
        """In the middle of what it does next."""
        self.world.kernel.calls_left = calls

    # -- leases --

    @rule(up=st.booleans())
    def the_store_goes_down_and_up(self, up: bool) -> None:
        self.world.store.up = up

    @rule(wants=st.booleans())
    def a_rival_comes_and_goes(self, wants: bool) -> None:
        self.world.store.rival = wants

    @rule()
    def the_keeper_hangs(self) -> None:
        self.world.keeper.hangs = True

    # -- clocks --

    @rule(seconds=TIME)
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(seconds=TIME)
    @precondition(lambda self: bool(self.world.processes))
    def be_suspended(self, seconds: float) -> None:
        self.world.suspend(seconds)

    # -- the end --

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.check_that_calm_brings_all_back()
                self.check_that_the_end_comes()
            finally:
                self.world.close()

    def check_that_calm_brings_all_back(self) -> None:
        """Once nothing is wrong any more, whatever should run does so in time, and every turn has come."""
        world = self.world
        world.nature, world.kernel.calls_left = self.calm, None
        world.store.up, world.store.rival, world.keeper.hangs = True, False, False
        world.be_ready(True)
        # What was born before has its nature; a while for that to show.
        world.advance(60)
        world.seen_running.clear()
        world.advance(60)
        blocked = {p.name for p in world.processes.values() if p.held_by}
        # What comes after a companion that fails for ever may wait for it just now.
        unsteady = {
            label
            for process in world.processes.values()
            if process.config.max_runtime is not None
            for label in process.config.labels
        }
        for name, process in world.processes.items():
            assert not process.removed, "a removed one that never goes"
            rests = process.manual_stop or process.settled in (EXITED, GAVE_UP) or name in world.unstarted
            if process.config.schedule is not None:
                started = world.manager.kept.overrides.stopped.get(name) is False
                assert (
                    name in world.seen_running
                    or process.manual_stop
                    or name in blocked
                    or not (process.config.autostart or started)
                ), "a schedule without a run"
                continue
            ran, may_rest = name in world.seen_running, rests or name in blocked
            if not unsteady & {process.name, *process.config.after}:
                assert ran is not may_rest, process
            else:
                # It fails for ever, and may give up now as before.
                assert ran or may_rest, process
        for name in blocked:
            assert not all(map(world.is_met, world.processes[name].held_by))
            assert world.processes[name].state is State.STARTING
        configs = [p.config for p in world.processes.values()]
        if not blocked and all(c.max_lifetime is None and c.max_runtime is None for c in configs):
            assert not world.manager.rolling, "a turn that never comes"

    def check_that_the_end_comes(self) -> None:
        world = self.world
        world.stop_server()
        world.settle()
        # Each of a chain of two has 5 s.
        world.advance(15)
        assert world.web_told and not world.web_there
        assert all(p.state is State.STOPPED for p in world.processes.values())
        assert world.manager.finished
        # The others of dead managers are found by their marks, which are not simulated.
        beside = {name for name, process in world.processes.items() if not process.config.singleton}
        assert all(life.empty for life in world.kernel.lives if life.singleton and life.name not in beside)
        assert world.manager.timeout(world.kernel.time) is None


EXAMPLES = int(os.environ.get("COMPANION_MODEL_EXAMPLES", "0"))

TestCompanions = Companions.TestCase
TestCompanions.settings = settings(
    max_examples=EXAMPLES or 30,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    with contextlib.ExitStack() as stack:

        def make(*configs: CompanionConfig, **values: Any) -> World:
            world = World(expand(*configs), **values)
            stack.callback(world.close)
            return world

        yield make


def test_an_orphan_ends_though_its_companion_waits_for_another(make_world: Callable[..., World]) -> None:
    """A stop of the companion, or of the server, would not find it."""
    stubborn = Nature(obeys=None, leftovers=True)
    world = make_world(
        CompanionConfig("db", "app:db"),
        CompanionConfig("rq", "app:rq", after=("db",), stop_timeout=5),
        nature=stubborn,
    )
    world.advance(2)
    [orphan] = world.ours("rq")
    world.nature = CALM
    world.stop("db")
    world.kill_the_manager()
    world.settle()
    assert world.processes["rq"].state is State.STARTING
    assert world.processes["rq"].held_by == ("db",)
    world.advance(6)
    assert orphan.empty


def test_a_stop_by_command_goes_with_a_removed_companion(make_world: Callable[..., World]) -> None:
    """It is none of a companion that has the name later, even if no manager saw the removed one go."""
    world = make_world(
        CompanionConfig("db", "app:db"),
        CompanionConfig("rq", "app:rq", stop_timeout=5),
        nature=Nature(obeys=None),
    )
    world.advance(2)
    configs = world.configs
    world.stop("rq")
    world.reread(configs[:1])
    world.kill_the_manager()
    world.settle()
    world.reread(configs)
    for _ in range(2):
        world.advance(10)
        assert world.processes["rq"].state is State.RUNNING
        world.kill_the_manager()


def test_no_companion_is_restarted_while_the_server_stops(make_world: Callable[..., World]) -> None:
    world = make_world(
        CompanionConfig("db", "app:db"),
        CompanionConfig("rq", "app:rq", after=("db",)),
        nature=Nature(obeys=4.0),
    )
    world.advance(2)
    world.stop_all()
    world.settle()
    db = world.processes["db"]
    assert db.state is State.RUNNING
    world.grow("db")
    world.advance(20)
    assert world.manager.finished
    assert db.start_count == 1


def test_a_stop_goes_on_when_the_master_dies(make_world: Callable[..., World]) -> None:
    world = make_world(CompanionConfig("store", "app:store"), web_after=("store",), web_stops_in=100)
    world.advance(2)
    world.stop_server()
    world.settle()
    assert world.web_told
    assert world.processes["store"].stops_after == ("web",)
    # Nobody sees them end.
    world.web_there = False
    world.manager._on_master_gone()
    world.settle()
    assert world.manager.finished


def test_a_companion_that_its_pre_fork_hook_stops_is_not_forked(make_world: Callable[..., World]) -> None:
    world = make_world(CompanionConfig("rq", "app:rq", autostart=False), CompanionConfig("db", "app:db"))
    world.manager.hooks.pre_fork = lambda manager, companion: manager.stop_process(companion.name)
    world.start("rq")
    world.settle()
    rq = world.processes["rq"]
    assert (rq.state, rq.start_count) == (State.STOPPED, 0)
    assert world.processes["db"].pid is not None


def test_many_companions_start_in_several_passes(make_world: Callable[..., World]) -> None:
    world = make_world(CompanionConfig("rq", "app:rq", numprocs=2 * STARTS_AT_ONCE + 1))
    assert all(process.pid is not None for process in world.processes.values())


def test_the_sockets_of_bind_are_open_while_a_copy_is_not_stopped(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    path = tmp_path / "s"
    world = make_world(CompanionConfig("rq", "app:rq", numprocs=2, bind=(f"unix:{path}",)))
    world.stop("rq:0")
    world.advance(1)
    assert path.exists()
    world.stop("rq:1")
    world.advance(1)
    assert not path.exists()


def test_a_stop_by_command_is_kept_before_another_server_may_start_the_companion(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(CompanionConfig("rq", "app:rq", restart_delay=30), nature=Nature(dies=0.1))
    world.advance(1)
    assert world.processes["rq"].state is State.BACKOFF
    kept = []
    monkeypatch.setattr(
        world.manager.start_rights, "release", lambda name: kept.append(world.shared.read()["stopped"])
    )
    world.stop("rq")
    assert kept == [{"rq": True}]


def test_a_command_to_the_old_master_is_followed_before_a_start(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come between the last look at the old manager's state and the start."""
    world = make_world(CompanionConfig("rq", "app:rq", autostart=False))
    rq = world.processes["rq"]
    world.at_rest.clear()
    world.manager.start_process("rq")
    with monkeypatch.context() as context:
        context.setattr(KeptState, "must_follow_first", True)
        world.manager.starter.start([rq])
        assert (rq.state, rq.pid) == (State.STARTING, None)
    world.settle()
    assert rq.pid is not None


def test_messages_from_just_before_an_exit_count(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(CompanionConfig("rq", "app:rq", ready="notify"), nature=Nature(ready=None))
    [life] = world.ours("rq")
    rq, notifications = world.processes["rq"], world.manager.notifications
    monkeypatch.setattr(notifications, "receive", lambda p: notifications.take(p, Notice(ready=True)))
    world.kernel.die(life, failure())
    world.settle()
    assert rq.state is State.BACKOFF
    assert rq.failed_starts == 0


def test_helpers_have_a_moment_to_end_with_their_companion(make_world: Callable[..., World]) -> None:
    world = make_world(CompanionConfig("rq", "app:rq"), nature=Nature(leftovers=True))
    world.advance(2)
    [life] = world.ours("rq")
    world.kernel.at(world.kernel.time + 0.02, lambda: world.kernel.end_rest(life))
    world.stop("rq")
    world.advance(1)
    rq = world.processes["rq"]
    assert (rq.state, rq.leftovers_killed) == (State.STOPPED, 0)


@pytest.mark.parametrize(("rest_obeys", "killed"), [(2.0, 0), (None, 1)])
def test_a_group_may_finish_after_its_leader_until_the_deadline(
    make_world: Callable[..., World], rest_obeys: float | None, killed: int
) -> None:
    world = make_world(
        CompanionConfig("rq", "app:rq", stop_as_group=True, stop_timeout=5),
        nature=Nature(leftovers=True, rest_obeys=rest_obeys),
    )
    world.advance(2)
    world.stop("rq")
    world.advance(1)
    rq = world.processes["rq"]
    assert rq.draining
    world.advance(5)
    assert (rq.state, rq.leftovers_killed) == (State.STOPPED, killed)


def test_a_manager_that_was_held_up_itself_gives_the_watchdog_another_round(
    make_world: Callable[..., World],
) -> None:
    world = make_world(CompanionConfig("rq", "app:rq", watchdog=6), nature=Nature(beats=False))
    world.advance(2)
    rq = world.processes["rq"]
    world.kernel.time += 20
    world.settle()
    assert rq.state is State.RUNNING
    world.advance(7)
    assert (rq.exit_count, rq.cause) == (1, Cause.WATCHDOG)


def test_of_several_copies_the_last_is_removed_first(make_world: Callable[..., World]) -> None:
    world = make_world(CompanionConfig("rq", "app:rq", numprocs=4))
    world.advance(2)
    stopped: list[str] = []
    world.kernel.check_signal = lambda life, signum: stopped.append(life.name)
    world.scale("rq", 1)
    assert stopped == ["rq:3", "rq:2", "rq:1"]


def test_a_stopping_companion_that_comes_back_by_reread_stays_stopped(
    make_world: Callable[..., World],
) -> None:
    world = make_world(
        CompanionConfig("db", "app:db"), CompanionConfig("rq", "app:rq"), nature=Nature(obeys=4.0)
    )
    world.advance(2)
    configs = world.configs
    world.stop("rq")
    world.reread(configs[:1])
    world.reread(configs)
    world.advance(20)
    rq = world.processes["rq"]
    assert (rq.state, rq.manual_stop, rq.start_count) == (State.STOPPED, True, 1)


def test_a_removed_companion_that_waits_for_its_stop_cannot_be_started(
    make_world: Callable[..., World],
) -> None:
    world = make_world(
        CompanionConfig("db", "app:db"),
        CompanionConfig("rq", "app:rq", after=("db",)),
        nature=Nature(obeys=4.0),
    )
    world.advance(2)
    world.reread([])
    assert world.processes["db"].state is State.RUNNING
    assert not world.ask("start", name="db")["ok"]
    assert not world.ask("restart", name="db")["ok"]
    world.advance(20)
    assert world.processes == {}


def test_what_slept_beyond_its_lease_is_killed_at_once(make_world: Callable[..., World]) -> None:
    config = CompanionConfig("rq", "app:rq", lease=True, lease_store="file:///nowhere", lease_ttl=6)
    world = make_world(config)
    # The rival's next attempt comes before the next renewal.
    world.advance(2.2)
    [life] = world.ours("rq")
    world.store.rival = True
    world.suspend(20)
    assert world.store.rivals == ["rq"]
    assert life.doomed
    assert world.ours("rq") == []
    world.store.rival = False
    world.advance(10)
    assert world.processes["rq"].state is State.RUNNING


def test_a_job_that_has_ended_begins_anew_with_a_schedule(make_world: Callable[..., World]) -> None:
    job = CompanionConfig("rq", "app:rq", autorestart="never")
    world = make_world(job, nature=Nature(dies=0.1, status=0))
    world.advance(2)
    assert world.processes["rq"].settled == EXITED
    world.kill_the_manager()
    world.reread([replace(job, schedule="every 7s")])
    world.advance(10)
    assert world.processes["rq"].start_count == 1


def test_a_restart_for_its_lifetime_waits_while_what_it_needs_fails(make_world: Callable[..., World]) -> None:
    world = make_world(
        CompanionConfig("db", "app:db", max_runtime=5),
        CompanionConfig("rq", "app:rq", after=("db",), max_lifetime=14.5, max_lifetime_jitter=0),
        nature=Nature(obeys=2.0),
    )
    rq = world.processes["rq"]
    # It starts at 1 and stops at 15.5, until 17.5. At 17 the time of `db` is over.
    world.advance(18)
    assert (rq.state, rq.held_by) == (State.STARTING, ("db",))
    world.advance(14)
    assert (rq.state, rq.start_count) == (State.RUNNING, 2)


def test_a_companion_that_may_run_twice_no_more_waits_for_another_server(
    make_world: Callable[..., World],
) -> None:
    config = CompanionConfig("rq", "app:rq", singleton=False)
    world = make_world(config)
    world.advance(2)
    world.reread([replace(config, singleton=True)])
    assert world.processes["rq"].start_count == 1
    world.restart("rq")
    world.advance(2)
    assert RunFile.claim(world.run_dir, "rq") is None


def test_a_name_that_comes_back_has_not_given_up(make_world: Callable[..., World]) -> None:
    config = CompanionConfig("rq", "app:rq", restart_delay=1, start_limit=StartLimit(1, 3))
    world = make_world(config, nature=Nature(dies=0.0, leftovers=True, kill_takes=0.4))
    rq = world.processes["rq"]
    assert (rq.state, rq.settled) == (State.STOPPING, GAVE_UP)
    world.reread([])
    world.reread([replace(config, autostart=False)])
    world.advance(2)
    assert (rq.state, rq.settled) == (State.STOPPED, None)
    assert world.processes["rq"] is rq


def test_a_set_is_scaled_while_the_companion_of_its_name_ends(make_world: Callable[..., World]) -> None:
    config = CompanionConfig("rq", "app:rq")
    world = make_world(config, nature=Nature(obeys=4.0))
    world.advance(2)
    world.reread(expand(replace(config, numprocs=1)))
    assert world.processes["rq"].state is State.STOPPING
    assert world.ask("scale", name="rq", numprocs=2)["added"] == ["rq:1"]


class StoreOfOne:
    """The lease of a companion with a schedule, which is always to be had, and the notes in its store."""

    def __init__(self, world: World, note: str = "") -> None:
        self.world, self.note, self.noted, self.token = world, note, True, 1
        self.notes: list[Note] = []

    def of(self, config: CompanionConfig) -> StoreOfOne:
        return self

    def store(self, lease: StoreOfOne, note: str) -> None:
        self.note = note
        found = Note.of(note)
        assert found is not None
        self.notes.append(found)
        if found.state != "begun":
            # What starts next has another token.
            self.token += 1
        self.world.manager.table.changed = True

    @property
    def states(self) -> list[tuple[float, str]]:
        return [(round(note.through - 1e9 - T0), note.state) for note in self.notes]


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        # A run of 10 s: the time at 14 is skipped with it, or waits for it, for as long as it takes.
        ("skip", [(7, "begun"), (14, "done"), (21, "begun"), (28, "done")]),
        ("queue", [(7, "begun"), (7, "done"), (14, "begun"), (14, "done"), (21, "begun")]),
    ],
)
def test_what_is_noted_for_other_servers(
    make_world: Callable[..., World], overlap: str, expected: list[tuple[float, str]]
) -> None:
    config = CompanionConfig(
        "tick", "app:tick", schedule="every 7s", schedule_overlap=overlap, autorestart="never"
    )
    world = make_world(config, nature=Nature(dies=10.0, status=0))
    store = StoreOfOne(world)
    world.manager.schedules.leases = store  # type: ignore[assignment]
    world.advance(34)
    assert store.states[: len(expected)] == expected


def test_a_time_that_another_server_has_dealt_with_has_no_run(make_world: Callable[..., World]) -> None:
    world = make_world(
        CompanionConfig("tick", "app:tick", schedule="every 7s", autorestart="never"),
        nature=Nature(dies=0.5, status=0),
    )
    begun = world.kernel.wall()
    world.manager.schedules.leases = StoreOfOne(world, Note(begun + 6, "done", "b").text())  # type: ignore
    world.advance(12)
    tick = world.processes["tick"]
    assert (tick.state, tick.start_count) == (State.STOPPED, 0)
    # It goes on with the rhythm of the other one.
    world.advance(2)
    assert tick.start_count == 1
