# SPDX-License-Identifier: MIT
"""The hooks of companions, which the configuration may set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gunicorn.companion.process import CompanionProcess

Hook = Callable[[Any, CompanionProcess], Any]


def no_hook(manager: Any, companion: CompanionProcess) -> None:
    """The default of every hook."""


class Hooks:
    """Calls the hooks with *manager* as their first argument; `post_fork` is called in the child."""

    def __init__(
        self,
        manager: Any,
        log: Any,
        *,
        pre_fork: Hook = no_hook,
        post_fork: Hook = no_hook,
        on_exit: Hook = no_hook,
    ) -> None:
        self.manager = manager
        self.log = log
        self.set(pre_fork=pre_fork, post_fork=post_fork, on_exit=on_exit)

    def set(self, *, pre_fork: Hook, post_fork: Hook, on_exit: Hook) -> None:
        """Use these from now on."""
        self.pre_fork = pre_fork
        self.post_fork = post_fork
        self.on_exit = on_exit

    def before_fork(self, process: CompanionProcess) -> None:
        self._call("companion_pre_fork", self.pre_fork, process)

    def after_exit(self, process: CompanionProcess) -> None:
        self._call("companion_exit", self.on_exit, process)

    def _call(self, name: str, hook: Hook, process: CompanionProcess) -> None:
        """A hook that raises changes nothing else."""
        try:
            hook(self.manager, process)
        except (Exception, SystemExit):
            self.log.exception("%s failed for companion %s", name, process.name)
