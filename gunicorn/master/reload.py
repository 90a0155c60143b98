# SPDX-License-Identifier: MIT
"""Reload: apply all of a new configuration, or nothing of it.

The steps that can fail come first, each with its undo. Then new workers start, beside the old ones. When they
have proven themselves (see `pool.Trial`), the reload becomes final. What cannot be undone comes last: old
workers retire, and old listeners are closed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from gunicorn import sock
from gunicorn.app.configfile import warnings_of
from gunicorn.app.start import set_environ
from gunicorn.errors import ConfigError, HaltServer
from gunicorn.glogging import follow
from gunicorn.master import pool
from gunicorn.master.failure import Failure, one_line
from gunicorn.master.upkeep import Upkeep
from gunicorn.pidfile import Pidfile
from gunicorn.settings import redact

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


# After so many seconds a log line says that a reload still waits for its workers.
LONG_WAIT = 30.0


class Switch(NamedTuple):
    """A configuration that has been applied, as long as the step can be undone."""

    undo: contextlib.ExitStack
    # The old pid file, if the new configuration wants another one.
    pidfile: Pidfile | None
    # The workers of the old configuration, the number of the last worker before, and the companion manager.
    current: set[int]
    age: int
    manager: int
    # How many workers were wanted before, and how many it wants.
    before: int
    workers: int
    # Whether the companions follow when it is final.
    companions: bool = True


class Reloading(Upkeep):
    """The part of the master that applies a new configuration."""

    def __init__(self) -> None:
        super().__init__()
        # The number of the last reload, and what has come of it; None before the first one.
        self.reload_number = 0
        self.last_reload: dict[str, Any] | None = None
        self._reloads = {"applied": 0, "refused": 0}
        # A reload whose workers have yet to prove themselves.
        self._switch: Switch | None = None
        self._trial = pool.Trial()
        # Whether a reload is final, and old workers are still to be replaced.
        self._rolling = False
        # When to say that a reload takes long; None if that is said.
        self._warn_at: float | None = None
        # The addresses that LISTENERS were made for, in the same order.
        self.bound: list[Any] = []

    if TYPE_CHECKING:  # the arbiter's own

        def manage_workers(self) -> None: ...

    def reload(self) -> None:
        """Read the configuration again; apply it and replace the workers, or leave all as it is.

        Until new workers have proven themselves, old ones serve and everything can be undone.
        """
        self._abandon_reload()
        self._begin_reload()
        current = {record.pid for record in self._fresh_records() if not record.outdated}
        try:
            switch = switch_configuration(self, current)
        except BaseException as exc:
            # Libraries derive from it what ends a wait: asyncio.CancelledError, gevent.Timeout.
            self._refuse_reload(Failure(one_line(exc)))
            self.log.debug("Where it failed:", exc_info=True)
            return
        finally:
            self.restore_signal_handlers()
        self._try(switch)
        self._warn_of_settings()
        if self.preloaded:
            self.log.info("The preloaded application stays; SIGUSR2 or a restart brings new code")
        elif self.cfg.preload_app and not self.cfg.reload:
            self.log.warning(
                "preload_app is on, but only a new master preloads: SIGUSR2 or a restart brings one."
                " Until then each worker loads the application"
            )
        try:
            self._hook("on_reload", self)
        except SystemExit as exc:
            self._abandon_reload()
            self._refuse_reload(Failure(f"on_reload: {one_line(exc)}"))
            return
        self._set_title()
        self.manage_workers()

    def replace_workers(self) -> int:
        """Begin to replace all workers, with the configuration as it is; return how many.

        Raises ValueError while a reload does that.
        """
        if self.on_trial:
            raise ValueError("a reload is under way, which replaces the workers")
        self._begin_reload()
        staying = [record for record in self._fresh_records() if not record.retiring]
        current = {record.pid for record in staying if not record.outdated}
        nothing = contextlib.ExitStack()
        manager, wanted = self.companion_manager_pid, self.num_workers
        age = self.worker_age
        self._try(Switch(nothing, None, current, age, manager, wanted, wanted, companions=False))
        return len(staying)

    def _begin_reload(self) -> None:
        self.unit.reload_begins(time.monotonic())
        self._rolling = False
        self.reload_number += 1
        self._note_reload("pending")

    def _try(self, switch: Switch) -> None:
        """Have new workers take the place of all others, if they prove themselves."""
        self._switch, self._trial, self._pacing = switch, pool.Trial(), pool.Pacing()
        self._warn_at = time.monotonic() + LONG_WAIT
        for record in self._all_records():
            record.outdated = True

    @property
    def on_trial(self) -> bool:
        return self._switch is not None

    def _needed(self) -> int:
        """How many new workers have to prove themselves."""
        wanted = self.wanted_workers
        return min(wanted, self.cfg.reload_batch or wanted)

    def have_proven_themselves(self, now: float) -> bool:
        """Whether all workers have."""
        return self._trial.is_passed(self._fresh_records(), self.num_workers, now)

    def _settle_reload(self, now: float) -> None:
        """Make a reload final once its workers have proven themselves; note when it is done."""
        if self._switch is not None:
            passed = self._trial.is_passed(self._fresh_records(), self._needed(), now)
            # While web workers wait for companions, there are none to keep; and the new configuration may
            # have what is to help these companions.
            if not passed and not self.web_is_held:
                self._warn_of_long_wait(now)
                return
            follow = self._switch.companions and not self.stopping
            self._keep_reload()
            if follow:
                self.reload_companion_manager()
            self._rolling = True
        if self._rolling and self.have_proven_themselves(now):
            self._rolling = False
            self.log.info("The reload is done: the new workers serve")
            self._note_reload("applied")

    def _warn_of_long_wait(self, now: float) -> None:
        if self._warn_at is None or now < self._warn_at:
            return
        self._warn_at = None
        limit = "" if self.timeout else ", for which timeout = 0 sets no limit"
        self.log.warning("The reload waits for the new workers to boot%s; the old ones serve", limit)

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
        wanted = self.num_workers
        try:
            switch.undo.close()
        except Exception as exc:
            # Its log files, for example, which cannot be opened any more.
            self.log.error("Cannot restore a part of the old configuration: %s", one_line(exc))
        self.old_listeners = []
        if wanted != switch.workers:
            # What TTIN, TTOU or a command has changed meanwhile stays changed.
            self.num_workers = wanted and max(1, switch.before + wanted - switch.workers)
        for record in self._all_records():
            record.outdated = record.pid not in switch.current
            record.refused = record.refused or record.age > switch.age
        # Its failures are none of the old configuration's.
        self._pacing = pool.Pacing()
        started = self.companion_manager_pid not in (0, switch.manager)
        if self.companions is not None and started and switch.companions:
            # It was started meanwhile, by the new configuration.
            self.companions.replace()
        self._set_title()

    def worker_failed(self, failure: Failure, *, booted: bool) -> bool:
        """Refuse a reload whose workers fail, or stop it; return whether the failure is one of a reload.

        Before a worker has *booted*, a failure is that of the code; later it may be chance. Raises HaltServer
        in a successor that is to show that it can take over.
        """
        if not (self.on_trial or self._rolling or self.upgrade.on_trial):
            return False
        decides = self._trial.worker_ended(booted=booted, failed=True, needed=self._needed())
        if self._rolling:
            return decides and self._stop_rolling(failure)
        if decides and not self.on_trial:
            if self._served:
                self.log.error("This master cannot take over: %s", failure)
            raise HaltServer(failure.reason, self.WORKER_BOOT_ERROR)
        if decides:
            self._abandon_reload()
            self._refuse_reload(failure)
        else:
            self.log.warning("A new worker has failed: %s", failure)
        return True

    def worker_left(self) -> None:
        """Note that a worker has ended by itself and in order."""
        if self.on_trial or self._rolling or self.upgrade.on_trial:
            self._trial.worker_ended(booted=True, failed=False, needed=self._needed())

    def _stop_rolling(self, failure: Failure) -> bool:
        """Replace no more workers: the old ones that are left stay. False if none is left."""
        old = [record for record in self._all_records() if record.outdated and not record.retiring]
        if not old:
            return False
        self._rolling = False
        for record in old:
            record.outdated = False
        why = f"stopped with {len(old)} old workers left: {failure.reason}"
        self.unit.reload_refused(why)
        self.log.error("Reload %s", Failure(why, failure.trace))
        self._note_reload("refused", why)
        return True

    def _refuse_reload(self, failure: Failure) -> None:
        """Report that the old configuration stays."""
        self.unit.reload_refused(failure.reason)
        self.log.error("Reload refused, the old configuration stays: %s", failure)
        self._note_reload("refused", failure.reason)

    def _note_reload(self, result: str, reason: str | None = None) -> None:
        """Note what has come of the last reload, and tell the companion manager."""
        # Others may read it than the log.
        reason = None if reason is None else redact.in_text(reason)
        if result in self._reloads:
            self._reloads[result] += 1
            if self.scoreboard is not None:
                self.scoreboard.count_reload(result)
        self.last_reload = {
            "number": self.reload_number,
            "at": round(time.time(), 3),
            "result": result,
            "reason": reason,
            "totals": dict(self._reloads),
        }
        if self.companions is not None:
            self.companions.tell_reload_result()

    def _warn_of_settings(self) -> None:
        for warning in warnings_of(self.cfg):
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
        said = old_cfg.is_ssl, old_cfg.protocol
        if listeners is not arbiter.LISTENERS or (cfg.is_ssl, cfg.protocol) != said:
            arbiter.log_listeners(listeners)
        old_pidfile = arbiter.pidfile if pidfile is not arbiter.pidfile else None
        arbiter.LISTENERS, arbiter.pidfile, arbiter.old_listeners = listeners, pidfile, dropped
        manager = arbiter.companion_manager_pid
        before, wanted = state["_num_workers"], arbiter.num_workers
        return Switch(undo.pop_all(), old_pidfile, current, arbiter.worker_age, manager, before, wanted)


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
