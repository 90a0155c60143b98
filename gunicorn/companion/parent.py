# SPDX-License-Identifier: MIT
"""The arbiter's side: what it holds of its one companion child, the manager.

The arbiter forks, signals and reaps; `ManagerHandle` keeps what that needs from
one manager to the next, and knows when something is due. No companion is known
here but by the records that a dead manager left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import time
import weakref
from typing import Any, NoReturn

from gunicorn import __version__, sock
from gunicorn.companion import paths, runfile, session
from gunicorn.companion.config import CompanionConfig, build_companion_configs
from gunicorn.companion.control import remove_stale
from gunicorn.companion.link import Link
from gunicorn.companion.manager import CompanionManager, ConfigUnreadable
from gunicorn.companion.process import POLL_INTERVAL
from gunicorn.companion.runfile import Orphan
from gunicorn.companion.spawn import stay_dumpable
from gunicorn.companion.watch import SourceWatch
from gunicorn.errors import ConfigError
from gunicorn.glogging import follow
from gunicorn.reloader import reloader_engines
from gunicorn.unix.process import set_owner_process, set_process_title
from gunicorn.unix.signals import reset_to_default

# A manager that dies at once is not started again in a tight loop.
SPAWN_INTERVAL = 1.0
# How often the arbiter looks whether the socket file is still there.
SOCKET_CHECK_INTERVAL = 5.0
# From the last word to SIGKILL, for a manager that was told to end everything now.
LAST_WORD = 2.0
# What a manager keeps from its start; a change waits for its replacement.
FIXED_SETTINGS = (
    "user",
    "group",
    "umask",
    "initgroups",
    "companion_control_socket",
    "companion_control_socket_mode",
    "companion_run_dir",
)

# The arbiter's ends of all links. Every other child closes them, those that
# application code forks included, or the manager would not see the arbiter die.
_ARBITER_ENDS: weakref.WeakSet[Link] = weakref.WeakSet()


def _close_arbiter_ends() -> None:
    for link in list(_ARBITER_ENDS):
        link.close()
    _ARBITER_ENDS.clear()


os.register_at_fork(after_in_child=_close_arbiter_ends)


class ManagerHandle:
    """The arbiter's record of the companion manager, across its restarts."""

    def __init__(self, arbiter: Any) -> None:
        self.arbiter = arbiter
        self.link: Link | None = None
        self.state: dict[str, Any] = {}
        self.spawned_at: float | None = None
        # When the manager is killed, if it was told to end.
        self.kill_at: float | None = None
        self.control_path: str | None = None
        self.run_dir: str | None = None
        self._places_stay = False
        self.orphans: list[Orphan] | None = None
        self.configs: list[CompanionConfig] = []
        # Until when companions of earlier configurations may still be draining.
        self._promised: list[float] = []
        self._socket_checked_at = 0.0
        self._fixed: dict[str, Any] = {}
        self._server: dict[str, Any] = {}
        self._reload_told = False
        # In the manager: the configuration that it read last, and the one that its log follows.
        self._fresh: Any = None
        self._log_cfg: Any = None
        # At a quick stop, what every timeout is capped at.
        self._cap: float | None = None

    @property
    def cfg(self) -> Any:
        return self.arbiter.cfg

    @property
    def log(self) -> Any:
        return self.arbiter.log

    # -- from one manager to the next ----------------------------------------

    def may_spawn(self, now: float) -> bool:
        """1 s between two starts, none before the first."""
        return self.spawned_at is None or now >= self.spawned_at + SPAWN_INTERVAL

    def next_deadline(self) -> float | None:
        """When the arbiter must look again, at the latest."""
        times = [self.kill_at] if self.kill_at is not None else []
        waits = self.cfg.companion_workers and not self.arbiter.companion_manager_pid
        if waits and self.spawned_at is not None and self.orphans is None:
            times.append(self.spawned_at + SPAWN_INTERVAL)
        if self.orphans:
            times.append(time.monotonic() + POLL_INTERVAL)
        return min(times, default=None)

    def before_fork(self) -> Link:
        """Make everything that the manager finds made; return its end of the link."""
        self.configs = build_companion_configs(self.cfg)
        if not self._places_stay:
            self.control_path, self.run_dir = self._resolve_paths()
        ours, theirs = Link.pair()
        self.drop_link()
        self.link = ours
        _ARBITER_ENDS.add(ours)
        self._fixed = {name: getattr(self.cfg, name) for name in FIXED_SETTINGS}
        # Asked of the listeners while they are open: the manager closes its copies.
        self._server = self._describe_server()
        return theirs

    def forked(self, theirs: Link) -> None:
        """The arbiter's next line after the fork."""
        theirs.close()
        self.spawned_at = self._socket_checked_at = time.monotonic()
        self.kill_at = None
        self._reload_told = False
        assert self.link is not None
        self.arbiter.poller.add(self.link.fileno(), lambda events: self.receive())

    def spawn_failed(self) -> None:
        """There is no manager; the next attempt is paced like any other."""
        self.drop_link()
        self.spawned_at = time.monotonic()

    def drop_link(self) -> None:
        if self.link is not None:
            self.receive()
            link, self.link = self.link, None
            self.arbiter.poller.remove(link.fileno())
            _ARBITER_ENDS.discard(link)
            link.close()

    def reaped(self, clean: bool = False) -> None:
        """The manager is gone; what it said last is still read.

        *clean*: it ended by itself, after all that it ran. Otherwise its successor has to
        look for what is left where this one wrote it down, whatever a reload has changed.
        """
        self.drop_link()
        self.kill_at = None
        self._places_stay = not clean

    def _resolve_paths(self) -> tuple[str | None, str | None]:
        """Where the control socket and the run files go; none, and a warning, where that cannot be."""
        cfg = self.cfg
        wanted_socket, wanted_run = cfg.companion_control_socket, cfg.companion_run_dir
        default: str | None = None
        if wanted_socket is None or not wanted_run:
            try:
                default = paths.usable_default_directory(os.environ, cfg.uid, cfg.gid)
            except paths.Unusable as exc:
                self.log.warning(
                    "No directory for the companions' control socket and run files: %s;"
                    " set companion_control_socket and companion_run_dir",
                    exc,
                )
        control: str | None = None
        if wanted_socket:
            control = os.path.abspath(wanted_socket)
        elif wanted_socket is None and default is not None:
            control = os.path.join(default, paths.socket_name(self.arbiter.pid))
        run_dir: str | None = None
        if wanted_run:
            run_dir = os.path.abspath(wanted_run)
        elif default is not None:
            run_dir = os.path.join(default, "run-" + self._digest())
        if wanted_socket and control is not None:
            self._prepare("control socket", os.path.dirname(control))
        if run_dir is not None:
            self._prepare("run files", run_dir)
            paths.hand_over_run_files(run_dir, runfile.SUFFIX, cfg.uid, cfg.gid)
        return control, run_dir

    def _prepare(self, what: str, directory: str) -> None:
        try:
            paths.prepare_directory(directory, self.cfg.uid, self.cfg.gid)
        except paths.Unusable as exc:
            # The manager tries all the same: it has groups and rights that we did not look at.
            self.log.debug("The directory of the companions' %s: %s", what, exc)

    def _digest(self) -> str:
        """Names this service among others of the same user: the same after a restart."""
        cfg = self.cfg
        config_file = os.path.abspath(cfg.config) if cfg.config else ""
        parts = [config_file, os.getcwd(), self.application, *sorted(map(str, cfg.address))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    @property
    def application(self) -> str:
        app = self.arbiter.app
        return str(getattr(app, "app_uri", None) or self.cfg.wsgi_app or self.cfg.proc_name)

    def _describe_server(self) -> dict[str, Any]:
        return {
            "pid": self.arbiter.pid,
            "version": __version__,
            "application": self.application,
            "addresses": [str(listener) for listener in self.arbiter.LISTENERS],
        }

    # -- the manager's process -------------------------------------------------

    def run_manager(self, theirs: Link) -> NoReturn:
        """The forked child: from a copy of the arbiter to the companion manager, to its end."""
        code = 1
        try:
            self._become_manager()
            manager = self._make_manager(theirs)
            manager.run()
            code = 0
        except Exception:
            self.log.exception("The companion manager fails")
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except Exception:
                    pass
            os._exit(code)

    def _become_manager(self) -> None:
        """Let go of everything that is the arbiter's. Signals are blocked until the manager's own are set."""
        arbiter, cfg = self.arbiter, self.cfg
        os.setsid()
        reset_to_default()
        arbiter.inbox.close()
        sock.close_sockets(arbiter.LISTENERS, False)
        for worker in arbiter.WORKERS.values():
            worker.tmp.close()
        set_owner_process(cfg.uid, cfg.gid, initgroups=cfg.initgroups)
        # The change of user made /proc/<pid> root's; memory figures are read there.
        stay_dumpable()
        if cfg.umask:
            os.umask(cfg.umask)
        set_process_title("companion manager")

    def _make_manager(self, theirs: Link) -> CompanionManager:
        cfg = self.cfg
        directory = os.path.abspath(cfg.chdir)
        if directory not in sys.path:
            # Targets by name are found where the application is.
            sys.path.insert(0, directory)
        manager = CompanionManager(
            self.configs,
            self.log,
            load_configs=lambda: self._load(manager),
            follow_log=self._follow_log,
            control_path=self.control_path,
            control_mode=cfg.companion_control_socket_mode,
            run_dir=self.run_dir,
            post_fork=cfg.companion_post_fork,
            graceful_timeout=cfg.graceful_timeout,
            server={**self._server, "started": self.arbiter.started_at},
            link=theirs,
            watch=self._make_watch(),
            state=self.state,
        )
        return manager

    def _make_watch(self) -> SourceWatch | None:
        """With `reload`, what has companions restarted when their files change."""
        cfg = self.cfg
        if not cfg.reload:
            return None
        engine: Any = reloader_engines[cfg.reload_engine]
        # A companion may go into a directory of its own.
        files = [os.path.abspath(path) for path in cfg.reload_extra_files]
        return SourceWatch(lambda callback: engine(extra_files=files, callback=callback))

    def _follow_log(self) -> None:
        """Have the manager's log where the last configuration that it could read says."""
        before, self._log_cfg = self._log_cfg or self.cfg, self._fresh or self.cfg
        try:
            follow(self.log, before, self._log_cfg)
        except (ConfigError, OSError) as exc:
            self.log.error("The companion manager logs as before: %s", exc)

    def _load(self, manager: CompanionManager) -> list[CompanionConfig]:
        """The configuration read anew, for the manager's reread. Raises where it is wrong."""
        # What the arbiter sent before its SIGHUP counts for that one time.
        files = {path: text.encode("latin-1") for path, text in manager.take_files().items()}
        try:
            cfg = self.arbiter.app.fresh_config(files)
        except ConfigError as exc:
            if isinstance(exc.__cause__, PermissionError):
                raise ConfigUnreadable(str(exc)) from exc
            raise
        finally:
            # A configuration file, or what it imports, may have set handlers of its own.
            manager.inbox.install()
        configs = build_companion_configs(cfg)
        self._fresh = cfg
        manager.post_fork = cfg.companion_post_fork
        manager.graceful_timeout = cfg.graceful_timeout
        return configs

    # -- what the manager says -------------------------------------------------

    def receive(self) -> None:
        """Take in the manager's messages."""
        if self.link is None:
            return
        for message in self.link.receive():
            if "state" in message:
                self.state = message["state"]
            if "reread" in message:
                self._take_over(message["reread"])
                if not self.cfg.companion_workers:
                    # The last companion has left, and the manager leaves with it.
                    self.arbiter.stop_companion_manager(signal.SIGTERM)
            if message.get("unreadable"):
                self._replace_if_it_must_know()
        if self.link is not None and self.link.ended:
            # Its end is reported by SIGCHLD; a descriptor at end-of-file is always readable.
            self.arbiter.poller.remove(self.link.fileno())

    def _take_over(self, applied: dict[str, str]) -> None:
        """The manager has applied a configuration: hold the same one for its successor."""
        self._reload_told = False
        if applied == {config.name: config.fingerprint for config in self.configs}:
            return
        try:
            fresh = self.arbiter.app.fresh_config()
            configs = build_companion_configs(fresh)
        except (ConfigError, ValueError) as exc:
            self.log.warning(
                "The companions' new configuration cannot be kept for their next manager: %s", exc
            )
            return
        finally:
            self.arbiter.hear_signals_again()
        for name, setting in fresh.settings.items():
            if name.startswith("companion_"):
                self.cfg.settings[name] = setting
        self.remember(configs)

    def remember(self, configs: list[CompanionConfig]) -> None:
        """Take *configs* as the current ones; those before may still be draining by their own limits."""
        now = time.monotonic()
        longest = max((c.stop_timeout for c in self.configs), default=0.0)
        self._promised = [until for until in self._promised if until > now]
        if longest:
            self._promised.append(now + longest)
        self.configs = configs

    def _replace_if_it_must_know(self) -> None:
        """The manager may not read what we could: after a SIGHUP to us, a new one inherits it."""
        if self._reload_told:
            self._reload_told = False
            self.log.warning("The companion manager may not read the configuration; it is replaced")
            self.replace()

    # -- reload ----------------------------------------------------------------

    def reload(self) -> None:
        """The arbiter has applied a new configuration, whose companions are valid."""
        cfg = self.cfg
        configs = build_companion_configs(cfg)
        changed_names = {c.name: c.fingerprint for c in configs} != {
            c.name: c.fingerprint for c in self.configs
        }
        pid = self.arbiter.companion_manager_pid
        self.remember(configs)
        if not pid:
            return
        if not configs:
            self.arbiter.stop_companion_manager(signal.SIGTERM)
            return
        if self.kill_at is not None:
            return  # it is ending already; its successor inherits the new configuration
        if cfg.companion_reload == "all":
            self.replace()
            return
        differ = [name for name, before in self._fixed.items() if getattr(cfg, name) != before]
        if differ:
            self.log.warning(
                "Companions keep the old %s until their manager is replaced (companion_reload = 'all',"
                " or a restart of the service)",
                ", ".join(differ),
            )
        if self.link is not None:
            self.link.send({"server": self._describe_server(), "files": self._files_to_hand_over()})
        self._reload_told = changed_names
        self.arbiter.signal_companion_manager(signal.SIGHUP)

    def _files_to_hand_over(self) -> dict[str, str]:
        """The text of the configuration files, for a manager whose user may not read them."""
        files: dict[str, str] = {}
        if os.geteuid() != 0 or self.cfg.uid == 0:
            return files
        for source in self.cfg.sources:
            if source.path is not None:
                with contextlib.suppress(OSError), open(source.path, "rb") as file:
                    files[source.path] = file.read().decode("latin-1")
        return files

    def ending(self) -> None:
        """The manager is told to end: from now on its time is limited."""
        if self.kill_at is None:
            self.kill_at = time.monotonic() + self.stop_timeout()

    def replace(self) -> None:
        """End the manager; the arbiter starts another as soon as it is reaped."""
        self.kill_at = time.monotonic() + self.reload_timeout()
        self.arbiter.signal_companion_manager(signal.SIGUSR2)

    # -- limits ------------------------------------------------------------------

    def stop_timeout(self) -> float:
        """Seconds that the manager is given on shutdown; 0 with no companions."""
        explicit = self.cfg.companion_manager_stop_timeout
        if explicit is not None:
            return float(explicit)
        now = time.monotonic()
        current = self.configs or build_companion_configs(self.cfg)
        waits = [float(config.stop_timeout) for config in current]
        waits += [until - now for until in self._promised if until > now]
        return max(waits) + self.cfg.companion_manager_shutdown_buffer if waits else 0.0

    def reload_timeout(self) -> float:
        """The same for a replacement of the manager."""
        explicit = self.cfg.companion_manager_reload_timeout
        if explicit is not None:
            return float(explicit)
        waits = [float(config.reload_timeout) for config in self.configs]
        return max(waits) + self.cfg.companion_manager_shutdown_buffer if waits else 0.0

    # -- watching ----------------------------------------------------------------

    def tick(self, now: float) -> None:
        """What is due while a manager is there."""
        if self.link is not None:
            self.link.flush()
        if self.kill_at is not None and now >= self.kill_at:
            self.kill()
        if now >= self._socket_checked_at + SOCKET_CHECK_INTERVAL:
            self._socket_checked_at = now
            self._check_socket_file()

    def _check_socket_file(self) -> None:
        if self.control_path is None or self.kill_at is not None or os.path.lexists(self.control_path):
            return
        self.arbiter.signal_companion_manager(signal.SIGUSR1)

    def kill(self) -> None:
        """SIGKILL to a manager that did not end in time, and to what its run files name."""
        pid = self.arbiter.companion_manager_pid
        self.log.error(
            "The companion manager (pid %d) did not end in time: SIGKILL to it and to its companions", pid
        )
        self.kill_at = None
        self.arbiter.signal_companion_manager(signal.SIGKILL)
        for record in runfile.records(self.run_dir).values():
            if record.supervisor == pid:
                for member in session.members({record.session}).get(record.session, ()):
                    if self._uid() is None or session.owner(member) == self._uid():
                        session.send(member, signal.SIGKILL)

    def _uid(self) -> int | None:
        """Whose processes a record may have us kill: as root not everybody's."""
        return self.cfg.uid if os.geteuid() == 0 else None

    # -- the end -------------------------------------------------------------------

    def begin_stop(self, graceful: bool) -> None:
        """The server stops. A manager is told; sessions that no manager minds any more are ended here."""
        now = time.monotonic()
        cap = float(self.cfg.graceful_timeout)
        limit = self.stop_timeout()
        if not graceful:
            limit = min(limit, cap + self.cfg.companion_manager_shutdown_buffer)
        if self.arbiter.companion_manager_pid:
            self.kill_at = now + limit
            self.arbiter.signal_companion_manager(signal.SIGTERM if graceful else signal.SIGINT)
        self._cap = None if graceful else cap

    def hasten(self) -> None:
        """A second INT or QUIT: everything ends now."""
        now = time.monotonic()
        self._cap = 0.0
        for orphan in self.orphans or ():
            orphan.deadline = now
        if self.arbiter.companion_manager_pid:
            self.kill_at = now + LAST_WORD
            self.arbiter.signal_companion_manager(signal.SIGINT)

    def stopped(self) -> bool:
        """One step of the stop: True when neither a manager nor anything it ran is left."""
        now = time.monotonic()
        if self.arbiter.companion_manager_pid:
            self.tick(now)
            return False
        if self.orphans is None:
            self.orphans = list(
                runfile.orphans(self.run_dir, now, timeout=self._cap, uid=self._uid()).values()
            )
        self.orphans = [orphan for orphan in self.orphans if not orphan.step(now)]
        if self.orphans:
            return False
        self._tidy_up()
        return True

    def _tidy_up(self) -> None:
        """Leave nothing on disk: a manager that was killed could not, and no manager knows it is the last."""
        path, self.control_path = self.control_path, None
        if path is not None:
            with contextlib.suppress(OSError):
                remove_stale(path)
        if self.run_dir is not None:
            # Not empty where another server runs on it.
            with contextlib.suppress(OSError):
                os.rmdir(self.run_dir)
