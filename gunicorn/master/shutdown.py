# SPDX-License-Identifier: MIT
"""Stop the server: signal all children, and wait for each kind within its own time.

Workers and the companion manager are told at once, unless a companion comes after the workers: then that
stops first, and the workers serve until it is gone (`gunicorn.companion.server.web_order`).
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from gunicorn import sock
from gunicorn.master.reload import Reloading
from gunicorn.unix.unreadoutput import discard_unread_output, flush_output

if TYPE_CHECKING:
    from gunicorn.companion.server.handle import ManagerHandle

# A process that is not gone so many seconds after its SIGKILL is stuck in the kernel.
LAST_REAP = 5.0


class Shutdown(Reloading):
    """The part of the master that stops."""

    def __init__(self) -> None:
        super().__init__()
        # Signals that have arrived and not been handled yet, oldest first.
        self.SIG_QUEUE: list[int] = []
        # Whether on_starting has been called, and so on_exit is to be.
        self._started = False
        self._halting = False
        # The server stops because it cannot go on, and not by request; and why.
        self._failed = False
        self._halt_reason = ""
        # Everything is to be killed as soon as the stop has begun.
        self.end_at_once = False
        # Whether the workers have been told to stop.
        self._web_told = False

    if TYPE_CHECKING:  # the arbiter's own

        def sleep(self) -> None: ...

        def reap_workers(self) -> None: ...

        def handle_usr1(self) -> None: ...

        def handle_chld(self, sig: int, frame: FrameType | None) -> None: ...

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop everything and end the process with *exit_status*."""
        self._halting = True
        if reason is not None:
            log = self.log.error if exit_status else self.log.info
            log("The server stops: %s", reason)
            self._halt_reason = reason
        # Companions are stopped in the workers' time if a worker cannot boot.
        self._failed = exit_status != 0 and not (self.companions is not None and self.companions.given_up)
        self.end(True, exit_status)

    def end(self, graceful: bool, exit_status: int) -> None:
        """Stop everything, even if that fails half-way, and end the process."""
        discard_unread_output()
        self.upgrade.report(self._halt_reason or "it was stopped before it served")
        try:
            self.stop(graceful)
        except Exception:
            self.log.exception("The stop failed: killing all children")
            self.kill_workers(signal.SIGKILL)
            self.signal_companion_manager(signal.SIGKILL)
        self._halting = True
        self.log.info("The master exits")
        try:
            if self._started:
                self._hook("on_exit", self)
        finally:
            if self.upgrade.is_handing_over:
                # The successor may have died since the loop ended, or have been killed by the hook.
                self.reap_workers()
            # Last: whoever waits for the file to go may start the next server.
            if self.pidfile is not None:
                self.pidfile.unlink()
            self.unit.leave(time.monotonic())
            flush_output()
        sys.exit(exit_status)

    def stop(self, graceful: bool = True) -> None:
        """Close the listeners, stop workers and companions, and return when they are gone.

        Workers get ``graceful_timeout`` seconds, whether they finish their requests or not. Signals are
        handled meanwhile: SIGINT or SIGQUIT kills everything now.
        """
        self._keep_reload()
        if self.inbox is None:
            self._close_listeners()
            return
        self.stopping = True
        wait = graceful and not self._failed
        # Companions are told at the same moment as the workers, and given longer; or before them.
        self._try_companions(lambda companions: companions.begin_stop(wait))
        self._stop_web(graceful, wait=wait)
        while not self._stopped(time.monotonic()):
            self.unit.step(time.monotonic())
            self._report_workers()
            self.sleep()
            if self.end_at_once:
                self.end_at_once = False
                self._end_now()
            self._handle_signals_while_stopping()
            self.reap_workers()
            self._stop_web(graceful, wait=wait)
        self._report_workers()

    def _stop_web(self, graceful: bool, *, wait: bool) -> None:
        """Tell the workers, once, to stop. With *wait* they serve while companions need them."""
        if self._web_told:
            return
        if wait and not self._try_companions(lambda companions: companions.web_may_stop()):
            self.murder_workers()
            self.spawn_workers()
            return
        self._web_told = True
        # A successor that dies from now on is replaced by another one, which gets them.
        if not self.upgrade.is_handing_over:
            self._close_listeners()
        self._stop_workers(graceful, time.monotonic())

    def _close_listeners(self) -> None:
        replaced = self.reexec_pid != 0 or self.master_pid != 0
        unlink = not replaced and not self.systemd and not self.cfg.reuse_port
        sock.close_sockets(self.LISTENERS, unlink)
        self.LISTENERS = []

    def _stop_workers(self, graceful: bool, now: float) -> None:
        """Tell all workers to end. One that has been told so already is not told twice."""
        limit = now + self.cfg.graceful_timeout
        for pid in list(self.WORKERS):
            record = self._record(pid)
            told = record.retiring
            self._mark_retiring(record)
            record.kill_at = limit if record.kill_at is None else min(limit, record.kill_at)
            if not graceful:
                self.kill_worker(pid, signal.SIGQUIT)
            elif not told:
                self.kill_worker(pid, signal.SIGTERM)

    def _stopped(self, now: float) -> bool:
        """Take one step of the stop: True when no child is left that is worth waiting for."""
        self._kill_due(now)
        web_gone = self._web_told and all(
            record.killed_at is not None and now - record.killed_at >= LAST_REAP
            for record in self._all_records()
        )
        if web_gone:
            self._try_companions(lambda companions: companions.web.gone())
        return self._try_companions(lambda companions: companions.stopped()) and web_gone

    def _try_companions(self, step: Callable[[ManagerHandle], Any]) -> bool:
        """Take one step of the companions' stop; True if there is none to wait for.

        If it fails (no descriptor is left to look for them, for one), the manager is killed: the kernel then
        tells its companions, and the workers still have their time.
        """
        if self.companions is None:
            return True
        try:
            return bool(step(self.companions))
        except Exception:
            self.log.exception("Cannot stop the companions gracefully: killing their manager")
            self.signal_companion_manager(signal.SIGKILL)
            self.companions = None
            return True

    def _handle_signals_while_stopping(self) -> None:
        while self.SIG_QUEUE:
            signum = self.SIG_QUEUE.pop(0)
            if signum in (signal.SIGINT, signal.SIGQUIT):
                self._end_now()
            elif signum == signal.SIGUSR1:
                self.handle_usr1()
            elif signum == signal.SIGCHLD:
                self.handle_chld(signum, None)

    def _end_now(self) -> None:
        """Kill the workers, and have all companions killed."""
        self._stop_web(False, wait=False)
        now = time.monotonic()
        for record in self._all_records():
            record.kill_at = now
        if self.companions is not None:
            self.companions.hasten()
