# SPDX-License-Identifier: MIT
"""The table of waiting connections: each has one owner, and some are overdue."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable

import pytest

from gunicorn.workers.connection import State
from gunicorn.workers.threads.tconn import TConn, Waiting

WAITS = [State.HANDSHAKE, State.NEW, State.HEAD, State.IDLE, State.LINGER]


class Conn(TConn):
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.state = State.NEW
        self.deadline = 0.0


def empty() -> Waiting:
    table = Waiting(lambda conn: table.park(conn))
    return table


def park(table: Waiting, conn: TConn, state: str, deadline: float) -> None:
    conn.state, conn.deadline = state, deadline
    table.park(conn)


def waiting(*entries: tuple[int, str, float]) -> tuple[Waiting, dict[int, TConn]]:
    table = empty()
    conns: dict[int, TConn] = {fd: Conn(fd) for fd, _, _ in entries}
    for fd, state, deadline in entries:
        park(table, conns[fd], state, deadline)
    return table, conns


@pytest.mark.parametrize("state", WAITS)
def test_a_connection_is_claimed_once(state: str) -> None:
    table, conns = waiting((5, state, 10.0))
    assert len(table) == 1 and conns[5].state == state and conns[5].deadline == 10.0
    assert table.claim(5) is conns[5]
    assert table.claim(5) is None and len(table) == 0
    assert table.claim(6) is None


@pytest.mark.parametrize(
    ("now", "expired"), [(0.0, []), (9.99, []), (10.0, [1]), (11.0, [1, 3]), (math.inf, [1, 2, 3])]
)
def test_expired(now: float, expired: list[int]) -> None:
    table, _ = waiting((1, State.IDLE, 10.0), (2, State.NEW, math.inf), (3, State.LINGER, 10.5))
    assert [conn.fd for conn in table.claim_expired(now)] == expired
    assert len(table) == 3 - len(expired)


def test_nearest() -> None:
    assert waiting()[0].nearest() == math.inf
    assert waiting((1, State.IDLE, 10.0), (2, State.HEAD, 7.0))[0].nearest() == 7.0


def test_cap_only_brings_forward() -> None:
    table, conns = waiting((1, State.IDLE, 10.0), (2, State.IDLE, 3.0), (3, State.NEW, 10.0))
    table.cap(State.IDLE, 5.0)
    assert [conns[fd].deadline for fd in (1, 2, 3)] == [5.0, 3.0, 10.0]


def test_the_longest_idle_is_the_first_that_was_parked() -> None:
    table, _ = waiting((1, State.NEW, 1.0), (2, State.IDLE, 4.0), (3, State.IDLE, 5.0))
    assert table.claim_longest_idle(before=4.0) is None
    first = table.claim_longest_idle(before=9.0)
    assert first is not None and first.fd == 2
    # One that was parked again has begun to idle anew.
    park(table, first, State.IDLE, 6.0)
    second = table.claim_longest_idle(before=9.0)
    assert second is not None and second.fd == 3


def test_a_number_that_is_used_again_belongs_to_the_new_one() -> None:
    table, _ = waiting((7, State.IDLE, 1.0))
    new = Conn(7)
    park(table, new, State.NEW, 2.0)
    assert table.claim(7) is new


class Raced(Conn):
    """While the clock looks at its deadline, a thread does *meanwhile*, once."""

    meanwhile: Callable[[], None] | None = None

    @property  # type: ignore[override]
    def deadline(self) -> float:
        value = self._deadline
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return value

    @deadline.setter
    def deadline(self, value: float) -> None:
        self._deadline = value


CLAIMS: list[Callable[[Waiting], list[TConn]]] = [
    lambda table: table.claim_expired(10.0),
    lambda table: [conn for conn in [table.claim_longest_idle(before=10.5)] if conn],
]


@pytest.mark.parametrize("claim", CLAIMS, ids=["expired", "longest idle"])
def test_a_connection_that_was_served_meanwhile_waits_on(claim: Callable[[Waiting], list[TConn]]) -> None:
    table, conn = empty(), Raced(7)
    park(table, conn, State.IDLE, 10.0)

    def serve() -> None:
        assert table.claim(7) is conn
        park(table, conn, State.IDLE, 1000.0)

    conn.meanwhile = serve
    assert claim(table) == []
    assert table.claim(7) is conn and conn.state == State.IDLE and conn.deadline == 1000.0


class Numbered(Conn):
    """When its number is read the second time, a thread does *meanwhile*."""

    def __init__(self, fd: int) -> None:
        self.looks = 0
        self.meanwhile: Callable[[], None] | None = None
        super().__init__(fd)

    @property  # type: ignore[override]
    def fd(self) -> int:
        self.looks += 1
        if self.meanwhile is not None and self.looks == 2:
            self.meanwhile()
        return self._fd

    @fd.setter
    def fd(self, value: int) -> None:
        self._fd = value


@pytest.mark.parametrize("claim", CLAIMS, ids=["expired", "longest idle"])
@pytest.mark.parametrize(("deadline", "claimed"), [(1000.0, False), (9.0, True)])
def test_one_accepted_meanwhile_under_the_same_number_is_not_lost(
    claim: Callable[[Waiting], list[TConn]], deadline: float, claimed: bool
) -> None:
    table, old, new = empty(), Numbered(7), Conn(7)
    park(table, old, State.IDLE, 10.0)

    def close_and_accept() -> None:
        old.meanwhile = None
        assert table.claim(7) is old
        park(table, new, State.IDLE, deadline)

    old.looks, old.meanwhile = 0, close_and_accept
    assert claim(table) == ([new] if claimed else [])
    assert table.claim(7) is (None if claimed else new)


def test_threads_and_the_clock_never_get_the_same_one() -> None:
    table = empty()
    conns = [Conn(fd) for fd in range(400)]
    for conn in conns:
        park(table, conn, State.IDLE, 0.0)
    taken: list[int] = []
    start = threading.Barrier(5)

    def thread() -> None:
        start.wait()
        for fd in range(400):
            conn = table.claim(fd)
            if conn is not None:
                taken.append(conn.fd)

    def clock() -> None:
        start.wait()
        taken.extend(conn.fd for conn in table.claim_expired(1.0))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=target) for target in (thread, thread, thread, clock, clock)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    finally:
        sys.setswitchinterval(before)
    assert sorted(taken) == list(range(400))
