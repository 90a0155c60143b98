# SPDX-License-Identifier: MIT
"""The base of the master's parts: its state, its hooks, and the steps before its first fork.

``arbiter.Arbiter`` consists of three parts, each with its own kind of children: ``Workforce``,
``Companionship`` and ``Succession``.
"""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING, Any

from gunicorn.errors import HaltServer
from gunicorn.master.switch import Switch
from gunicorn.unix.poller import Poller
from gunicorn.unix.signals import Interrupted, SignalInbox

if TYPE_CHECKING:
    from gunicorn.companion.server.handle import ManagerHandle


class Master:
    """The state that every part may look at. It is set up by ``Arbiter.__init__``."""

    app: Any
    cfg: Any
    log: Any
    pid: int | None
    LISTENERS: list[Any]
    WORKERS: dict[int, Any]
    # The successor that this master has started, and the master that this one is to succeed.
    reexec_pid: int
    master_pid: int
    # The handle of the companion manager, which survives its restarts; None without companions.
    companion_manager_pid: int
    companions: ManagerHandle | None
    inbox: SignalInbox | None
    poller: Poller
    proc_name: str
    _ready_to_fork: bool
    _stopping: bool
    _in_child: bool

    _switch: Switch | None

    def old_listeners(self) -> list[Any]:
        """Return listeners that are kept open only to undo a reload: children must close them."""
        return self._switch.listeners if self._switch is not None else []

    def _hook(self, name: str, *args: Any) -> None:
        """Call a hook of the configuration; log its exceptions and go on."""
        try:
            getattr(self.cfg, name)(*args)
        except (SystemExit, HaltServer, Interrupted, KeyboardInterrupt):
            raise
        except BaseException:
            self.log.exception("The hook %s failed", name)

    def prepare_to_fork(self) -> None:
        """Before the first child: make memory fit for sharing, warn of threads. Later calls do nothing."""
        if self._ready_to_fork:
            return
        self._ready_to_fork = True
        threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        if threads:
            self.log.warning(
                "Threads run in the master and will not run in the processes that it forks: %s. "
                "Start them in post_fork, or in companion_post_fork",
                ", ".join(threads),
            )
        if self.cfg.is_ssl:
            # Here once, and not in each worker that makes a context.
            import ssl  # noqa: F401
        if self.cfg.preload_app and self.cfg.gc_freeze:
            # Collections skip frozen objects, so their pages stay shared.
            gc.collect()
            gc.freeze()
