# SPDX-License-Identifier: MIT
"""Count starts, failures and kills of companions, for a logger that sends metrics.

The manager logs each figure with an ``extra``, as the master does with its workers; which logger
makes a metric of it is the logger's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gunicorn.companion.process import CompanionProcess, State
from gunicorn.companion.table import Snapshot

RUNNING = "gunicorn.companions.running"
RESTARTS = "gunicorn.companions.restarts"
BACKOFFS = "gunicorn.companions.backoffs"
KILLS = "gunicorn.companions.kills"


def counted(before: Snapshot, after: Snapshot) -> dict[str, int]:
    """By how much which counter has grown between two moments; nothing that has not."""
    grown = {
        RESTARTS: after.restarts - before.restarts,
        BACKOFFS: int(after.state is State.BACKOFF and before.state is not State.BACKOFF),
        KILLS: after.kills - before.kills,
    }
    return {metric: number for metric, number in grown.items() if number > 0}


def count_running(processes: Iterable[CompanionProcess]) -> int:
    return sum(1 for process in processes if process.state is State.RUNNING)


def counter(metric: str, number: int, companion: str) -> dict[str, Any]:
    """The ``extra`` of a counter; the companion's name is a tag, for servers that know tags."""
    return {"metric": metric, "value": number, "mtype": "counter", "tags": {"companion": companion}}


def gauge(metric: str, number: int) -> dict[str, Any]:
    """The ``extra`` of a gauge."""
    return {"metric": metric, "value": number, "mtype": "gauge"}
