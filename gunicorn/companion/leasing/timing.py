# SPDX-License-Identifier: MIT
"""The sums of a lease: its renewals, and when a companion must be gone that has not got it renewed. Pure."""

from __future__ import annotations

from typing import NamedTuple

# A renewal has this many seconds at least, from when it is due to the stop signal.
SLACK = 2.0

# Without `lease_margin`: this part of the ttl, and these seconds at least.
MARGIN_PART, LEAST_MARGIN = 0.1, 1.0


class Timing(NamedTuple):
    """Seconds. The manager kills *margin* before the end, the guard half of that before the end."""

    ttl: float
    margin: float

    @classmethod
    def of(cls, ttl: float, margin: float | None) -> Timing:
        return cls(ttl, max(LEAST_MARGIN, ttl * MARGIN_PART) if margin is None else margin)

    @property
    def problem(self) -> str | None:
        """What is wrong with them, and what would be right; None if nothing is."""
        if self.ttl > self.ttl / 3 + self.margin + SLACK:
            return None
        least = (self.margin + SLACK) * 1.5
        return (
            f"lease_ttl, {self.ttl:g}, must be more than a third of it until a renewal ({self.ttl / 3:.3g}) "
            f"+ lease_margin ({self.margin:g}) + {SLACK:g} for the renewal: "
            f"set lease_ttl to more than {least:g}, or a smaller lease_margin"
        )

    def grace(self, stop_timeout: float) -> float:
        """Seconds from the stop signal to SIGKILL: the companion's own, as far as the ttl allows."""
        return max(0.0, min(stop_timeout, self.ttl - self.ttl / 3 - self.margin - SLACK))
