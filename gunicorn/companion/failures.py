# SPDX-License-Identifier: MIT
"""Failures of a companion in a row: when they end, and what they slow down and keep out of the log. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

# So many in a row are no accident: a rolling restart does not wait for such a copy, and status shows it as
# flapping.
PERSISTENT = 3

# A run has proved itself when it has lasted this many times as long as the failed one before it, within these
# bounds in seconds: a companion that dies after a minute each time has not recovered after ten seconds.
PROOF_FACTOR = 2
SHORTEST_PROOF = 10.0
LONGEST_PROOF = 600.0

# Two starts are at least this far apart, so that neither a restart_delay of 0 nor a client that repeats
# "restart" becomes a fork loop. After that many failures in a row the interval doubles each time, up to the
# longest: nobody reads twenty tracebacks a second.
MIN_START_INTERVAL = 0.05
PATIENT_FAILURES = 5
LONGEST_INTERVAL = 1.0

# Of failures in a row the first few are logged, then one a minute, and any of another kind; of kinds that are
# always new, such as a message with a number in it, only so many.
LOG_INTERVAL = 60.0
KINDS_LOGGED = 10


@dataclass
class Failures:
    """Counts failures in a row: since a run last proved itself, or a start was asked for."""

    count: int = 0
    # The reason of the latest one.
    latest: str | None = None
    # A longer run ends the count.
    proof: float = 0.0
    # The kinds of these failures that have been logged, and when the latest line was.
    logged: set[str | None] = field(default_factory=set)
    logged_at: float = float("-inf")

    def note(self, run: float, why: str) -> None:
        """Count a failure after a run of *run* seconds."""
        if run > self.proof:
            self.forget()
        self.count += 1
        self.latest = why
        self.proof = min(LONGEST_PROOF, max(SHORTEST_PROOF, PROOF_FACTOR * run))

    def forget(self) -> None:
        self.count = 0
        self.proof = 0.0
        self.logged.clear()

    def must_log(self, now: float) -> bool:
        """Whether to log the latest one: one of the first, one of another kind, or the first in a minute."""
        is_new = self.latest not in self.logged and len(self.logged) < KINDS_LOGGED
        if self.count > PERSISTENT and not is_new and now < self.logged_at + LOG_INTERVAL:
            return False
        self.logged.add(self.latest)
        self.logged_at = now
        return True

    def __str__(self) -> str:
        return f"failed {self.count} times in a row"

    @property
    def persist(self) -> bool:
        """Whether there are too many for an accident."""
        return self.count >= PERSISTENT

    def ongoing(self, uptime: float | None) -> bool:
        """Whether a process of *uptime* seconds (None: no process) has not proved itself yet."""
        return self.count > 0 and (uptime is None or uptime <= self.proof)

    @property
    def start_interval(self) -> float:
        """The shortest time from one start to the next."""
        doublings = max(0, self.count - PATIENT_FAILURES)
        return min(LONGEST_INTERVAL, MIN_START_INTERVAL * 2.0 ** min(doublings, 10))
