# SPDX-License-Identifier: MIT
"""The history of companions: what is kept, in which words, and for whom."""

from __future__ import annotations

import json
import signal
from typing import Any

from processtools import T0

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.process import Cause, Event
from gunicorn.companion.table import ENDS_KEPT, EVENTS_KEPT, History, ProcessTable


def observed(history: History, **values: Any) -> ProcessTable:
    table = ProcessTable([CompanionConfig("rq", "app:run", **values), CompanionConfig("b", "app:run")])
    table.observers = [history.observe]
    return table


def run(table: ProcessTable, pid: int, status: int, **details: Any) -> None:
    process = table["rq"]
    now = T0 + pid
    table.send(process, Event.START, now)
    table.send(process, Event.FORKED, now, pid=pid)
    table.send(process, Event.EXITED, now + 61, status=status, **details)
    table.send(process, Event.EMPTY, now + 61)


def test_starts_and_ends_are_described() -> None:
    history = History({})
    told: list[str] = []
    history.tell = lambda entry: told.append(entry["event"])
    table = observed(history)
    run(table, 41, 256, exception="KeyError: 'price'")
    run(table, 42, signal.SIGKILL)
    run(table, 43, signal.SIGKILL, cause=Cause.OOM)
    run(table, 44, 0)
    table.send(table["rq"], Event.DELAY_PASSED, T0 + 900)
    table.send(table["rq"], Event.START_FAILED, T0 + 900, reason="cannot fork: out of memory")
    assert [(entry["event"], entry["description"]) for entry in history.entries] == [
        ("start", "pid 41"),
        ("exit", "pid 41 after 00:01:01: crash, exited with status 1 (KeyError: 'price')"),
        ("start", "pid 42"),
        ("exit", "pid 42 after 00:01:01: killed by SIGKILL"),
        ("start", "pid 43"),
        ("exit", "pid 43 after 00:01:01: oom, killed by the kernel for memory"),
        ("start", "pid 44"),
        ("exit", "pid 44 after 00:01:01: exited with status 0"),
        ("start failed", "start failed, cannot fork: out of memory"),
    ]
    assert told == [entry["event"] for entry in history.entries]
    last = history.ends_of("rq")[0]
    assert (last["pid"], last["exit_code"], last["signal"], last["uptime"]) == (44, 0, None, 61)
    assert [entry["signal"] for entry in history.ends_of("rq")] == [None, "SIGKILL", "SIGKILL", None]
    assert history.ends_of("b") == []


def test_an_end_by_command_and_giving_up() -> None:
    history = History({})
    table = observed(history, start_retries=1, startsecs=100)
    process = table["rq"]
    table.send(process, Event.START, T0)
    table.send(process, Event.FORKED, T0, pid=41)
    table.send(process, Event.STOP, T0 + 1, manual=True)
    table.send(process, Event.EXITED, T0 + 2, status=signal.SIGTERM)
    table.send(process, Event.EMPTY, T0 + 2)
    run(table, 42, 256)
    assert [entry["description"] for entry in history.entries] == [
        "pid 41",
        "pid 41 after 00:00:02: command",
        "pid 42",
        "pid 42 after 00:01:01: crash, exited with status 1",
        "gave up after 1 failed start: exited with status 1",
    ]


def test_the_next_manager_has_what_is_kept() -> None:
    history = History({})
    table = observed(history)
    for pid in range(41, 41 + EVENTS_KEPT):
        run(table, pid, 0)
    state = history.as_state()
    assert state is history.as_state()
    later = History(json.loads(json.dumps(state)))
    assert list(later.entries) == list(history.entries)
    assert len(later.entries) == EVENTS_KEPT
    assert [entry["pid"] for entry in later.ends_of("rq")] == [140, 139, 138, 137, 136][:ENDS_KEPT]
    later.forget("rq")
    assert later.ends_of("rq") == []
    assert len(later.entries) == EVENTS_KEPT
    assert later.as_state()["ends"] == {}


def test_the_state_of_another_version_is_no_reason_to_fail() -> None:
    for state in ({}, {"history": 3, "ends": []}, {"history": [1, {"event": "start"}], "ends": {"a": None}}):
        history = History(state)
        assert list(history.entries) == []
        assert history.ends_of("a") == []
