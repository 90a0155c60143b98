# SPDX-License-Identifier: MIT
"""What a measurement found, as data: rows of figures and comparisons, to and from JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.stats import ITSELF, Comparison, Spread, Target, compare

FORMAT = 1


@dataclass(frozen=True)
class Figure:
    """What one contestant reached; *cpu*: the microseconds of CPU time that a request cost its server."""

    label: str
    value: Spread
    cpu: Spread | None = None

    def to_json(self) -> dict[str, Any]:
        return {"label": self.label, "value": vars(self.value), "cpu": vars(self.cpu) if self.cpu else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Figure:
        return cls(data["label"], Spread(**data["value"]), Spread(**data["cpu"]) if data["cpu"] else None)


@dataclass(frozen=True)
class Row:
    """One case. The first figure is ours, and each comparison is ours over one of the others."""

    group: str
    name: str
    title: str
    unit: str
    figures: tuple[Figure, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    runs: int = 0
    note: str = ""
    # Why there are no figures.
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "figures": [figure.to_json() for figure in self.figures],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        return cls(
            **{
                **data,
                "figures": tuple(map(Figure.from_json, data["figures"])),
                "comparisons": tuple(map(Comparison.from_json, data["comparisons"])),
            }
        )


@dataclass(frozen=True)
class Measured:
    """One contestant's runs, in the order in which they were made."""

    values: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def make_row(
    group: str,
    name: str,
    title: str,
    unit: str,
    measured: Mapping[str, Measured],
    targets: Mapping[str, Target] | None = None,
    note: str = "",
) -> Row:
    """The row of *measured*, the first of which is ours."""
    figures = tuple(
        Figure(label, Spread.of(m.values), Spread.of(m.cpu) if m.cpu else None)
        for label, m in measured.items()
    )
    first, *others = measured
    wanted = targets or {}
    ours = measured[first].values
    comparisons = [compare(label, ours, measured[label].values, wanted.get(label)) for label in others]
    if ITSELF in wanted:
        comparisons.insert(0, Comparison(ITSELF, Spread.of(ours), wanted[ITSELF]))
    runs = len(measured[first].values)
    return Row(group, name, title, unit, figures, tuple(c for c in comparisons if c is not None), runs, note)


@dataclass(frozen=True)
class Report:
    """The rows of one or several runs; each group with the machine on which it was measured."""

    rows: tuple[Row, ...] = ()
    # By group: the machine, the versions, the date, what was left out and why.
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "conditions": {group: dict(found) for group, found in self.conditions.items()},
            "rows": [row.to_json() for row in self.rows],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        if data.get("format") != FORMAT:
            raise ValueError(f"results of format {data.get('format')!r} are not known here")
        return cls(tuple(map(Row.from_json, data["rows"])), data["conditions"])

    def merged(self, newer: Report) -> Report:
        """*newer* over this one, case by case, in this one's order."""
        fresh = {(row.group, row.name): row for row in newer.rows}
        rows = [fresh.pop((row.group, row.name), row) for row in self.rows]
        return Report((*rows, *fresh.values()), {**self.conditions, **newer.conditions})
