# SPDX-License-Identifier: MIT
"""Count a companion's failures in a row, and decide when a run ends the count. Pure."""

from __future__ import annotations

# So many in a row are no accident any more: such a copy is not waited for, and status counts it as unwell.
PERSISTENT = 3

# A run has proved itself when it has lasted this many times as long as the one that failed before it, within
# these bounds in seconds: one that dies after a minute each time has recovered in two minutes, not in ten
# seconds.
PROOF_FACTOR = 2
SHORTEST_PROOF = 10.0
LONGEST_PROOF = 600.0

# Two starts are at least this far apart, so that neither a restart_delay of 0 nor a client that repeats
# "restart" becomes a fork loop. After that many failures in a row the interval doubles each time, up to the
# longest: nobody reads twenty tracebacks a second.
MIN_START_INTERVAL = 0.05
PATIENT_FAILURES = 5
LONGEST_INTERVAL = 1.0


class Failures:
    """The failures of one companion since a run last proved itself, or somebody asked for a start."""

    __slots__ = ("count", "latest", "proof")

    def __init__(self) -> None:
        self.count = 0
        # What went wrong with the latest one.
        self.latest: str | None = None
        # Seconds that a run must outlast.
        self.proof = 0.0

    def note(self, run: float, why: str) -> None:
        """It has failed after *run* seconds."""
        if run > self.proof:
            self.count = 0
        self.count += 1
        self.latest = why
        self.proof = min(LONGEST_PROOF, max(SHORTEST_PROOF, PROOF_FACTOR * run))

    def forget(self) -> None:
        self.count = 0
        self.proof = 0.0

    @property
    def persist(self) -> bool:
        """Whether it is no accident any more."""
        return self.count >= PERSISTENT

    def ongoing(self, uptime: float | None) -> bool:
        """Whether they may not be over, with a process of *uptime* seconds, or none."""
        return self.count > 0 and (uptime is None or uptime <= self.proof)

    @property
    def start_interval(self) -> float:
        """The shortest time from one start to the next."""
        doublings = max(0, self.count - PATIENT_FAILURES)
        return min(LONGEST_INTERVAL, MIN_START_INTERVAL * 2.0 ** min(doublings, 10))
