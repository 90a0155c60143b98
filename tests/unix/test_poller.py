# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import select
import time

import pytest

from gunicorn.unix.poller import Deadlines, Poller


def test_callbacks_get_the_events_of_their_descriptor() -> None:
    poller = Poller()
    read, write = os.pipe()
    seen: list[int] = []
    try:
        poller.add(read, seen.append)
        assert poller.wait(0) == 0
        os.write(write, b"x")
        assert poller.wait(None) == 1
        assert seen == [select.POLLIN]
        poller.modify(read, 0)
        assert poller.wait(0) == 0
        poller.remove(read)
        poller.remove(read)
        assert read not in poller and len(poller) == 0
        with pytest.raises(KeyError):
            poller.modify(read, select.POLLIN)
    finally:
        os.close(read)
        os.close(write)


def test_a_hang_up_is_reported() -> None:
    poller = Poller()
    read, write = os.pipe()
    seen: list[int] = []
    poller.add(read, seen.append, 0)
    os.close(write)
    poller.wait(5)
    assert seen and seen[0] & select.POLLHUP
    os.close(read)


def test_a_callback_may_remove_the_next() -> None:
    poller = Poller()
    pipes = [os.pipe() for _ in range(2)]
    ran: list[int] = []

    def callback(fd: int) -> None:
        ran.append(fd)
        for read, _ in pipes:
            poller.remove(read)

    for read, write in pipes:
        poller.add(read, lambda events, fd=read: callback(fd))  # type: ignore[misc]
        os.write(write, b"x")
    assert poller.wait(5) == 1
    assert len(ran) == 1
    for pair in pipes:
        for fd in pair:
            os.close(fd)


@pytest.mark.parametrize("timeout", [0.0005, 0.02])
def test_a_wait_is_never_shorter_than_asked(timeout: float) -> None:
    started = time.monotonic()
    assert Poller().wait(timeout) == 0
    assert time.monotonic() - started >= timeout


def test_a_passed_deadline_does_not_wait() -> None:
    started = time.monotonic()
    Poller().wait(-5)
    assert time.monotonic() - started < 1


def test_deadlines() -> None:
    deadlines: Deadlines[str] = Deadlines()
    assert deadlines.nearest() is None
    assert deadlines.timeout(5) is None
    assert deadlines.timeout(5, longest=1) == 1
    deadlines.set("b", 20)
    deadlines.set("a", 10)
    assert deadlines.timeout(8) == 2
    assert deadlines.timeout(8, longest=1) == 1
    assert deadlines.timeout(12) == 0
    assert deadlines.pop_due(9) == []
    deadlines.set("c", 10)
    deadlines.cap("b", 30)
    assert deadlines.get("b") == 20
    deadlines.cap("b", 15)
    assert deadlines.pop_due(15) == ["a", "c", "b"]
    assert len(deadlines) == 0
    deadlines.set("a", 1)
    assert "a" in deadlines
    deadlines.clear("a")
    deadlines.clear("a")
    assert "a" not in deadlines and deadlines.get("a") is None


def test_deadlines_never_compare_their_keys() -> None:
    deadlines: Deadlines[object] = Deadlines()
    keys = [object(), object()]
    for key in keys:
        deadlines.set(key, 1.0)
    assert deadlines.pop_due(1.0) == keys
