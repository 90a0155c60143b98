# SPDX-License-Identifier: MIT
"""The table of the metrics for Prometheus, from their declaration.

Written as ``metrics.inc`` before each build; ``python metrics_table.py`` prints it.
"""

from __future__ import annotations

from generated import writes

from gunicorn.monitor.openmetrics import METRICS, Metric

HEAD = ".. This file is written by _ext/metrics_table.py from monitor/openmetrics.py; changes belong there.\n"
COLUMNS = ("name", "kind", "labels", "what")


def table() -> str:
    """The whole table in reStructuredText."""
    lines = [HEAD, ".. list-table::", "   :header-rows: 1", "   :widths: 40 8 14 38", ""]
    for cells in (COLUMNS, *(row(metric) for metric in METRICS)):
        first, *others = cells
        lines += [f"   * - {first}".rstrip(), *(f"     - {cell}".rstrip() for cell in others)]
    return "\n".join([*lines, ""])


def row(metric: Metric) -> tuple[str, ...]:
    labels = ", ".join(f"``{label}``" for label in metric.labels)
    return f"``{metric.name}``", metric.kind, labels, metric.help


setup = writes("metrics.inc", table)

if __name__ == "__main__":
    print(table(), end="")
