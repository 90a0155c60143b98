# SPDX-License-Identifier: MIT
"""Threads take turns: one leads as long as it is quick, and nobody is left waiting behind a slow one."""

from __future__ import annotations

import threading

import pytest
from proctools import wait_until

from gunicorn.workers.threads.turns import COMPUTING, LOOK, RESTLESS, SURELY, Turns

A, B, C = 1, 2, 3


def serve(turns: Turns, requests: int = 1) -> None:
    turns.count += requests
    turns.working = True


def leading(*, alone: bool = False) -> Turns:
    turns = Turns(alone)
    assert turns.take(A)
    turns.watched = True
    turns.look(0.0)
    return turns


def test_a_quick_leader_keeps_its_turn() -> None:
    turns, now = leading(), 0.0
    for _ in range(50):
        serve(turns)
        now += LOOK
        assert turns.look(now)
        assert turns.leader == A


def test_a_leader_that_is_held_up_loses_its_turn() -> None:
    turns = leading()
    serve(turns)
    turns.look(LOOK)
    turns.look(2 * LOOK)
    assert turns.leader == 0
    assert turns.take(B)
    assert turns.leader == B


def test_a_leader_that_computes_is_not_held_up_for_a_while() -> None:
    turns, now = leading(), LOOK
    serve(turns)
    turns.look(now, 1.0)
    while now < COMPUTING:
        now += LOOK
        turns.look(now, 1.0 + now * 0.99)
        assert turns.leader == A
    turns.look(now + LOOK, 1.0 + now)
    assert turns.leader == 0


def test_a_leader_that_waits_is_not_held_up_and_the_watchman_may_rest() -> None:
    turns, now = leading(), 0.0
    serve(turns)
    turns.look(now)
    turns.working = False
    while now < RESTLESS:
        now += LOOK
        assert turns.look(now) == (now <= RESTLESS)
    assert not turns.watched
    assert turns.leader == A


def test_a_late_watchman_is_not_hasty() -> None:
    turns = leading()
    serve(turns)
    turns.look(LOOK)
    turns.look(LOOK + SURELY * 0.9)
    assert turns.leader == A
    turns.look(LOOK + SURELY * 2.9)
    assert turns.leader == 0


def test_alone_nobody_is_watched() -> None:
    turns = leading(alone=True)
    serve(turns)
    assert not turns.look(100.0)
    assert not turns.look(200.0)
    assert turns.leader == A


def hold_up(turns: Turns, now: float) -> float:
    serve(turns)
    for _ in range(2):
        now += LOOK
        turns.look(now)
    assert turns.leader == 0
    turns.take(A)
    return now


def test_hold_ups_in_a_row_make_wary_for_longer_and_longer() -> None:
    turns, now = leading(), 0.0
    now = hold_up(turns, now)
    assert turns.wary == 0
    lengths = []
    for _ in range(10):
        now = hold_up(turns, now)
        lengths.append(turns.wary)
        serve(turns, turns.wary)
    assert lengths[:3] == [lengths[0], 2 * lengths[0], 4 * lengths[0]]
    assert lengths[-1] == lengths[-2]
    serve(turns, 10 * lengths[-1])
    hold_up(turns, now)
    assert turns.wary == 0


def test_a_wary_leader_passes_on_its_turn_before_it_serves() -> None:
    turns = leading()
    turns.wary = 2
    turns.beware(B)  # does not lead
    assert (turns.leader, turns.wary) == (A, 2)
    turns.beware(A)
    assert (turns.leader, turns.wary) == (0, 1)


def test_who_is_ready_goes_on_in_the_place_of_a_leader_at_work() -> None:
    turns = leading()
    serve(turns)
    assert turns.take(B)
    assert turns.leader == B
    assert not turns.pass_on(A)


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
