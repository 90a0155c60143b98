# SPDX-License-Identifier: MIT
"""The order of a graceful end, with a worker and a clock that only the test moves."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn.workers import retiring
from gunicorn.workers.connection import State
from gunicorn.workers.retiring import LAST_WAIT, retire


class FakeWorker:
    """Takes every connection that it is offered, and holds it for *work* seconds."""

    def __init__(self, listener: socket.socket, leaving: bool = False, work: float = 0.0) -> None:
        self.cfg = SimpleNamespace(graceful_timeout=8)
        self.log = logging.getLogger("test_retiring")
        self.tmp = SimpleNamespace(leaving=leaving)
        self.sockets = [listener]
        self.conns: dict[Any, float] = {}
        self.now = 100.0
        self.work = work
        self.room = 100
        self.held: list[Any] = []
        self.taken = self.rounds = 0
        self.is_accepting = True
        self.started = self.now

    def notify(self) -> None:
        pass

    def graceful_deadline(self) -> float:
        return self.started + self.cfg.graceful_timeout

    def at_work(self) -> list[Any]:
        return self.held

    def stop_accepting(self) -> None:
        self.is_accepting = False

    def has_room(self) -> bool:
        return len(self.conns) < self.room

    def take(self, listener: socket.socket) -> bool:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            return False
        client.close()
        self.taken += 1
        self.conns[self.taken] = self.now + self.work
        return True

    def close_silent(self, retired_at: float) -> None:
        assert retired_at == self.started
        self.rounds += 1

    def retire(self) -> float:
        """Retire to the end; how many seconds it took."""
        for seconds in retire(self):
            assert 0 < seconds <= 2 * retiring.RETIRE_TICK
            self.now += seconds
            self.conns = {key: until for key, until in self.conns.items() if until > self.now}
        return self.now - self.started


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


def run(worker: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(retiring, "time", SimpleNamespace(monotonic=lambda: worker.now))
    return worker.retire()


def clients(listener: socket.socket, count: int) -> list[socket.socket]:
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


def close_all(socks: list[socket.socket]) -> None:
    for sock in socks:
        sock.close()


def test_without_connections_it_ends_at_once(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = FakeWorker(listener)
    assert run(worker, monkeypatch) == 0
    assert not worker.is_accepting and listener.fileno() == -1


def test_the_queue_is_served_in_the_room_that_there_is(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = FakeWorker(listener, work=0.15)
    worker.room = 2
    waiting = clients(listener, 5)
    took = run(worker, monkeypatch)
    close_all(waiting)
    assert worker.taken == 5 and not worker.conns
    assert 0.45 <= took < 1 and worker.rounds and listener.fileno() == -1


def test_open_connections_have_their_time_before_accepting_stops(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = FakeWorker(listener)
    worker.conns = {"a": worker.now + 3}
    seen = []
    monkeypatch.setattr(worker, "stop_accepting", lambda: seen.append(worker.now - worker.started))
    assert run(worker, monkeypatch) == pytest.approx(3, abs=0.11)
    assert seen == [pytest.approx(LAST_WAIT[State.IDLE])]


def test_what_does_not_end_is_named_before_the_master_loses_patience(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = FakeWorker(listener)
    worker.conns = {"a": worker.now + 1000, "b": worker.now + 1000}
    with caplog.at_level("WARNING"):
        assert run(worker, monkeypatch) == pytest.approx(7)
    assert "2 requests unfinished" in caplog.text


def test_a_worker_that_leaves_leaves_the_queue_to_its_successor(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = FakeWorker(listener, leaving=True)
    worker.conns = {"idle": worker.now + 2}
    waiting = clients(listener, 1)
    assert run(worker, monkeypatch) == pytest.approx(2, abs=0.11)
    close_all(waiting)
    assert worker.taken == 0


def test_a_leaving_worker_that_is_held_takes_clients_that_still_wait_at_the_second_check(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = FakeWorker(listener, leaving=True)
    worker.conns = {"long": worker.now + 3}
    worker.held = ["long"]
    waiting = clients(listener, 2)
    with closing(listener):
        assert run(worker, monkeypatch) == pytest.approx(3, abs=0.21)
    close_all(waiting)
    assert worker.taken == 2
