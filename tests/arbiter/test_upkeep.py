# SPDX-License-Identifier: MIT
"""Which workers the master replaces, and how it follows the load."""

from __future__ import annotations

import logging
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn.master import care
from gunicorn.master.pool import WorkerRecord
from gunicorn.master.upkeep import Upkeep
from gunicorn.memory import INTERVAL

NOW = 1000.0


class Crew(Upkeep):
    """A master with workers that are older the lower their pid, and began to serve 100 s ago."""

    num_workers = 3

    def __init__(self, pids: str = "123", **settings: Any) -> None:
        super().__init__()
        names = ("max_requests", "max_memory", "max_lifetime", "max_lifetime_jitter", "workers_max")
        self.cfg = SimpleNamespace(**{**dict.fromkeys(names, 0), "workers_spare": 1, **settings})
        self.cfg.graceful_timeout = 30
        self.log = logging.getLogger("crew")
        self.worker_class = SimpleNamespace(places=lambda cfg: 2)
        self.told: list[tuple[int, int]] = []
        for pid in map(int, pids):
            tmp = SimpleNamespace(last_update=lambda: 1.0, due=False)
            slot = SimpleNamespace(serving=0, retire=lambda: None, set=lambda name, value: None)
            self.WORKERS[pid] = SimpleNamespace(age=pid, tmp=tmp, slot=slot, aborted=False)
            self._records[pid] = WorkerRecord(pid, pid, NOW - 100, booted=True)

    def kill_worker(self, pid: int, sig: int) -> None:
        self.told.append((pid, sig))

    def look(self, now: float = NOW) -> dict[int, str]:
        """Look after the workers once, and return those that are to be replaced, with the cause."""
        self.look_after_workers(now)
        return {pid: record.expiring for pid, record in self._records.items() if record.expiring}


def test_nothing_is_looked_at_unless_it_is_configured() -> None:
    crew = Crew()
    crew._fresh_records = None  # type: ignore[method-assign, assignment]
    assert crew.look() == {} and crew.next_look(NOW) is None and crew.wanted_workers == 3
    assert crew.end_of_life(NOW) is None


def test_age_and_requests() -> None:
    crew = Crew(max_lifetime=50, max_lifetime_jitter=10, max_requests=1)
    assert all(NOW + 50 <= (crew.end_of_life(NOW) or 0) <= NOW + 60 for _ in range(50))
    crew._records[1].expires_at = NOW + 5
    crew._records[2].expires_at = NOW
    crew.WORKERS[3].tmp.due = True
    assert crew.look() == {2: "lifetime", 3: "max_requests"}
    assert crew.look(NOW + 5) == {1: "lifetime", 2: "lifetime", 3: "max_requests"}
    # They serve on: `pool.plan` tells one after the other to end.
    assert crew.told == []


@pytest.mark.parametrize("state", ["outdated", "retiring", "leaving"])
def test_those_that_go_anyway(state: str) -> None:
    crew = Crew("1", max_lifetime=50)
    crew._records[1].expires_at = NOW
    setattr(crew._records[1], state, True)
    assert crew.look() == {}


def test_memory_of_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {1: 0, 2: 2**29, 3: 2**30}
    monkeypatch.setattr("gunicorn.memory.private_beyond", lambda pid, limit: sizes[pid])
    crew = Crew(max_memory=2**28)
    for record in crew._records.values():
        record.spawned_at = NOW - 3
    with caplog.at_level(logging.INFO, "crew"):
        assert crew.look() == crew.look(NOW + INTERVAL) == {2: "memory"}
    assert caplog.messages == [
        "Worker 2 is to be replaced: its 512.0 MB of private memory exceed 256 MB",
    ]
    # It is gone. Its replacement needs as much, and is left alone for twice the interval; the other one is
    # no replacement.
    crew._records[2] = WorkerRecord(2, 5, NOW + INTERVAL, booted=True)
    crew._memory_due = 0
    assert crew.look(NOW + INTERVAL + 1) == {3: "memory"}
    crew._records[3] = WorkerRecord(3, 6, NOW + INTERVAL + 1, booted=True)
    assert crew.look(NOW + 2 * INTERVAL + 1) == {}
    assert crew.look(NOW + 3 * INTERVAL + 1) == {2: "memory"}


def test_memory_that_may_not_be_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(pid: int, limit: int) -> int:
        raise PermissionError

    monkeypatch.setattr("gunicorn.memory.private_beyond", denied)
    crew = Crew(max_memory=2**28)
    assert crew.look() == crew.look(NOW + INTERVAL) == {}
    assert len(caplog.records) == 1 and "max_memory has no effect" in caplog.text


def test_the_load() -> None:
    crew = Crew(workers_max=8, workers_spare=2)
    times = [NOW + step * care.LOOK_INTERVAL for step in range(10)]
    for pid, requests in ((1, 2), (2, 2), (3, 1)):
        crew.WORKERS[pid].slot.serving = requests
    for now in times[:2]:
        crew.look(now)
    # Half of a worker is free, and two are to be.
    assert crew.wanted_workers == 5
    crew.look(times[2])
    assert crew.wanted_workers == 5 and crew.next_look(times[2]) == times[3]
    # More that are always there are fewer of the others.
    crew.num_workers = 7
    assert crew.wanted_workers == 8
    crew.num_workers = 9
    assert crew.wanted_workers == 9 and crew.next_look(NOW) is None
    crew.num_workers = 0
    assert crew.wanted_workers == 0


def test_an_idle_one_ends_after_a_calm() -> None:
    crew = Crew("12345", workers_max=8)
    crew._spares.extra = 2
    crew.WORKERS[1].slot.serving = 1
    crew.look(NOW)
    assert crew.look(NOW + care.CALM - 1) == {} and crew.wanted_workers == 5
    assert crew.look(NOW + care.CALM) == {2: "idle"} and crew.wanted_workers == 4
    assert crew.told == [(2, signal.SIGTERM)]
    assert crew.look(NOW + care.CALM + care.NEXT_ONE) == {2: "idle", 3: "idle"}
    # There are no more of those.
    assert crew.look(NOW + 1000) == {2: "idle", 3: "idle"}
