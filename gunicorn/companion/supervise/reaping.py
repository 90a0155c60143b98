# SPDX-License-Identifier: MIT
"""Collect children that have ended, and say how."""

from __future__ import annotations

import functools
import os
import time
from dataclasses import KW_ONLY, dataclass
from typing import Any

from gunicorn.companion.process import MIN_START_INTERVAL, CompanionProcess, Event, State
from gunicorn.companion.supervise.hooks import Hooks
from gunicorn.companion.supervise.notify_sockets import Notifications
from gunicorn.companion.supervise.order import Stops
from gunicorn.companion.supervise.reporting import Reporter
from gunicorn.companion.supervise.rights import StartRights
from gunicorn.companion.table import ProcessTable
from gunicorn.unix.process import describe_status
from gunicorn.unix.signals import signal_name


@dataclass(eq=False, repr=False)
class Reaper:
    """Sends EXITED for each companion of *table* that has ended."""

    table: ProcessTable
    log: Any
    _: KW_ONLY
    start_rights: StartRights
    notifications: Notifications
    stops: Stops
    hooks: Hooks
    reporter: Reporter

    def reap(self) -> None:
        """Collect every child that has ended, adopted ones included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            process = self.table.by_pid(pid)
            if process is not None:
                self._bury(process, pid, status)
            elif any(p.draining for p in self.table.values()):
                # An adopted process, perhaps the last of a session that may finish.
                self.table.changed = True

    def _bury(self, process: CompanionProcess, pid: int, status: int) -> None:
        run = self.start_rights.held(process.name)
        reason = run.error_of(pid) if run is not None else None
        # Its last words.
        self.notifications.receive(process)
        asked = process.state is State.STOPPING or process.name in self.stops
        obeyed = asked and not process.failing and not process.killed
        self.table.send(process, Event.EXITED, time.monotonic(), status=status, reason=reason)
        delay = None if asked or process.settled is not None else _delay_of(process)
        how = reason or describe_status(status)
        if obeyed and reason is None and process.last_exit_code == 0:
            how = "stopped"
        elif obeyed and process.last_exit_signal == process.config.stop_signal:
            how = f"stopped ({signal_name(process.config.stop_signal)})"
        if delay is None:
            self.log.info("Companion %s (pid %d) %s", process.name, pid, how)
        else:
            text = "Companion %s (pid %d) %s; restarting in %.3gs"
            # Where it is started again at once, that comes first.
            self.reporter.delay(functools.partial(self.log.warning, text, process.name, pid, how, delay))
        self.hooks.after_exit(process)


def _delay_of(process: CompanionProcess) -> float:
    """Seconds from its exit to its next start."""
    wait = (process.next_retry_at or 0.0) - (process.exited_at or 0.0)
    # In a crash loop the delay may be longer than configured.
    return wait if wait > MIN_START_INTERVAL else process.delay
