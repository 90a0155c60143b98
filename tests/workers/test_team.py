# SPDX-License-Identifier: MIT
"""The threads of a worker without a worker: who is free, who leads, and that nothing is left lying."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from proctools import wait_until

from gunicorn.workers.threads.team import Team

A, B = 1, 2


class Worker:
    """Serves what it is given until `released`; the threads are real."""

    def __init__(self) -> None:
        self.log: Any = None
        self.serving: list[Any] = []
        self.released = threading.Event()
        self.on_send: Callable[[], object] = bool

    def wake(self) -> None:
        """Nothing: the tests are the main thread."""

    def attend(self, fd: int) -> None:
        """Nothing: no descriptor of these tests is a connection's."""

    def receive(self, fd: int) -> Any:
        """None: the same."""

    def serve(self, conn: Any) -> None:
        self.serving.append(conn)
        self.released.wait(20)

    def send_held(self, conn: Any) -> None:
        self.on_send()


class Conn:
    may_wait = False


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def team(worker: Worker) -> Iterator[Team]:
    """Four threads, of which one leads and the others wait in the poller, as after a time in parallel."""
    team = Team(worker, 4, batches=True, parallel=False)
    polling: list[int] = []
    wait = team.poller.wait

    def counted(most: int = 64) -> int | None:
        polling.append(most)
        return wait(most)

    team.poller.wait = counted  # type: ignore[method-assign]
    team.turns.parallel = 1000
    threads = [threading.Thread(target=team.follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(polling) == 4)
    team.turns.parallel = 0
    yield team
    worker.released.set()
    team.stop()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_one_nudge_wakes_as_many_as_there_is_work_for(team: Team, worker: Worker) -> None:
    team.batch.received.extend(Conn() for _ in range(3))
    team.turns.parallel = 1000
    team.check(1.0)
    wait_until(lambda: len(worker.serving) == 3)


def test_a_thread_that_waits_in_parallel_is_free(team: Team, worker: Worker) -> None:
    team.turns.parallel = 1000
    for count in range(4):
        assert team.has_free_thread
        team.batch.received.append(Conn())
        team.check(1.0)
        wait_until(lambda count=count: len(worker.serving) == count + 1)  # type: ignore[misc]
    wait_until(lambda: not team.has_free_thread)


def test_a_thread_that_stands_by_is_free_while_the_leader_works(team: Team, worker: Worker) -> None:
    team.batch.received.append(Conn())
    team.check(1.0)
    wait_until(lambda: worker.serving and team.turns.working)
    assert team.has_free_thread


def solo(worker: Worker) -> Team:
    """A team whose thread A leads, and is this thread."""
    team = Team(worker, 2, batches=True, parallel=False)
    assert team.turns.take(A)
    return team


def let_other_lead(team: Team, working: bool) -> None:
    assert team.turns.pass_on(A) and team.turns.take(B)
    team.turns.working = working


def test_a_thread_that_loses_its_turn_while_it_sends_does_not_call_the_next_leader_idle() -> None:
    worker = Worker()
    team = solo(worker)
    worker.on_send = lambda: let_other_lead(team, working=True)
    team.batch._held.append(Conn())
    # It does not wait either: its own turn is over.
    team._lead(A)
    assert team.turns.leader == B and team.turns.working


def test_a_thread_that_loses_its_turn_while_it_waits_does_not_call_the_next_leader_busy() -> None:
    team = solo(Worker())
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def wait(most: int = 64) -> int:
            let_other_lead(team, working=False)
            return ours.fileno()

        team.poller.wait = wait  # type: ignore[method-assign]
        team._lead(A)
    assert team.turns.leader == B and not team.turns.working
    assert team.turns.led == 1
