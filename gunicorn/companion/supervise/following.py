# SPDX-License-Identifier: MIT
"""Repeat in the manager of a new master what is asked of the old master's manager, while both run."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from gunicorn.companion.process import Event, State
from gunicorn.companion.supervise.changes import Changes
from gunicorn.companion.supervise.overrides import KeptState, Overrides, configs_of
from gunicorn.companion.supervise.sharedstate import Rights
from gunicorn.companion.supervise.steering import Steering
from gunicorn.companion.table import ProcessTable


@dataclass(eq=False, repr=False)
class Follower:
    """Follows the elder of *kept* for as long as it is ``beside_elder``."""

    table: ProcessTable
    log: Any
    _: KW_ONLY
    kept: KeptState
    rights: Rights
    steering: Steering
    changes: Changes
    beside_elder: bool

    def step(self, now: float) -> None:
        elder, last = self.kept.elder, not self.beside_elder
        if elder is None:
            return
        if elder.has_changed and not self.steering.stopping:
            self._follow(*elder.look(), at=now)
        if last:
            # Whoever gave commands there is gone.
            self.kept.elder = None
            self.rights.forget(elder.shared)
            elder.shared.close()

    def _follow(self, before: Overrides, now: Overrides, *, at: float) -> None:
        """Do here what has been asked of the old manager since *before*."""
        if before.configuration != now.configuration:
            self.log.info("Rereading companions, as the old master did")
            self.changes.reread()
        for group in {*before.scaled, *now.scaled}:
            if before.scaled.get(group) != now.scaled.get(group):
                self._follow_scale(group, now.scaled.get(group))
        for name, stopped in now.stopped.items():
            process = self.table.get(name)
            if process is None or process.removed or before.stopped.get(name) == stopped:
                continue
            if stopped and not process.manual_stop:
                self.log.info("Stopping companion %s, as the old master did by command", name)
                self.steering.stop([process])
            elif not stopped and process.state is State.STOPPING:
                # No command could do that; but this one is to run as soon as it can.
                self.table.send(process, Event.START, at)
                process.manual_stop = False
                self.kept.note(name, stopped=False)
            elif not stopped:
                self.log.info("Starting companion %s, as the old master did by command", name)
                self.steering.start(name)

    def _follow_scale(self, group: str, numbers: tuple[int, int] | None) -> None:
        """*numbers*: asked for, and configured there; None: as many as are configured."""
        configs = configs_of(self.table, group)
        configured = configs[0].numprocs if configs else None
        if configured is None:
            return
        # With another number in the new configuration, that one counts.
        wanted = numbers[0] if numbers is not None and numbers[1] == configured else configured
        if len(configs) != wanted:
            self.changes.scale_group(group, wanted)
