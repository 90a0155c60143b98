# SPDX-License-Identifier: MIT
"""Set what the system knows of a companion's process: its nice value, umask, CPUs, limits and the like."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence


class StartFailed(Exception):
    """The start itself failed; the text is for ``status``."""


def set_nice(value: int | None) -> None:
    """Set the nice value, which may need a privilege."""
    if value is not None:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, value)
        except OSError as exc:
            raise StartFailed(f"cannot set nice to {value}: {exc.strerror}") from None


def set_umask(mask: int | None) -> None:
    """Set the umask, for what the companion makes; its output files are the server's."""
    if mask is not None:
        os.umask(mask)


def set_oom_score(value: int | None) -> None:
    """Set how early the kernel kills it for memory; a lower value than now needs a privilege."""
    if value is not None:
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(str(value))
        except OSError as exc:
            raise StartFailed(f"cannot set oom_score_adj to {value}: {exc.strerror}") from None


def set_cpu_affinity(cpus: Sequence[int] | None) -> None:
    """Restrict it to *cpus*; those that the machine lacks are ignored if there are others."""
    if cpus is not None:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as exc:
            allowed = os.sched_getaffinity(0)
            raise StartFailed(
                f"cannot set cpu_affinity to {list(cpus)}: {exc.strerror} (the server may use {len(allowed)} "
                f"CPUs, from {min(allowed)} to {max(allowed)})"
            ) from None


def set_limits(limits: Mapping[str, tuple[int, int | None]]) -> None:
    """Set the limits of setrlimit(2). Only a privilege raises a hard limit."""
    for name, (soft, hard) in limits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}")
        present = resource.getrlimit(number)[1]
        try:
            resource.setrlimit(number, (soft, _hard_limit(soft, present) if hard is None else hard))
        except (OSError, ValueError) as exc:
            wanted = _limit_text(soft if hard is None else hard)
            raise StartFailed(
                f"cannot set rlimits {name} to {wanted}: {exc} (the hard limit is {_limit_text(present)})"
            ) from None


def _hard_limit(soft: int, present: int) -> int:
    """Return the present hard limit, or *soft* where that is higher."""
    if resource.RLIM_INFINITY in (soft, present):
        return resource.RLIM_INFINITY
    return max(soft, present)


def _limit_text(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
