# SPDX-License-Identifier: MIT
"""Start, signal and reap the companion manager.

No companion is known here. The package ``gunicorn.companion`` is imported only when there are some.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from gunicorn.errors import ConfigError, HaltServer
from gunicorn.master.base import Master
from gunicorn.master.handoff import Inherited
from gunicorn.unix.process import describe_end
from gunicorn.unix.signals import blocked_signals

if TYPE_CHECKING:
    from gunicorn.companion.server.handle import ManagerHandle


class Companionship(Master):
    """The part of the master that has a companion manager."""

    # Where the old master's companions leave their records; see ``companion.places.Places``.
    inherited_run_dir: str | None
    # And where its manager writes what is asked of them by command.
    inherited_state_fd: int | None
    # The companion with on_give_up = "shutdown" that is not to be started again.
    _given_up: str

    def reserve_descriptors(self) -> None:
        """Before anything is opened or loaded: keep the numbers free that companions' sockets get."""
        if any(isinstance(entry, dict) and entry.get("bind") for entry in self.cfg.companion_workers):
            from gunicorn.companion.child import descriptors

            descriptors.reserve(descriptors.most(self.cfg.companion_workers))

    def inherit_companions(self, given: Inherited) -> None:
        """Take what the old master says of its companions."""
        self.inherited_run_dir = given.companion_run_dir
        self.inherited_state_fd = given.companion_state_fd
        if self.inherited_state_fd is not None:
            try:
                os.set_inheritable(self.inherited_state_fd, False)
            except OSError:
                self.inherited_state_fd = None

    def check_companions(self, cfg: Any, *, outputs: bool) -> None:
        """Raise ConfigError for companions that could not run; a plain web server imports nothing.

        *outputs*: whether a file of theirs that cannot be written is a mistake. At a start it is not: a log
        directory that is gone must cost one companion, and not the web.
        """
        if not cfg.companion_workers:
            return
        from gunicorn.companion.config import build_companion_configs

        try:
            build_companion_configs(cfg, outputs=outputs)
        except ValueError as exc:
            raise ConfigError(str(exc)) from exc

    def _companion_handle(self) -> ManagerHandle:
        if self.companions is None:
            from gunicorn.companion.server.handle import ManagerHandle

            self.companions = ManagerHandle(self)
        return self.companions

    def manage_companion_manager(self) -> None:
        """Have a manager while companions are configured, and none without them.

        A master that is to succeed another has its own, whose companions wait one by one for their old
        selves. Raises HaltServer where a companion has given up without which the server is not to run.
        """
        now = time.monotonic()
        if self.companions is not None:
            self.companions.tend_leaving(now)
        if self._given_up and not self._stopping:
            raise HaltServer(f"the companion {self._given_up} has given up")
        if self.companion_manager_pid:
            if self.companions is not None:
                self.companions.tick(now)
        elif self.cfg.companion_workers and self._companion_handle().may_spawn(now):
            self.spawn_companion_manager()

    def spawn_companion_manager(self) -> None:
        """Fork the companion manager. In it, this does not return."""
        self.prepare_to_fork()
        handle = self._companion_handle()
        try:
            theirs = handle.before_fork()
            with blocked_signals():
                pid = os.fork()
                if pid == 0:
                    self._in_child = True
                    handle.run_manager(theirs)
        except (OSError, ValueError) as exc:
            handle.spawn_failed()
            self.log.error("The companion manager cannot be started: %s", exc)
            return
        self.companion_manager_pid = pid
        handle.forked(theirs)
        self.log.info("The companion manager is process %s", pid)

    def signal_companion_manager(self, sig: int) -> None:
        """Send *sig* to the manager, if there is one; forget it if it is gone."""
        if not self.companion_manager_pid:
            return
        try:
            os.kill(self.companion_manager_pid, sig)
        except ProcessLookupError:
            self.companion_manager_pid = 0
            if self.companions is not None:
                self.companions.reaped()

    def stop_companion_manager(self, sig: int) -> None:
        """Have the manager end, by SIGTERM or a quicker signal; it is killed when its time is over."""
        if self.companion_manager_pid and self.companions is not None:
            self.companions.ending()
        self.signal_companion_manager(sig)

    def reload_companion_manager(self) -> None:
        """Have the companions follow the configuration that was just applied."""
        if self.companions is not None or self.companion_manager_pid:
            self._companion_handle().reload()
        self.manage_companion_manager()

    def companion_gave_up(self, name: str) -> None:
        """The manager says that the server is to stop, as *name* is not to be started again."""
        if not self._given_up and not self._stopping:
            self.log.critical(
                "The companion %s has given up, and on_give_up says that the server stops", name
            )
            self._given_up = name

    def suspect_companion_manager(self) -> None:
        """Something may have stopped the manager: have it asked."""
        if self.companions is not None and self.companion_manager_pid:
            self.companions.suspect()

    def companion_manager_stop_timeout(self) -> float:
        """Seconds that the manager is given at a stop; 0 with no companions."""
        if self.companions is None and not self.cfg.companion_workers:
            return 0
        return self._companion_handle().stop_timeout()

    def _bury_companion_manager(self, status: int) -> None:
        self.companion_manager_pid = 0
        expected = self._stopping
        if self.companions is not None:
            expected = expected or self.companions.kill_at is not None
            self.companions.reaped(clean=status == 0)
        log = self.log.info if expected else self.log.error
        log("The companion manager %s", describe_end(status))
