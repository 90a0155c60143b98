# SPDX-License-Identifier: MIT
"""Decide whether the manager still answers: pings, answers and time-outs. Pure.

One question is under way at a time. Something that may hang the manager (a signal to
reread, say) makes another one due, as the answer to an older question says nothing about it.
"""

from __future__ import annotations

# The most seconds that one check counts. An arbiter checks at least that often; otherwise it was itself held
# up (a frozen container, a slow configuration file), and the manager is not to blame.
LONGEST_LOOK = 1.0


class Pulse:
    """The questions to one manager. All times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self.number = 0
        self.waiting = False
        # Whether a silence has been reported, and whether nothing more is expected.
        self.reported = False
        self.given_up = False
        # How long the present question has been listened for.
        self.silence = 0.0
        self._again = False
        self._asked_at = self._looked_at = now

    def suspect(self) -> None:
        """Something has happened that the manager may not survive: ask as soon as an answer would tell."""
        self._again = True

    def due(self, now: float, interval: float) -> bool:
        """Whether to ask now; else every *interval* seconds."""
        return not self.waiting and (self._again or now >= self._asked_at + interval)

    def ask(self, now: float) -> int:
        """The number of the question that is sent now."""
        self.number += 1
        self.waiting = True
        self._again = False
        self.silence = 0.0
        self._asked_at = self._looked_at = now
        return self.number

    def answered(self, number: object) -> None:
        """An answer has come; one to an older question is none to this."""
        if number == self.number:
            self.waiting = self.reported = False
            self.silence = 0.0

    def look(self, now: float) -> float:
        """Seconds of silence, as of *now*; to be called when everything that has come is read."""
        if self.waiting:
            self.silence += min(now - self._looked_at, LONGEST_LOOK)
        self._looked_at = now
        return self.silence
