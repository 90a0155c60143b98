# SPDX-License-Identifier: MIT
"""Carry out the actions that the transition table asks for: signals, kills, releases."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

from gunicorn.companion.process import Action, CompanionProcess
from gunicorn.companion.supervise.endings import Endings
from gunicorn.companion.supervise.rights import StartRights
from gunicorn.companion.supervise.starting import Starter
from gunicorn.companion.table import Change
from gunicorn.unix import session
from gunicorn.unix.signals import signal_name


@dataclass(eq=False, repr=False)
class Executor:
    """Observes the table. *tell* sends the master a message."""

    log: Any
    _: KW_ONLY
    start_rights: StartRights
    endings: Endings
    starter: Starter
    tell: Callable[[dict[str, Any]], None]

    def observe(self, change: Change) -> None:
        for action in change.actions:
            self._execute(change.process, action)

    def _execute(self, process: CompanionProcess, action: Action) -> None:
        config = process.config
        if action is Action.SIGNAL and process.pid is None:
            # Its leader is gone.
            session.ask_group_to_stop(process.session or 0, config.stop_signal)
        elif action is Action.SIGNAL and process.pid is not None:
            if process.failing:
                # Log before the signal, so that this line does not cut the companion's traceback in two.
                self.log.error(
                    "Stopping companion %s (pid %d): %s", process.name, process.pid, process.reason
                )
            self.log.info(
                "Companion %s (pid %d) gets %s", process.name, process.pid, signal_name(config.stop_signal)
            )
            session.ask_to_stop(process.pid, config.stop_signal, config.stop_as_group)
            if config.stop_as_group:
                self.start_rights.note_group_signalled(process.name, process.pid)
        elif action is Action.ABORT and process.pid is not None:
            self.log.error("Killing companion %s (pid %d): %s", process.name, process.pid, process.reason)
            session.ask_to_stop(process.pid, signal.SIGABRT, config.stop_as_group)
        elif action is Action.KILL:
            self.endings.kill(process)
        elif action is Action.RELEASE:
            self.starter.release(process)
        elif action is Action.GIVE_UP:
            self.log.error("Companion %s %s", process.name, process.verdict)
            if config.on_give_up == "shutdown":
                self.tell({"gave_up": process.name})
