# SPDX-License-Identifier: MIT
"""Set attributes of parents and children by prctl(2). Other systems than Linux do not have it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36


def set_parent_death_signal(signum: int) -> bool:
    """Have *signum* sent to this process when its parent dies; return whether it will be."""
    return _prctl(PR_SET_PDEATHSIG, signum)


def become_subreaper() -> bool:
    """Adopt descendants whose parents die; return whether that is done."""
    return _prctl(PR_SET_CHILD_SUBREAPER, 1)


def stay_dumpable() -> bool:
    """Keep /proc/<pid> of this process and its children readable after a change of user."""
    return _prctl(PR_SET_DUMPABLE, 1)


def _load() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None


# Loaded before any fork, because loading takes locks.
_FUNCTION = _load()


def _prctl(option: int, value: int) -> bool:
    return _FUNCTION is not None and _FUNCTION(option, value, 0, 0, 0) == 0
