# SPDX-License-Identifier: MIT
"""Keep descriptors in reserve for when no other is left."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

# open(2): the process, or the whole system, has as many files open as it may.
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE))


class Reserve:
    """Up to *size* descriptors, in ``fds``, that hold nothing."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fds: list[int] = []

    def fill(self) -> None:
        """Take as many as there should be, or can be."""
        while len(self.fds) < self.size:
            try:
                self.fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                return

    def release(self) -> bool:
        """Give one back, for the next call that needs one; False if none is left."""
        if not self.fds:
            return False
        os.close(self.fds.pop())
        return True

    def release_all(self) -> None:
        while self.release():
            pass

    def call(self, function: Callable[[], Result]) -> Result:
        """Call *function*; if it finds no descriptor left, call it once more with one of the reserve.

        It must close what it opens. Raises OSError if the reserve does not help either: the limit was lowered
        below its number, or another process has taken what we gave back.
        """
        try:
            return function()
        except OSError as exc:
            if exc.errno not in EXHAUSTED or not self.release():
                raise
        try:
            return function()
        finally:
            self.fill()


# One for the whole process, to read records and /proc.
ONE = Reserve(1)
