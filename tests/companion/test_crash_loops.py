# SPDX-License-Identifier: MIT
"""Companions that crash again and again: their starts and what the log has of them, over ten minutes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from processtools import T0, failure
from processworld import CALM, Nature, World

from gunicorn.companion.checks import StartLimit
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.process import Event, State
from gunicorn.companion.table import Change

MINUTES = 600.0
# The lines of a traceback.
TRACEBACK = 20


class Lines(logging.Handler):
    """Keeps what a server with the default `loglevel` would log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture
def make_world() -> Iterator[Callable[..., tuple[World, list[str]]]]:
    worlds: list[World] = []
    handler, log = Lines(), logging.Logger("crash loops")
    log.addHandler(handler)

    def make(nature: Nature, **keys: Any) -> tuple[World, list[str]]:
        world = World([CompanionConfig("rq", "app:rq", **keys)], nature=nature, log=log)
        worlds.append(world)
        return world, handler.lines

    yield make
    for world in worlds:
        world.close()


@pytest.mark.parametrize(("life", "starts"), [(0.1, range(12, 15)), (1.3, range(12, 15)), (30, range(8, 11))])
def test_ten_minutes_of_a_crash_loop(
    make_world: Callable[..., tuple[World, list[str]]], life: float, starts: range
) -> None:
    world, lines = make_world(Nature(dies=life, status=failure()))
    world.advance(MINUTES)
    assert len(world.launches) in starts
    # All but the first print a line in the place of their tracebacks.
    full = sum(not launch.repeats for launch in world.launches)
    assert full == 1
    # A run of 10 s, or twice as long as that before, is another trouble.
    assert world.launches[1].repeats_until == T0 + life + 5 + max(10, 2 * life)
    assert len(lines) + full * TRACEBACK + len(world.launches) - full < 60
    # At the first, the second, and the latest failure.
    assert lines[0].startswith("INFO Starting companion rq (pid ")
    ends = [line for line in lines if "exited with status 1" in line]
    assert ends[0].endswith(" exited with status 1, cause: crash; restarting in 5s")
    assert "; failed 2 times in a row" in ends[1]
    count = world.processes["rq"].failures.count
    assert count > 7
    assert int(ends[-1].split()[-5]) in (count, count - 1), ends[-1]
    assert sum("Starting companion rq" in line for line in lines) == 3
    assert sum("rq is RUNNING" in line for line in lines) == (3 if life > 1 else 0)
    assert all(line.startswith("WARNING Companion rq (pid ") for line in ends)

    world.nature = CALM
    world.advance(60)
    pid = world.processes["rq"].pid
    world.advance(MINUTES)
    assert world.processes["rq"].pid == pid
    exits = world.processes["rq"].exit_count
    assert lines[-1] == f"INFO Companion rq has recovered after {exits} failures in a row"


@pytest.mark.parametrize("forks", [True, False])
def test_a_loop_without_a_delay_is_one_line_a_minute(
    make_world: Callable[..., tuple[World, list[str]]], forks: bool
) -> None:
    world, lines = make_world(Nature(dies=0.1, forks=forks), restart_delay=0, restart_delay_max=None)
    world.advance(150)
    assert len(world.launches) > 130
    assert len(lines) < 12
    assert lines[-1].endswith(" times in a row")


def test_one_that_ends_well_each_time_waits_for_the_shortest_delay(
    make_world: Callable[..., tuple[World, list[str]]],
) -> None:
    world, lines = make_world(Nature(dies=3, status=0))
    world.advance(MINUTES)
    assert len(world.launches) == 1 + MINUTES // 8
    assert not any("in a row" in line for line in lines)


def test_giving_up_and_trying_again(make_world: Callable[..., tuple[World, list[str]]]) -> None:
    told: list[tuple[str, str | None]] = []
    world, lines = make_world(
        Nature(dies=2), restart_delay=1, start_limit=StartLimit(5, 60), retry_after=120, autostart=False
    )
    world.manager.hooks.on_give_up = lambda manager, companion: told.append((companion.name, companion.spent))
    retries: list[float] = []

    def note(change: Change) -> None:
        if change.before.state is State.STOPPED and change.event is Event.DELAY_PASSED:
            retries.append(change.now)

    world.manager.table.observers.append(note)
    begun = world.kernel.time
    world.start("rq")
    world.settle()
    world.advance(MINUTES)
    # Delays of 1, 2, 4 and 8 s; the next one would be 16 s, and the sixth start within a minute.
    given_up = next(line for line in lines if "gave up" in line)
    verdict = "gave up after 5 starts within 60s: exited with status 1; next try in 2m"
    assert given_up == f"ERROR Companion rq {verdict}"
    assert told[0] == ("rq", "5 starts within 60s")
    assert len(told) == len(retries) or len(told) == len(retries) + 1
    assert retries[0] == pytest.approx(begun + 5 * 2 + 15 + 120, abs=2)
    assert len(world.launches) >= 5 * len(retries)
    entries = [entry for entry in world.manager.kept.history.entries if entry["event"] == "gave up"]
    assert entries[0]["description"] == verdict
    # A server that stops tries nothing again, and a next manager at the same time.
    world.advance((world.processes["rq"].retry_at or world.kernel.time) - world.kernel.time - 1)
    while world.processes["rq"].state is not State.STOPPED:
        world.advance(1)
    at = world.processes["rq"].retry_at
    world.kill_the_manager()
    assert world.processes["rq"].retry_at == at is not None
    started = len(world.launches)
    world.advance(at - world.kernel.time)
    assert len(world.launches) == started + 1
    world.advance(60)
    assert world.processes["rq"].state is State.STOPPED
    world.stop_all()
    world.settle()
    world.advance(MINUTES)
    assert world.manager.finished
