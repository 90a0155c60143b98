# SPDX-License-Identifier: MIT
"""Track what each connection waits for, and until when. Pure: no sockets, no clock."""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar


class State(enum.Enum):
    """What a connection waits for; in BUSY, a thread has it. What it was before is in ``was``."""

    HANDSHAKE = enum.auto()  # TLS is being set up
    NEW = enum.auto()  # nothing of the first request has come
    HEAD = enum.auto()  # a part of a request's head has come
    IDLE = enum.auto()  # kept alive, nothing of the next request has come
    BUSY = enum.auto()
    LINGER = enum.auto()  # answered for good; what the client still sends is thrown away


# An attribute of an enumeration costs as much as a call, and one of a module hardly anything.
_BUSY, _IDLE = State.BUSY, State.IDLE


class Waiter(Protocol):
    fd: int
    state: State
    was: State
    deadline: float


C = TypeVar("C", bound=Waiter)


class Waiting(Generic[C]):
    """The waiting connections. A thread that takes one out owns it.

    Threads and the clock's keeper compete for a connection: every operation is one of a dict, which is
    atomic, so they need no lock. Between a look at a connection and its claim a thread may have served it,
    or closed it and accepted another one under its number: so check a claimed one again, and give it to
    *put_back* if it is another.
    """

    def __init__(self, put_back: Callable[[C], object]) -> None:
        self._by_fd: dict[int, C] = {}
        self._put_back = put_back

    def __len__(self) -> int:
        return len(self._by_fd)

    def park(self, conn: C, state: State, deadline: float) -> None:
        """Let *conn* wait in *state* until *deadline*."""
        conn.state = state
        conn.deadline = deadline
        self._by_fd[conn.fd] = conn

    def claim(self, fd: int) -> C | None:
        """Take out the connection of *fd*; None if somebody else was faster."""
        conn = self._by_fd.pop(fd, None)
        if conn is not None:
            conn.was, conn.state = conn.state, _BUSY
        return conn

    def snapshot(self) -> Iterable[C]:
        """Those who wait now, the longest first."""
        return self._by_fd.copy().values()

    def claim_expired(self, now: float) -> list[C]:
        """Take out those whose deadline has come."""
        return self._claim_where(lambda state, deadline: deadline <= now)

    def claim_states(self, states: Iterable[State]) -> list[C]:
        """Take out those in one of *states*."""
        wanted = frozenset(states)
        return self._claim_where(lambda state, deadline: state in wanted)

    def claim_longest_idle(self, before: float) -> C | None:
        """Take out the one that has idled the longest, if its deadline is *before* that moment."""
        found = self._claim_where(lambda state, deadline: state is _IDLE and deadline < before, limit=1)
        return found[0] if found else None

    def _claim_where(self, wanted: Callable[[State, float], bool], limit: int = sys.maxsize) -> list[C]:
        claimed: list[C] = []
        for seen in self.snapshot():
            if not wanted(seen.state, seen.deadline) or self._by_fd.get(seen.fd) is not seen:
                continue
            conn = self.claim(seen.fd)
            if conn is None:
                continue
            if not wanted(conn.was, conn.deadline):
                self._put_back(conn)
                continue
            claimed.append(conn)
            if len(claimed) == limit:
                break
        return claimed

    def cap(self, state: State, deadline: float) -> None:
        """Let those in *state* wait no longer than *deadline*."""
        for conn in self.snapshot():
            if conn.state is state:
                conn.deadline = min(conn.deadline, deadline)

    def nearest(self) -> float:
        """The earliest deadline; infinity if there is none."""
        return min((conn.deadline for conn in self.snapshot()), default=math.inf)
