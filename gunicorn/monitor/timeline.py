# SPDX-License-Identifier: MIT
"""The last hour in memory that master and monitor share: totals that the master notes every few seconds.

The master wakes each second anyway, so nobody has to wake up for the charts, and a restart of the monitor
loses none of them.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

INTERVAL = 5.0
KEPT = 720
# A longer pause between two notes is a gap in the charts.
_LONGEST = 4 * INTERVAL

_WORD = 8


class Note(NamedTuple):
    """The totals at a moment: all but the last two only grow."""

    time: float
    requests: int
    errors: int
    histogram: tuple[int, ...]
    busy: int
    workers: int


class Timeline:
    """A ring of notes for histograms of *buckets* numbers."""

    def __init__(self, buckets: int) -> None:
        # time, requests, errors, busy, workers, histogram
        self._row = struct.Struct(f"@dQQQQ{buckets}Q")
        # How many notes there have been, and the notes.
        self._memory = mmap.mmap(-1, _WORD + KEPT * self._row.size)
        self._due = 0.0

    def tick(self, now: float, board: Any) -> None:
        """In the master, at monotonic *now*: note what *board* shows, if it is time."""
        if now < self._due:
            return
        self._due = now + INTERVAL
        shown = board.read()
        totals = shown["totals"]
        states = [worker["state"] for worker in shown["workers"]]
        self._add(
            round(time.time(), 3),
            totals["requests"],
            totals["answers"]["5xx"],
            states.count("busy"),
            len(states),
            *totals["histogram"],
        )

    def _add(self, *values: Any) -> None:
        count = self._count()
        self._row.pack_into(self._memory, self._place(count), *values)
        # Last: a reader never sees half a note.
        struct.pack_into("@Q", self._memory, 0, count + 1)

    def _count(self) -> int:
        count: int = struct.unpack_from("@Q", self._memory, 0)[0]
        return count

    def _place(self, number: int) -> int:
        return _WORD + number % KEPT * self._row.size

    def notes(self) -> list[Note]:
        """Return what is kept, the oldest first."""
        count = self._count()
        # The oldest place may be written again while this reads.
        return [self._note(number) for number in range(max(0, count - KEPT + 1), count)]

    def latest(self) -> float:
        """Return the time of the latest note; 0 without one."""
        count = self._count()
        return self._note(count - 1).time if count else 0.0

    def _note(self, number: int) -> Note:
        values = self._row.unpack_from(self._memory, self._place(number))
        moment, requests, errors, busy, workers = values[:5]
        return Note(moment, requests, errors, values[5:], busy, workers)


def samples(
    notes: Sequence[Note],
    bounds: Sequence[float],
    *,
    restarts: Sequence[float] | None = None,
    memory: Sequence[tuple[float, int, int]] = (),
) -> list[dict[str, Any]]:
    """Return what happened between each two *notes*.

    *bounds* are those of the histograms. *restarts*: the times of restarts; None: not known. *memory*: times
    with private and saved bytes, in order.
    """
    found = []
    for before, after in pairwise(notes):
        seconds = after.time - before.time
        requests = after.requests - before.requests
        # The clock was set, or there was a pause.
        if not 0 < seconds <= _LONGEST or requests < 0:
            continue
        counts = [b - a for a, b in zip(before.histogram, after.histogram, strict=True)]
        looked = [entry for entry in memory if before.time < entry[0] <= after.time]
        _, private, saved = looked[-1] if looked else (0, None, None)
        found.append(
            {
                "time": after.time,
                "rps": round(requests / seconds, 3),
                **{f"p{part}": quantile(counts, bounds, part / 100) for part in (50, 95, 99)},
                "errors": round((after.errors - before.errors) / seconds, 3),
                "memory": private,
                "saved": saved,
                "restarts": None
                if restarts is None
                else sum(before.time < moment <= after.time for moment in restarts),
                "busy": after.busy,
                "workers": after.workers,
            }
        )
    return found


def quantile(counts: Sequence[int], bounds: Sequence[float], part: float) -> float | None:
    """Estimate a quantile of durations, evenly spread within each bucket; None without durations."""
    total = sum(counts)
    if total <= 0:
        return None
    wanted, below, low = part * total, 0, 0.0
    for count, high in zip(counts, bounds, strict=False):
        if count and below + count >= wanted:
            return round(low + (high - low) * (wanted - below) / count, 6)
        below, low = below + count, high
    # Longer than the last bound: nobody knows how much.
    return bounds[-1]


def restarts_in(history: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the times of starts in *history* that followed an end of the same companion."""
    ended: set[str] = set()
    found = []
    for entry in history:
        if entry["event"] == "exit":
            ended.add(entry["name"])
        elif entry["event"] == "start" and entry["name"] in ended:
            found.append(entry["time"])
    return found
