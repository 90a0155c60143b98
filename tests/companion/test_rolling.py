# SPDX-License-Identifier: MIT
"""Restarts that take turns: whose turn it is, and that never two copies are down for them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from processtools import T0, failure

from gunicorn.companion.config import CompanionConfig, copies
from gunicorn.companion.process import Action, Cause, CompanionProcess, Event, State
from gunicorn.companion.supervise import memory
from gunicorn.companion.supervise.memory import Limits
from gunicorn.companion.supervise.order import DOWN, Rolling

Processes = dict[str, CompanionProcess]


def make(numprocs: int | None = 4, name: str = "rq", **values) -> Processes:
    config = CompanionConfig(name, "app:run", numprocs=numprocs, **values)
    return {config.name: CompanionProcess(config) for config in copies(config, numprocs)}


PIDS = itertools.count(100)


def bring(processes: Processes, state: State, *names: str) -> None:
    """Bring those *names* (or all) that are STOPPED into *state*."""
    for name in names or processes:
        process = processes[name]
        if state is State.STOPPED:
            continue
        process.handle(Event.START, T0)
        process.handle(Event.FORKED, T0, pid=next(PIDS))
        if state is not State.STARTING:
            process.handle(Event.ALIVE, T0 + 1)
        if state is State.BACKOFF:
            process.handle(Event.EXITED, T0 + 2, status=failure())
            process.handle(Event.EMPTY, T0 + 2)
        if state is State.STOPPING:
            process.handle(Event.STOP, T0 + 2, manual=True)
        assert process.state is state


def running(numprocs: int | None = 4, **values) -> Processes:
    processes = make(numprocs, **values)
    bring(processes, State.RUNNING)
    return processes


def turns(rolling: Rolling, processes: Processes) -> list[str]:
    return [process.name for process, *_ in rolling.turns(processes)]


def restart(rolling: Rolling, processes: Processes) -> list[str]:
    """Whose turn it is, after which they are on their way."""
    found = [process for process, *_ in rolling.turns(processes)]
    for process in found:
        process.handle(Event.RESTART, T0 + 10)
    return [process.name for process in found]


def come_back(process: CompanionProcess) -> None:
    if process.pid is not None:
        process.handle(Event.EXITED, T0 + 11, status=0)
    if process.session is not None:
        process.handle(Event.EMPTY, T0 + 11)
    process.handle(Event.FORKED, T0 + 12, pid=900)
    process.handle(Event.ALIVE, T0 + 13)


def test_one_after_the_other_in_the_order_in_which_they_were_asked_for():
    processes = running(4)
    rolling = Rolling()
    order = ["rq:2", "rq:0", "rq:3", "rq:1"]
    for name in order:
        assert rolling.ask(name, "by command")
    for number, name in enumerate(order):
        assert restart(rolling, processes) == [name]
        assert name not in rolling
        process = processes[name]
        # Nobody else's turn until it is RUNNING again.
        assert turns(rolling, processes) == []
        process.handle(Event.EXITED, T0 + 11, status=0)
        assert turns(rolling, processes) == []
        process.handle(Event.EMPTY, T0 + 11)
        assert (process.state, turns(rolling, processes)) == (State.STARTING, [])
        process.handle(Event.FORKED, T0 + 11, pid=200 + number)
        assert turns(rolling, processes) == []
        process.handle(Event.ALIVE, T0 + 12)
    assert turns(rolling, processes) == []
    assert not rolling


def test_asking_twice_is_asking_once():
    processes = running(2)
    rolling = Rolling()
    assert rolling.ask("rq:0", "first")
    assert not rolling.ask("rq:0", "second")
    assert [(process.name, *why) for process, *why in rolling.turns(processes)] == [
        ("rq:0", "first", Cause.COMMAND)
    ]
    assert not rolling
    assert rolling.ask("rq:0", "third")


@pytest.mark.parametrize("state", State)
def test_whether_another_copy_is_waited_for(state):
    processes = make(2)
    bring(processes, State.RUNNING, "rq:0")
    bring(processes, state, "rq:1")
    rolling = Rolling()
    rolling.ask("rq:0", "by command")
    assert turns(rolling, processes) == ([] if state in DOWN else ["rq:0"])
    assert ("rq:0" in rolling) is (state in DOWN)


def test_a_copy_that_keeps_starting_keeps_the_others_up():
    processes = make(3)
    bring(processes, State.RUNNING, "rq:0", "rq:2")
    bring(processes, State.BACKOFF, "rq:1")
    rolling = Rolling()
    for name in ("rq:0", "rq:2"):
        rolling.ask(name, "max_memory")
    assert turns(rolling, processes) == []
    processes["rq:1"].handle(Event.STOP, T0 + 5, manual=True)
    assert restart(rolling, processes) == ["rq:0"]
    assert turns(rolling, processes) == []


def test_a_copy_that_is_down_goes_first_and_the_others_wait_for_it():
    processes = make(3)
    bring(processes, State.RUNNING, "rq:0", "rq:1")
    bring(processes, State.BACKOFF, "rq:2")
    rolling = Rolling()
    for name in processes:
        rolling.ask(name, "by command")
    assert restart(rolling, processes) == ["rq:2"]
    assert restart(rolling, processes) == []
    come_back(processes["rq:2"])
    assert restart(rolling, processes) == ["rq:0"]


def test_all_that_are_down_may_go_together():
    processes = make(3)
    bring(processes, State.RUNNING, "rq:0")
    bring(processes, State.BACKOFF, "rq:1", "rq:2")
    rolling = Rolling()
    for name in processes:
        rolling.ask(name, "by command")
    assert restart(rolling, processes) == ["rq:1", "rq:2"]


def test_sets_take_their_turns_on_their_own():
    processes = {**running(2), **running(2, name="mail"), **running(None, name="cron")}
    rolling = Rolling()
    for name in processes:
        rolling.ask(name, "by command")
    assert restart(rolling, processes) == ["rq:0", "mail:0", "cron"]
    assert restart(rolling, processes) == []


def test_a_single_companion_waits_for_none():
    processes = running(None)
    rolling = Rolling()
    rolling.ask("rq", "max_lifetime")
    assert restart(rolling, processes) == ["rq"]


@pytest.mark.parametrize("state", [State.STOPPED, State.STOPPING])
def test_a_stopped_copy_needs_no_restart(state):
    processes = make(2)
    bring(processes, state, "rq:0")
    rolling = Rolling()
    rolling.ask("rq:0", "by command")
    assert turns(rolling, processes) == []
    assert not rolling


def test_a_copy_without_a_process_needs_no_restart():
    processes = make(1)
    processes["rq:0"].handle(Event.START, T0)
    rolling = Rolling()
    rolling.ask("rq:0", "by command")
    assert turns(rolling, processes) == []
    assert not rolling


def test_a_starting_copy_may_have_old_code_and_is_restarted():
    processes = make(1)
    bring(processes, State.STARTING)
    rolling = Rolling()
    rolling.ask("rq:0", "by command")
    assert turns(rolling, processes) == ["rq:0"]


def test_a_removed_copy_is_forgotten():
    processes = running(3)
    rolling = Rolling()
    for name in processes:
        rolling.ask(name, "by command")
    processes["rq:0"].removed = True
    del processes["rq:1"]
    assert turns(rolling, processes) == ["rq:2"]
    assert not rolling


def changed(rolling: Rolling, processes: Processes, **keys) -> dict[str, CompanionConfig]:
    """Ask for other configurations of all *processes*."""
    configs = {name: replace(process.config, **keys) for name, process in processes.items()}
    for config in configs.values():
        rolling.change(config, "its configuration has changed", Cause.RELOAD)
    return configs


def test_a_change_reaches_a_copy_when_its_turn_comes():
    processes, rolling = running(3), Rolling()
    old = processes["rq:0"].config
    new = changed(rolling, processes, max_memory=1000)
    for number, name in enumerate(processes):
        assert restart(rolling, processes) == [name]
        assert processes[name].config is new[name]
        assert [rolling.config_of(process) for process in processes.values()] == list(new.values())
        # Until it runs, the others are left alone.
        assert restart(rolling, processes) == []
        come_back(processes[name])
        assert sum(process.config is not new[process.name] for process in processes.values()) == 2 - number
    assert old not in [process.config for process in processes.values()]


def test_a_copy_that_restarts_meanwhile_takes_the_change_with_it():
    processes, rolling = running(3), Rolling()
    new = changed(rolling, processes, max_memory=1000)
    assert restart(rolling, processes) == ["rq:0"]
    processes["rq:2"].handle(Event.STOP, T0 + 10, manual=True)
    assert restart(rolling, processes) == []
    assert processes["rq:2"].config is new["rq:2"] and "rq:2" not in rolling
    assert processes["rq:1"].config is not new["rq:1"]


def test_a_copy_that_gives_up_stops_the_change_of_the_others():
    processes, rolling = {**running(3), **running(2, name="mail")}, Rolling()
    changed(rolling, processes, max_memory=1000, start_retries=0)
    assert sorted(restart(rolling, processes)) == ["mail:0", "rq:0"]
    assert list(rolling.stop_changes(processes)) == []
    first = processes["rq:0"]
    first.handle(Event.EXITED, T0 + 11, status=0)
    first.handle(Event.EMPTY, T0 + 11)
    first.handle(Event.FORKED, T0 + 12, pid=900)
    first.handle(Event.EXITED, T0 + 12, status=failure())
    first.handle(Event.EMPTY, T0 + 12)
    assert first.state is State.STOPPED
    assert list(rolling.stop_changes(processes)) == [(first, ["rq:1", "rq:2"])]
    assert list(rolling.stop_changes(processes)) == [] and "mail:1" in rolling and "rq:1" not in rolling
    assert processes["rq:1"].config.max_memory is None
    # By command they take it all the same; a later change is tried again.
    assert [rolling.stopped_by(name) for name in processes] == [None, "rq:0", "rq:0", None, None]
    rolling.resume(processes["rq:1"])
    assert processes["rq:1"].config.max_memory == 1000 and rolling.stopped_by("rq:1") is None
    rolling.ask_again(processes["rq:2"], "by command, in turn")
    assert rolling.config_of(processes["rq:2"]).max_memory == 1000 and rolling.stopped_by("rq:2") is None
    rolling.ask_again(processes["rq:1"], "by command, in turn")
    assert "rq:1" in rolling


def test_a_change_that_is_taken_back():
    processes, rolling = running(2), Rolling()
    changed(rolling, processes, max_memory=1000)
    rolling.ask("rq:1", "max_lifetime", processes["rq:1"].pid, Cause.LIFETIME)
    for name in ("rq:0", "rq:1", "nobody"):
        rolling.drop_change(name)
    assert not rolling
    assert rolling.config_of(processes["rq:0"]).max_memory is None


def test_a_limit_is_about_one_process_and_not_about_the_next():
    processes = running(2)
    old = processes["rq:0"].pid
    rolling = Rolling()
    rolling.ask("rq:0", "max_lifetime", old)
    processes["rq:1"].handle(Event.EXITED, T0 + 5, status=failure())
    assert turns(rolling, processes) == []
    # It ends by itself meanwhile: its delay is not cut short, and the new one has done nothing.
    processes["rq:0"].handle(Event.EXITED, T0 + 5, status=failure())
    assert turns(rolling, processes) == []
    assert "rq:0" not in rolling
    assert processes["rq:0"].state is State.BACKOFF


def test_a_restart_in_turn_is_an_ordinary_one():
    processes = running(2, stop_timeout=5, reload_timeout=40)
    rolling = Rolling()
    rolling.ask("rq:1", "by command")
    ((process, *_),) = rolling.turns(processes)
    assert process.handle(Event.RESTART, T0 + 10) == (Action.SIGNAL,)
    assert process.stop_deadline == T0 + 50


def fail(process: CompanionProcess, times: int) -> None:
    """It is RUNNING and then in BACKOFF, for the so-many-th time in a row."""
    now = T0 + 100
    for number in range(times):
        now += 1
        if number:
            process.handle(Event.DELAY_PASSED, now)
            process.handle(Event.FORKED, now, pid=next(PIDS))
        process.handle(Event.EXITED, now, status=failure())
        process.handle(Event.EMPTY, now)
    assert process.state is State.BACKOFF


@pytest.mark.parametrize("times", [1, 2, 3, 9])
@pytest.mark.parametrize("starting", [False, True])
def test_a_limit_does_not_wait_for_a_copy_that_keeps_failing(times, starting):
    processes = running(3)
    first, second, third = processes.values()
    fail(second, times)
    if starting:
        second.handle(Event.DELAY_PASSED, T0 + 200)
    rolling = Rolling()
    rolling.ask(first.name, "memory", first.pid, Cause.MEMORY)
    rolling.ask(third.name, "memory", third.pid, Cause.MEMORY)
    assert restart(rolling, processes) == (["rq:0"] if times >= 3 else [])
    if times >= 3:
        # One at a time, all the same.
        assert restart(rolling, processes) == []
        come_back(first)
        assert restart(rolling, processes) == ["rq:2"]


def test_a_restart_by_command_waits_for_it():
    processes = running(2)
    fail(processes["rq:1"], 5)
    rolling = Rolling()
    rolling.ask("rq:0", "by command")
    assert turns(rolling, processes) == []


def test_a_limit_applies_to_a_copy_that_waits_for_a_restart_by_command():
    processes = running(2)
    fail(processes["rq:1"], 5)
    rolling = Rolling()
    assert rolling.ask("rq:0", "by command")
    assert turns(rolling, processes) == []
    pid = processes["rq:0"].pid
    assert rolling.ask("rq:0", "memory", pid, Cause.MEMORY)
    assert not rolling.ask("rq:0", "lifetime", pid, Cause.LIFETIME)
    assert not rolling.ask("rq:0", "by command")
    assert [(each.name, *why) for each, *why in rolling.turns(processes)] == [
        ("rq:0", "memory", Cause.MEMORY)
    ]


def test_a_limit_waits_for_the_companions_in_after():
    processes = {**running(2, after=("db",)), **running(None, name="db")}
    db = processes["db"]
    db.handle(Event.STOP, T0 + 5, manual=True)
    rolling = Rolling()
    rolling.ask("rq:0", "max_lifetime", processes["rq:0"].pid, Cause.LIFETIME)
    assert turns(rolling, processes) == []
    assert "rq:0" in rolling
    db.handle(Event.EXITED, T0 + 6, status=0)
    db.handle(Event.EMPTY, T0 + 6)
    assert turns(rolling, processes) == []
    # Somebody who asks for a restart gets it.
    rolling.ask("rq:1", "by command")
    assert restart(rolling, processes) == ["rq:1"]
    come_back(processes["rq:1"])
    bring(processes, State.RUNNING, "db")
    assert restart(rolling, processes) == ["rq:0"]


# -- max_memory ----------------------------------------------------------------


class Log:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str, *args: object) -> None:
        self.warnings.append(text % args)


def memory_restarts(monkeypatch, over_after: float, seconds: float) -> tuple[list[float], list[str]]:
    """The age at each restart of one whose memory exceeds its limit *over_after* its start; the warnings."""
    (process,) = make(None, max_memory=2**20, startsecs=0).values()
    processes = {process.name: process}
    rolling, log = Rolling(), Log()
    limits = Limits(rolling, log)
    ages: list[float] = []
    now = T0

    def beyond(limits: object, more: object) -> dict[int, int]:
        assert process.session is not None and process.started_at is not None
        return {process.session: 2**21} if now - process.started_at >= over_after else {}

    monkeypatch.setattr(memory, "beyond", beyond)
    while now < T0 + seconds:
        if process.state is State.STOPPED:
            process.handle(Event.START, now)
        if process.state is State.STARTING:
            process.handle(Event.FORKED, now, pid=next(PIDS))
            process.handle(Event.ALIVE, now)
        limits.check([process], now)
        for each, _reason, cause in list(rolling.turns(processes)):
            assert cause is Cause.MEMORY
            ages.append(now - (each.started_at or 0))
            each.handle(Event.RESTART, now)
            each.handle(Event.EXITED, now, status=0)
            each.handle(Event.EMPTY, now)
        now += 1
    return ages, log.warnings


def test_a_companion_that_needs_more_memory_is_left_alone_longer_each_time(monkeypatch):
    ages, warnings = memory_restarts(monkeypatch, over_after=0, seconds=3600)
    assert len(ages) < 15
    assert all(later >= 1.5 * earlier or later >= 600 for earlier, later in itertools.pairwise(ages))
    assert ages[0] <= 10 and 600 <= ages[-1] <= 610
    assert len(warnings) == len(ages) - 2
    assert warnings[0] == (
        "Companion rq exceeds its max_memory soon after each start, 3 times in a row: does it need"
        " more? After the next start the limit is ignored for 40s"
    )


def test_a_slowly_growing_companion_is_restarted_at_once(monkeypatch):
    ages, warnings = memory_restarts(monkeypatch, over_after=90, seconds=3600)
    assert len(ages) > 30 and all(90 <= age <= 96 for age in ages)
    assert warnings == []


# -- max_lifetime ------------------------------------------------------------


def test_a_lifetime_counts_from_the_fork_and_has_its_share_of_the_jitter():
    config = CompanionConfig("rq", "app:run", max_lifetime=100, max_lifetime_jitter=20)
    draws = iter([0.25, 1.0])
    process = CompanionProcess(config, chance=lambda: next(draws))
    assert process.expires_at is None
    process.handle(Event.START, T0)
    process.handle(Event.FORKED, T0, pid=1)
    assert process.expires_at == T0 + 105
    # Not before it is RUNNING, and then when its time has come.
    assert not process.is_expired(T0 + 200)
    process.handle(Event.ALIVE, T0 + 1)
    assert process.next_deadline(T0 + 1) == T0 + 105
    assert not process.is_expired(T0 + 104.9)
    assert process.is_expired(T0 + 105)
    # Its turn may be long in coming; no clock tells when.
    assert process.next_deadline(T0 + 105) is None
    process.handle(Event.RESTART, T0 + 105)
    assert not process.is_expired(T0 + 105)
    process.handle(Event.EXITED, T0 + 106, status=0)
    process.handle(Event.EMPTY, T0 + 106)
    process.handle(Event.FORKED, T0 + 110, pid=2)
    assert process.expires_at == T0 + 230


def test_a_reread_lifetime_applies_to_running_companions():
    processes = running(None)
    (process,) = processes.values()
    assert process.expires_at is None
    process.config = CompanionConfig("rq", "app:run", max_lifetime=50)
    assert process.is_expired(T0 + 50)
    process.config = CompanionConfig("rq", "app:run")
    assert not process.is_expired(T0 + 1e9)


def test_copies_that_started_together_do_not_expire_together():
    processes = running(20, max_lifetime=100, max_lifetime_jitter=50)
    times = {process.expires_at for process in processes.values()}
    assert len(times) == 20
    assert all(T0 + 100 <= moment <= T0 + 150 for moment in times if moment is not None)
