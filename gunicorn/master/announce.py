# SPDX-License-Identifier: MIT
"""Decide what to tell a service manager, and when: sd_notify(3), sd_watchdog_enabled(3). Pure.

The arbiter describes its situation at each turn of its loop; ``Announcer.step()`` returns the message that is
due.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple

from gunicorn.master.handoff import WATCHDOG_PID

WATCHDOG_USEC = "WATCHDOG_USEC"

# The extra seconds to ask for during a stop, and how often: some requests may get lost or come late.
EXTENSION = 15.0
EXTEND_EVERY = 3.0
# Seconds between two checks while workers boot.
BOOT_TICK = 0.1
# The loop must not spin, whatever is in the environment.
SHORTEST_WATCHDOG = 0.02
# In characters, each of up to four bytes.
LONGEST_STATUS = 500


class Phase(enum.Enum):
    """Where the server is in its life, as its service manager sees it."""

    STARTING = "starting"
    SERVING = "serving"
    RELOADING = "reloading"
    STOPPING = "stopping"
    # It ends, but its successor goes on: the service does not stop.
    HANDING_OVER = "handing over"


class Situation(NamedTuple):
    """The facts about the server at one moment.

    *ready*: all wanted workers have booted with the current configuration. *successor*: the master that this
    one has started by USR2; 0 for none. *waiting*: this is such a successor, and the old master still lives.
    *left* and *companions_left*: what a stop still waits for. *reason*: why the server stops without a
    request. *held_by*: the companions that web workers wait for before they start.
    """

    pid: int
    wanted: int = 0
    booted: int = 0
    ready: bool = False
    companions: int = 0
    successor: int = 0
    waiting: bool = False
    stopping: bool = False
    left: int = 0
    companions_left: bool = False
    reason: str = ""
    held_by: str = ""


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float:
    """Return the seconds between two ``WATCHDOG=1`` of the process *pid*, half of its timeout; 0 for none."""
    usec, meant = environ.get(WATCHDOG_USEC, "").strip(), environ.get(WATCHDOG_PID, "").strip()
    if not (usec.isascii() and usec.isdecimal()) or meant not in ("", str(pid)):
        return 0.0
    return max(SHORTEST_WATCHDOG, int(usec) / 2_000_000) if int(usec) else 0.0


class Announcer:
    """Turns a sequence of situations into the messages of sd_notify(3).

    *watchdog*: seconds between two signs of life, 0 for none. Times are monotonic seconds.
    """

    def __init__(self, watchdog: float = 0.0) -> None:
        self.phase = Phase.STARTING
        self._watchdog = watchdog
        # A waiting successor sends nothing: the service manager accepts messages of the main process only,
        # and logs a warning for each other one.
        self._silent = False
        self._status = ""
        self._note = ""
        self._beat_at = self._extend_at = float("-inf")

    # -- what the arbiter reports ----------------------------------------------------------------

    def reload_begins(self, now: float) -> str:
        """Return the message to send before the configuration is read; "" for none."""
        self._note = ""
        # While the server starts, READY=1 follows anyway.
        if self._silent or self.phase not in (Phase.SERVING, Phase.RELOADING):
            return ""
        self.phase = Phase.RELOADING
        self._status = "Reloading: reading the configuration"
        # The service manager compares this time with that of its request: it must not be earlier.
        return f"RELOADING=1\nMONOTONIC_USEC={int(now * 1_000_000)}\nSTATUS={self._status}"

    def reload_refused(self, why: str) -> None:
        """Show until the next reload that the new configuration was refused."""
        self._note = f"; the last reload failed: {why}"

    def upgrade_failed(self, why: str) -> None:
        """Show until the next reload that a successor has not taken over."""
        self._note = f"; the last upgrade failed: {why}"

    def step(self, now: float, situation: Situation) -> str:
        """Return the message that is due in *situation*; "" for none."""
        was_silent, self._silent = self._silent, situation.waiting
        if self._silent:
            return ""
        lines: list[str] = []
        if was_silent:
            # Promoted. The old master has sent this, too, unless it was killed.
            lines.append(f"MAINPID={situation.pid}")
        lines += self._enter_phase(situation)
        # A migration must not be killed half-way because the limit for starts was meant for the web workers.
        lasts = self.phase in (Phase.STOPPING, Phase.HANDING_OVER) or bool(situation.held_by)
        if lasts and now >= self._extend_at + EXTEND_EVERY:
            self._extend_at = now
            lines.append(f"EXTEND_TIMEOUT_USEC={int(EXTENSION * 1_000_000)}")
        if self._watchdog and now >= self._beat_at + self._watchdog:
            self._beat_at = now
            lines.append("WATCHDOG=1")
        status = describe(self.phase, situation) + (self._note if self.phase is Phase.SERVING else "")
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={_presentable(status)}")
        return "\n".join(lines)

    def _enter_phase(self, situation: Situation) -> list[str]:
        """Move to the phase that *situation* shows; return the lines to send."""
        if situation.stopping:
            before = self.phase
            self.phase = Phase.HANDING_OVER if situation.successor else Phase.STOPPING
            return ["STOPPING=1"] if self.phase is Phase.STOPPING and before is not Phase.STOPPING else []
        if self.phase in (Phase.STARTING, Phase.RELOADING) and situation.ready:
            self.phase = Phase.SERVING
            return ["READY=1"]
        return []

    def leave(self, now: float, situation: Situation) -> str:
        """Return the message to send just before the process ends; "" for none."""
        if situation.successor and not situation.waiting:
            # Not before: if the successor fails, the main process must not be one that is gone.
            return f"MAINPID={situation.successor}"
        return self.step(now, situation._replace(stopping=True))

    # -- when --------------------------------------------------------------------------------------

    def next_deadline(self, now: float) -> float | None:
        """Return when ``step()`` is due again; None: when something happens."""
        if self._silent:
            return None
        times = []
        if self._watchdog:
            times.append(self._beat_at + self._watchdog)
        if self.phase in (Phase.STARTING, Phase.RELOADING):
            times.append(now + BOOT_TICK)
        elif self.phase in (Phase.STOPPING, Phase.HANDING_OVER):
            times.append(self._extend_at + EXTEND_EVERY)
        return min(times, default=None)


def describe(phase: Phase, situation: Situation) -> str:
    """Return the line that ``systemctl status`` shows."""
    s = situation
    if phase is Phase.STARTING and s.held_by:
        return f"Starting: web workers wait for {s.held_by}"
    if phase is Phase.STARTING:
        return f"Starting: {s.booted} of {_count(s.wanted, 'worker')} ready"
    if phase is Phase.RELOADING:
        return f"Reloading: {s.booted} of {_count(s.wanted, 'new worker')} ready"
    if phase is Phase.SERVING:
        serving = f"Serving: {_count(s.wanted, 'worker')}"
        if s.companions:
            serving += f", {_count(s.companions, 'companion')}"
        return serving + (f"; process {s.successor} is to take over" if s.successor else "")
    waits = [_count(s.left, "worker")] if s.left else []
    if s.companions_left:
        waits.append("companions")
    doing = f"Handing over to process {s.successor}" if phase is Phase.HANDING_OVER else "Stopping"
    parts = [s.reason] if s.reason else []
    parts += [f"waiting for {' and '.join(waits)}"] if waits else []
    return ": ".join([doing, "; ".join(parts)]) if parts else doing


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _presentable(text: str) -> str:
    """Return *text* shortened and without line ends, each of which would begin another assignment.

    systemd drops a message of more than 4096 bytes whole.
    """
    return " ".join(text.split())[:LONGEST_STATUS]
