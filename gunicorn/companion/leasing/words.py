# SPDX-License-Identifier: MIT
"""What the lease keeper knows of each lease, in memory that it shares with manager, guard and companions.

So a renewal wakes nobody: whoever waits for the end of a lease looks, when that has come, whether it was put
off. Times are of the boot-time clock. Each number is one aligned word.
"""

from __future__ import annotations

import ctypes
import mmap

# Pages that nobody touches take no memory.
SLOTS = 16384


class Words(ctypes.Structure):
    """The words of one lease."""

    _fields_ = (
        # When it ends unless it is renewed; 0: it is not held here.
        ("until", ctypes.c_double),
        # Its token, also after its end.
        ("token", ctypes.c_uint64),
        # When that of another holder ends; 0: nobody holds it, or it is not known.
        ("other", ctypes.c_double),
        # When the keeper has last asked the store.
        ("asked", ctypes.c_double),
    )

    until: float
    token: int
    other: float
    asked: float

    def left(self, token: int, now: float) -> float:
        """Seconds until the end of the holding with *token*; 0 if it is lost."""
        return max(0.0, self.until - now) if self.token == token else 0.0


class LeaseMemory:
    """The memory; children that are forked have it too, until they execute a program."""

    def __init__(self) -> None:
        # Without a file, so without a descriptor.
        self._memory = mmap.mmap(-1, SLOTS * ctypes.sizeof(Words))

    def slot(self, number: int) -> Words:
        return Words.from_buffer(self._memory, number * ctypes.sizeof(Words))
