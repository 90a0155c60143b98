# SPDX-License-Identifier: MIT
"""Both pollers keep the same promises: one event goes to one thread, once."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from harness import wait_until

from gunicorn.workers.threads import polling

POLLERS = [polling.SelectorPoller] + ([polling.EpollPoller] if hasattr(select, "epoll") else [])


@pytest.fixture(params=POLLERS, ids=lambda poller: poller.__name__)
def poller(request: Any) -> Any:
    return request.param()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


class Waiter(threading.Thread):
    """Collects what ``wait()`` returns."""

    def __init__(self, poller: Any) -> None:
        super().__init__(daemon=True)
        self.poller = poller
        self.seen: list[int | None] = []
        self.start()

    def run(self) -> None:
        while True:
            fd = self.poller.wait()
            self.seen.append(fd)
            if fd is None:
                return


def finish(poller: Any, *waiters: Waiter) -> None:
    poller.stop()
    for waiter in waiters:
        waiter.join(5)
        assert not waiter.is_alive()


def test_an_event_is_reported_once_until_the_next_watch(
    poller: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    waiter = Waiter(poller)
    poller.watch(ours.fileno())
    wait_until(lambda: waiter.seen == [ours.fileno()])
    theirs.send(b"y")
    poller.watch(ours.fileno())
    wait_until(lambda: len(waiter.seen) == 2)
    other, far = socket.socketpair()
    with other, far:
        # Another one is reported meanwhile, this one is not.
        number = other.fileno()
        poller.watch(number)
        far.send(b"z")
        wait_until(lambda: len(waiter.seen) == 3)
        poller.forget(number)
        finish(poller, waiter)
    assert waiter.seen == [ours.fileno(), ours.fileno(), number, None]


def test_writable_and_the_end_are_events(poller: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    waiter = Waiter(poller)
    poller.watch(ours.fileno(), write=True)
    wait_until(lambda: len(waiter.seen) == 1)
    poller.watch(ours.fileno())
    theirs.close()
    wait_until(lambda: len(waiter.seen) == 2)
    finish(poller, waiter)


def test_it_checks_again_when_asked_to(poller: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b"xy")
    waiter = Waiter(poller)
    poller.watch(ours.fileno())
    wait_until(lambda: len(waiter.seen) == 1)
    ours.recv(1)  # not all
    poller.recheck(ours.fileno())
    poller.watch(ours.fileno())
    wait_until(lambda: len(waiter.seen) == 2)
    finish(poller, waiter)


def test_an_end_that_came_with_the_last_bytes_is_reported(
    poller: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    theirs.shutdown(socket.SHUT_WR)
    waiter = Waiter(poller)
    poller.watch(ours.fileno())
    wait_until(lambda: len(waiter.seen) == 1)
    assert ours.recv(10) == b"x"
    poller.watch(ours.fileno())
    wait_until(lambda: len(waiter.seen) == 2)
    finish(poller, waiter)


def test_a_listener_is_reported_as_long_as_clients_wait(poller: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        waiter = Waiter(poller)
        for _ in range(3):
            before = len(waiter.seen)
            with socket.create_connection(listener.getsockname()):
                poller.watch_listener(listener.fileno())
                wait_until(lambda before=before: len(waiter.seen) > before)
                listener.accept()[0].close()
        poller.forget(listener.fileno())
        finish(poller, waiter)


def test_what_is_forgotten_is_not_reported(poller: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    poller.watch(ours.fileno())
    poller.forget(ours.fileno())
    poller.forget(ours.fileno())
    theirs.send(b"x")
    waiter = Waiter(poller)
    other, far = socket.socketpair()
    with other, far:
        far.send(b"x")
        poller.watch(other.fileno())
        wait_until(lambda: waiter.seen)
        assert waiter.seen == [other.fileno()]
        poller.forget(other.fileno())
    finish(poller, waiter)


def test_a_number_can_be_watched_again_for_another_socket(poller: Any) -> None:
    waiter = Waiter(poller)
    for turn in range(20):
        ours, theirs = socket.socketpair()
        before = len(waiter.seen)
        poller.renew(ours.fileno())
        poller.watch(ours.fileno())
        theirs.send(b"x")
        wait_until(lambda before=before: len(waiter.seen) > before)
        if turn % 2:
            # This one may be reported as well, now or in the next turn.
            poller.watch(ours.fileno())
            poller.forget(ours.fileno())
        ours.close()
        theirs.close()
    finish(poller, waiter)


def test_each_event_goes_to_one_thread_only(poller: Any) -> None:
    waiters = [Waiter(poller) for _ in range(4)]
    pairs = [socket.socketpair() for _ in range(40)]
    try:
        for ours, theirs in pairs:
            poller.watch(ours.fileno())
            theirs.send(b"x")
        wait_until(lambda: sum(len(waiter.seen) for waiter in waiters) == 40)
        seen = [fd for waiter in waiters for fd in waiter.seen]
        assert sorted(map(int, seen)) == sorted(ours.fileno() for ours, _ in pairs)  # type: ignore[arg-type]
    finally:
        finish(poller, *waiters)
        for ours, theirs in pairs:
            poller.forget(ours.fileno())
            ours.close()
            theirs.close()


def test_a_client_that_waits_to_be_accepted_wakes_one_thread_once(poller: Any) -> None:
    waiters = [Waiter(poller) for _ in range(4)]
    ours, theirs = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener, ours, theirs:

        def reports() -> int:
            return sum(waiter.seen.count(listener.fileno()) for waiter in waiters)

        poller.watch_listener(listener.fileno())
        with socket.create_connection(listener.getsockname()):
            for count in (1, 2):
                wait_until(lambda count=count: reports() >= count)  # type: ignore[misc]
                # Another report goes through all threads first.
                poller.watch(ours.fileno())
                theirs.send(b"x")
                wait_until(lambda count=count: sum(len(w.seen) for w in waiters) >= 2 * count)  # type: ignore[misc]
                ours.recv(1)
                assert reports() == count
                if count == 1:
                    # It has not been accepted.
                    poller.watch_listener(listener.fileno())
        poller.forget(listener.fileno())
        poller.forget(ours.fileno())
        finish(poller, *waiters)


def test_stop_ends_all_waits_and_those_to_come(poller: Any) -> None:
    waiters = [Waiter(poller) for _ in range(3)]
    finish(poller, *waiters)
    assert poller.wait() is None


def test_a_nudge_lets_a_thread_return_that_waits(poller: Any) -> None:
    found: list[int | None] = []

    def wait() -> None:
        found.append(poller.wait())

    for count in (1, 2):
        thread = threading.Thread(target=wait)
        thread.start()
        poller.nudge()
        thread.join(5)
        assert len(found) == count and found[-1] is not None
