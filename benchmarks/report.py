# SPDX-License-Identifier: MIT
"""The results for people: a table on a terminal, and the same as reStructuredText. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.results import Figure, Report, Row
from benchmarks.stats import ITSELF, Comparison, Spread

VERDICTS = {True: "met", False: "not met", None: ""}


def number(value: float) -> str:
    """Three significant digits, thousands with commas, no exponents."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


def ratio(spread: Spread) -> str:
    return f"{number(spread.median)} ({number(spread.low)} to {number(spread.high)})"


def comparison_of(row: Row, figure: Figure) -> Comparison | None:
    """What *figure* is to be judged by; ours, the first, by itself if at all."""
    wanted = ITSELF if figure is row.figures[0] else figure.label
    return next((c for c in row.comparisons if c.against == wanted), None)


def verdict(comparison: Comparison | None) -> str:
    return VERDICTS[comparison.met] if comparison is not None else ""


def text_table(report: Report) -> str:
    """Every case: a line for each contestant, with ours over it."""
    lines = []
    header = ("", "figure", "spread", "CPU µs", "ratio", "spread", "target", "")
    for row in report.rows:
        lines += ["", f"{row.name}: {row.title} [{row.unit}, {row.runs} runs]"]
        if row.error:
            lines.append(f"  not measured: {row.error}")
            continue
        cells = [header, *(_cells(row, figure) for figure in row.figures)]
        lines += ["  " + line for line in columns(cells)]
        if row.note:
            lines.append(f"  ({row.note})")
    lines += ["", *summary(report)]
    return "\n".join(lines).lstrip("\n")


def _cells(row: Row, figure: Figure) -> tuple[str, ...]:
    compared = comparison_of(row, figure)
    value = figure.value
    shown = compared if compared is not None and compared.against != ITSELF else None
    return (
        figure.label,
        number(value.median),
        f"{number(value.low)} to {number(value.high)}",
        number(figure.cpu.median) if figure.cpu is not None else "",
        number(shown.ratio.median) if shown else "",
        f"{number(shown.ratio.low)} to {number(shown.ratio.high)}" if shown else "",
        str(compared.target) if compared and compared.target else "",
        verdict(compared),
    )


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned: the first and last columns to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            c.ljust(w) if i in (0, last) else c.rjust(w)
            for i, (c, w) in enumerate(zip(r, widths, strict=True))
        ).rstrip()
        for r in rows
    ]


def targets(report: Report) -> list[tuple[Row, Comparison]]:
    return [(row, c) for row in report.rows for c in row.comparisons if c.target is not None]


def summary(report: Report) -> list[str]:
    """How many targets are met, and which are not."""
    judged = targets(report)
    missed = [(row, c) for row, c in judged if not c.met]
    lines = [f"{len(judged) - len(missed)} of {len(judged)} targets met"]
    lines += [
        f"  not met: {row.name}{'' if c.against == ITSELF else f' against {c.against}'}: "
        f"{number(c.ratio.median)}, target {c.target}"
        for row, c in missed
    ]
    lines += [f"  not measured: {row.name}: {row.error}" for row in report.rows if row.error]
    return lines


# -- reStructuredText --------------------------------------------------------


def rst(report: Report, charts: Iterable[str] = ()) -> str:
    """What the documentation's page includes: by group, the conditions, the chart and the table."""
    parts = [".. Written by ``python -m benchmarks --docs`` from benchmarks.json; not to be edited.", ""]
    there = set(charts)
    parts += [*_rst_summary(report), ""]
    for group in dict.fromkeys(row.group for row in report.rows):
        heading = HEADINGS.get(group, group)
        parts += [heading, "-" * len(heading), "", *_conditions(report, group), ""]
        if group in there:
            parts += [f".. image:: benchmarks-{group}.svg", f"   :alt: {ALTS.get(group, heading)}", ""]
        rows = [row for row in report.rows if row.group == group]
        parts += [*_rst_table(rows), ""]
        notes = [f"* ``{row.name}``: {escape(row.note)}" for row in rows if row.note]
        parts += [*notes, ""] if notes else []
    return "\n".join(parts)


def _rst_summary(report: Report) -> list[str]:
    judged = targets(report)
    missed = [(row, c) for row, c in judged if not c.met]
    lines = [
        f"{len(judged) - len(missed)} of {len(judged)} targets are met{'.' if not missed else '; not met:'}",
        "",
    ]
    for row, c in missed:
        against = f" against {escape(c.against)}" if c.against != ITSELF else ""
        shown = number(c.ratio.median) + ("" if against else f" {row.unit}")
        lines.append(f"* ``{row.name}``{against}: {shown}, the target is {c.target}")
    return lines


HEADINGS = {
    "http": "HTTP",
    "asgi": "ASGI",
    "startup": "Starting",
    "memory": "Memory",
    "companions": "Companions",
}
ALTS = {
    "http": "Bars: requests a second, or latency, of each server in each case.",
    "asgi": "Bars: processor time of a request or message in each server.",
    "startup": "Bars: the time that each server takes to start.",
    "memory": "Bars: private memory of each process.",
    "companions": "Bars: this server beside bare forks, supervisord and circus in each case.",
}


def _conditions(report: Report, group: str) -> list[str]:
    found = report.conditions.get(group)
    if not found:
        return []
    machine = found["machine"]
    versions = ", ".join(
        name if version in name else f"{name} {version}" for name, version in found["versions"].items()
    )
    cores = f"{machine['cores']} cores, {machine['cpu']}, {machine['architecture']}, {machine['system']}"
    where = "on a core of its own" if machine["pinned"] == "yes" else "on the same cores"
    lines = [
        f"Measured on {found['date']}: {cores}, Python {machine['python']}; {versions}; "
        f"load from {found['load']}, {where}."
    ]
    lines += [f"Left out: {name}: {escape(why)}." for name, why in found["left_out"].items()]
    return lines


def _rst_table(rows: Sequence[Row]) -> list[str]:
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 34 18 18 8 20 10 8",
        "",
        *_list_row("case", "against", "ratio (spread)", "target", "ours : theirs", "CPU, µs", "met"),
    ]
    for row in rows:
        name = f"``{row.name}``: {escape(row.title)}"
        if row.error:
            lines += _list_row(name, "not measured: " + escape(row.error), "", "", "", "", "")
            continue
        own = row.figures[0]
        judged = comparison_of(row, own)
        if judged is not None or len(row.figures) == 1:
            shown = f"{number(own.value.median)} {row.unit}"
            lines += _list_row(name, "", "", _target(judged), shown, _cpu(own), verdict(judged))
            name = ""
        for figure in row.figures[1:]:
            compared = comparison_of(row, figure)
            lines += _list_row(
                name,
                escape(figure.label),
                ratio(compared.ratio) if compared is not None else "",
                _target(compared),
                f"{number(own.value.median)} : {number(figure.value.median)} {row.unit}",
                _cpu(own, figure),
                verdict(compared),
            )
            name = ""
    return lines


def _target(compared: Comparison | None) -> str:
    return str(compared.target) if compared is not None and compared.target is not None else ""


def _cpu(*figures: Figure) -> str:
    medians = [figure.cpu.median for figure in figures if figure.cpu is not None]
    return " : ".join(map(number, medians)) if len(medians) == len(figures) else ""


def _list_row(*cells: str) -> list[str]:
    return [f"   {'*' if i == 0 else ' '} - {cell}".rstrip() for i, cell in enumerate(cells)]


def escape(text: str) -> str:
    """As plain text of reStructuredText."""
    return "".join("\\" + c if c in "\\*`_|" else c for c in " ".join(text.split()))
