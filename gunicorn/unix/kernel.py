# SPDX-License-Identifier: MIT
"""What supervision asks of the operating system: processes, signals and the clock."""

from __future__ import annotations

import os
import time
from collections.abc import Collection

from gunicorn.unix import cgroup, session


class Kernel:
    """The real one; a test may pass another to whatever takes a kernel.

    Forks are not part of it, because a pid does not determine what the child does.
    """

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wait(self) -> tuple[int, int, float] | None:
        """Collect a child that has ended; None if there is none.

        Return its pid, its wait status, and the processor seconds of it and of the children that it has
        waited for.
        """
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        return (pid, status, usage.ru_utime + usage.ru_stime) if pid else None

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
