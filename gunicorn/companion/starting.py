# SPDX-License-Identifier: MIT
"""How a companion comes to run: whose turn it is, what it gets along, and what is given up with it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gunicorn.companion import commands
from gunicorn.companion.claims import Blocked
from gunicorn.companion.process import CompanionProcess, Event, State
from gunicorn.companion.runfile import RunFile
from gunicorn.companion.spawn import Birth, spawn

if TYPE_CHECKING:
    from gunicorn.companion.manager import CompanionManager

# Companions that are started before others, and the control socket, have their turn.
STARTS_AT_ONCE = 64


class Starter:
    """Starts the companions of *manager*, and lets go of what each start was made with."""

    def __init__(self, manager: CompanionManager) -> None:
        self.manager = manager

    def start_due(self, now: float) -> bool:
        """Start what may be started; False if there is more of it."""
        manager = self.manager
        started = 0
        for process in list(manager.processes.values()):
            if process.due_event(now) is Event.DELAY_PASSED:
                manager.send_event(process, Event.DELAY_PASSED, now)
            if process.config.after and process.state is State.STARTING and process.pid is None:
                process.held_by = self._unmet(process.config.after)
            if not process.can_start(now):
                continue
            if started >= STARTS_AT_ONCE:
                return False
            self.spawn(process)
            started += 1
        return True

    def _unmet(self, after: Iterable[str]) -> tuple[str, ...]:
        """Those of *after* that have to be waited for."""
        unmet = []
        for name in after:
            found = commands.chosen(self.manager.processes, name)
            if not found or not all(p.has_been_running for p in found):
                unmet.append(name)
        return tuple(unmet)

    def spawn(self, process: CompanionProcess) -> None:
        """Fork *process*, unless an older self of it is still there."""
        manager, config = self.manager, process.config
        try:
            run = self.claim(process, time.monotonic())
        except OSError as exc:
            self._fail(process, f"cannot make its run file: {exc.strerror}")
            return
        if run is None:
            return
        try:
            listeners = manager.listeners.open(config.group, config.bind) if config.bind else []
            # Where the run file has a name, its directory is one to write to.
            run_dir = None if run.path is None else manager.claims.run_dir
            notify = manager.hearing.open(process, run_dir)
        except OSError as exc:
            self._fail(process, exc.strerror or str(exc))
            return
        manager.call_hook("companion_pre_fork", manager.pre_fork, process)
        birth = Birth(
            config=config,
            run=run,
            close=manager.descriptors(),
            post_fork=lambda: manager.post_fork(manager, process),
            nofile=manager.nofile,
            watch=manager.watch,
            listeners=listeners,
            notify=notify,
        )
        try:
            pid = spawn(birth)
        except OSError as exc:
            self._fail(process, f"cannot fork: {exc.strerror}")
            return
        manager.forked(process, pid)

    def claim(self, process: CompanionProcess, now: float) -> RunFile | None:
        """The locked run file; None, and the process BLOCKED, while an older self is in the way."""
        manager = self.manager
        claimed = manager.claims.claim(process.name, now, singleton=process.config.singleton)
        if isinstance(claimed, Blocked):
            manager.send_event(process, Event.BLOCKED, now, pid=claimed.pid, session=claimed.session)
            return None
        return claimed

    def _fail(self, process: CompanionProcess, reason: str) -> None:
        manager = self.manager
        manager.send_event(process, Event.START_FAILED, time.monotonic(), reason=reason)
        self.release(process)
        manager.log.error("Companion %s does not start: %s", process.name, reason)

    def release(self, process: CompanionProcess) -> None:
        """Its session is empty. Between two starts the right to start it stays ours."""
        if process.state is State.STOPPED:
            self.let_go(process)
        else:
            self.manager.claims.clear(process.name)
            self.manager.hearing.forget(process.name)

    def let_go(self, process: CompanionProcess) -> None:
        """Give up what a start is made with, the right to it last."""
        manager, group = self.manager, process.config.group
        manager.hearing.close(process.name)
        copies = (p for p in manager.processes.values() if p.config.group == group)
        if process.config.bind and all(p.state is State.STOPPED for p in copies):
            # Whoever is started next, by us or by another server, opens them anew.
            manager.listeners.close(group)
        manager.claims.release(process.name)
