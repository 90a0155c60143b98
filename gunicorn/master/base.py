# SPDX-License-Identifier: MIT
"""The base of the master's parts: its state, its hooks, and its companion manager.

``arbiter.Arbiter`` consists of parts, each with its own task: ``Workforce``, ``Reloading``, ``Shutdown``,
``Succession``. ``gunicorn.companion`` is imported only when companions are configured.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from gunicorn.errors import ConfigError, HaltServer
from gunicorn.loading import load_lazy_imports
from gunicorn.master.handoff import Inherited
from gunicorn.pidfile import Pidfile
from gunicorn.systemd import Unit
from gunicorn.unix.poller import Poller
from gunicorn.unix.process import set_process_title
from gunicorn.unix.signals import Interrupted, SignalInbox

if TYPE_CHECKING:
    from gunicorn.companion.child.stacks import StackFile
    from gunicorn.companion.server.handle import ManagerHandle
    from gunicorn.monitor.timeline import Timeline
    from gunicorn.scoreboard import Scoreboard


class Master:
    """The state that every part may look at."""

    def __init__(self) -> None:
        self.app: Any = None
        self.cfg: Any = None
        self.log: Any = None
        self.pid: int | None = None
        self.pidfile: Pidfile | None = None
        self.proc_name = ""
        self.started_at = 0.0
        # Whether the application is in the memory of this process.
        self.preloaded = False
        # Whether the sockets came from a service manager.
        self.systemd = False
        self.unit = Unit(self)
        self.inbox: SignalInbox | None = None
        self.poller = Poller()

        self.LISTENERS: list[Any] = []
        # Listeners that are kept open only to undo a reload: children must close them.
        self.old_listeners: list[Any] = []
        self.WORKERS: dict[int, Any] = {}
        # The successor that this master has started, and the master that this one is to succeed.
        self.reexec_pid = 0
        self.master_pid = 0
        # The handle of the companion manager, which survives its restarts; None without companions.
        self.companions: ManagerHandle | None = None
        # What the workers are doing, for the companion manager and for `workers_max`; None without both.
        self.scoreboard: Scoreboard | None = None
        # What they have done in the last hour, for the monitor.
        self.timeline: Timeline | None = None
        # Where its children write their stacks when asked; None without companions.
        self.stacks: StackFile | None = None
        # What an old master, or a service manager, has passed to this one.
        self.given = Inherited()

        self.stopping = False
        # Whether what web workers come after, when the server starts, has been there.
        self.web_released = False
        self._ready_to_fork = False

    @property
    def on_trial(self) -> bool:
        """Whether a reload waits for its workers to prove themselves, and can still be undone."""
        return False

    def _hook(self, name: str, *args: Any) -> None:
        """Call a hook of the configuration; log its exceptions and go on."""
        try:
            getattr(self.cfg, name)(*args)
        except (SystemExit, HaltServer, Interrupted, KeyboardInterrupt):
            raise
        except BaseException:
            self.log.exception("The hook %s failed", name)

    def restore_signal_handlers(self) -> None:
        """Install our handlers again, after a configuration file or a module of it may have set others."""
        if self.inbox is not None:
            self.inbox.install()

    def _set_title(self) -> None:
        name = f"{self.proc_name}.2" if self.master_pid else self.proc_name
        set_process_title(f"master [{name}]")

    def prepare_to_fork(self) -> None:
        """Make memory fit for sharing, and warn of threads, before the first fork. Later calls do nothing."""
        self._make_scoreboard()
        self._make_stack_file()
        if self._ready_to_fork:
            return
        self._ready_to_fork = True
        for failure in load_lazy_imports():
            self.log.debug("Left for its first use, because it cannot be loaded: %s", failure)
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

    # -- the scoreboard ------------------------------------------------------------------------

    def _make_scoreboard(self) -> None:
        """Have a scoreboard from the first fork on, once there is somebody to look at it."""
        if self.scoreboard is not None or not (self.cfg.companion_workers or self.cfg.workers_max):
            return
        from gunicorn.monitor.timeline import Timeline
        from gunicorn.scoreboard import BUCKETS, Scoreboard

        try:
            # A reload may add the monitor, and the manager keeps what it has inherited. Memory that nobody
            # writes to takes no room.
            self.timeline = Timeline(len(BUCKETS) + 1)
            self.scoreboard = Scoreboard.create()
        except OSError as exc:
            self.log.warning("What web workers do will not be shown: %s", exc.strerror)
            return
        fd = self.given.scoreboard_fd
        if fd is not None:
            self.given = self.given._replace(scoreboard_fd=None)
            try:
                self.scoreboard.old = Scoreboard.inherit(fd)
            except (OSError, ValueError) as exc:
                self.log.info("The old master's counts of requests are not continued: %s", exc)
            with contextlib.suppress(OSError):
                os.close(fd)

    def _make_stack_file(self) -> None:
        """Have a file for ``gunicorn-companion dump``, likewise."""
        if self.stacks is not None or not self.cfg.companion_workers:
            return
        from gunicorn.companion.child.stacks import StackFile

        try:
            self.stacks = StackFile.create()
        except OSError as exc:
            self.log.warning("The stacks of processes cannot be shown: %s", exc.strerror)

    # -- the companion manager -----------------------------------------------------------------

    @property
    def web_is_held(self) -> bool:
        """Whether no web worker starts yet, because they come after companions."""
        return not self.web_released and bool(self.cfg.web_after)

    @property
    def companion_manager_pid(self) -> int:
        """0 without a manager."""
        return self.companions.pid if self.companions is not None else 0

    @companion_manager_pid.setter
    def companion_manager_pid(self, pid: int) -> None:
        if pid or self.companions is not None:
            self._companion_handle().pid = pid

    def _companion_handle(self) -> ManagerHandle:
        if self.companions is None:
            from gunicorn.companion.server.handle import ManagerHandle

            self.companions = ManagerHandle(self)
        return self.companions

    def take_companion_sockets(self) -> None:
        """Take the sockets of companions that an old master has passed on, or close them."""
        if self.given.companion_sockets and self.cfg.companion_workers:
            self._companion_handle()
        elif self.given.companion_sockets:
            from gunicorn.companion.server.keptsockets import KeptSockets

            KeptSockets(self.given.companion_sockets).close()

    def reserve_descriptors(self) -> None:
        """Keep the numbers free that companions' sockets get; before anything is opened or loaded."""
        if any(isinstance(entry, dict) and entry.get("bind") for entry in self.cfg.companion_workers):
            from gunicorn.companion.child import descriptors

            descriptors.reserve(descriptors.most(self.cfg.companion_workers))

    def check_companions(self, cfg: Any, *, outputs: bool) -> None:
        """Raise ConfigError for companions that could not run; a plain web server imports nothing.

        *outputs*: whether an output file that cannot be written is an error. At a start it is not: a log
        directory that is gone must stop one companion, and not the server.
        """
        if not (cfg.companion_workers or cfg.web_after):
            return
        from gunicorn.companion.config import build_companion_configs

        try:
            build_companion_configs(cfg, outputs=outputs)
        except ValueError as exc:
            raise ConfigError(str(exc)) from exc

    def manage_companion_manager(self) -> None:
        """Have a manager while companions are configured, and none without them.

        Each companion of a successor waits for its older process only. Raises HaltServer if a companion has
        given up without which the server is not to run.
        """
        if self.companions is None and not self.cfg.companion_workers:
            return
        handle, now = self._companion_handle(), time.monotonic()
        if handle.given_up and not self.stopping:
            raise HaltServer(f"the companion {handle.given_up} has given up")
        if self.web_is_held and not self.stopping:
            self._check_hold(handle)
        handle.step(now)
        # The first companions come when a reload is final. Until then a next manager has the old ones.
        none_yet = self.on_trial and not handle.configs
        if not handle.pid and self.cfg.companion_workers and not none_yet and handle.may_spawn(now):
            self.spawn_companion_manager()

    def _check_hold(self, handle: ManagerHandle) -> None:
        """Raise HaltServer if web workers wait in vain."""
        if handle.web.cannot_start:
            raise HaltServer(f"web workers cannot start, they wait for {handle.web.cannot_start}")
        if handle.places.must_wait():
            # The old master waits for our web workers.
            handle.web.release("companions start when the old master is gone")

    def spawn_companion_manager(self) -> None:
        """Fork the companion manager. In it, this does not return."""
        self.prepare_to_fork()
        self._companion_handle().spawn()

    def signal_companion_manager(self, sig: int) -> None:
        """Send *sig* to the manager, if there is one; forget it if it is gone."""
        if self.companions is not None:
            self.companions.signal(sig)

    def stop_companion_manager(self, sig: int) -> None:
        """Have the manager end, by SIGTERM or a quicker signal; it is killed when its time is over."""
        if self.companions is not None:
            self.companions.stop(sig)

    def reload_companion_manager(self) -> None:
        """Have the companions follow the configuration that was just applied."""
        if self.companions is not None:
            self.companions.reload()
        self.manage_companion_manager()

    def companion_manager_stop_timeout(self) -> float:
        """Seconds that the manager is given at a stop; 0 with no companions."""
        if self.companions is None and not self.cfg.companion_workers:
            return 0
        return self._companion_handle().stop_timeout()
