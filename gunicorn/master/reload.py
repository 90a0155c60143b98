# SPDX-License-Identifier: MIT
"""Reload: apply all of a new configuration, or nothing of it.

The steps that can fail come first, each with its undo. Then new workers start. If one of them boots, the
reload becomes final: the step that cannot be undone, closing old listeners, comes last.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from gunicorn import sock
from gunicorn.app.configfile import near_misses
from gunicorn.app.start import set_environ
from gunicorn.errors import ConfigError, HaltServer, on_one_line
from gunicorn.glogging import follow
from gunicorn.master import pool
from gunicorn.master.workforce import Workforce
from gunicorn.pidfile import Pidfile
from gunicorn.settings.monitor import monitor_warnings

# What setup() and the steps below replace in the arbiter.
_STATE = (
    "cfg",
    "log",
    "worker_class",
    "address",
    "timeout",
    "proc_name",
    "bound",
    "_num_workers",
    "_env_before",
    "LISTENERS",
    "pidfile",
)


class Switch(NamedTuple):
    """A configuration that has been applied, as long as the step can be undone."""

    undo: contextlib.ExitStack
    # The old pid file, if the new configuration wants another one.
    pidfile: Pidfile | None
    # The workers of the old configuration, and the companion manager.
    current: set[int]
    manager: int


class Reloading(Workforce):
    """The part of the master that applies a new configuration."""

    def __init__(self) -> None:
        super().__init__()
        # A reload whose workers have yet to show that they boot.
        self._switch: Switch | None = None
        # The addresses that LISTENERS were made for, in the same order.
        self.bound: list[Any] = []

    if TYPE_CHECKING:  # the arbiter's own

        def manage_workers(self) -> None: ...

    def reload(self) -> None:
        """Read the configuration again; apply it and replace the workers, or leave all as it is.

        Until a new worker has booted, old ones serve and everything can be undone.
        """
        self.unit.reload_begins(time.monotonic())
        self._abandon_reload()
        current = {record.pid for record in self._fresh_records() if not record.outdated}
        try:
            switch = switch_configuration(self, current)
        except BaseException as exc:
            # Libraries derive from it what ends a wait: asyncio.CancelledError, gevent.Timeout.
            self.unit.reload_refused(one_line(exc))
            self.log.error("Reload refused, the old configuration stays: %s", one_line(exc))
            self.log.debug("Where it failed:", exc_info=True)
            return
        finally:
            self.restore_signal_handlers()
        self._switch = switch
        self._warn_of_settings()
        if self.cfg.preload_app and not self.cfg.reload:
            self.log.info("The preloaded application stays; SIGUSR2 or a restart brings new code")
        self._hook("on_reload", self)
        self._set_title()
        for record in self._all_records():
            record.outdated = True
        self._settle_reload()
        self.manage_workers()

    def _settle_reload(self) -> None:
        """Make a reload final if its workers serve, or none of an older configuration is left that does."""
        if self._switch is None or pool.is_trial(self._fresh_records(), self.num_workers, time.monotonic()):
            return
        self._keep_reload()
        if not self.stopping:
            self.reload_companion_manager()

    def _keep_reload(self) -> None:
        """Make a reload final that could still be undone: let go of what the old configuration needs."""
        if self._switch is None:
            return
        switch, self._switch = self._switch, None
        switch.undo.pop_all()
        sock.close_sockets(self.old_listeners)
        self.old_listeners = []
        if switch.pidfile is not None:
            switch.pidfile.unlink()

    def _abandon_reload(self) -> None:
        """Undo a reload: the old workers go on, and the new ones are retired."""
        if self._switch is None:
            return
        switch, self._switch = self._switch, None
        try:
            switch.undo.close()
        except Exception as exc:
            # Its log files, for example, which cannot be opened any more.
            self.log.error("Cannot restore a part of the old configuration: %s", one_line(exc))
        self.old_listeners = []
        for record in self._all_records():
            record.outdated = record.pid not in switch.current
        if self.companions is not None and self.companion_manager_pid not in (0, switch.manager):
            # It was started meanwhile, by the new configuration.
            self.companions.replace()
        self._set_title()

    def worker_did_not_boot(self, why: str) -> bool:
        """Undo a reload whose workers cannot boot; False if there is none to undo."""
        if self._switch is None:
            return False
        self._abandon_reload()
        self.unit.reload_refused(why)
        self.log.error("Reload refused, the old configuration stays: %s", why)
        return True

    def _warn_of_settings(self) -> None:
        for warning in [*near_misses(self.cfg), *monitor_warnings(self.cfg)]:
            self.log.warning("%s", warning)


def switch_configuration(arbiter: Any, current: set[int]) -> Switch:
    """Have *arbiter* read its configuration again and apply it; an exception undoes what has been applied.

    *current*: the workers of the present configuration.
    """
    old_cfg, app = arbiter.cfg, arbiter.app
    with contextlib.ExitStack() as undo:
        state = {name: getattr(arbiter, name) for name in _STATE}
        undo.callback(_restore, arbiter, state, dict(vars(app)), dict(os.environ), _directory())
        # Configuration files see the environment as they did at the start.
        arbiter.set_environment({})
        # A configuration file may wait for ever, for a network say. A stop must not wait for it.
        with arbiter.interruptible():
            app.reload()
        cfg = app.cfg
        arbiter.check_companions(cfg, outputs=True)
        listeners, dropped = _new_listeners(arbiter, old_cfg, cfg, undo)
        pidfile = _new_pidfile(arbiter, old_cfg, cfg, undo)
        _renew_log(arbiter, old_cfg, cfg, undo)
        with arbiter.interruptible():
            arbiter.setup(app)
            # After setup(): the hook ssl_context may look at the new environment.
            sock.check_tls(cfg)
        arbiter.check_worker_class()
        for listener in listeners:
            # For kept ones, too: it decides whether they speak TLS.
            undo.callback(vars(listener).update, conf=listener.conf, log=listener.log)
            listener.conf, listener.log = cfg, arbiter.log
        for listener in dropped:
            # A successor inherits the new ones only.
            os.set_inheritable(listener.fileno(), False)
            undo.callback(os.set_inheritable, listener.fileno(), True)
        if listeners is not arbiter.LISTENERS or cfg.is_ssl != old_cfg.is_ssl:
            arbiter.log_listeners(listeners)
        old_pidfile = arbiter.pidfile if pidfile is not arbiter.pidfile else None
        arbiter.LISTENERS, arbiter.pidfile, arbiter.old_listeners = listeners, pidfile, dropped
        return Switch(undo.pop_all(), old_pidfile, current, arbiter.companion_manager_pid)


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        # A deploy has removed it with the old release; the new configuration leads to the next one.
        return None


def _restore(
    arbiter: Any,
    state: Mapping[str, Any],
    app: Mapping[str, Any],
    environ: Mapping[str, str],
    directory: str | None,
) -> None:
    for name, value in state.items():
        setattr(arbiter, name, value)
    arbiter.app.__dict__.update(app)
    set_environ(environ)
    if directory is not None:
        with contextlib.suppress(OSError):
            os.chdir(directory)


def _new_listeners(
    arbiter: Any, old_cfg: Any, cfg: Any, undo: contextlib.ExitStack
) -> tuple[list[Any], list[Any]]:
    """Return the listeners for *cfg*, and those to close. Create new ones before any is closed."""
    wanted = cfg.address
    if arbiter.systemd or wanted == old_cfg.address:
        return arbiter.LISTENERS, []
    kept, gone = pool.match_addresses(arbiter.bound, wanted)
    missing = [address for address, index in zip(wanted, kept, strict=True) if index is None]
    # One attempt: the loop does not wait for an address to become free.
    made = sock.open_listeners(missing, cfg, arbiter.log, attempts=1)
    undo.callback(sock.close_sockets, made)
    arbiter.bound = list(wanted)
    fresh = iter(made)
    listeners = [next(fresh) if index is None else arbiter.LISTENERS[index] for index in kept]
    return listeners, [arbiter.LISTENERS[index] for index in gone]


def _new_pidfile(arbiter: Any, old_cfg: Any, cfg: Any, undo: contextlib.ExitStack) -> Pidfile | None:
    if cfg.pidfile == old_cfg.pidfile:
        current: Pidfile | None = arbiter.pidfile
        return current
    try:
        pidfile: Pidfile | None = arbiter.make_pidfile(cfg.pidfile)
    except HaltServer as exc:
        raise ConfigError(exc.reason) from exc
    if pidfile is not None:
        undo.callback(pidfile.unlink)
    return pidfile


def _renew_log(arbiter: Any, old_cfg: Any, cfg: Any, undo: contextlib.ExitStack) -> None:
    """Apply a changed log configuration; with the same one begin new files, as after a rotation."""
    undo.callback(arbiter.log.setup, old_cfg)
    if type(arbiter.log) is cfg.logger_class:
        follow(arbiter.log, old_cfg, cfg)
    else:
        arbiter.log = cfg.logger_class(cfg)


def one_line(exc: BaseException) -> str:
    """Return an error's text for one line of the log; with its type, if the text alone says little."""
    text = on_one_line(str(exc))
    if isinstance(exc, SystemExit):
        return f"it asked to exit ({text})" if text else "it asked to exit"
    if isinstance(exc, ConfigError | RuntimeError | sock.BindError) and text:
        return text
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
