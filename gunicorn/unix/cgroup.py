# SPDX-License-Identifier: MIT
"""Ask the kernel how many processes it has killed for memory, in the control group of this process."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable

ROOT = "/sys/fs/cgroup"


def oom_kills() -> int | None:
    """Return how many processes the kernel has killed for memory where this process counts; None: not known.

    By the memory controller of its control group (version 2 counts the groups below it too), else of the
    whole system.
    """
    path = _counting_file()
    return None if path is None else _count_in(path)


@functools.cache
def _counting_file() -> str | None:
    """Looked for once: a server stays in its control group."""
    candidates = (*_group_files(), "/proc/vmstat")
    return next((path for path in candidates if _count_in(path) is not None), None)


def _count_in(path: str) -> int | None:
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None


def _group_files() -> list[str]:
    """The files that count, of a control group of version 2 or 1; in a container both may lie at the root."""
    files = []
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            inside = path.lstrip("/")
            if "memory" in controllers.split(","):
                files += [
                    os.path.join(ROOT, "memory", inside, "memory.oom_control"),
                    os.path.join(ROOT, "memory", "memory.oom_control"),
                ]
            elif not controllers:
                files += [
                    os.path.join(ROOT, inside, "memory.events"),
                    os.path.join(ROOT, "memory.events"),
                ]
    # Where both versions are mounted, the one that has the memory controller counts.
    return sorted(files, key=lambda path: "oom_control" not in path)


class OomKills:
    """Tells of processes that were killed by SIGKILL whether the kernel did it for memory.

    The kernel only counts, so a process is taken for one of them if the count has grown since its start by
    more than the others that were found before explain. *count* is `oom_kills`.
    """

    def __init__(self, count: Callable[[], int | None] = oom_kills) -> None:
        self._count = count
        self._explained = 0
        # The kills that nothing explained when a process was started, by its pid.
        self._before: dict[int, int] = {}

    def _unexplained(self) -> int:
        return (self._count() or 0) - self._explained

    def note_start(self, pid: int) -> None:
        self._before[pid] = self._unexplained()

    def note_end(self, pid: int, killed: bool) -> bool:
        """Forget *pid*; with *killed*, by somebody else's SIGKILL, return whether it was for memory."""
        before = self._before.pop(pid, None)
        if not killed or before is None or self._unexplained() <= before:
            return False
        self._explained += 1
        # One that was started between this kill and now has counted it.
        left = self._unexplained()
        self._before = {other: min(count, left) for other, count in self._before.items()}
        return True
