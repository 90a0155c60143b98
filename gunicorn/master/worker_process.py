# SPDX-License-Identifier: MIT
"""The process of a worker, from the master's fork to its exit."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from gunicorn import sock
from gunicorn.errors import AppImportError, ConfigError
from gunicorn.master.base import Master
from gunicorn.master.failure import of_exception
from gunicorn.master.upgrade import Upgrade
from gunicorn.unix.process import set_process_title
from gunicorn.unix.signals import disregard, reset_to_default
from gunicorn.unix.unreadoutput import discard_unread_output, flush_output

# Errors for want of a resource that may be free again later.
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN}

# Signals on which a worker's handlers may raise, or that would kill it by default.
WORKER_SIGNALS = tuple(
    getattr(signal, f"SIG{name}") for name in ("ABRT", "HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH")
)


class WorkerProcess(Master):
    """The part of the master that becomes a worker."""

    # Exit codes of a worker that could not start; the server ends with the same.
    WORKER_BOOT_ERROR = 3
    APP_LOAD_ERROR = 4

    def __init__(self) -> None:
        super().__init__()
        # Whether a worker of this master has ever booted: from then on a failed start is one to repeat.
        self._served = False
        self._in_child = False

    if TYPE_CHECKING:  # the arbiter's own
        upgrade: Upgrade

    def _leave_master(self, worker: Any) -> None:
        """In the new worker, with signals blocked: release the resources of the master."""
        self._in_child = True
        if self.inbox is None:
            return
        try:
            # Until the worker sets its own handlers, a stop kills it at once (it serves nobody yet), and it
            # ignores a log rotation.
            handlers: dict[int, Any] = {signal.SIGUSR1: getattr(worker, "handle_usr1", signal.SIG_IGN)}
            reset_to_default(self.inbox.signals, handlers)
            self.inbox.close()
            sock.close_sockets(self.old_listeners, False)
            if self.scoreboard is not None:
                self.scoreboard.close_descriptor()
            self.upgrade.close_report()
            for sibling in self.WORKERS.values():
                sibling.tmp.close()
            if self.stacks is not None:
                self.stacks.listen(getattr(worker, "suspended_frames", tuple))
        except Exception:
            # The exception must not reach the master's loop.
            self.log.exception("Worker %s cannot release the master's resources", os.getpid())
            sys.exit(self.WORKER_BOOT_ERROR)

    def _run_worker(self, worker: Any) -> None:
        """Be a worker, to the end of the process. No path leads back into the loop."""
        status: Any = 0
        # Registered before what the application registers, and so run after that.
        atexit.register(disregard, WORKER_SIGNALS, for_good=True)
        try:
            worker.pid = os.getpid()
            set_process_title(f"worker [{self.proc_name}]")
            # A str: `logging` checks whether a single argument is a Mapping. The first check of a class
            # takes 40 pages of memory, in each worker; for str the master has done it.
            self.log.info("Worker %s starts", str(worker.pid))
            self.cfg.post_fork(self, worker)
            worker.init_process()
        except SystemExit as exc:
            status = exc.code
            if status not in (None, 0) and not worker.booted:
                # Of the watchdog's SIGABRT, for one: the trace says where the worker hung.
                self._report(worker, exc)
        except AppImportError as exc:
            if not self._report(worker, exc):
                self.log.error(
                    "The application cannot be loaded: %s", "\n".join(filter(None, [str(exc), exc.trace]))
                )
            self.log.debug("Where it failed:", exc_info=True)
            status = self.APP_LOAD_ERROR
        except BaseException as exc:
            handed_over = self._report(worker, exc)
            if isinstance(exc, ConfigError):
                # Its text names the setting and the file; the trace shows our code only.
                if not handed_over:
                    self.log.error("Worker %s failed: %s", worker.pid, exc)
                self.log.debug("Where it failed:", exc_info=True)
            elif not handed_over:
                self.log.exception("Worker %s failed", worker.pid)
            again = worker.booted or (self._served and _may_pass(exc))
            status = 255 if again else self.WORKER_BOOT_ERROR
        # A handler that raised from here on would cut short the hook, or an exit handler of the application.
        disregard(WORKER_SIGNALS)
        discard_unread_output()
        try:
            self.log.info("Worker %s exits", worker.pid)
            # Not in a fork of the application's: the worker goes on, and the fork has old numbers.
            own = worker.pid == os.getpid()
            if own and hasattr(worker.tmp, "end"):
                worker.tmp.end()
            worker.tmp.close()
            if own and getattr(worker, "slot", None) is not None:
                worker.slot.write()
            self.cfg.worker_exit(self, worker)
        except Exception:
            self.log.exception("Worker %s failed while exiting", worker.pid)
        flush_output()
        sys.exit(status)

    def _report(self, worker: Any, exc: BaseException) -> bool:
        """Report to the master why this worker fails; return whether the master logs it.

        It does once the server has served: it knows whether a reload is refused for it, or whether other
        workers have failed for the same reason.
        """
        if worker.pid != os.getpid():
            return False  # a fork of the application's
        try:
            worker.tmp.report(*of_exception(exc))
        except Exception:
            # A class with a heartbeat of its own.
            return False
        return self._served and os.getppid() == worker.ppid


def _may_pass(exc: BaseException) -> bool:
    """Whether the cause of a failed start may pass, because workers have started with this configuration."""
    # ConfigError: certificates that are just being replaced.
    return isinstance(exc, ConfigError | MemoryError) or (isinstance(exc, OSError) and exc.errno in EXHAUSTED)
