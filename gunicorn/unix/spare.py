# SPDX-License-Identifier: MIT
"""Keep one descriptor in reserve for when no other is left."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

# open(2): the process, or the whole system, has as many files open as it may.
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE))

_fd = -1


def keep() -> None:
    """Have a descriptor in reserve, if there is one to have."""
    global _fd
    if _fd < 0:
        try:
            _fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            _fd = -1


def descriptors() -> list[int]:
    """The one in reserve, for those who close what is this process's own."""
    return [_fd] if _fd >= 0 else []


def forget() -> None:
    """Take it for gone: in a child that has closed it with others."""
    global _fd
    _fd = -1


def call(function: Callable[[], Result]) -> Result:
    """Call *function*, once more with the descriptor in reserve where it finds none left.

    What it opens it must close. Raises OSError where the reserve is of no use either: the limit was lowered
    below its number, or another process has taken what we gave back.
    """
    try:
        return function()
    except OSError as exc:
        if exc.errno not in EXHAUSTED or _fd < 0:
            raise
    os.close(_fd)
    forget()
    try:
        return function()
    finally:
        keep()
