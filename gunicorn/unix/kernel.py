# SPDX-License-Identifier: MIT
"""What supervision asks of the operating system: processes, signals and the clock."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Collection
from types import BuiltinFunctionType

from gunicorn.unix import boottime, cgroup, session


class Kernel:
    """The real one; a test may pass another to whatever takes a kernel.

    Forks are not part of it, because a pid does not determine what the child does.
    """

    _seconds_before = 0.0

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def boottime(self) -> float:
        """Seconds since the machine was booted, also those while it was suspended."""
        return boottime.now()

    def wall(self) -> float:
        """The time of day: seconds since the epoch."""
        return time.time()

    def wait(self) -> tuple[int, int, float] | None:
        """Collect a child that has ended; None if there is none.

        Return its pid, its wait status, and the processor seconds of it and of the children that it has
        waited for.
        """
        try:
            if isinstance(os.waitpid, BuiltinFunctionType):
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                seconds = usage.ru_utime + usage.ru_stime
            else:
                # gevent has one of its own, because its loop may have collected the child.
                pid, status = os.waitpid(-1, os.WNOHANG)
                seconds = self._seconds_of_children() if pid else 0.0
        except ChildProcessError:
            return None
        return (pid, status, seconds) if pid else None

    def _seconds_of_children(self) -> float:
        """The processor seconds of the children that were collected since the last call."""
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        before, self._seconds_before = self._seconds_before, usage.ru_utime + usage.ru_stime
        return self._seconds_before - before

    def identity(self, pid: int) -> str | None:
        return session.identity(pid)

    def is_alive(self, pid: int, identity: str) -> bool:
        """Whether the process that had *pid* when `identity` returned *identity* still runs."""
        return session.is_alive(pid, identity)

    def owner(self, pid: int) -> int | None:
        return session.owner(pid)

    def group_of(self, pid: int) -> int:
        """The process group of *pid*. Raises OSError if there is no such process."""
        return os.getpgid(pid)

    def members(self, sessions: Collection[int]) -> dict[int, list[int]]:
        return session.members(sessions)

    def oom_kills(self) -> int | None:
        return cgroup.oom_kills()

    def send(self, pid: int, signum: int) -> bool:
        return session.send(pid, signum)

    def ask_to_stop(self, pid: int, signum: int, as_group: bool = False) -> None:
        session.ask_to_stop(pid, signum, as_group)

    def ask_group_to_stop(self, group: int, signum: int) -> None:
        session.ask_group_to_stop(group, signum)


KERNEL = Kernel()
