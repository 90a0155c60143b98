# SPDX-License-Identifier: MIT
"""The lease guard's process: it kills companions whose lease ends, where the manager does not get to it.

A manager that was stopped, or that hangs, keeps no deadline, and the waits of all processes stand still while
the machine is suspended. The guard has nothing else to do than this. It outlives the manager as long as there
are companions with leases.
"""

from __future__ import annotations

import signal
from typing import NamedTuple

from gunicorn.companion.helpers.child import fork_helper
from gunicorn.companion.helpers.wire import Wire
from gunicorn.companion.leasing.words import LeaseMemory
from gunicorn.unix import boottime, session, spare
from gunicorn.unix.poller import Poller

# Seconds between two looks at a session that was killed, or that could not be looked at.
_AGAIN = 0.05
# Without an alarm that goes on while the machine is suspended: seconds between two looks at the clock.
_LOOK = 1.0


class Watched(NamedTuple):
    """A companion: the pid of its leader, which is the number of its session, and the leader's identity."""

    pid: int
    identity: str
    slot: int
    token: int
    # Seconds before the end of the lease at which to kill it.
    early: float


class Guard:
    """The loop. *wire* leads to the manager."""

    def __init__(self, wire: Wire, memory: LeaseMemory) -> None:
        self.wire = wire
        self.memory = memory
        self.watched: dict[int, Watched] = {}
        self.poller = Poller()
        self.alarm = boottime.Alarm()
        self.poller.add(wire.fileno(), lambda events: self._on_message())
        if self.alarm.fd >= 0:
            self.poller.add(self.alarm.fd, lambda events: self.alarm.acknowledge())

    def run(self) -> None:
        """Until the manager is gone, and no companion with a lease is left."""
        while self.watched or not self.wire.ended:
            next_at = self._step()
            self.alarm.set(next_at)
            if self.watched or not self.wire.ended:
                self.poller.wait(_LOOK if self.alarm.fd < 0 and next_at is not None else None)

    def _on_message(self) -> None:
        for message, _ in self.wire.receive():
            if "watch" in message:
                watched = Watched(*message["watch"])
                self.watched[watched.pid] = watched
            elif "drop" in message:
                self.watched.pop(message["drop"], None)
        if self.wire.ended:
            self.poller.remove(self.wire.fileno())

    def _step(self) -> float | None:
        """Kill those whose time is over; return when the next one's may be."""
        now = boottime.now()
        ends = {pid: self._end_of(watched) for pid, watched in self.watched.items()}
        over = [self.watched[pid] for pid, end in ends.items() if now >= end]
        if over:
            self._kill(over)
        times = [ends[pid] if ends[pid] > now else now + _AGAIN for pid in self.watched]
        return min(times, default=None)

    def _end_of(self, watched: Watched) -> float:
        words = self.memory.slot(watched.slot)
        return words.until - watched.early if words.token == watched.token else 0.0

    def _kill(self, over: list[Watched]) -> None:
        """Send SIGKILL to the sessions; forget those that are empty."""
        ours = []
        for watched in over:
            try:
                other = session.read_stat(watched.pid)
            except OSError:
                continue
            if other is not None and not watched.identity.endswith(f"/{other.start}"):
                # All of it has ended, and the number is another's.
                del self.watched[watched.pid]
            else:
                ours.append(watched)
                if session.is_alive(watched.pid, watched.identity):
                    # Before a look at all processes, which takes its time on a busy machine. Just after its
                    # fork it is not in its session yet.
                    session.send(watched.pid, signal.SIGKILL)
        try:
            members = session.members({watched.pid for watched in ours})
        except OSError:
            return
        for watched in ours:
            pids = members.get(watched.pid, ())
            for pid in pids:
                session.send(pid, signal.SIGKILL)
            if not pids and not session.is_alive(watched.pid, watched.identity):
                del self.watched[watched.pid]


def start_guard(wire: Wire, memory: LeaseMemory) -> int:
    """Fork the lease guard at the other end of *wire*; return its pid. Raises OSError."""

    def life() -> None:
        # They were the manager's.
        spare.ONE.fds.clear()
        Guard(wire, memory).run()

    return fork_helper("companion lease guard", wire, life)
