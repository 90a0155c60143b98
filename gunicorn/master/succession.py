# SPDX-License-Identifier: MIT
"""Start a new master beside this one, and take over from an old master."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from gunicorn.errors import HaltServer
from gunicorn.master import handoff
from gunicorn.master.base import Master
from gunicorn.master.upgrade import Upgrade
from gunicorn.pidfile import Pidfile, successor_path
from gunicorn.unix.process import describe_end, leave, term_signal
from gunicorn.unix.signals import blocked_signals, reset_to_default

# What ends a new master that has no handlers yet, because somebody wants it to end.
TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Succession(Master):
    """The part of the master that has a successor, or is one."""

    def __init__(self) -> None:
        super().__init__()
        self.START_CTX: dict[Any, Any] = {}
        self.upgrade = Upgrade(self)
        # Why the pid file could not be moved to its name, as it was logged.
        self._pidfile_trouble = ""

    def reexec(self, report: tuple[int | None, int] = (None, 0)) -> None:
        """Start a new master from the program on disk, which gets the sockets of this one.

        *report*: the descriptor by which it reports, and the number of the upgrade.
        """
        if self.reexec_pid:
            self.log.warning("A new master is already running as process %s", self.reexec_pid)
            return
        if self.master_pid:
            self.log.warning("This master is itself waiting to succeed process %s", self.master_pid)
            return
        master_pid = os.getpid()
        try:
            if self.scoreboard is not None:
                self.scoreboard.absorb_old()
            with self._state_for_successor() as companion_state_fd:
                with blocked_signals():
                    self.reexec_pid = os.fork()
                    if self.reexec_pid == 0 and self.inbox is not None:
                        reset_to_default(self.inbox.signals)
                if self.reexec_pid == 0:
                    self._exec_successor(master_pid, companion_state_fd, report)
        except OSError as exc:
            self.log.error("The new master cannot be started: %s", exc)

    def _state_for_successor(self) -> AbstractContextManager[int | None]:
        """Give the descriptor from which the new master reads commands to companions, past and future."""
        return nullcontext() if self.companions is None else self.companions.state_for_successor()

    def _exec_successor(
        self, master_pid: int, companion_state_fd: int | None, report: tuple[int | None, int]
    ) -> None:
        try:
            self.cfg.pre_exec(self)
            given = handoff.Inherited(
                master_pid,
                tuple(listener.fileno() for listener in self.LISTENERS),
                self.systemd,
                self.companions.places.told_successor() if self.companions is not None else None,
                companion_state_fd,
                self.scoreboard.fd if self.scoreboard is not None else None,
                *report,
                self.companions.sockets.for_successor() if self.companions is not None else "",
            )
            environ = handoff.reexec_environment(self.START_CTX["env"], given, os.getpid())
            for fd in (given.companion_state_fd, given.scoreboard_fd, given.report_fd):
                if fd is not None:
                    os.set_inheritable(fd, True)
            os.chdir(self.START_CTX["cwd"])
            os.execvpe(self.START_CTX[0], self.START_CTX["args"], environ)
        except BaseException:
            # Neither back into the loop, or two masters would run it; nor to the exit handlers of the
            # application, whose resources the old master still uses.
            self.log.exception("The new master cannot be started")
            leave(1)

    def maybe_promote_master(self) -> None:
        """Take the place of the old master once it is gone."""
        if not self.master_pid:
            self._take_pidfile()
            return
        if self.master_pid == os.getppid():
            return
        self.log.info("The old master is gone; this one takes over")
        self.master_pid = 0
        self._take_pidfile()
        self._set_title()
        self.upgrade.promoted()
        if self.companions is not None:
            self.companions.promoted()

    def make_pidfile(self, path: str | None) -> Pidfile | None:
        """Write the pid file that is configured as *path*, if one is. Raises HaltServer."""
        if path is None:
            return None
        pidfile = Pidfile(successor_path(path) if self.master_pid else path)
        try:
            pidfile.create(os.getpid())
        except RuntimeError as exc:
            raise HaltServer(str(exc)) from exc
        if not self.master_pid:
            # A new master that was killed together with its old one may have left it.
            Pidfile(successor_path(path)).remove_stale()
        return pidfile

    def _take_pidfile(self) -> None:
        """Give the pid file its final name; if that fails, the next call tries again."""
        path = self.cfg.pidfile
        if self.pidfile is None or path is None or self.pidfile.fname != successor_path(path):
            return
        try:
            self.pidfile.rename(path)
        except RuntimeError as exc:
            if str(exc) != self._pidfile_trouble:
                self._pidfile_trouble = str(exc)
                self.log.error("Cannot rename the pid file %s yet: %s", self.pidfile.fname, exc)
        else:
            self._pidfile_trouble = ""

    def bury_successor(self, status: int) -> None:
        """Account for the end of a new master, and remove the pid file that it may have left."""
        pid, self.reexec_pid = self.reexec_pid, 0
        if self.cfg.pidfile is not None:
            left = Pidfile(successor_path(self.cfg.pidfile))
            left.pid = pid
            left.unlink()
        if not self.upgrade.is_handing_over:
            self.log.warning("The new master %s; this one keeps running", describe_end(status))
        told = status == 0 or term_signal(status) in TO_END
        self.upgrade.buried(pid, describe_end(status), told=told)
