# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import select
import time

import pytest

from gunicorn.unix.poller import Poller


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
