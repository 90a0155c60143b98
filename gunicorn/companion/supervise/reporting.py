# SPDX-License-Identifier: MIT
"""Report what happens to companions: to the log, as metrics, and to subscribers of ``events``."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from gunicorn.companion.control import ControlServer
from gunicorn.companion.process import CompanionProcess, Event, State
from gunicorn.companion.supervise import figures
from gunicorn.companion.table import Change, ProcessTable, Snapshot
from gunicorn.unix import session


class Reporter:
    """Observes *table*. A line that can wait for the next starts is logged by `flush`."""

    def __init__(self, table: ProcessTable, log: Any, control: ControlServer | None) -> None:
        self.table = table
        self.log = log
        self.control = control
        self._delayed: list[Callable[[], object]] = []
        self._running: int | None = None

    def delay(self, write: Callable[[], object]) -> None:
        """Have `flush` call *write*."""
        self._delayed.append(write)

    def flush(self) -> None:
        delayed, self._delayed = self._delayed, []
        for write in delayed:
            write()

    def observe(self, change: Change) -> None:
        process, before, after = change.process, change.before, Snapshot.of(change.process)
        if before == after:
            return
        for metric, number in figures.counted(before, after).items():
            extra = figures.counter(metric, number, process.name)
            self.log.debug("Companion %s: %s +%d", process.name, metric, number, extra=extra)
        if before.state is not after.state:
            if after.state is State.RUNNING:
                self.log.info("Companion %s is RUNNING", process.name)
            self._broadcast(lambda: _state_event(process, before.state, change.now))

    def _broadcast(self, message: Callable[[], Mapping[str, Any]]) -> None:
        if self.control is not None and self.control.has_subscribers:
            self.control.broadcast(dict(message()))

    def count_running(self) -> None:
        """Log how many companions run, where that has changed."""
        count = figures.count_running(self.table.values())
        if count != self._running:
            self._running = count
            self.log.debug("Companions running: %d", count, extra=figures.gauge(figures.RUNNING, count))

    def old_leftovers(self, pids: Collection[int]) -> None:
        """Log the killed processes of a dead manager's companions."""
        self.log.warning("Companions of a dead manager left behind %s: SIGKILL", session.names_of(pids))

    def leftovers(self, process: CompanionProcess, pids: Sequence[int], away: Collection[int]) -> None:
        """Report the processes killed with the session of *process*, or after it; *away*: those that have
        left it.
        """
        now = time.monotonic()
        whom = session.names_of(pids)
        how = "is killed together with" if process.pid is not None else "has exited and left behind"
        self.log.warning("Companion %s (pid %s) %s %s: SIGKILL", process.name, process.session, how, whom)
        asked = process.state is State.STOPPING and process.settled is None and not process.killed
        if asked and process.pid is None and not process.config.stop_as_group:
            self.log.warning(
                "Companion %s: stop_as_group sends them the stop signal and lets them finish", process.name
            )
        hint = None
        if away and process.pid is None and (process.state is not State.STOPPING or process.settled):
            # Nobody has asked it to end: as a daemon does, which another one would be started beside.
            hint = f"pid {', '.join(map(str, away))} had detached itself: run it in the foreground"
            self.log.warning("Companion %s: %s", process.name, hint)
        self.table.send(process, Event.LEFTOVERS_KILLED, now, count=len(pids), reason=hint)
        self._broadcast(lambda: _leftovers_event(process, pids, now))


def _state_event(process: CompanionProcess, before: State, now: float) -> dict[str, Any]:
    return {
        "event": "state",
        "time": round(time.time(), 3),
        "name": process.name,
        "from": before.value,
        "to": process.state.value,
        "pid": process.pid,
        "description": process.description(now),
        "last_exit_cause": process.cause,
        "last_exit_reason": process.cause_text,
    }


def _leftovers_event(process: CompanionProcess, pids: Sequence[int], now: float) -> dict[str, Any]:
    return {
        "event": "leftovers killed",
        "time": round(time.time(), 3),
        "name": process.name,
        "pids": list(pids),
        "description": process.description(now),
    }
