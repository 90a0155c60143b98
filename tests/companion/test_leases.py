# SPDX-License-Identifier: MIT
"""The manager's side of leases, with a simulated store; and the sums."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from leaseworld import RIVAL
from processworld import CALM, Nature, World, expand

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.leasing.timing import Timing
from gunicorn.companion.process import Cause, State


@pytest.mark.parametrize(
    ("ttl", "margin", "timing", "good"),
    [
        (15, None, Timing(15, 1.5), True),
        (5, None, Timing(5, 1), True),
        (4.5, None, Timing(4.5, 1), False),
        (15, 8, Timing(15, 8), False),
        (15, 7.9, Timing(15, 7.9), True),
        (60, 0, Timing(60, 0), True),
    ],
)
def test_which_times_leave_room_for_a_renewal(ttl: float, margin: float | None, timing: Timing, good: bool):
    assert Timing.of(ttl, margin) == timing
    assert (timing.problem is None) is good


@pytest.mark.parametrize(
    ("timing", "stop_timeout", "grace"),
    [
        (Timing(15, 1.5), 60, 6.5),
        (Timing(15, 1.5), 3, 3),
        (Timing(60, 6), 60, 32),
        (Timing(5, 1), 60, pytest.approx(1 / 3)),
        (Timing(3, 1), 60, 0),
    ],
)
def test_the_time_to_stop_is_what_the_ttl_leaves(timing: Timing, stop_timeout: float, grace: float) -> None:
    assert timing.grace(stop_timeout) == grace


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(*, others: tuple[CompanionConfig, ...] = (), nature: Nature = CALM, **keys: Any) -> World:
        keys = {"lease": "shop", "lease_store": "file:///nowhere", "stop_timeout": 5, **keys}
        worlds.append(World(expand(CompanionConfig("rq", "app:rq", **keys), *others), nature=nature))
        worlds[-1].advance(2)
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def test_a_renewal_wakes_nobody(make_world) -> None:
    world = make_world(lease_ttl=30)
    assert world.processes["rq"].state is State.RUNNING
    passes, step = [], world.manager.leases.step
    world.manager.leases.step = lambda now: passes.append(now) or step(now)
    # Within each ttl it looks once or twice whether the end was put off.
    world.advance(300)
    assert world.processes["rq"].start_count == 1
    assert len(passes) <= 25


def test_a_store_that_is_down_ends_it_in_time(make_world) -> None:
    world = make_world(lease_ttl=15, nature=Nature(obeys=None))
    [life] = world.ours("rq")
    assert world.processes["rq"].lease.summary == "shop, token 1, for another 13 s"
    _, _, end = world.store.get("shop")
    world.store.up = False
    while not life.asked:
        world.advance(0.1)
    assert end - 1.5 - 5 <= world.kernel.time + 0.2 <= end
    while life.alive:
        world.advance(0.1)
    assert world.kernel.time <= end - 1.5 + 0.2
    rq = world.processes["rq"]
    assert (rq.cause, rq.standby) == (Cause.LEASE, True)
    assert rq.lease.summary.startswith("shop, file:///nowhere unreachable for ")
    assert rq.description(world.kernel.time).startswith("standby: file:///nowhere unreachable for ")
    world.advance(40)
    assert rq.lease.unheld_for > 40
    world.store.up = True
    world.advance(2)
    assert (rq.state, rq.failures.count) == (State.RUNNING, 0)
    assert world.ours("rq")[0].token == 2


def test_one_that_was_taken_away_is_killed_at_once(make_world) -> None:
    world = make_world(lease_ttl=15, nature=Nature(obeys=None))
    [life] = world.ours("rq")
    world.store.rival = True
    world.store.leases["shop"] = RIVAL, 2, world.kernel.time + 10
    world.advance(5.1)
    assert life.empty
    rq = world.processes["rq"]
    assert rq.description(world.kernel.time).startswith("standby: held by the rival (pid 1) for another ")
    assert rq.lease.unheld_for is None


def test_keep_runs_on(make_world) -> None:
    world = make_world(lease_on_loss="keep")
    [life] = world.ours("rq")
    world.store.up = False
    world.advance(60)
    assert life.alive and world.processes["rq"].state is State.RUNNING


def test_a_suspended_machine_ends_it_though_its_manager_is_late(make_world) -> None:
    world = make_world(lease_ttl=15, nature=Nature(obeys=None))
    [life] = world.ours("rq")
    world.keeper.hangs = True
    world.kernel.time += 100
    world.kernel.fire_timers()
    assert not life.alive
    world.settle()
    world.advance(0.2)
    assert world.processes["rq"].cause is Cause.LEASE
    assert world.processes["rq"].failures.count == 0


def test_a_keeper_that_hangs_is_replaced(make_world) -> None:
    world = make_world(lease_ttl=15)
    world.keeper.hangs = True
    world.advance(40)
    assert not world.keeper.hangs
    assert world.processes["rq"].state is State.RUNNING
    assert [life.token for life in world.ours("rq")] == [2]


def test_copies_share_a_lease_and_give_it_up_with_the_last_one(make_world) -> None:
    world = make_world(numprocs=2)
    first, second = (world.ours(f"rq:{index}")[0] for index in (0, 1))
    assert first.token == second.token == 1
    world.restart("rq:0")
    world.advance(3)
    # It was held all the time.
    assert world.ours("rq:0")[0].token == 1
    world.stop("rq:0")
    world.stop("rq:1")
    world.advance(1)
    assert world.store.get("shop")[0] == ""
    world.start("rq:1")
    world.advance(1)
    assert world.ours("rq:1")[0].token == 2


def test_a_crash_brings_another_token(make_world) -> None:
    world = make_world(restart_delay=1)
    world.kernel.die(world.ours("rq")[0], 256)
    world.settle()
    # Others may have it meanwhile.
    assert world.store.get("shop")[0] == ""
    world.advance(3)
    assert world.ours("rq")[0].token == 2


def test_it_is_not_held_for_one_that_waits_for_another(make_world) -> None:
    world = make_world(after=("db",), others=(CompanionConfig("db", "app:db", autostart=False),))
    assert world.store.get("shop")[0] == ""
    world.start("db")
    world.advance(4)
    assert world.processes["rq"].state is State.RUNNING


def test_a_next_manager_waits_for_the_end_of_the_lease(make_world) -> None:
    world = make_world(lease_ttl=15)
    world.kill_the_manager()
    world.advance(5)
    assert world.processes["rq"].standby
    world.advance(15)
    assert world.ours("rq")[0].token == 2


def test_given_away_it_is_asked_for_again_after_a_moment(make_world) -> None:
    world = make_world(lease_ttl=15)
    assert world.ask("lease", release="nothing")["error"] == "no lease named nothing"
    assert world.ask("lease", release="rq")["ok"]
    world.settle()
    world.advance(1)
    assert world.store.get("shop")[0] == ""
    assert world.processes["rq"].description(world.kernel.time) == "standby: given away by command for 2 s"
    world.advance(3)
    assert world.ours("rq")[0].token == 2


def test_without_leases_nothing_is_started() -> None:
    world = World(expand(CompanionConfig("rq", "app:rq")))
    try:
        world.advance(5)
        assert not world.keeper.started
        assert world.manager.leases._memory is None
    finally:
        world.close()


def told_of_lease(world: World) -> list[str]:
    return [entry["reason"] for entry in world.ask("history")["history"] if entry["event"] == "lease"]


def test_what_is_given_up_and_what_was_lost_is_told_apart(make_world) -> None:
    world = make_world(lease_ttl=15, nature=Nature(obeys=None))
    world.stop("rq")
    world.advance(6)
    assert told_of_lease(world)[-1] == "gave up lease shop (token 1)"
    world.start("rq")
    world.advance(2)
    world.store.up = False
    world.advance(20)
    # It was killed at the margin, and nobody could be told.
    assert re.fullmatch(
        r"gives up lease shop \(token 2\), which ends in [12] s at the latest: no", told_of_lease(world)[-1]
    )
    world.store.up = True
    world.advance(2)
    [life] = world.ours("rq")
    world.keeper.hangs = True
    world.kernel.time += 100
    world.kernel.fire_timers()
    world.settle()
    assert not life.alive
    assert told_of_lease(world)[-1] == "lost lease shop (token 3): it was not renewed in time"


def test_a_lease_may_be_wrong_alone(make_world) -> None:
    world = make_world(others=(CompanionConfig("db", "app:db", lease="db", lease_store="file:///nowhere"),))
    rq, db = world.processes["rq"].lease, world.processes["db"].lease
    world.keeper.on_message({"wrong": rq.serial, "why": "it is a directory"})
    world.advance(1)
    assert rq.summary.endswith("; file:///nowhere: it is a directory")
    assert (rq.as_dict()["store_up"], db.as_dict()["store_up"]) == (False, True)
    rq.token = 0
    assert rq.description == "lease shop unusable for 1s: it is a directory"
    world.keeper.on_message({"right": rq.serial})
    assert rq.down_since is None


def test_another_keeper_finds_out_anew_whether_the_store_is_up(make_world) -> None:
    world = make_world(lease_ttl=15)
    world.store.up = False
    world.advance(6)
    lease = world.processes["rq"].lease
    assert lease.down_since is not None
    world.store.up = True
    world.keeper.kill()
    world.advance(1)
    assert lease.down_since is None
    assert lease.left() > 10


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"one": "shop"}, {"two": "shop"}),
        ({"one": "shop"}, {"one": "other", "two": "shop"}),
        ({"one": "shop", "two": "other"}, {"one": "other", "two": "shop"}),
        ({"one": "shop", "two": "shop"}, {"one": "shop", "three": "shop"}),
    ],
    ids=["renamed", "given another", "exchanged", "one of two renamed"],
)
def test_what_takes_a_lease_over_by_a_reload_waits(before: dict[str, str], after: dict[str, str]) -> None:
    keys: dict[str, Any] = {"lease_store": "file:///nowhere", "reload_timeout": 3}

    def configs(leases: dict[str, str]) -> list[CompanionConfig]:
        return expand(
            *(CompanionConfig(each, "app:run", lease=lease, **keys) for each, lease in leases.items())
        )

    world = World(configs(before), nature=Nature(obeys=2.0))
    try:
        world.advance(2)
        old = {name: world.ours(name)[0] for name in before if after.get(name) != before[name]}
        world.reread(configs(after))
        for _ in range(60):
            world.advance(0.1)
            for name, lease in after.items():
                new = [life for life in world.ours(name) if life is not old.get(name)]
                others = [life for each, life in old.items() if each != name and before[each] == lease]
                assert before.get(name) == lease or not new or all(life.empty for life in others)
        assert all(world.processes[name].state is State.RUNNING for name in after)
    finally:
        world.close()


def test_a_store_that_is_down_is_told_once(make_world) -> None:
    world = make_world()
    told: list[str] = []
    world.manager.leases.log.error = lambda text, *values: told.append(text % values)
    for why in ("no answer", "no answer", "refused"):
        world.keeper.on_message({"down": "file:///nowhere", "why": why})
    assert told == [f"Store of leases file:///nowhere: {why}" for why in ("no answer", "refused")]


def test_a_lease_that_a_reload_leaves_without_a_companion_is_told(make_world) -> None:
    world = make_world()
    told: list[str] = []
    world.manager.leases.log.info = lambda text, *values: told.append(text % values)
    world.reread([replace(world.configs[0], lease="other")])
    world.advance(6)
    assert "No companion needs lease shop any more: gave up lease shop (token 1)" in told
    assert "Companion rq: took lease other (token 1)" in told


def test_the_guard_learns_of_other_times_and_ways_by_a_reload(make_world) -> None:
    def reread(**keys: Any) -> None:
        world.reread([replace(world.configs[0], **keys)])
        world.advance(1)

    world = make_world(lease_on_loss="keep", lease_ttl=15)
    [life] = world.ours("rq")
    assert world.manager.leases.guard.watched == {}
    reread(lease_on_loss="stop")
    assert world.manager.leases.guard.watched[life.pid][4] == 0.75
    reread(lease_margin=4)
    assert world.manager.leases.guard.watched[life.pid][4] == 2
    reread(lease_on_loss="keep")
    assert world.manager.leases.guard.watched == {}
    # It has run on; and now it is to stop.
    world.store.up = False
    world.advance(20)
    assert life.alive and world.ours("rq") == [life]
    reread(lease_on_loss="stop")
    assert not life.alive
    assert world.processes["rq"].cause is Cause.LEASE


def test_no_two_leases_share_their_memory(make_world) -> None:
    world = make_world()
    used = world.processes["rq"].lease.slot
    world.manager.leases._slots = itertools.cycle([used, 7])
    others = [CompanionConfig(name, "app:db", lease=name, lease_store="file:///nowhere") for name in "db"]
    world.reread([*world.configs, *others[:1]])
    world.advance(1)
    assert world.processes["d"].lease.slot == 7
