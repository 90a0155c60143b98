# SPDX-License-Identifier: MIT
"""A clock that goes on while the machine is suspended."""

from __future__ import annotations

import time

# Linux has it; elsewhere a suspended machine stops the clock of leases too.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds since the machine was booted."""
    return time.clock_gettime(CLOCK)
