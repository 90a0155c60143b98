# SPDX-License-Identifier: MIT
"""Reload: apply all of a new configuration, or nothing of it.

The steps that can fail come first, each with its undo. Then the arbiter starts new workers; whether they
boot decides about the rest. The step that cannot be undone, closing old listeners, comes last.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from gunicorn import sock
from gunicorn.app.configfile import near_misses
from gunicorn.errors import ConfigError, HaltServer, on_one_line
from gunicorn.glogging import follow
from gunicorn.master import pool
from gunicorn.master.workforce import Workforce
from gunicorn.pidfile import Pidfile

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
    """A configuration that was taken over, as long as it can still be taken back."""

    undo: contextlib.ExitStack
    # The old pid file, if the new configuration wants another one.
    pidfile: Pidfile | None
    # The workers of the old configuration, and the companion manager.
    current: set[int]
    manager: int


class Reloading(Workforce):
    """The part of the master that takes a new configuration over."""

    _switch: Switch | None

    if TYPE_CHECKING:  # the arbiter's own

        def restore_signal_handlers(self) -> None: ...

        def manage_workers(self) -> None: ...

        def _set_title(self) -> None: ...

    def reload(self) -> None:
        """Read the configuration again; apply it and replace the workers, or leave all as it is.

        Until a new worker has booted, old ones serve and all can be taken back.
        """
        self.unit.reload_begins(time.monotonic())
        self._abandon_reload()
        current = {record.pid for record in self._fresh_records() if not record.outdated}
        try:
            switch = switch_configuration(self, current)
        except BaseException as exc:
            # Some libraries derive what ends a wait from it: asyncio.CancelledError, gevent.Timeout.
            self.unit.reload_refused(one_line(exc))
            self.log.error("Reload refused, the old configuration stays: %s", one_line(exc))
            self.log.debug("Where it failed:", exc_info=True)
            return
        finally:
            self.restore_signal_handlers()
        self._switch = switch
        self._warn_of_misspelt_settings()
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
        """Let go of what the old configuration needs, if there is a reload that can still be taken back."""
        if self._switch is None:
            return
        switch, self._switch = self._switch, None
        switch.undo.pop_all()
        sock.close_sockets(self.old_listeners)
        self.old_listeners = []
        if switch.pidfile is not None:
            switch.pidfile.unlink()

    def _abandon_reload(self) -> None:
        """Live by the old configuration again; its workers go on, and those of the new one are retired."""
        if self._switch is None:
            return
        switch, self._switch = self._switch, None
        try:
            switch.undo.close()
        except Exception as exc:
            # The old log files, for one, which cannot be opened any more.
            self.log.error("Cannot restore a part of the old configuration: %s", one_line(exc))
        self.old_listeners = []
        for record in self._all_records():
            record.outdated = record.pid not in switch.current
        if self.companions is not None and self.companion_manager_pid not in (0, switch.manager):
            # It was started meanwhile, by the new configuration.
            self.companions.replace()
        self._set_title()

    def worker_did_not_boot(self, why: str) -> bool:
        """Take a reload back whose workers cannot boot; False if there is none to take back."""
        if self._switch is None:
            return False
        self._abandon_reload()
        self.unit.reload_refused(why)
        self.log.error("Reload refused, the old configuration stays: %s", why)
        return True

    def check_reload(self, cfg: Any) -> None:
        """Raise the errors of *cfg* before any of it is applied."""
        self.check_companions(cfg, outputs=True)

    def _warn_of_misspelt_settings(self) -> None:
        for warning in near_misses(self.cfg):
            self.log.warning("%s", warning)


def switch_configuration(arbiter: Any, current: set[int]) -> Switch:
    """Have *arbiter* read its configuration again and live by it; on an exception it lives by the old one.

    *current*: the workers of the present configuration.
    """
    old_cfg, app = arbiter.cfg, arbiter.app
    with contextlib.ExitStack() as undo:
        state = {name: getattr(arbiter, name) for name in _STATE}
        undo.callback(_restore, arbiter, state, dict(vars(app)), dict(os.environ), _directory())
        # Configuration files see the environment as they did at the start.
        arbiter.set_environment({})
        # A file may wait for ever, for a network say; what stops the server must not wait for it.
        with arbiter.interruptible():
            app.reload()
        cfg = app.cfg
        arbiter.check_reload(cfg)
        listeners, dropped = _new_listeners(arbiter, old_cfg, cfg, undo)
        pidfile = _new_pidfile(arbiter, old_cfg, cfg, undo)
        _renew_log(arbiter, old_cfg, cfg, undo)
        with arbiter.interruptible():
            arbiter.setup(app)
            # With the environment of the new configuration, which the hook may look at.
            sock.check_tls(cfg)
        arbiter.check_worker_class()
        for listener in listeners:
            # Also for kept ones: it decides whether they speak TLS.
            undo.callback(vars(listener).update, conf=listener.conf, log=listener.log)
            listener.conf, listener.log = cfg, arbiter.log
        for listener in dropped:
            # A successor is to inherit the new ones only.
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
        # Removed, as a deploy does with the release before; the new configuration leads to the next one.
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
    for name in os.environ.keys() - environ.keys():
        del os.environ[name]
    os.environ.update(environ)
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
    log = arbiter.log
    logger_class = cfg.logger_class
    if type(log) is not logger_class:
        undo.callback(log.setup, old_cfg)
        arbiter.log = logger_class(cfg)
    else:
        undo.callback(log.setup, old_cfg)
        follow(log, old_cfg, cfg)


def one_line(exc: BaseException) -> str:
    """Return an error's text for one line of the log; with its type, if the text alone says little."""
    text = on_one_line(str(exc))
    if isinstance(exc, SystemExit):
        return f"it asked to exit ({text})" if text else "it asked to exit"
    if isinstance(exc, ConfigError | RuntimeError | sock.BindError) and text:
        return text
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
