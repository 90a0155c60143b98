# SPDX-License-Identifier: MIT
"""Lasting commands: which companions are to run or not, and the number of copies.

While two masters run, after USR2, the new one follows what is asked of the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gunicorn.companion.process import Event, State
from gunicorn.companion.supervise import rereading
from gunicorn.companion.supervise.reread import Scaled
from gunicorn.companion.supervise.sharedstate import SharedState

if TYPE_CHECKING:
    from gunicorn.companion.manager import CompanionManager


@dataclass
class Orders:
    """By name: whether it was stopped (True) or started by command; by set: the number of copies.

    *configuration* names the one that is applied, see `reread.digest`.
    """

    stopped: dict[str, bool] = field(default_factory=dict)
    scaled: Scaled = field(default_factory=dict)
    configuration: str = ""

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Orders:
        """Those in *state*, which another version of the server may have written."""
        stopped, scaled = state.get("stopped"), state.get("scale")
        return cls(
            {name: bool(value) for name, value in stopped.items()} if isinstance(stopped, dict) else {},
            {
                group: (numbers[0], numbers[1])
                for group, numbers in (scaled.items() if isinstance(scaled, dict) else ())
                if isinstance(numbers, list) and len(numbers) == 2
            },
            str(state.get("configuration", "")),
        )

    def as_state(self) -> dict[str, Any]:
        scaled = {group: list(numbers) for group, numbers in self.scaled.items()}
        return {"stopped": dict(self.stopped), "scale": scaled, "configuration": self.configuration}


class Elder:
    """The orders to the manager of the old master, as they were when they were looked at last."""

    def __init__(self, shared: SharedState, seen: Orders | None = None) -> None:
        self.shared = shared
        self._version = b""
        self.orders = Orders() if seen is None else seen

    @property
    def has_changed(self) -> bool:
        return self.shared.version() != self._version

    def look(self) -> tuple[Orders, Orders]:
        """The orders before and now."""
        # The version first: what is written meanwhile is seen the next time.
        self._version = self.shared.version()
        before, self.orders = self.orders, Orders.of(self.shared.read())
        return before, self.orders


def follow(manager: CompanionManager, before: Orders, now: Orders, at: float) -> None:
    """Do here what has been asked of the old manager since *before*."""
    if before.configuration != now.configuration:
        manager.log.info("Rereading companions, as the old master did")
        manager.reread()
    for group in {*before.scaled, *now.scaled}:
        if before.scaled.get(group) != now.scaled.get(group):
            _follow_scale(manager, group, now.scaled.get(group))
    for name, stopped in now.stopped.items():
        process = manager.processes.get(name)
        if process is None or process.removed or before.stopped.get(name) == stopped:
            continue
        if stopped and not process.manual_stop:
            manager.log.info("Stopping companion %s, as the old master did by command", name)
            manager.stop_process(name)
        elif not stopped and process.state is State.STOPPING:
            # No command could do that; but this one is to run as soon as it can.
            manager.send_event(process, Event.START, at)
            process.manual_stop = False
            manager.note_order(name, stopped=False)
        elif not stopped:
            manager.log.info("Starting companion %s, as the old master did by command", name)
            manager.start_process(name)


def _follow_scale(manager: CompanionManager, group: str, numbers: tuple[int, int] | None) -> None:
    """*numbers*: asked for, and configured there; None: as many as are configured."""
    configs = [p.config for p in manager.processes.values() if p.config.group == group and not p.removed]
    configured = configs[0].numprocs if configs else None
    if configured is None:
        return
    # With another number in the new configuration, that one counts.
    wanted = numbers[0] if numbers is not None and numbers[1] == configured else configured
    if len(configs) != wanted:
        rereading.scale_group(manager, group, wanted)
