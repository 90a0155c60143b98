# SPDX-License-Identifier: MIT
"""Which bars a report has. Pure."""

from __future__ import annotations

from benchmarks.report import comparison_of, number
from benchmarks.results import Figure, Report, Row
from benchmarks.stats import ITSELF
from benchmarks.svg import Bar, Group, chart

TITLES = {
    "http": "HTTP: requests a second, more is better; latency, less is better",
    "asgi": "ASGI: less is better",
    "companions": "Companions: less is better",
    "memory": "Memory: less is better",
    "startup": "Starting: less is better",
}


def draw(report: Report) -> dict[str, str]:
    """A chart for each group that has figures."""
    pictures = {}
    for group in dict.fromkeys(row.group for row in report.rows):
        groups = [_bars(row) for row in report.rows if row.group == group and row.figures]
        if groups:
            pictures[group] = chart(TITLES.get(group, group), groups)
    return pictures


def _bars(row: Row) -> Group:
    bars = tuple(
        Bar(figure.label, figure.value.median, _shown(row, figure), ours=index == 0)
        for index, figure in enumerate(row.figures)
    )
    return Group(f"{row.title} [{row.unit}]", bars)


def _shown(row: Row, figure: Figure) -> str:
    """The figure, and beside it what it says: our ratio to it."""
    compared = comparison_of(row, figure)
    shown = number(figure.value.median)
    if compared is None or compared.against == ITSELF:
        return shown
    return f"{shown} (ratio {number(compared.ratio.median)})"
