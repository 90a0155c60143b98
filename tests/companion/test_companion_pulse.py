# SPDX-License-Identifier: MIT
"""When the manager is asked whether it lives, and how long it has been silent."""

from __future__ import annotations

from gunicorn.companion.server.link import Pulse


def test_it_is_asked_at_an_interval() -> None:
    pulse = Pulse(100)
    assert not pulse.due(159.9, 60)
    assert pulse.due(160, 60)
    assert pulse.ask(160) == 1
    # One question at a time.
    assert not pulse.due(1000, 60)
    pulse.answered(1)
    assert not pulse.due(219.9, 60)
    assert pulse.due(220, 60)
    assert pulse.ask(220) == 2


def test_after_something_that_may_hang_it_it_is_asked_at_once() -> None:
    pulse = Pulse(100)
    pulse.suspect()
    assert pulse.due(100, 60)
    pulse.ask(100)
    pulse.answered(1)
    assert not pulse.due(101, 60)


def test_an_answer_to_what_was_asked_before_says_nothing_about_it() -> None:
    pulse = Pulse(100)
    pulse.ask(100)
    pulse.suspect()
    assert not pulse.due(101, 60)
    pulse.answered(1)
    assert pulse.due(101, 60)


def test_silence_is_counted_from_the_question() -> None:
    pulse = Pulse(0)
    assert [pulse.look(now) for now in (10, 11, 12)] == [0, 0, 0]
    pulse.ask(20.5)
    assert [pulse.look(now) for now in (21, 22, 23)] == [0.5, 1.5, 2.5]
    pulse.answered(1)
    assert pulse.look(24) == 0
    pulse.ask(30)
    assert pulse.look(30.5) == 0.5


def test_an_answer_to_another_question_is_none() -> None:
    pulse = Pulse(0)
    pulse.ask(0)
    pulse.answered(1)
    pulse.ask(60)
    for number in (1, 3, "2", None):
        pulse.answered(number)
    assert pulse.look(61) == 1
    pulse.answered(2)
    assert pulse.look(62) == 0


def test_the_time_in_which_nobody_listened_is_not_the_manager_s_silence() -> None:
    pulse = Pulse(0)
    pulse.ask(0)
    assert pulse.look(1) == 1
    # All were frozen for an hour, the question still unread.
    assert pulse.look(3601) == 2
    assert pulse.look(3602) == 3
