# SPDX-License-Identifier: MIT
"""A helper process of the manager: started, started again, and stopped; none of them is a real process."""

from __future__ import annotations

import logging
import time

import pytest

from gunicorn.companion.helpers.handle import Helper
from gunicorn.companion.helpers.wire import Message, Wire
from gunicorn.unix.poller import Poller


class Simulated(Helper):
    title = "helper"

    def __init__(self) -> None:
        super().__init__(logging.getLogger("helper"), Poller())
        self.forks = 0
        self.heard: list[Message] = []
        self.refused = False
        self.other: Wire | None = None

    def fork(self, wire: Wire) -> int:
        if self.refused:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.forks += 1
        self.other = Wire(wire.sock.dup())
        return self.forks

    def hear(self, message: Message) -> None:
        self.heard.append(message)


def test_what_it_says_before_it_ends_is_heard_and_another_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    helper = Simulated()
    helper.start()
    helper.start()
    assert helper.forks == 1
    assert not helper.reaped(99, 9)
    assert helper.other is not None
    helper.other.send({"a": 1})
    helper.other.send({"failed": "why"})
    assert helper.reaped(1, 9)
    assert helper.heard == [{"a": 1}]
    assert [record.getMessage() for record in caplog.records] == [
        "The helper fails:\nwhy",
        "The helper (pid 1) killed by SIGKILL; starting another one",
    ]
    # It has lived for less than a second.
    assert (helper.forks, helper.answers) == (1, False)
    assert helper.start_at is not None
    helper.tick(helper.start_at - 0.01)
    assert helper.forks == 1
    helper._started_at = -1e9
    helper.tick(helper.start_at)
    assert (helper.forks, helper.answers, helper.start_at) == (2, True, None)


def test_a_refused_fork_is_tried_again() -> None:
    helper = Simulated()
    helper.refused = True
    helper.start()
    assert (helper.pid, helper.wire) == (None, None)
    assert helper.start_at is not None and helper.start_at > time.monotonic()


@pytest.mark.parametrize("again", [False, True])
def test_one_that_was_stopped_ends_before_another_one_comes(
    again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    helper = Simulated()
    helper.start()
    helper.wanted = False
    helper.drop_wire()
    helper._started_at = -1e9
    if again:
        helper.start()
        assert helper.forks == 1
    assert helper.reaped(1, 0)
    assert helper.forks == 1 + again
    assert not caplog.records
