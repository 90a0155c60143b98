# SPDX-License-Identifier: MIT
"""A clock and an alarm that go on while the machine is suspended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time

from gunicorn.unix import libc

# Linux has it; elsewhere a suspended machine stops the clock.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

# <sys/timerfd.h>
_TFD_TIMER_ABSTIME = 1


def now() -> float:
    """Seconds since the machine was booted."""
    return time.clock_gettime(CLOCK)


class Alarm:
    """Becomes readable at a time of this clock. The timeout of a wait stands still with the machine.

    Without timerfd_create(2) ``fd`` is -1, and the caller has to look at the clock.
    """

    def __init__(self) -> None:
        self.fd = libc.timerfd_create(CLOCK, os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self, moment: float | None) -> None:
        """Ring at *moment*; None: not at all."""
        # Zero would disarm it, and a time that is over rings at once.
        nanoseconds = 0 if moment is None else max(1, int(moment * 1e9))
        seconds, rest = divmod(nanoseconds, 1_000_000_000)
        libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, (ctypes.c_long * 4)(0, 0, seconds, rest))

    def acknowledge(self) -> None:
        """Make it unreadable."""
        with contextlib.suppress(OSError):
            os.read(self.fd, 8)
