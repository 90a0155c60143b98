# SPDX-License-Identifier: MIT
"""The master's handle of the companion manager: fork it, talk to it, watch it, replace it, bury it.

The handle stays while managers come and go. It knows no running companions, only their configuration.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gunicorn import __version__
from gunicorn.app.start import Surroundings
from gunicorn.companion.config import CompanionConfig, build_companion_configs
from gunicorn.companion.process import POLL_INTERVAL
from gunicorn.companion.server import limits
from gunicorn.companion.server.keptsockets import KeptSockets
from gunicorn.companion.server.leftovers import Leftovers
from gunicorn.companion.server.link import Link, Pulse
from gunicorn.companion.server.manager_process import run_manager
from gunicorn.companion.server.run_directory import (
    ArbitersPart,
    Places,
    application,
    close_in_children,
    kept_in_child,
)
from gunicorn.companion.server.web_order import WebOrder
from gunicorn.companion.supervise.sharedstate import SharedState
from gunicorn.errors import ConfigError
from gunicorn.settings import redact
from gunicorn.unix import session, spare
from gunicorn.unix.process import describe_end
from gunicorn.unix.signals import blocked_signals

# Seconds between two starts, so that a manager that dies at once is not started in a tight loop.
SPAWN_INTERVAL = 1.0
# Seconds between two checks whether the socket file and the run files are still there.
SOCKET_CHECK_INTERVAL = 5.0
# Seconds until SIGKILL, for a manager that was told to end everything now.
LAST_WORD = 2.0
# Seconds between two pings of the manager (one follows at once after an action that may hang it), until a
# missing answer is logged, and until it gets the manager killed.
PING_INTERVAL = 60.0
PING_WARN = 30.0
PING_KILL = 60.0
# Between two looks at web workers that boot, while a companion waits for them.
BOOT_TICK = 0.1
# What a manager keeps from its start; a change takes effect when it is replaced.
FIXED_SETTINGS = (
    "user",
    "group",
    "umask",
    "initgroups",
    "companion_control_socket",
    "companion_control_socket_mode",
    "companion_run_dir",
    "companion_log_lines",
    "companion_log_format",
    "reload",
    "reload_engine",
    "reload_extra_files",
)


@dataclass
class Leaving:
    """A manager that has made room for the next one, and still stops its companions."""

    pid: int
    link: Link
    # When it is killed.
    kill_at: float


class ManagerHandle(ArbitersPart):
    """Owns ``pid`` (0: there is no manager) and the master's end of the ``link``."""

    def __init__(self, arbiter: Any) -> None:
        self.arbiter = arbiter
        self.pid = 0
        self.link: Link | None = None
        # When the manager is killed, if it was told to end.
        self.kill_at: float | None = None
        self.leaving: list[Leaving] = []
        self.pulse = Pulse(time.monotonic())
        # The companion with on_give_up = "shutdown" that has given up.
        self.given_up = ""
        # State that outlives a manager; during an upgrade also that of the old master's managers.
        self.shared: SharedState | None = None
        self.old_state: SharedState | None = None
        if arbiter.given.companion_state_fd is not None:
            self.old_state = close_in_children(SharedState(arbiter.given.companion_state_fd))
        self.sockets = close_in_children(KeptSockets(arbiter.given.companion_sockets))
        # Which of them the successor has got.
        self._handed: list[tuple[str, str]] = []
        self.places = Places(arbiter, arbiter.given.companion_run_dir)
        self.leftovers = Leftovers(arbiter, self.places)
        self.web = WebOrder(arbiter, self._tell)
        self.configs: list[CompanionConfig] = []
        # Whether the next manager must use the run directory of the last one, whose records are there.
        self._places_stay = False
        self._spawned_at: float | None = None
        # Until when companions of earlier configurations may still be draining.
        self._draining: list[float] = []
        self._checked_at = 0.0
        self._run_file_checks = 0
        self._fixed: dict[str, Any] = {}
        # Environment, import path and directory as the manager has them.
        self._surroundings = Surroundings({}, [], None)
        # Whether the manager has been told to reload, with other companions, and has not answered yet.
        self._reload_told = False
        # What the manager has applied and the master could not read: name to fingerprint.
        self._unread: dict[str, str] | None = None
        # At a quick stop, what every timeout is limited to.
        self._cap: float | None = None

    # -- from one manager to the next ----------------------------------------

    def may_spawn(self, now: float) -> bool:
        """Whether the time has come, and an old master's companions are not in the way."""
        if self.places.must_wait():
            return False
        return self._spawned_at is None or now >= self._spawned_at + SPAWN_INTERVAL

    def next_deadline(self) -> float | None:
        """When `step`, or a start, is due; None: when something happens."""
        times = [self.kill_at] if self.kill_at is not None else []
        times += [each.kill_at for each in self.leaving]
        if self.pid and self.web.watches_boot:
            times.append(time.monotonic() + BOOT_TICK)
        if self.leftovers.waiting:
            times.append(time.monotonic() + POLL_INTERVAL)
        elif (
            self.cfg.companion_workers
            and not self.pid
            and not self.arbiter.stopping
            and self._spawned_at is not None
            and not self.places.must_wait()
        ):
            times.append(self._spawned_at + SPAWN_INTERVAL)
        return min(times, default=None)

    def spawn(self) -> None:
        """Fork a manager. In it, this does not return."""
        try:
            theirs, server = self._prepare()
            with blocked_signals(), kept_in_child(self.shared, self.old_state, self.sockets):
                pid = os.fork()
                if pid == 0:
                    run_manager(
                        self.arbiter, theirs, self.configs, self.places, server, self.shared, self.old_state
                    )
        except (OSError, ValueError) as exc:
            self.drop_link()
            self._spawned_at = time.monotonic()
            self.log.error("The companion manager cannot be started: %s", exc)
            return
        theirs.close()
        self.pid, self.kill_at, self._reload_told = pid, None, False
        self._spawned_at = self._checked_at = now = time.monotonic()
        self.pulse = Pulse(now)
        self.web.new_manager()
        self.leftovers.note_manager(pid)
        assert self.link is not None
        self.link.watch(self.arbiter.poller, self._on_message)
        if self.arbiter.master_pid:
            # The answer shows that its companions can change hands.
            self.suspect()
        self.log.info("The companion manager is process %s", pid)

    def _prepare(self) -> tuple[Link, dict[str, Any]]:
        """Make what the manager needs; return its end of the link, and what it tells of the server."""
        if not self.arbiter.on_trial:
            self.configs = build_companion_configs(self.cfg, outputs=False)
        # The manager inherits the spare descriptor.
        spare.ONE.fill()
        if self._places_stay:
            self.places.restore()
        else:
            self.places.choose()
        self.share()
        self.drop_link()
        self.link, theirs = Link.pair()
        close_in_children(self.link)
        self._fixed = {name: getattr(self.cfg, name) for name in FIXED_SETTINGS}
        self.sockets.begin([self.cfg.uid, self.cfg.gid, self.cfg.umask])
        self._surroundings = self._look_around()
        # Before the fork: the manager closes its copies of the listeners.
        return theirs, self._describe_server()

    def share(self) -> SharedState | None:
        """Return the state that outlives a manager; None if there is no memory for it."""
        if self.shared is None:
            try:
                self.shared = close_in_children(SharedState.create())
            except OSError as exc:
                self.log.warning("Commands will be lost with each companion manager: %s", exc.strerror)
        return self.shared

    @contextlib.contextmanager
    def state_for_successor(self) -> Iterator[int | None]:
        """Give the descriptor of that state, which stays open in a child that is forked within the block."""
        shared = self.share()
        self._handed = self.sockets.names()
        with kept_in_child(shared, self.sockets):
            yield None if shared is None else shared.fd

    def drop_link(self) -> None:
        """Close the link, after its last messages."""
        if self.link is not None:
            self.link.read()
            link, self.link = self.link, None
            link.unwatch()
            link.close()

    def signal(self, sig: int) -> None:
        """Send *sig* to the manager, if there is one; forget it if it is gone."""
        if not self.pid:
            return
        try:
            os.kill(self.pid, sig)
        except ProcessLookupError:
            self._forget(clean=False)

    def bury(self, pid: int, status: int) -> bool:
        """Account for the end of the process *pid*; False if it was no manager."""
        if pid == self.pid:
            expected = self.arbiter.stopping or self.kill_at is not None
            self._forget(clean=status == 0)
            log = self.log.info if expected else self.log.error
            log("The companion manager %s", describe_end(status))
            return True
        for each in self.leaving:
            if each.pid == pid:
                self.leaving.remove(each)
                each.link.close()
                log = self.log.info if status == 0 else self.log.error
                log("The previous companion manager, process %d, %s", pid, describe_end(status))
                if status:
                    self.leftovers.some_killed = True
                    # When the present manager started, there were no orphans to look for.
                    self._tell("orphans")
                return True
        return False

    def _forget(self, *, clean: bool) -> None:
        self.pid = 0
        self.drop_link()
        self.kill_at = None
        self._places_stay = not clean or bool(self.leaving)
        if not clean:
            self.leftovers.some_killed = True
            if self._unread is not None:
                self._take_over(self._unread)
        if not self.cfg.companion_workers:
            self.sockets.close()

    def _describe_server(self) -> dict[str, Any]:
        return {
            "pid": self.arbiter.pid,
            "version": __version__,
            # A factory's arguments may be passwords.
            "application": redact.in_text(application(self.arbiter)),
            "addresses": [str(listener) for listener in self.arbiter.LISTENERS],
            # By these the manager finds out how many connections wait.
            "inodes": [os.fstat(listener.fileno()).st_ino for listener in self.arbiter.LISTENERS],
            "reload": self.arbiter.last_reload and {**self.arbiter.last_reload, "companions": None},
            "upgrade": self.arbiter.upgrade.last,
        }

    def _look_around(self) -> Surroundings:
        # Targets by name are found where the application is.
        return Surroundings.here(os.path.abspath(self.cfg.chdir))

    # -- messages --------------------------------------------------------------

    def _tell(self, kind: str, value: Any = True) -> None:
        """Send one message to the manager, if there is one."""
        if self.link is not None:
            self.link.send({kind: value})

    def _on_message(self, message: dict[str, Any]) -> None:
        try:
            self._take_message(message)
        except (LookupError, TypeError, ValueError, AttributeError):
            # The master may run as root, and must not fail because of what a manager sends that does not.
            self.log.exception("Ignoring a message of the companion manager that makes no sense")

    def _take_message(self, message: dict[str, Any]) -> None:
        self.web.on_message(message)
        if "keep" in message:
            self._keep_socket(**message["keep"])
        # Another successor may need them.
        if "let_go" in message and not self.arbiter.upgrade.is_handing_over:
            self.sockets.let_go(**message["let_go"])
        if "made_room" in message:
            self._let_leave()
        if "reread" in message:
            self._take_over(message["reread"])
            if not self.cfg.companion_workers:
                # The last companion has left, and the manager leaves with it.
                self.stop(signal.SIGTERM)
        if "unreadable" in message and self._reload_told:
            # The master could read it, and the next manager inherits it.
            self._reload_told = False
            self.log.warning("Replacing the companion manager, because it may not read the configuration")
            self.replace()
        if "pong" in message:
            if self.pulse.reported and message["pong"] == self.pulse.number:
                self.log.info("The companion manager answers again")
            self.pulse.answered(message["pong"])
        if "ask" in message:
            self._tell("answer", self._answer(**message["ask"]))
        if "rereading" in message:
            # It runs a configuration file, which may never return.
            self.suspect()
        if "gave_up" in message and not self.given_up and not self.arbiter.stopping:
            self.given_up = str(message["gave_up"])
            self.log.critical(
                "The companion %s has given up, and on_give_up says that the server stops", self.given_up
            )

    def _keep_socket(self, inode: int, **which: Any) -> None:
        fd = None if self.link is None else self.link.take(inode)
        if fd is not None:
            self.sockets.keep(fd=fd, **which)

    def _answer(self, ticket: int, cmd: str, **wanted: Any) -> dict[str, Any]:
        """Do what a client of the manager wants of the master; return the answer to its *ticket*."""
        try:
            return {"ticket": ticket, "ok": True, **self.arbiter.command(cmd, **wanted)}
        except ValueError as exc:
            return {"ticket": ticket, "ok": False, "error": str(exc)}
        except Exception as exc:
            # No command ends the server by a mistake.
            self.log.exception("The command %s failed", cmd)
            return {
                "ticket": ticket,
                "ok": False,
                "error": f"{type(exc).__name__}: {exc}; see the server's log",
            }

    def _take_over(self, applied: dict[str, str]) -> None:
        """Take the configuration that the manager has *applied* for the next one, too.

        If it cannot be read now, it is read once more before the next manager starts.
        """
        self._reload_told = False
        self._unread = None
        if applied == _fingerprints(self.configs):
            return
        try:
            fresh = self.arbiter.app.fresh_config()
            configs = build_companion_configs(fresh, outputs=False)
        except (ConfigError, ValueError) as exc:
            self.log.warning("Cannot save the companions' new configuration for the next manager: %s", exc)
            self._unread = applied
            return
        finally:
            self.arbiter.restore_signal_handlers()
        for name, setting in fresh.settings.items():
            if name.startswith("companion_") or name == "web_after":
                self.cfg.settings[name] = setting
        self._remember(configs)

    def _remember(self, configs: list[CompanionConfig]) -> None:
        """Take *configs* as the current ones; companions of those before may still be draining."""
        now = time.monotonic()
        longest = limits.longest(self.cfg, self.configs, lambda config: config.stop_timeout)
        self._draining = [until for until in self._draining if until > now]
        if longest:
            self._draining.append(now + longest)
        self.configs = configs

    # -- reload ----------------------------------------------------------------

    def reload(self) -> None:
        """Have the manager follow the configuration of the master, whose companions are valid."""
        cfg, before = self.cfg, self.configs
        self._unread = None
        self._remember(build_companion_configs(cfg, outputs=False))
        if not self.pid:
            return
        if not self.configs:
            self.stop(signal.SIGTERM)
        elif self.kill_at is not None:
            pass  # it is ending already, and the next one inherits the new configuration
        elif cfg.companion_reload == "all":
            self.replace()
        elif self.link is None:
            # A manager that an embedder has forked.
            self.signal(signal.SIGHUP)
        else:
            self._reload_told = _fingerprints(before) != _fingerprints(self.configs)
            self._tell_to_reload()

    def _tell_to_reload(self) -> None:
        differ = [name for name, before in self._fixed.items() if getattr(self.cfg, name) != before]
        if differ:
            self.log.warning(
                "Companions keep the old %s until their manager is replaced (companion_reload = 'all',"
                " or a restart of the service)",
                ", ".join(differ),
            )
        before, self._surroundings = self._surroundings, self._look_around()
        self._tell(
            "reload",
            {
                "server": self._describe_server(),
                "files": self._files_to_hand_over(),
                "surroundings": self._surroundings.changes_since(before),
                "web_is_held": self.arbiter.web_is_held,
            },
        )
        # The ping follows on the link: its answer says that the reload is done.
        self.suspect()

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

    def replace(self) -> None:
        """End the manager. The next one starts as soon as this one has made room, or else has exited.

        Two managers can run side by side, as over an upgrade, if each sees the other's run files. Each
        companion then waits for its own older process only.
        """
        self.kill_at = time.monotonic() + limits.reload_timeout(self.cfg, self.configs)
        same = all(getattr(self.cfg, name) == before for name, before in self._fixed.items())
        self._tell("replace", "beside this one" if same and self.places.usable else "after this one")

    def _let_leave(self) -> None:
        """The manager has made room: it has written down what the next one needs."""
        if not self.pid or self.link is None or self.kill_at is None:
            return
        self.link.unwatch()
        self.leaving.append(Leaving(self.pid, self.link, self.kill_at))
        self.pid, self.link, self.kill_at = 0, None, None
        # The records of the companions that it still stops are there.
        self._places_stay = True

    def tell_reload_result(self) -> None:
        """Tell the manager, for ``status``, what has come of the last reload."""
        self._tell("reload_result", self.arbiter.last_reload)

    # -- watching ----------------------------------------------------------------

    def step(self, now: float) -> None:
        """Do what is due."""
        for each in self.leaving:
            if now >= each.kill_at:
                each.kill_at = float("inf")
                self._kill(each.pid)
        if not self.pid:
            return
        self.web.step(self.configs)
        self._check_pulse(now)
        if self.kill_at is not None:
            if now >= self.kill_at:
                self.kill_at = None
                self._kill(self.pid)
        elif now >= self._checked_at + SOCKET_CHECK_INTERVAL:
            self._checked_at = now
            self._check_files()

    def _kill(self, pid: int) -> None:
        self.log.error(
            "The companion manager (pid %d) did not end in time: SIGKILL to it and to its companions", pid
        )
        self.leftovers.kill_with_companions(pid)

    def suspect(self) -> None:
        """The manager may hang from now on: ping it."""
        self.pulse.suspect()
        self._ping(time.monotonic())

    def _ping(self, now: float) -> None:
        if self.link is not None and not self.pulse.given_up and self.pulse.due(now, PING_INTERVAL):
            self._tell("ping", self.pulse.ask(now))

    def _check_pulse(self, now: float) -> None:
        """Ping the manager if that is due; kill it if it does not answer."""
        if self.link is not None:
            # An answer that has arrived counts, however late it is read.
            self.link.read()
        silence = self.pulse.look(now)
        self._ping(now)
        if self.pulse.given_up or silence < min(PING_WARN, PING_KILL):
            return
        if silence >= PING_KILL:
            self.pulse.given_up = True
            self.log.error(
                "The companion manager (pid %d) has not answered for %g s: SIGKILL. Its companions stop,"
                " and the next manager restarts them",
                self.pid,
                round(silence, 1),
            )
            self.signal(signal.SIGKILL)
        elif not self.pulse.reported:
            self.pulse.reported = True
            self.log.warning(
                "The companion manager (pid %d) has not answered for %g s", self.pid, round(silence, 1)
            )

    def _check_files(self) -> None:
        """Have the manager make its control socket and its run files again, if they were removed."""
        if self.places.control_path is not None and not os.path.lexists(self.places.control_path):
            self._tell("check_socket")
        if self.places.lost_run_files({config.name for config in self.configs if config.singleton}):
            # Twice: a companion that was just starting may not have written its record yet.
            self._run_file_checks = 2
        if self._run_file_checks:
            self._run_file_checks -= 1
            self._tell("run_files")

    def can_take_over(self) -> bool:
        """Whether the companions of a successor have only to wait for those of the old master."""
        if not self.cfg.companion_workers or self.places.must_wait():
            return True
        return self.pid != 0 and self.pulse.number > 0 and not self.pulse.waiting

    def tell_upgrade(self, result: dict[str, Any]) -> None:
        """Tell the manager how far an upgrade is."""
        self._tell("upgrade_result", result)

    def promoted(self) -> None:
        """Tell the manager that the old master is gone: its state and its control socket are free."""
        self._tell("promoted")

    def reopen_logs(self) -> None:
        """Have the manager begin new log files, after a rotation."""
        self._tell("reopen")

    # -- the end -------------------------------------------------------------------

    def stop_timeout(self) -> float:
        """Seconds that the manager has at a stop; 0 without companions."""
        draining = max(self._draining, default=0.0) - time.monotonic()
        configs = self.configs or build_companion_configs(self.cfg, outputs=False)
        return limits.stop_timeout(self.cfg, configs, max(0.0, draining))

    def stop(self, sig: int) -> None:
        """Have the manager end, by SIGTERM or a quicker signal; it is killed when its time is over."""
        if self.pid and self.kill_at is None:
            self.kill_at = time.monotonic() + self.stop_timeout()
        self.signal(sig)

    def begin_stop(self, graceful: bool) -> None:
        """The server stops: stop the manager, and those that are leaving.

        If it is *graceful*, workers may have to wait: `web_may_stop`.
        """
        now, sig = time.monotonic(), signal.SIGTERM if graceful else signal.SIGINT
        limit = self.stop_timeout()
        if not graceful:
            # Those of earlier configurations have no longer time either.
            self._cap = cap = float(self.cfg.graceful_timeout)
            longest = limits.longest(self.cfg, self.configs, lambda config: min(cap, config.stop_timeout))
            limit = min(limit, max(cap, longest) + limits.buffer(self.cfg))
        if self.pid:
            self.kill_at = now + limit
            if self.arbiter.reexec_pid:
                # In the successor each companion waits for its own older process only, so stop all together.
                self._tell("handing_over")
                if self._handed:
                    self._tell("handed", self._handed)
            if self.link is not None:
                self.web.begin_stop(now, self.configs, wait=graceful)
            self.signal(sig)
            self.suspect()
        for each in self.leaving:
            each.kill_at = min(each.kill_at, now + limit)
            session.send(each.pid, sig)

    def web_may_stop(self) -> bool:
        """Whether no companion needs the web workers any more, or no manager is left to say so."""
        return not self.pid or self.link is None or self.web.may_stop(time.monotonic())

    def hasten(self) -> None:
        """End everything now, after a second INT or QUIT."""
        now = time.monotonic()
        self._cap = 0.0
        self.leftovers.hasten(now)
        if self.pid:
            self.kill_at = now + LAST_WORD
            self.signal(signal.SIGINT)
        for each in self.leaving:
            each.kill_at = now + LAST_WORD
            session.send(each.pid, signal.SIGINT)

    def stopped(self) -> bool:
        """Take one step of the stop: True when neither a manager nor any of its processes is left."""
        now = time.monotonic()
        self.step(now)
        if self.pid or self.leaving or not self.leftovers.step(now, self.configs, self._cap):
            return False
        self.places.tidy_up()
        return True


def _fingerprints(configs: list[CompanionConfig]) -> dict[str, str]:
    return {config.name: config.fingerprint for config in configs}
