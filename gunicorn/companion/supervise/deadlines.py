# SPDX-License-Identifier: MIT
"""Send the events that the passing of time brings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gunicorn.companion.process import CompanionProcess, Event
from gunicorn.companion.supervise.notify_sockets import Notifications
from gunicorn.companion.table import ProcessTable

# Seconds after a deadline at which the manager must have been held up itself.
LATE = 1.0


@dataclass(eq=False, repr=False)
class Deadlines:
    """Watches the deadlines of companions in *table*."""

    table: ProcessTable
    log: Any
    notifications: Notifications

    def promote_running(self, now: float, late: Iterable[CompanionProcess]) -> None:
        """STARTING becomes RUNNING after `startsecs`. *late*: all for whom something is due."""
        for process in late:
            if process.due_event(now) is Event.ALIVE:
                self.table.send(process, Event.ALIVE, now)

    def enforce(self, now: float, late: Iterable[CompanionProcess]) -> None:
        """End what of *late* did not stop, did not become ready, or has fallen silent, in its time."""
        for process in late:
            due = process.due_event(now)
            if due in (Event.NOT_READY, Event.HUNG):
                # It may have sent messages that have not been read yet.
                self.notifications.receive(process)
                due = process.due_event(now)
            if due is Event.HUNG and now > (process.watchdog_at or now) + LATE:
                # We were held up ourselves, and perhaps it was with us (a paused container).
                self.table.send(process, Event.BEAT, now)
            elif due is Event.DEADLINE:
                self.log.warning(
                    "Companion %s (pid %s) did not stop in time: SIGKILL", process.name, process.pid
                )
                self.table.send(process, Event.DEADLINE, now)
            elif due in (Event.NOT_READY, Event.HUNG):
                self.table.send(process, due, now)
