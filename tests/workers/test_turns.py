# SPDX-License-Identifier: MIT
"""Threads take turns: one leads as long as it is quick, and no request waits behind a slow one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from proctools import wait_until

from gunicorn.workers.threads.turns import BLOCKED, CHECK, COMPUTING, IDLE, Turns
from gunicorn.workers.threads.waits import SAMPLE, WORTH

A, B, C = 1, 2, 3


def serve(turns: Turns, requests: int = 1) -> None:
    turns.led += requests
    turns.working = True


def has_had(seconds: float) -> Callable[[int], float]:
    """Each thread has had the processor for so many seconds."""
    return lambda thread: seconds


def leading(*, alone: bool = False) -> Turns:
    turns = Turns(alone)
    assert turns.take(A)
    turns.checked = True
    turns.check(0.0)
    return turns


def test_a_quick_leader_keeps_its_turn() -> None:
    turns, now = leading(), 0.0
    for _ in range(50):
        serve(turns)
        now += CHECK
        assert turns.check(now)
        assert turns.leader == A


def test_a_leader_that_is_blocked_loses_its_turn() -> None:
    turns = leading()
    serve(turns)
    turns.check(CHECK)
    turns.check(2 * CHECK)
    assert turns.leader == 0
    assert turns.take(B)
    assert turns.leader == B


def test_a_leader_that_computes_is_not_blocked_for_a_while() -> None:
    turns, now = leading(), CHECK
    serve(turns)
    turns.check(now, has_had(1.0))
    while now < COMPUTING:
        now += CHECK
        turns.check(now, has_had(1.0 + now * 0.99))
        assert turns.leader == A
    turns.check(now + CHECK, has_had(1.0 + now))
    assert turns.leader == 0


def test_the_time_of_a_leader_is_not_compared_with_that_of_the_one_before() -> None:
    turns, now = leading(), CHECK

    def time_spent(leader: int) -> float:
        if leader == A:
            # B becomes the leader, and begins, while A is asked for its time.
            assert turns.take(B, has_work=True)
            serve(turns)
        return {A: 1.0, B: 50.0}.get(leader, 0.0)

    for _ in range(4):
        assert turns.check(now, time_spent)
        now += CHECK
    assert now < COMPUTING and turns.leader == 0


def test_a_leader_that_waits_is_not_blocked_and_checks_may_end() -> None:
    turns, now = leading(), 0.0
    serve(turns)
    turns.check(now)
    turns.working = False
    while now < IDLE:
        now += CHECK
        assert turns.check(now) == (now <= IDLE)
    assert not turns.checked
    assert turns.leader == A


def test_a_late_check_is_not_hasty() -> None:
    turns = leading()
    serve(turns)
    turns.check(CHECK)
    turns.check(CHECK + BLOCKED * 0.9)
    assert turns.leader == A
    turns.check(CHECK + BLOCKED * 2.9)
    assert turns.leader == 0


class Racing(Turns):
    """A thread begins to serve in the very moment in which the main thread ends its checks."""

    racing = False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "checked" and not value and self.racing:
            self.racing = False
            self.beside += 1


@pytest.mark.parametrize("alone", [True, False])
def test_checks_go_on_for_a_thread_that_begins_to_serve_as_they_end(alone: bool) -> None:
    turns = Racing(alone)
    turns.watched = turns.checked = True
    assert turns.take(A)
    serve(turns)
    turns.check(0.0)
    # In parallel no thread leads, and so nobody says that it works.
    turns.working = alone
    turns.racing = True
    assert turns.check(2 * COMPUTING)
    assert turns.checked and not turns.racing


def test_checks_end_where_nobody_leads() -> None:
    """All threads serve for long, or the others wait in the poller: no check could help them."""
    turns, now = leading(), 0.0
    serve(turns)
    while turns.check(now):
        now += CHECK
        assert now < IDLE + BLOCKED
    assert not turns.leader and not turns.checked


def test_in_parallel_nobody_leads() -> None:
    turns = leading()
    serve(turns)
    turns.parallel = 5
    assert turns.take(B)
    assert not turns.leader and not turns.working


def test_a_thread_that_is_alone_is_not_checked() -> None:
    turns = leading(alone=True)
    serve(turns)
    assert not turns.check(100.0)
    assert not turns.check(200.0)
    assert turns.leader == A


def block(turns: Turns, now: float) -> float:
    serve(turns)
    for _ in range(2):
        now += CHECK
        turns.check(now)
    assert turns.leader == 0
    turns.take(A)
    return now


def serve_in_parallel(turns: Turns) -> int:
    served = 0
    while turns.parallel:
        assert turns.take(B) and not turns.leader
        turns.serve_one_in_parallel()
        served += 1
    assert turns.take(A) and turns.leader == A
    return served


def test_requests_that_block_one_after_the_other_are_served_in_parallel_for_longer_and_longer() -> None:
    turns, now = leading(), 0.0
    now = block(turns, now)
    assert not turns.parallel
    lengths = []
    for _ in range(10):
        now = block(turns, now)
        lengths.append(serve_in_parallel(turns))
    assert lengths[:3] == [lengths[0], 2 * lengths[0], 4 * lengths[0]]
    assert lengths[-1] == lengths[-2]
    serve(turns, 10 * lengths[-1])
    block(turns, now)
    assert not turns.parallel


def test_what_others_serve_hides_no_leader_that_is_blocked() -> None:
    """Some wait in the poller since they have served in parallel, and find what arrives meanwhile."""
    turns, now = leading(), 0.0
    for blocked in range(2):
        serve(turns)
        for _ in range(2):
            for _ in range(100):
                turns.serve_one_in_parallel()
            now += CHECK
            turns.check(now)
        assert turns.leader == 0
        # Nor does it make requests seem to block seldom.
        assert bool(turns.parallel) is bool(blocked)
        turns.take(A)


def test_requests_of_which_many_wait_are_served_in_parallel() -> None:
    turns, lengths = leading(), []
    for _ in range(3):
        serve(turns, SAMPLE)
        assert turns.begins_sample()
        turns.end_sample(SAMPLE, SAMPLE * WORTH, SAMPLE)
        assert turns.take(A) and not turns.leader
        lengths.append(serve_in_parallel(turns))
    assert lengths == [lengths[0], 2 * lengths[0], 4 * lengths[0]]
    turns.end_sample(SAMPLE, 0, 0)
    serve(turns, 1000)
    turns.end_sample(SAMPLE, SAMPLE * WORTH, SAMPLE)
    assert turns.take(A) and not turns.leader
    assert serve_in_parallel(turns) == lengths[0]


def test_what_is_lost_while_the_main_thread_is_late_says_nothing() -> None:
    turns = leading()
    for late in (True, False):
        assert turns.begins_sample()
        turns.check(10.0)
        if not late:
            assert turns.begins_sample()
        turns.end_sample(SAMPLE, 1.0, SAMPLE)
        assert bool(turns.parallel) is not late


def test_a_thread_that_is_alone_is_not_measured() -> None:
    assert leading().begins_sample()
    assert not leading(alone=True).begins_sample()


def test_all_threads_serve_in_parallel_and_then_one_leads() -> None:
    turns = leading()
    served: list[int] = []
    lock = threading.Lock()

    def follow(me: int) -> None:
        while turns.take(me):
            if not turns.parallel:
                return
            with lock:
                served.append(me)
            # The others are all awake before one serves the next request.
            wait_until(lambda: len(set(served)) == 5)
            turns.serve_one_in_parallel()

    threads = [threading.Thread(target=follow, args=(me,)) for me in range(10, 15)]
    for thread in threads:
        thread.start()
    try:
        serve(turns)
        turns.end_sample(SAMPLE, 1.0, SAMPLE)
        # The leader joins them, and with that wakes them.
        assert turns.take(A) and turns.leader != A
        wait_until(lambda: turns.leader)
        assert turns.leader in range(10, 15)
    finally:
        turns.stop()
        for thread in threads:
            thread.join()


class StandsBy(Exception):
    """Raised in the place of waiting for a turn."""


def test_a_thread_without_work_leaves_the_turn_to_a_leader_at_work() -> None:
    """Two that took it from each other would compete for the interpreter with each request."""
    turns = leading()
    serve(turns)
    with mock.patch.object(turns, "_baton") as baton, pytest.raises(StandsBy):
        baton.acquire.side_effect = StandsBy
        turns.take(B)
    assert turns.leader == A


def test_a_thread_that_has_work_does_not_stand_by_while_the_leader_waits() -> None:
    turns = leading()
    assert turns.is_checked_leader(A)
    assert turns.take(B, has_work=True)
    assert turns.is_checked_leader(B) and not turns.is_checked_leader(A)
    turns.checked = False
    assert not turns.is_checked_leader(B)


@pytest.mark.parametrize("leads", [True, False])
def test_stop_ends_all_waiting(leads: bool) -> None:
    turns = leading()
    if not leads:
        turns.pass_on(A)
        turns.take(C)
    ended: list[bool] = []
    threads = [threading.Thread(target=lambda: ended.append(turns.take(B))) for _ in range(5)]
    for thread in threads:
        thread.start()
    turns.stop()
    wait_until(lambda: len(ended) == 5)
    for thread in threads:
        thread.join()
    assert ended == [False] * 5
    assert not turns.take(A)
    assert not turns.take(B)
