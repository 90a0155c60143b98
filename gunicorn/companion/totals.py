# SPDX-License-Identifier: MIT
"""What is counted of each companion for as long as its server lives: starts, ends, processor time, output.

A count never goes back, whatever becomes of the companion, its manager or its master. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gunicorn.companion.output.ring import Counters

# The counts of one companion: ``starts``, ``kills``, ``cpu``, those of `OUTPUT`, ``ends: crash`` and the
# like, ``failures: gave up`` and the like; and ``since``, when the first of them was counted.
Counts = dict[str, float]

OUTPUT = ("log_bytes", "log_dropped_bytes", "log_dropped_lines")
KINDS = ("ends", "failures")

# Events that are neither starts, nor ends, nor failures.
UNCOUNTED = ("liveness fails", "liveness succeeds", "skipped", "missed", "run failed")

# A companion that is configured no more may come back, and is remembered. Of so many, the one that was
# counted first is dropped.
NAMES_KEPT = 10_000


class Totals:
    """The counts by name. *state* is the ``as_state()`` of an earlier manager."""

    def __init__(self, state: Any = None) -> None:
        self._by_name = _counts_in(state)
        # From managers before this one: what the counters that begin with a manager are added to.
        self._before = dict(self._by_name)
        # By name the processor time of the processes that have ended under this manager.
        self._ended: dict[str, float] = {}
        self._state: dict[str, Counts] | None = None

    def as_state(self) -> dict[str, Counts]:
        """Return all of it for the next manager; the same object until something is counted."""
        if self._state is None:
            # What is counted is a new dictionary each time.
            self._state = dict(self._by_name)
        return self._state

    def note(self, entry: Mapping[str, Any]) -> None:
        """Count an entry of the history."""
        event, name = entry["event"], entry["name"]
        if event == "start":
            # What the last processes took beyond what wait(2) told, as leftovers do, has ended with them.
            told = self._by_name.get(name, {}).get("cpu", 0) - self._before.get(name, {}).get("cpu", 0)
            self._ended[name] = max(told, self._ended.get(name, 0.0))
            self._add(name, entry["time"], "starts")
        elif event not in UNCOUNTED:
            self._add(name, entry["time"], f"{'ends' if event == 'exit' else 'failures'}: {entry['cause']}")

    def note_kill(self, name: str, wall: float) -> None:
        """Count a companion that did not stop in time."""
        self._add(name, wall, "kills")

    def note_end(self, name: str, cpu: float) -> None:
        """Add the processor time of a process that was reaped."""
        self._ended[name] = self._ended.get(name, 0.0) + cpu
        self._measured(name, cpu=0.0)

    def measured(self, name: str, cpu: float | None, output: Counters | None) -> None:
        """Take in what this manager measures: the time of the present processes, and all output."""
        found = {} if output is None else dict(zip(OUTPUT, output, strict=True))
        self._measured(name, cpu=cpu or 0.0, **found)

    def _measured(self, name: str, *, cpu: float, **values: float) -> None:
        values["cpu"] = cpu + self._ended.get(name, 0.0)
        before, now = self._before.get(name, {}), self._by_name.get(name, {})
        # A process whose parent does not wait for it takes its time with it; and output that was read after
        # the last measurement before a manager was killed is not known.
        grown = {
            key: value
            for key, own in values.items()
            if (value := round(before.get(key, 0) + own, 2)) > now.get(key, 0)
        }
        if grown:
            self._set(name, {**now, **grown})

    def _add(self, name: str, wall: float, key: str) -> None:
        now = self._by_name.get(name, {})
        self._set(name, {"since": wall, **now, key: now.get(key, 0) + 1})

    def _set(self, name: str, counts: Counts) -> None:
        self._by_name[name] = counts
        if len(self._by_name) > NAMES_KEPT:
            del self._by_name[next(iter(self._by_name))]
        self._state = None

    def add(self, other: Totals) -> None:
        """Add those of another server, whose companions this one continues."""
        for name, counts in other._by_name.items():
            self._set(name, _sum(counts, self._by_name.get(name, {})))
            self._before[name] = _sum(counts, self._before.get(name, {}))

    def of(self, name: str, other: Totals | None = None) -> dict[str, Any]:
        """The counts of one companion as ``status`` shows them; with those of *other*."""
        counts = self._by_name.get(name, {})
        if other is not None:
            counts = _sum(counts, other._by_name.get(name, {}))
        plain = {key: counts.get(key, 0) for key in ("starts", "kills", "cpu", *OUTPUT)}
        shown = {kind: _of_kind(kind, counts) for kind in KINDS}
        return {"since": counts.get("since"), **plain, **shown}


def _of_kind(kind: str, counts: Counts) -> dict[str, float]:
    return {cause: count for key, count in counts.items() if (cause := key.removeprefix(f"{kind}: ")) != key}


def _sum(one: Counts, other: Counts) -> Counts:
    found = {key: round(one.get(key, 0) + other.get(key, 0), 2) for key in (*one, *other)}
    since = [counts["since"] for counts in (one, other) if "since" in counts]
    return {**found, "since": min(since)} if since else found


def _counts_in(state: Any) -> dict[str, Counts]:
    """The counts in a state, which another version of the server may have written."""
    if not isinstance(state, dict):
        return {}
    return {
        name: {key: value for key, value in counts.items() if isinstance(value, (int, float))}
        for name, counts in state.items()
        if isinstance(counts, dict)
    }
