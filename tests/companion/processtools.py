# SPDX-License-Identifier: MIT
"""Companions brought into each state by events alone, at times that the tests know."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.process import Action, CompanionProcess, Event, State

T0 = 1000.0


def failure(code: int = 1) -> int:
    """The wait status of an exit with *code*."""
    return code << 8


def make(chance: Callable[[], float] = lambda: 0.5, **values: Any) -> CompanionProcess:
    """A STOPPED one. *chance* stands for every random number."""
    settings: dict[str, Any] = {"stop_timeout": 60, "reload_timeout": 30, "startsecs": 1, "restart_delay": 5}
    # A delay that stays the same is easier to follow.
    settings["restart_delay_max"] = None
    return CompanionProcess(CompanionConfig("rq", "app:run", **{**settings, **values}), chance)


def starting(**values: Any) -> CompanionProcess:
    process = make(**values)
    process.handle(Event.START, T0)
    process.handle(Event.FORKED, T0, pid=42)
    return process


def running(**values: Any) -> CompanionProcess:
    process = starting(**values)
    process.handle(Event.READY if process.config.ready == "notify" else Event.ALIVE, T0 + 1)
    return process


def backoff(**values: Any) -> CompanionProcess:
    process = running(**values)
    end(process, T0 + 10)
    return process


def stopping(**values: Any) -> CompanionProcess:
    process = running(**values)
    process.handle(Event.STOP, T0 + 10, manual=True)
    return process


def restarting(**values: Any) -> CompanionProcess:
    process = running(**values)
    process.handle(Event.RESTART, T0 + 10)
    return process


def end(process: CompanionProcess, now: float, status: int = failure(), **details: Any) -> tuple[Action, ...]:
    """Its process exits, and nothing of the session is left."""
    actions = process.handle(Event.EXITED, now, status=status, **details)
    return (*actions, *process.handle(Event.EMPTY, now))


def start_again(process: CompanionProcess, pid: int = 43) -> float:
    """Let its delay pass and fork; return when that is."""
    assert process.state is State.BACKOFF
    assert process.next_retry_at is not None
    now = process.next_retry_at
    assert process.due_event(now) is Event.DELAY_PASSED
    process.handle(Event.DELAY_PASSED, now)
    assert process.can_start(now)
    process.handle(Event.FORKED, now, pid=pid)
    return now


def run_for(process: CompanionProcess, seconds: float, status: int = failure(), **details: Any) -> float:
    """What the manager would send until its process exits after *seconds*; return when that is."""
    assert process.started_at is not None
    end_at = process.started_at + seconds
    if process.config.ready == "startsecs" and seconds > process.config.startsecs:
        process.handle(Event.ALIVE, process.started_at + process.config.startsecs)
    end(process, end_at, status, **details)
    return end_at


SEGFAULT = int(signal.SIGSEGV) | 0x80
