# SPDX-License-Identifier: MIT
"""Call functions of the C library that Python does not offer. Elsewhere than on Linux they do nothing."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
# <linux/close_range.h>
CLOSE_RANGE_CLOEXEC = 4
HIGHEST = 2**32 - 1
# <sys/mman.h>
PROT_NONE = 0
PROT_READ = 1
PROT_WRITE = 2
MAP_SHARED = 1
MAP_FAILED = ctypes.c_void_p(-1).value


def set_parent_death_signal(signum: int) -> bool:
    """Have *signum* sent to this process when its parent dies; return whether it will be. prctl(2)."""
    return _prctl is not None and _prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0) == 0


def become_subreaper() -> bool:
    """Adopt descendants whose parents die; return whether that is done. prctl(2)."""
    return _prctl is not None and _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def stay_dumpable() -> bool:
    """Keep /proc/<pid> of this process and its children readable after a change of user. prctl(2)."""
    return _prctl is not None and _prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0


def close_at_exec(lowest: int) -> bool:
    """Have exec close every descriptor from *lowest* on; return whether it will. close_range(2)."""
    return _close_range is not None and _close_range(lowest, HIGHEST, CLOSE_RANGE_CLOEXEC) == 0


def keep_mapped(fd: int) -> None:
    """Map the file *fd*, which has no memory of its own, until the process executes a program. mmap(2)."""
    if _mmap is not None:
        _mmap(None, 4096, PROT_NONE, MAP_SHARED, fd, 0)


def map_shared(fd: int, size: int) -> Any:
    """Map the file *fd* and return the memory, which stays mapped; None if that cannot be done. mmap(2)

    Python's own mmap keeps a descriptor of its own open, in each process that is forked later.
    """
    address = None if _mmap is None else _mmap(None, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    return None if address in (None, MAP_FAILED) else (ctypes.c_ubyte * size).from_address(address)


def timerfd_create(clock: int, flags: int) -> int:
    """Return a descriptor that tells when a time has come; -1 if there is none. timerfd_create(2)"""
    return -1 if _timerfd_create is None else int(_timerfd_create(clock, flags))


def timerfd_settime(fd: int, flags: int, interval_and_time: Any) -> None:
    """Set it; seconds and nanoseconds of both. timerfd_settime(2)"""
    if _timerfd_settime is not None and fd >= 0:
        _timerfd_settime(fd, flags, interval_and_time, None)


def _load(name: str, result: Any, *arguments: Any) -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    function.restype, function.argtypes = result, arguments
    return function


# Loaded before any fork, because loading takes locks.
_int, _unsigned, _long = ctypes.c_int, ctypes.c_uint, ctypes.c_ulong
_prctl = _load("prctl", _int, _int, _long, _long, _long, _long)
_close_range = _load("close_range", _int, _unsigned, _unsigned, _int)
_mmap = _load("mmap", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, _int, _int, _int, ctypes.c_long)
_timerfd_create = _load("timerfd_create", _int, _int, _int)
_timerfd_settime = _load("timerfd_settime", _int, _int, _int, ctypes.c_void_p, ctypes.c_void_p)
