# SPDX-License-Identifier: MIT
"""The history of companions: their latest starts and ends with the cause of each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from gunicorn.companion.process import Action, Cause, CompanionProcess, Event
from gunicorn.companion.status import format_uptime
from gunicorn.companion.table import Change
from gunicorn.unix.signals import signal_name

# An event as ``events`` shows it: an object with ``event``, ``time`` (seconds since the epoch) and ``name``.
Entry = dict[str, Any]

# The events of all companions that are kept, and of each companion the ends.
EVENTS_KEPT = 100
ENDS_KEPT = 5


class History:
    """Keeps the latest events of all companions, and the latest ends of each.

    *state* is the ``as_state()`` of an earlier manager. ``tell`` is called with each new entry.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.tell: Callable[[Entry], object] = lambda entry: None
        self.entries = deque(_entries_in(state.get("history")), maxlen=EVENTS_KEPT)
        self._state: dict[str, Any] | None = None
        ends = state.get("ends")
        self._ends = {
            name: deque(_entries_in(found), maxlen=ENDS_KEPT)
            for name, found in (ends.items() if isinstance(ends, dict) else ())
        }

    def as_state(self) -> dict[str, Any]:
        """Return all of it for the next manager; the same object until something is added."""
        if self._state is None:
            ends = {name: list(found) for name, found in self._ends.items()}
            self._state = {"history": list(self.entries), "ends": ends}
        return self._state

    def ends_of(self, name: str) -> list[Entry]:
        """The latest ends of *name*, the last one first."""
        return list(reversed(self._ends.get(name, ())))

    def forget(self, name: str) -> None:
        """Drop the ends of a companion that is configured no more; its events stay."""
        if self._ends.pop(name, None) is not None:
            self._state = None

    def add(self, event: str, name: str, **details: Any) -> Entry:
        entry = {"event": event, "time": round(time.time(), 3), "name": name, **details}
        entry["description"] = _describe(entry)
        self.entries.append(entry)
        self._state = None
        self.tell(entry)
        return entry

    def observe(self, change: Change) -> None:
        """Note the starts, ends and failures among the changes of a process table."""
        process = change.process
        if change.event is Event.FORKED:
            self.add("start", process.name, pid=process.pid)
        elif change.event is Event.EXITED:
            self._add_end(process)
        elif change.event is Event.START_FAILED:
            self.add("start failed", process.name, cause=Cause.START_FAILED, reason=process.reason)
        if Action.GIVE_UP in change.actions:
            self.add("gave up", process.name, cause=Cause.GAVE_UP, reason=process.verdict)

    def _add_end(self, process: CompanionProcess) -> None:
        signum = process.last_exit_signal
        entry = self.add(
            "exit",
            process.name,
            # Its leader's pid is the number of the session, which outlives it.
            pid=process.session,
            cause=process.cause,
            reason=process.cause_text,
            exit_code=process.last_exit_code,
            signal=None if signum is None else signal_name(signum),
            uptime=round(process.latest_run, 3),
        )
        self._ends.setdefault(process.name, deque(maxlen=ENDS_KEPT)).append(entry)


def _describe(entry: Entry) -> str:
    """``pid 4713``, ``pid 4713 after 00:12:03: crash, exited with status 1 (KeyError: 'price')``."""
    if entry["event"] == "start":
        return f"pid {entry['pid']}"
    reason = str(entry["cause"])
    # A command says no more than that it was one.
    if entry["reason"] and entry["reason"] != f"by {reason}":
        reason += f", {entry['reason']}"
    if entry["event"] == "exit":
        return f"pid {entry['pid']} after {format_uptime(entry['uptime'])}: {reason}"
    return reason


def _entries_in(found: Any) -> list[Entry]:
    """The entries in a state, which another version of the server may have written."""
    if not isinstance(found, list):
        return []
    return [entry for entry in found if isinstance(entry, dict) and {"event", "time", "name"} <= entry.keys()]
