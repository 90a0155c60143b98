# SPDX-License-Identifier: MIT
"""Pass the sockets of ``bind`` from descriptor 3 on, as in sd_listen_fds(3).

For a program these numbers are free, because exec closes them. A Python target shares the memory of the
preloaded application, whose objects may use these numbers; so the master occupies them before it loads the
application.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Collection, Iterable, Sequence
from typing import Any

# SD_LISTEN_FDS_START
FIRST = 3

# The numbers that `reserve` holds, in the master and in what it forks.
_RESERVED: set[int] = set()


class Occupied(Exception):
    """The application uses a number that a socket must get; the text says for what."""


def reserve(count: int) -> None:
    """Hold the numbers of *count* sockets, so that no file that is opened from now on gets one.

    Call it before the application is loaded. Numbers in use stay as they are.
    """
    for number in range(FIRST, FIRST + count):
        if not is_open(number):
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            if null != number:
                os.dup2(null, number, inheritable=False)
                os.close(null)
            _RESERVED.add(number)


def most(entries: Iterable[Any]) -> int:
    """Return the highest number of sockets of an entry of `companion_workers`, which may be unchecked."""
    binds = [entry.get("bind") for entry in entries if isinstance(entry, dict)]
    counts = [
        1 if isinstance(bind, str) else len(bind) for bind in binds if isinstance(bind, str | list | tuple)
    ]
    return max(counts, default=0)


def release() -> None:
    """In a companion: close what `reserve` holds."""
    for number in [number for number in _RESERVED if _is_placeholder(number)]:
        os.close(number)
    _RESERVED.clear()


def lift(fd: int, count: int) -> int:
    """Move *fd* above the numbers of *count* sockets if it has one of them; return its number."""
    if not FIRST <= fd < FIRST + count:
        return fd
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST + count)
    os.close(fd)
    return copy


def hand_over(sources: Sequence[int], force: bool = False) -> None:
    """Move *sources* to the descriptors 3, 4 …; a program started by exec inherits them.

    Raises Occupied, before it changes anything, if such a number is neither free, nor reserved, nor one of
    *sources*. With *force* it takes the number anyway, because no object outlives the exec that follows.
    """
    numbers = range(FIRST, FIRST + len(sources))
    if not force:
        for number in numbers:
            if number not in sources and is_open(number) and not _is_placeholder(number):
                raise Occupied(_occupied(number))
    # First move those that have a target number: another one would overwrite them.
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, numbers.stop) if fd in numbers else fd for fd in sources]
    for fd, number in zip(lifted, numbers, strict=True):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)
    _RESERVED.difference_update(numbers)


def _occupied(number: int) -> str:
    text = f"descriptor {number}, needed for a socket of 'bind', is held by {_describe(number)}"
    if os.get_inheritable(number):
        # Exec closes the files that Python opened, so this one was there before the server.
        return f"{text}, which the server was started with"
    return f"{text} of the application; restart the server to free it"


def is_open(number: int) -> bool:
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _is_placeholder(number: int) -> bool:
    """Whether *number* is still what `reserve` has put there."""
    if number not in _RESERVED:
        return False
    try:
        info = os.fstat(number)
    except OSError:
        return False
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == os.stat(os.devnull).st_rdev


def _describe(number: int) -> str:
    for directory in ("/proc/self/fd", "/dev/fd"):
        try:
            return os.readlink(f"{directory}/{number}")
        except OSError:
            continue
    return "a file"


def close_all(numbers: Collection[int]) -> None:
    """Close descriptors, open or not, with one system call for each range: a manager has thousands."""
    ordered = sorted(numbers)
    while ordered:
        first, count = ordered[0], 1
        while count < len(ordered) and ordered[count] == first + count:
            count += 1
        os.closerange(first, first + count)
        del ordered[:count]
