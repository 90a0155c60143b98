# SPDX-License-Identifier: MIT
"""What is counted of companions never goes back, from one manager or master to the next."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gunicorn.companion import totals as totals_module
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.output.ring import Counters
from gunicorn.companion.process import Cause, Event
from gunicorn.companion.supervise.overrides import KeptState
from gunicorn.companion.supervise.sharedstate import SharedState
from gunicorn.companion.table import ProcessTable
from gunicorn.companion.totals import Totals


def entry(event: str, cause: Any = None, name: str = "rq", time: float = 100.0) -> dict[str, Any]:
    return {"event": event, "name": name, "cause": cause, "time": time}


def later(totals: Totals) -> Totals:
    """Those of the next manager."""
    return Totals(json.loads(json.dumps(totals.as_state())))


def test_entries_of_the_history_are_counted() -> None:
    totals = Totals()
    for each in (
        entry("start"),
        entry("exit", Cause.CRASH, time=101.0),
        entry("start failed", Cause.START_FAILED),
        entry("waiting", Cause.DEPENDENCY),
        entry("start"),
        entry("exit", Cause.CRASH),
        entry("exit", Cause.NOT_READY),
        entry("gave up", Cause.GAVE_UP),
    ):
        totals.note(each)
    totals.note_kill("rq", 102.0)
    expected = {
        "since": 100.0,
        "starts": 2,
        "kills": 1,
        "cpu": 0,
        "log_bytes": 0,
        "log_dropped_bytes": 0,
        "log_dropped_lines": 0,
        "ends": {"crash": 2, "not ready": 1},
        "failures": {"start failed": 1, "dependency": 1, "gave up": 1},
    }
    assert totals.of("rq") == expected
    assert later(totals).of("rq") == expected
    assert totals.of("unknown")["since"] is None


def test_processor_time_adds_up_over_processes_and_managers() -> None:
    totals = Totals()
    totals.note(entry("start"))
    totals.measured("rq", 2.5, None)
    assert totals.of("rq")["cpu"] == 2.5
    totals.note_end("rq", 3.0)
    totals.note(entry("start"))
    totals.measured("rq", 0.25, None)
    assert totals.of("rq")["cpu"] == 3.25
    after = later(totals)
    assert after.of("rq")["cpu"] == 3.25
    after.note(entry("start"))
    after.measured("rq", 0.5, None)
    assert after.of("rq")["cpu"] == 3.75


def test_the_time_of_a_lost_helper_is_kept_and_holds_up_nothing() -> None:
    totals = Totals()
    totals.note(entry("start"))
    totals.measured("rq", 60.0, None)
    totals.measured("rq", 1.0, None)
    assert totals.of("rq")["cpu"] == 60.0
    # wait(2) tells less than was seen: the rest ended with a process that nobody has waited for.
    totals.note_end("rq", 1.5)
    totals.note(entry("start"))
    totals.measured("rq", 0.5, None)
    assert totals.of("rq")["cpu"] == 60.5


def test_output_goes_on_from_what_was_told() -> None:
    totals = Totals()
    totals.measured("rq", None, Counters(1000, 10, 1))
    after = later(totals)
    # The rings of a new manager begin empty.
    after.measured("rq", None, Counters(0, 0, 0))
    assert after.of("rq")["log_bytes"] == 1000
    after.measured("rq", None, Counters(500, 0, 0))
    found = after.of("rq")
    assert [found[key] for key in totals_module.OUTPUT] == [1500, 10, 1]


def test_the_state_is_new_after_each_change() -> None:
    totals = Totals()
    totals.note(entry("start"))
    before = totals.as_state()
    assert totals.as_state() is before
    totals.measured("rq", 0.0, Counters(0, 0, 0))
    assert totals.as_state() is before
    totals.note(entry("start"))
    assert before["rq"]["starts"] == 1
    assert totals.as_state() != before


@pytest.mark.parametrize("state", [None, [], "x", {"rq": 1}, {"rq": {"starts": "many"}}])
def test_a_state_that_means_nothing_counts_nothing(state: Any) -> None:
    assert Totals(state).of("rq")["starts"] == 0


def test_names_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals_module, "NAMES_KEPT", 2)
    totals = Totals()
    for name in ("a", "b", "c"):
        totals.note(entry("start", name=name))
    assert list(totals.as_state()) == ["b", "c"]


def test_a_new_master_adds_what_the_old_one_still_counts(caplog: pytest.LogCaptureFixture) -> None:
    def kept(shared: SharedState, old: SharedState | None = None) -> KeptState:
        found = KeptState(shared, old, caplog)
        found.restore(ProcessTable(()))
        return found

    old_memory, new_memory = SharedState.create(), SharedState.create()
    old = kept(old_memory)
    old.totals.note(entry("start"))
    old.write()
    new = kept(new_memory, old_memory.copy())
    new.totals.note(entry("start"))
    new.write()
    old.totals.note(entry("exit", Cause.UPGRADE))
    old.totals.measured("rq", 1.0, None)
    old.write()
    shown = new.totals.of("rq", new.old_totals)
    assert (shown["starts"], shown["ends"], shown["cpu"]) == (2, {"upgrade": 1}, 1.0)
    # Another manager of the new master, while the old one is still there.
    second = kept(new_memory, old_memory.copy())
    assert second.totals.of("rq", second.old_totals) == shown
    assert second.part_from_old() is not None
    assert second.old_totals is None
    assert second.totals.of("rq") == shown
    second.totals.measured("rq", 0.5, None)
    assert second.totals.of("rq")["cpu"] == 1.5
    second.write()
    third = kept(new_memory, old_memory.copy())
    assert third.old_totals is None
    assert third.totals.of("rq")["cpu"] == 1.5
    old_memory.close()
    new_memory.close()


def test_ends_after_a_hand_over_are_counted_before_it(caplog: pytest.LogCaptureFixture) -> None:
    """The old manager's processes still run, and no one who counts sees their end."""
    memory = SharedState.create()
    kept = KeptState(memory, None, caplog)
    table = ProcessTable([CompanionConfig(name, target=print) for name in ("runs", "stopped")])
    kept.restore(table)
    table.send(table["runs"], Event.START, 0.0)
    table.send(table["runs"], Event.FORKED, 0.0, pid=4713)
    table.send(table["runs"], Event.STOP, 0.0, cause=Cause.RELOAD)
    kept.hand_over()
    later = KeptState(memory, None, caplog).totals
    assert later.of("runs")["ends"] == {"reload": 1}
    assert later.of("stopped")["ends"] == {}
    memory.close()
