# SPDX-License-Identifier: MIT
"""The manager's process, from the master's fork to its exit."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from gunicorn import sock
from gunicorn.companion.child import descriptors
from gunicorn.companion.config import CompanionConfig, build_companion_configs
from gunicorn.companion.control import remove_abandoned
from gunicorn.companion.manager import CompanionManager
from gunicorn.companion.server.link import Link
from gunicorn.companion.server.run_directory import ArbitersPart, Places
from gunicorn.companion.supervise.changes import ConfigUnreadable
from gunicorn.companion.supervise.order import WebTier
from gunicorn.companion.supervise.sharedstate import SharedState
from gunicorn.companion.supervise.starter import Hook, no_hook
from gunicorn.errors import ConfigError
from gunicorn.glogging import follow
from gunicorn.logs.files import never_block
from gunicorn.monitor import inherited
from gunicorn.settings.hooks import own_hook
from gunicorn.unix.libc import set_parent_death_signal, stay_dumpable
from gunicorn.unix.process import leave, set_owner_process, set_process_title
from gunicorn.unix.signals import reset_to_default

if TYPE_CHECKING:
    from gunicorn.companion.child.watch import SourceWatch


def _hook(cfg: Any, name: str) -> Hook:
    found: Hook | None = own_hook(cfg, name)
    return found or no_hook


def _load_ahead() -> None:
    """Import modules that are needed later: the companions' user may not be able to read Python's library."""
    for name in ("difflib", "encodings.ascii", "encodings.idna", "shlex"):
        importlib.import_module(name)
    try:
        raise LookupError
    except LookupError:
        traceback.format_exc()  # loads more with each version of Python, and as late as here
    if not hasattr(os, "memfd_create"):
        importlib.import_module("tempfile")


def run_manager(arbiter: Any, *parts: Any) -> NoReturn:
    """Make this fork of the master the companion manager, to its end; *parts* as of `ManagerProcess`."""
    code = 1
    try:
        process = ManagerProcess(arbiter, *parts)
        process.leave_master()
        arbiter.companions.leftovers.record_again(process.configs)
        process.make_manager().run()
        code = 0
    except Exception:
        arbiter.log.exception("The companion manager fails")
    finally:
        leave(code)


@dataclass(eq=False, repr=False)
class ManagerProcess(ArbitersPart):
    """What the fork does; nothing of it happens in the master.

    *link*: the manager's end. *server*: what it tells of the server. *shared* and *old_state*: state that
    outlives a manager, and during an upgrade that of the old master's managers.
    """

    arbiter: Any
    link: Link
    configs: list[CompanionConfig]
    places: Places
    server: dict[str, Any]
    shared: SharedState | None
    old_state: SharedState | None
    # The configurations: the last one read, the last one in effect, and the log's.
    _read: Any = None
    _fresh: Any = None
    _log_cfg: Any = None

    def leave_master(self) -> None:
        """Let go of everything that is the master's. Signals are blocked until the manager's own are set."""
        arbiter, cfg = self.arbiter, self.cfg
        os.setsid()
        reset_to_default()
        never_block()
        arbiter.inbox.close()
        sock.close_sockets([*arbiter.LISTENERS, *arbiter.old_listeners], False)
        for worker in arbiter.WORKERS.values():
            worker.tmp.close()
        if arbiter.scoreboard is not None:
            arbiter.scoreboard.close_descriptor()
        arbiter.upgrade.close_report()
        # Until now the master's listeners may have had these numbers.
        descriptors.reserve(descriptors.most(cfg.companion_workers))
        if cfg.monitor:
            # Here, so that the monitor shares it; and its user may not be able to read Python's library.
            importlib.import_module("gunicorn.monitor.server")
        if cfg.uid != os.geteuid():
            _load_ahead()
        set_owner_process(cfg.uid, cfg.gid, initgroups=cfg.initgroups)
        # The change of user made /proc/<pid> root's; memory figures are read there.
        stay_dumpable()
        # A manager that is stopped when the master dies would not notice, and keep its companions for ever.
        set_parent_death_signal(signal.SIGCONT)
        if cfg.umask:
            os.umask(cfg.umask)
        set_process_title("companion manager")

    def make_manager(self) -> CompanionManager:
        cfg = self.cfg
        directory = os.path.abspath(cfg.chdir)
        if directory not in sys.path:
            # As the master's handle has it in the changes of a reload.
            sys.path.insert(0, directory)
        inherited.control_path = self.places.control_path
        inherited.scoreboard = self.arbiter.scoreboard
        inherited.timeline = self.arbiter.timeline
        manager = CompanionManager(
            self.configs,
            self.log,
            load_configs=lambda: self._load(manager),
            adopt_config=lambda: self._adopt(manager),
            follow_log=self._follow_log,
            control_path=self.places.control_path,
            control_mode=cfg.companion_control_socket_mode,
            run_dir=self.places.run_dir,
            pre_fork=_hook(cfg, "companion_pre_fork"),
            post_fork=_hook(cfg, "companion_post_fork"),
            on_exit=_hook(cfg, "companion_exit"),
            on_give_up=_hook(cfg, "companion_give_up"),
            umask=cfg.umask,
            log_lines=cfg.companion_log_lines,
            log_format=cfg.companion_log_format,
            scoreboard=self.arbiter.scoreboard,
            stacks=self.arbiter.stacks,
            sockets=self.arbiter.companions.sockets.inherited(),
            graceful_timeout=cfg.graceful_timeout,
            stop_order=cfg.companion_stop_order,
            web_tier=WebTier(
                tuple(cfg.web_after),
                waiting=self.arbiter.web_is_held,
                beside_old_master=self.arbiter.master_pid != 0,
            ),
            server={**self.server, "started": self.arbiter.started_at},
            link=self.link,
            watch=self._make_watch(),
            shared=self.shared,
            old_state=self.old_state,
            beside_old_master=self.arbiter.master_pid != 0,
        )
        if manager.control is not None:
            remove_abandoned(manager.control.path)
            # Until then the old master's manager may have the path.
            manager.control.patient = self.arbiter.master_pid != 0
        return manager

    def _make_watch(self) -> SourceWatch | None:
        """With `reload`, return the watch that restarts companions when their files change."""
        cfg = self.cfg
        if not cfg.reload:
            return None
        from gunicorn.companion.child.watch import SourceWatch
        from gunicorn.reloader import reloader_engines

        engine: Any = reloader_engines[cfg.reload_engine]
        # A companion may go into a directory of its own.
        files = [os.path.abspath(path) for path in cfg.reload_extra_files]
        return SourceWatch(lambda callback: engine(extra_files=files, callback=callback))

    def _follow_log(self) -> None:
        """Write the log where the last configuration says that the manager could read."""
        before, self._log_cfg = self._log_cfg or self.cfg, self._fresh or self.cfg
        try:
            follow(self.log, before, self._log_cfg)
        except (ConfigError, OSError) as exc:
            self.log.error("The companion manager logs as before: %s", exc)

    def _load(self, manager: CompanionManager) -> list[CompanionConfig]:
        """Read the configuration anew. Raises what is wrong with it, as text for people."""
        files = {path: text.encode("latin-1") for path, text in manager.files.items()}
        # Only the master ends a manager whose configuration file never returns.
        set_parent_death_signal(signal.SIGKILL)
        try:
            if os.getppid() != self.arbiter.pid:
                raise ConfigError("the master is gone")
            cfg = self.arbiter.app.fresh_config(files)
        except ConfigError as exc:
            if isinstance(exc.__cause__, PermissionError):
                raise ConfigUnreadable(str(exc)) from exc
            raise
        finally:
            set_parent_death_signal(signal.SIGCONT)
            # A configuration file, or a module that it imports, may have set its own handlers.
            manager.inbox.install()
        configs = build_companion_configs(cfg)
        self._read = cfg
        return configs

    def _adopt(self, manager: CompanionManager) -> None:
        """Live by the configuration that was read last."""
        cfg = self._fresh = self._read
        manager.hooks.set(
            pre_fork=_hook(cfg, "companion_pre_fork"),
            post_fork=_hook(cfg, "companion_post_fork"),
            on_exit=_hook(cfg, "companion_exit"),
            on_give_up=_hook(cfg, "companion_give_up"),
        )
        manager.graceful_timeout = cfg.graceful_timeout
        manager.steering.stop_order = cfg.companion_stop_order
        manager.web_tier.after = tuple(cfg.web_after)
