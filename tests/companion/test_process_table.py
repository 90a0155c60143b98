# SPDX-License-Identifier: MIT
"""The table of companions: who is meant by a name or a pid, who is told of an event, and what counts."""

from __future__ import annotations

import pytest
from processtools import T0

from gunicorn.companion.config import CompanionConfig, copies
from gunicorn.companion.process import Event, State, TransitionError
from gunicorn.companion.table import BACKOFFS, KILLS, RESTARTS, Change, ProcessTable, Snapshot, counted


def make(*names: str) -> ProcessTable:
    return ProcessTable([CompanionConfig(name, "app:run") for name in names])


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("db", ["db"]),
        ("rq", ["rq:0", "rq:1"]),
        ("rq:1", ["rq:1"]),
        ("rq:*", ["rq:0", "rq:1"]),
        ("worker-*", ["worker-2", "worker-1"]),
        ("worker-?", ["worker-2", "worker-1"]),
        ("*[q1]", ["worker-1", "rq:1"]),
        ("*", ["worker-2", "db", "worker-1", "rq:0", "rq:1"]),
        ("rq:[1-9]", ["rq:1"]),
        ("work", []),
        ("rq:2", []),
        ("x*", []),
        ("@jobs", ["worker-1", "rq:0", "rq:1"]),
        ("@night", ["rq:0", "rq:1"]),
        ("@rq", []),
        ("@", []),
        ("@night*", []),
    ],
)
def test_what_a_name_means(name, names):
    table = make("worker-2", "db")
    table.add(CompanionConfig("worker-1", "app:run", groups=("jobs",)))
    for config in copies(CompanionConfig("rq", "app:run", numprocs=2, groups=("night", "jobs")), 2):
        table.add(config)
    assert [process.name for process in table.chosen(name)] == names


def test_companions_are_in_the_order_of_the_configuration() -> None:
    table = make("b", "gone", "a")
    table.add(CompanionConfig("new", "app:run"))
    table.arrange(["new", "a", "b"])
    assert list(table) == ["new", "a", "b", "gone"]


def test_a_pid_means_a_companion_from_its_fork_to_its_exit() -> None:
    table = make("a", "b")
    for number, process in enumerate(table.values()):
        table.send(process, Event.START, T0)
        table.send(process, Event.FORKED, T0, pid=41 + number)
    assert (table.by_pid(41), table.by_pid(42), table.by_pid(43)) == (table["a"], table["b"], None)
    table.send(table["a"], Event.EXITED, T0 + 2, status=0)
    assert (table.by_pid(41), table.by_pid(42)) == (None, table["b"])


def test_observers_are_told_in_their_order_what_was_and_what_is_to_be_done() -> None:
    table = make("a")
    process = table["a"]
    told: list[tuple[str, Change]] = []
    table.observers = [lambda change: told.append(("1", change)), lambda change: told.append(("2", change))]
    table.send(process, Event.START, T0)
    change = Change(process, Snapshot(State.STOPPED, 0, 0), (), T0, Event.START)
    assert told == [("1", change), ("2", change)]
    assert process.state is State.STARTING
    with pytest.raises(TransitionError):
        table.send(process, Event.DEADLINE, T0)
    assert len(told) == 2


@pytest.mark.parametrize(("event", "changed"), [(Event.BEAT, False), (Event.READY, True)])
def test_a_sign_of_life_alone_needs_no_look(event: Event, changed: bool) -> None:
    table = make("a")
    table.send(table["a"], Event.START, T0)
    table.send(table["a"], Event.FORKED, T0, pid=42)
    table.changed = False
    table.send(table["a"], event, T0)
    assert table.changed is changed


def test_a_name_that_is_added_again_keeps_its_companion() -> None:
    table = make("a")
    process = table["a"]
    assert table.add(CompanionConfig("a", "app:other")) is process
    table.remove(process)
    assert "a" not in table
    assert table.add(process.config) is not process


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((State.STOPPED, 0, 0), (State.STARTING, 0, 0), {}),
        ((State.STARTING, 0, 0), (State.RUNNING, 0, 0), {}),
        ((State.STARTING, 0, 0), (State.STARTING, 1, 0), {RESTARTS: 1}),
        ((State.RUNNING, 1, 0), (State.BACKOFF, 1, 0), {BACKOFFS: 1}),
        ((State.STARTING, 1, 0), (State.BACKOFF, 1, 0), {BACKOFFS: 1}),
        ((State.BACKOFF, 1, 0), (State.BACKOFF, 1, 0), {}),
        ((State.BACKOFF, 1, 0), (State.STOPPED, 1, 0), {}),
        ((State.STOPPING, 1, 0), (State.STOPPING, 1, 1), {KILLS: 1}),
        ((State.STOPPING, 1, 1), (State.STOPPED, 1, 1), {}),
    ],
)
def test_which_step_counts_as_what(
    before: tuple[State, int, int], after: tuple[State, int, int], expected: dict[str, int]
) -> None:
    assert counted(Snapshot(*before), Snapshot(*after)) == expected
