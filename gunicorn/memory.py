# SPDX-License-Identifier: MIT
"""Measure the memory of one process, and be patient with those that need more than their limit.

The resident size (RSS) counts a page that ten processes share ten times. The
kernel knows better, by /proc/<pid>/smaps_rollup (see proc(5)): the proportional
size (PSS) counts a tenth of it for each, so that the PSS of all processes add up
to what the machine has given away; *private* memory is what would be free again
if the process ended; and anonymous memory beyond its proportional part is what
copy-on-write saves: a process that was not forked from the others would have
those pages to itself.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from gunicorn.unix import session

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")

# Seconds between two checks of processes with a limit.
INTERVAL = 5.0

MB = 2**20

# A process that exceeds its memory this soon after its start will do so again. Each time in a row the next
# one is left alone for twice as long, up to the longest, so that it gets something done; all in seconds.
SOON = 60.0
LONGEST_PATIENCE = 600.0
# After this many in a row, warn that the limit may be too low.
TOO_MANY = 3


@dataclass(frozen=True)
class Memory:
    """Bytes of memory, of one process or the sum of several."""

    rss: int = 0
    pss: int = 0
    private: int = 0
    saved: int = 0

    @property
    def separate(self) -> int:
        """What the same processes would take as separate programs.

        Separate programs share mapped files too, such as libraries; so these count in proportion.
        """
        return self.pss + self.saved

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            self.rss + other.rss,
            self.pss + other.pss,
            self.private + other.private,
            self.saved + other.saved,
        )

    def as_dict(self) -> dict[str, int]:
        """The figures as ``status`` shows them for one companion."""
        return {"rss": self.rss, "pss": self.pss, "private": self.private, "saved": self.saved}


def parse(rollup: bytes) -> Memory:
    """The figures of one process from its smaps_rollup."""
    sizes: dict[bytes, int] = {}
    for line in rollup.splitlines():
        name, _, rest = line.partition(b":")
        value = rest.split()
        # The first line, an address range, is no size.
        if len(value) == 2 and value[1] == b"kB" and value[0].isdigit():
            sizes[name] = int(value[0]) * 1024
    rss, pss = sizes.get(b"Rss", 0), sizes.get(b"Pss", 0)
    private = sizes.get(b"Private_Clean", 0) + sizes.get(b"Private_Dirty", 0)
    if b"Pss_Anon" in sizes:
        saved = sizes.get(b"Anonymous", 0) - sizes[b"Pss_Anon"]
    else:
        # Before Linux 5.4: all that is shared, mapped files included.
        saved = rss - pss
    return Memory(rss, pss, private, max(0, saved))


def of_process(pid: int) -> Memory | None:
    """Measure one process; None if it is gone, or the kernel does not let us.

    It tells a process's own user, unless the program is set-user-id or has changed its user.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return parse(file.read())
    except OSError:
        # If the main thread has ended and others run on, each of them shows the memory of the process.
        return next(filter(None, map(_of_thread, session.other_threads(pid))), None)


def _of_thread(path: str) -> Memory | None:
    try:
        with open(f"{path}/smaps_rollup", "rb") as file:
            return parse(file.read())
    except OSError:
        return None


def resident(pid: int) -> int:
    """The resident size by /proc/<pid>/statm; 0 where the process is gone."""
    pages = _resident_pages(f"/proc/{pid}")
    if not pages:
        pages = max(map(_resident_pages, session.other_threads(pid)), default=0)
    return pages * PAGE_SIZE


def _resident_pages(path: str) -> int:
    try:
        with open(f"{path}/statm", "rb") as file:
            return int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def may_exceed(resident_size: int, limit: int) -> bool:
    """Whether private memory may exceed *limit*: it is a part of the resident size, which the kernel counts.

    The kernel's count may lag by some pages for each processor. Only near the limit, let the kernel walk
    through the pages, which takes some milliseconds a process.
    """
    return resident_size * 4 >= limit * 3


def private_beyond(pid: int, limit: int) -> int:
    """Return the private memory of a process if it exceeds *limit*, else 0.

    Raises PermissionError if the kernel does not tell us.
    """
    if not may_exceed(resident(pid), limit):
        return 0
    found = of_process(pid)
    if found is None:
        # Either it is gone, or this raises PermissionError.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            open(f"/proc/{pid}/smaps_rollup", "rb").close()
        return 0
    return found.private if found.private > limit else 0


class Patience:
    """How long to leave a process alone that may exceed its memory; *interval*: seconds between checks."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self.interval = interval
        # How often in a row one has exceeded it soon after its start.
        self.count = 0

    @property
    def seconds(self) -> float:
        """Seconds after its start for which the next one is left alone, whatever memory it takes."""
        return min(LONGEST_PATIENCE, self.interval * 2.0 ** min(self.count, 10)) if self.count else 0.0

    def note(self, age: float) -> bool:
        """Note that one has exceeded it at this *age*; return whether the limit may be too low."""
        # After a long patience the excess is noticed late, so it still counts as soon.
        soon = age <= max(SOON, self.seconds + 2 * self.interval)
        self.count = self.count + 1 if soon else 0
        return self.count >= TOO_MANY
