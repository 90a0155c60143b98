# SPDX-License-Identifier: MIT
"""Medians, spreads and ratios of paired runs; whether a target is met. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """The median of some figures, and their smallest and largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError where there are no figures."""
        if not values:
            raise ValueError("no figures")
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Target:
    """What a ratio is to be: at least (``">="``) or at most (``"<="``) *bound*."""

    sense: str
    bound: float

    def __post_init__(self) -> None:
        if self.sense not in (">=", "<="):
            raise ValueError(f"{self.sense!r} is neither '>=' nor '<='")

    def met(self, ratio: float) -> bool:
        return ratio >= self.bound if self.sense == ">=" else ratio <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.sense == '>=' else '≤'} {self.bound:g}"


ITSELF = "itself"


@dataclass(frozen=True)
class Comparison:
    """Ours over theirs: the median and spread of the ratios of runs that were made next to each other.

    Against `ITSELF` it is not a ratio but the figure, judged as it is.
    """

    against: str
    ratio: Spread
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """None where there is no target."""
        return None if self.target is None else self.target.met(self.ratio.median)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Comparison:
        target = Target(**data["target"]) if data["target"] is not None else None
        return cls(data["against"], Spread(**data["ratio"]), target)


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Run by run; a pair in which theirs is zero has none and is left out."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} runs cannot be paired with {len(theirs)}")
    return [a / b for a, b in zip(ours, theirs, strict=True) if b > 0]


def compare(
    against: str, ours: Sequence[float], theirs: Sequence[float], target: Target | None = None
) -> Comparison | None:
    """None where theirs is zero throughout."""
    ratios = paired_ratios(ours, theirs)
    return Comparison(against, Spread.of(ratios), target) if ratios else None


def percentile(values: Sequence[float], fraction: float) -> float:
    """The smallest of *values* that at least *fraction* of them do not exceed (nearest rank)."""
    if not values:
        raise ValueError("no figures")
    if not 0 <= fraction <= 1:
        raise ValueError("a fraction is from 0 to 1")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def rotations(labels: Sequence[str], runs: int) -> list[list[str]]:
    """The order of each run: every other one backwards, so that no one always follows the same other."""
    return [list(labels) if run % 2 == 0 else list(reversed(labels)) for run in range(runs)]
