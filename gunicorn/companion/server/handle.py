# SPDX-License-Identifier: MIT
"""The arbiter's handle of the companion manager.

The arbiter forks, signals and reaps; `ManagerHandle` keeps what that needs from
one manager to the next, and knows when something is due. No companion is known
here but by the records that a dead manager left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NoReturn

from gunicorn import __version__
from gunicorn.app.start import Surroundings
from gunicorn.companion import detached, runfile
from gunicorn.companion.config import CompanionConfig, build_companion_configs
from gunicorn.companion.process import POLL_INTERVAL
from gunicorn.companion.runfile import Orphan, Record
from gunicorn.companion.server.link import Link, Pulse
from gunicorn.companion.server.manager_process import ManagerChild
from gunicorn.companion.server.run_directory import ARBITERS_ALONE, ArbitersPart, Places, application
from gunicorn.companion.supervise.order import stop_limit
from gunicorn.companion.supervise.sharedstate import SharedState
from gunicorn.errors import ConfigError
from gunicorn.settings import redact
from gunicorn.unix import session, spare
from gunicorn.unix.process import describe_end

# A manager that dies at once is not started again in a tight loop.
SPAWN_INTERVAL = 1.0
# How often the arbiter looks whether the socket file and the run files are still there.
SOCKET_CHECK_INTERVAL = 5.0
# Seconds until SIGKILL, for a manager that was told to end everything now.
LAST_WORD = 2.0
# Seconds between two pings of the manager (one follows at once after an action that may hang it), until a
# missing answer is logged, and until it gets the manager killed.
PING_INTERVAL = 60.0
PING_WARN = 30.0
PING_KILL = 60.0
# So many managers are remembered before those are forgotten that have left no record.
MANAGERS_NOTED = 20
# What a manager keeps from its start; a change waits for its replacement.
FIXED_SETTINGS = (
    "user",
    "group",
    "umask",
    "initgroups",
    "companion_control_socket",
    "companion_control_socket_mode",
    "companion_run_dir",
    "reload",
    "reload_engine",
    "reload_extra_files",
)


class _Planned:
    """In place of the arbiter, where nothing is started."""

    inherited_run_dir = None
    inherited_state_fd = None
    companion_manager_pid = 0

    def __init__(self, app: Any) -> None:
        self.app = app
        self.cfg = app.cfg


def planned(app: Any) -> dict[str, Any]:
    """The values that follow from the settings, by name, if the server of *app* is started now.

    Raises ValueError for companions that are wrong.
    """
    handle = ManagerHandle(_Planned(app))
    handle.configs = build_companion_configs(app.cfg)
    control, run_dir = handle.places.planned()
    return {
        "companion_control_socket": control,
        "companion_run_dir": run_dir,
        "companion_manager_stop_timeout": handle.stop_timeout(),
        "companion_manager_reload_timeout": handle.reload_timeout(),
    }


@dataclass
class Leaving:
    """A manager that has made room for another, and ends what it ran beside it."""

    pid: int
    link: Link
    # When it is killed.
    kill_at: float


class ManagerHandle(ArbitersPart):
    """The arbiter's record of the companion manager, across its restarts."""

    def __init__(self, arbiter: Any) -> None:
        self.arbiter = arbiter
        self.link: Link | None = None
        # State that outlives a manager; during an upgrade also that of the old master's managers.
        self.shared: SharedState | None = None
        self.elder: SharedState | None = None
        if arbiter.inherited_state_fd is not None:
            self.elder = SharedState(arbiter.inherited_state_fd)
            ARBITERS_ALONE.add(self.elder)
        # Copies for the manager that is being started.
        self._lent: list[SharedState | None] = []
        self.spawned_at: float | None = None
        # When the manager is killed, if it was told to end.
        self.kill_at: float | None = None
        self.leaving: list[Leaving] = []
        self.places = Places(arbiter, arbiter.inherited_run_dir)
        self._places_stay = False
        self.pulse = Pulse(time.monotonic())
        # Every manager of this server: pid and `session.identity`, as they are in the records.
        self._ours: set[tuple[int, str]] = set()
        self.orphans: list[Orphan] | None = None
        self.configs: list[CompanionConfig] = []
        # Until when companions of earlier configurations may still be draining.
        self._promised: list[float] = []
        self._socket_checked_at = 0.0
        self._looks_left = 0
        self._fixed: dict[str, Any] = {}
        # Environment, import path and directory of the manager, as it was given them.
        self._surroundings = Surroundings({}, [], None)
        self._server: dict[str, Any] = {}
        self._reload_told = False
        # What the manager has applied and the master could not read: name to fingerprint.
        self._unread: dict[str, str] | None = None
        # At a quick stop, what every timeout is capped at.
        self._cap: float | None = None

    # -- from one manager to the next ----------------------------------------

    def may_spawn(self, now: float) -> bool:
        """1 s between two starts, none before the first; perhaps not beside another master's companions."""
        if self.places.must_wait():
            return False
        return self.spawned_at is None or now >= self.spawned_at + SPAWN_INTERVAL

    def next_deadline(self) -> float | None:
        """When the arbiter must look again, at the latest."""
        times = [self.kill_at] if self.kill_at is not None else []
        times += [each.kill_at for each in self.leaving]
        waits = self.cfg.companion_workers and not self.arbiter.companion_manager_pid
        if waits and self.spawned_at is not None and self.orphans is None and not self.places.must_wait():
            times.append(self.spawned_at + SPAWN_INTERVAL)
        if self.orphans:
            times.append(time.monotonic() + POLL_INTERVAL)
        return min(times, default=None)

    def before_fork(self) -> Link:
        """Make everything that the manager finds made; return its end of the link."""
        self.configs = build_companion_configs(self.cfg, outputs=False)
        # The manager has it too.
        spare.keep()
        if not self._places_stay:
            self.places.choose()
        self._lend_state()
        ours, theirs = Link.pair()
        self.drop_link()
        self.link = ours
        ARBITERS_ALONE.add(ours)
        self._fixed = {name: getattr(self.cfg, name) for name in FIXED_SETTINGS}
        self._surroundings = self._look_around()
        # Asked of the listeners while they are open: the manager closes its copies.
        self._server = self._describe_server()
        return theirs

    def _lend_state(self) -> None:
        """Make the copies for the manager. Only it is to have them, and ours are closed in every child."""
        self._take_back_state()
        self._lent = [None if each is None else each.copy() for each in (self.share(), self.elder)]

    def share(self) -> SharedState | None:
        """The state that outlives a manager; None if there is no memory for it."""
        if self.shared is None:
            try:
                self.shared = SharedState.create()
                ARBITERS_ALONE.add(self.shared)
            except OSError as exc:
                self.log.warning("Commands will be lost with each companion manager: %s", exc.strerror)
        return self.shared

    def _take_back_state(self) -> None:
        for each in self._lent:
            if each is not None:
                each.close()
        self._lent = []

    def forked(self, theirs: Link) -> None:
        """The arbiter's next line after the fork."""
        theirs.close()
        self._take_back_state()
        self.spawned_at = self._socket_checked_at = now = time.monotonic()
        self.pulse = Pulse(now)
        pid = self.arbiter.companion_manager_pid
        with contextlib.suppress(OSError):
            if len(self._ours) >= MANAGERS_NOTED:
                # One that no record names any more has left nothing behind.
                named = runfile.records(self.places.run_dir).values()
                self._ours &= {(record.supervisor, record.supervisor_started) for record in named}
            self._ours.add((pid, session.identity(pid) or ""))
        self.kill_at = None
        self._reload_told = False
        assert self.link is not None
        self.link.watch(self.arbiter.poller, self._on_message)

    def spawn_failed(self) -> None:
        """There is no manager; the next attempt is paced like any other."""
        self.drop_link()
        self._take_back_state()
        self.spawned_at = time.monotonic()

    def drop_link(self) -> None:
        if self.link is not None:
            self.link.read()
            link, self.link = self.link, None
            link.unwatch()
            ARBITERS_ALONE.discard(link)
            link.close()

    def reaped(self, clean: bool = False) -> None:
        """Handle the manager's exit; read its last messages.

        *clean*: it exited by itself, after all of its companions. Otherwise its successor must look for
        leftovers in this one's run directory, whatever a reload has changed.
        """
        self.drop_link()
        self.kill_at = None
        self._places_stay = not clean or bool(self.leaving)
        if self._unread is not None and not clean:
            self._take_over(self._unread)

    def _describe_server(self) -> dict[str, Any]:
        return {
            "pid": self.arbiter.pid,
            "version": __version__,
            # A factory's arguments may be passwords.
            "application": redact.in_text(application(self.arbiter)),
            "addresses": [str(listener) for listener in self.arbiter.LISTENERS],
        }

    def _look_around(self) -> Surroundings:
        # Targets by name are found where the application is.
        return Surroundings.here(os.path.abspath(self.cfg.chdir))

    def run_manager(self, theirs: Link) -> NoReturn:
        """In the forked child: be the manager, to the end of the process."""
        ManagerChild(self.arbiter, theirs, self.configs, self.places, self._server, *self._lent).run()

    # -- what the manager says -------------------------------------------------

    def _on_message(self, message: dict[str, Any]) -> None:
        if "made_room" in message:
            self._let_leave()
        if "reread" in message:
            self._take_over(message["reread"])
            if not self.cfg.companion_workers:
                # The last companion has left, and the manager leaves with it.
                self.arbiter.stop_companion_manager(signal.SIGTERM)
        if "unreadable" in message:
            self._replace_if_it_must_know()
        if "pong" in message:
            self._hear_answer(message["pong"])
        if "rereading" in message:
            # It runs a configuration file, which may never return.
            self.suspect()
        if "gave_up" in message:
            self.arbiter.companion_gave_up(str(message["gave_up"]))

    def _take_over(self, applied: dict[str, str]) -> None:
        """The manager has applied a configuration: hold the same one for its successor.

        Where the file is broken meanwhile, it is read once more before that one starts.
        """
        self._reload_told = False
        self._unread = None
        if applied == {config.name: config.fingerprint for config in self.configs}:
            return
        try:
            fresh = self.arbiter.app.fresh_config()
            configs = build_companion_configs(fresh, outputs=False)
        except (ConfigError, ValueError) as exc:
            self.log.warning("Cannot save the companions' new configuration for the next manager: %s", exc)
            self._unread = applied
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
        longest = self._longest(self.configs, lambda config: config.stop_timeout)
        self._promised = [until for until in self._promised if until > now]
        if longest:
            self._promised.append(now + longest)
        self.configs = configs

    def _replace_if_it_must_know(self) -> None:
        """The manager may not read what we could: after a SIGHUP to us, a new one inherits it."""
        if self._reload_told:
            self._reload_told = False
            self.log.warning("Replacing the companion manager, because it may not read the configuration")
            self.replace()

    # -- reload ----------------------------------------------------------------

    def reload(self) -> None:
        """The arbiter has applied a new configuration, whose companions are valid."""
        cfg = self.cfg
        configs = build_companion_configs(cfg, outputs=False)
        changed_names = {c.name: c.fingerprint for c in configs} != {
            c.name: c.fingerprint for c in self.configs
        }
        pid = self.arbiter.companion_manager_pid
        self._unread = None
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
        if self.link is None:
            # A manager that an embedder has forked.
            self.arbiter.signal_companion_manager(signal.SIGHUP)
            return
        before, self._surroundings = self._surroundings, self._look_around()
        self._reload_told = changed_names
        self._tell(
            "reload",
            {
                "server": self._describe_server(),
                "files": self._files_to_hand_over(),
                "surroundings": self._surroundings.changes_since(before),
            },
        )
        # Next on the link, so that the answer shows that the manager is through with it.
        self.suspect()

    def _tell(self, kind: str, value: Any = True) -> None:
        """Send one message to the manager, if there is one."""
        if self.link is not None:
            self.link.send({kind: value})

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
        """Tell the manager to end, and limit its time."""
        if self.kill_at is None:
            self.kill_at = time.monotonic() + self.stop_timeout()

    def replace(self) -> None:
        """End the manager; the arbiter starts another at once, or else when this one is reaped.

        Two can run side by side, as in an upgrade, if each sees the other's run files. Each companion then
        waits for its own older process only.
        """
        self.kill_at = time.monotonic() + self.reload_timeout()
        same = all(getattr(self.cfg, name) == before for name, before in self._fixed.items())
        self._tell("replace", "beside this one" if same and self.places.usable else "after this one")

    def _let_leave(self) -> None:
        """The manager has written down what the next one needs; there may be one from now on."""
        pid, link = self.arbiter.companion_manager_pid, self.link
        if not pid or link is None or self.kill_at is None:
            return
        self.leaving.append(Leaving(pid, link, self.kill_at))
        link.unwatch()
        self.link = self.kill_at = None
        self.arbiter.companion_manager_pid = 0
        # The records of those that it still ends are there.
        self._places_stay = True

    def bury_leaving(self, pid: int, status: int) -> bool:
        """Whether *pid*, which has ended, was a manager that had made room."""
        for each in [each for each in self.leaving if each.pid == pid]:
            self.leaving.remove(each)
            ARBITERS_ALONE.discard(each.link)
            each.link.close()
            log = self.log.info if status == 0 else self.log.error
            log("The previous companion manager, process %d, %s", pid, describe_end(status))
            if status:
                # What it left behind the manager of now did not have to look for at its start.
                self._tell("orphans")
            return True
        return False

    def tend_leaving(self, now: float) -> None:
        """Kill those that do not end in time."""
        for each in self.leaving:
            if now >= each.kill_at:
                each.kill_at = float("inf")
                self._kill(each.pid)

    # -- limits ------------------------------------------------------------------

    def stop_timeout(self) -> float:
        """Seconds that the manager has on shutdown; 0 without companions."""
        explicit = self.cfg.companion_manager_stop_timeout
        if explicit is not None:
            return float(explicit)
        now = time.monotonic()
        waits = [until - now for until in self._promised if until > now]
        current = self.configs or build_companion_configs(self.cfg, outputs=False)
        if current:
            waits.append(self._longest(current, lambda config: config.stop_timeout))
        return max(waits) + self._buffer if waits else 0.0

    def reload_timeout(self) -> float:
        """The same for a replacement of the manager."""
        explicit = self.cfg.companion_manager_reload_timeout
        if explicit is not None:
            return float(explicit)
        if not self.configs:
            return 0.0
        # Each has a successor, and none waits for another one.
        return max(float(config.reload_timeout) for config in self.configs) + self._buffer

    @property
    def _buffer(self) -> float:
        return float(self.cfg.companion_manager_shutdown_buffer)

    def _longest(self, configs: list[CompanionConfig], seconds: Callable[[CompanionConfig], float]) -> float:
        """What the slowest companion may take to end; in order the slowest chain of them."""
        if self.cfg.companion_stop_order != "reverse":
            return max(map(seconds, configs), default=0.0)
        return stop_limit(configs, seconds)

    # -- watching ----------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due while a manager runs."""
        self._listen(now)
        if self.kill_at is not None and now >= self.kill_at:
            self.kill()
        if now >= self._socket_checked_at + SOCKET_CHECK_INTERVAL:
            self._socket_checked_at = now
            self._check_socket_file()
            self._check_run_files()

    def suspect(self) -> None:
        """The manager may hang from now on: ask it."""
        self.pulse.suspect()
        self._ask(time.monotonic())

    def _ask(self, now: float) -> None:
        if self.link is not None and not self.pulse.given_up and self.pulse.due(now, PING_INTERVAL):
            self._tell("ping", self.pulse.ask(now))

    def _hear_answer(self, number: object) -> None:
        if self.pulse.reported and number == self.pulse.number:
            self.log.info("The companion manager answers again")
        self.pulse.answered(number)

    def _listen(self, now: float) -> None:
        """Ping the manager if that is due; kill it if it does not answer."""
        # An answer that has come counts, however late we are to look.
        if self.link is not None:
            self.link.read()
        silence = self.pulse.look(now)
        self._ask(now)
        if self.pulse.given_up or silence < min(PING_WARN, PING_KILL):
            return
        pid = self.arbiter.companion_manager_pid
        if silence >= PING_KILL:
            self.pulse.given_up = True
            self.log.error(
                "The companion manager (pid %d) has not answered for %g s: SIGKILL. Its companions stop,"
                " and the next manager restarts them",
                pid,
                round(silence, 1),
            )
            self.arbiter.signal_companion_manager(signal.SIGKILL)
        elif not self.pulse.reported:
            self.pulse.reported = True
            self.log.warning(
                "The companion manager (pid %d) has not answered for %g s", pid, round(silence, 1)
            )

    def promoted(self) -> None:
        """The old master is gone, and with it what may have listened where this server is to listen."""
        self._tell("promoted")

    def reopen_logs(self) -> None:
        """Have the manager begin new log files, after a rotation."""
        self._tell("reopen")

    def _check_socket_file(self) -> None:
        path = self.places.control_path
        if path is None or self.kill_at is not None or os.path.lexists(path):
            return
        self._tell("check_socket")

    def _check_run_files(self) -> None:
        """Have the manager look for run files that were removed, and a second time later."""
        if self.kill_at is not None or self.link is None:
            return
        if self.places.lost_run_files({config.name for config in self.configs if config.singleton}):
            # A companion that was just starting may not have written its record yet.
            self._looks_left = 2
        if self._looks_left:
            self._looks_left -= 1
            self._tell("run_files")

    def kill(self) -> None:
        """SIGKILL to a manager that did not end in time, and to what its run files name."""
        self.kill_at = None
        self._kill(self.arbiter.companion_manager_pid)

    def _kill(self, pid: int) -> None:
        self.log.error(
            "The companion manager (pid %d) did not end in time: SIGKILL to it and to its companions", pid
        )
        # Looked at while the manager lives, which the records name.
        records = [
            record for record in self._records() if record.supervisor == pid and record.is_supervised()
        ]
        session.send(pid, signal.SIGKILL)
        # Where no descriptor is left to find them with, the kernel ends the leaders.
        with contextlib.suppress(OSError):
            for members in session.members({record.session for record in records}).values():
                for member in members:
                    if self._uid() is None or session.owner(member) == self._uid():
                        session.send(member, signal.SIGKILL)

    def _records(self) -> list[Record]:
        """The records of this server's companions, and none of another server's."""
        records = runfile.records(self.places.run_dir).values()
        return [record for record in records if (record.supervisor, record.supervisor_started) in self._ours]

    def _uid(self) -> int | None:
        """The user whose processes a record may make us kill: as root, not everybody's."""
        return self.cfg.uid if os.geteuid() == 0 else None

    # -- the end -------------------------------------------------------------------

    def begin_stop(self, graceful: bool) -> None:
        """Stop the manager; end sessions that no manager supervises any more."""
        now = time.monotonic()
        cap = float(self.cfg.graceful_timeout)
        limit = self.stop_timeout()
        if not graceful:
            # Limit those of earlier configurations to *cap* too.
            longest = self._longest(self.configs, lambda config: min(cap, config.stop_timeout))
            limit = min(limit, max(cap, longest) + self._buffer)
        if self.arbiter.companion_manager_pid:
            self.kill_at = now + limit
            if self.arbiter.reexec_pid:
                # There each companion starts when its older process is gone, without waiting for others.
                self._tell("handing_over")
            self.arbiter.signal_companion_manager(signal.SIGTERM if graceful else signal.SIGINT)
            self.suspect()
        for each in self.leaving:
            each.kill_at = min(each.kill_at, now + limit)
            session.send(each.pid, signal.SIGTERM if graceful else signal.SIGINT)
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
        for each in self.leaving:
            each.kill_at = now + LAST_WORD
            session.send(each.pid, signal.SIGINT)

    def stopped(self) -> bool:
        """Take one step of the stop: True when neither a manager nor any of its processes is left."""
        now = time.monotonic()
        self.tend_leaving(now)
        if self.arbiter.companion_manager_pid:
            self.tick(now)
            return False
        if self.leaving:
            return False
        if self.orphans is None:
            self.orphans = self._left_behind(now)
        self.orphans = [orphan for orphan in self.orphans if not orphan.step(now)]
        if self.orphans:
            return False
        if self._places_stay:
            # A manager that was killed, which else ends what has left the sessions of its companions.
            run_dir, managers, uid = self.places.run_dir, {pid for pid, _ in self._ours}, self._uid()
            detached.end_left(lambda: detached.left(run_dir, managers, uid), self._tell_left)
            self._places_stay = False
        self.places.tidy_up()
        return True

    def _tell_left(self, pids: Collection[int]) -> None:
        self.log.warning("Companions left behind %s: SIGKILL", session.names_of(pids))

    def _left_behind(self, now: float) -> list[Orphan]:
        """The sessions whose manager is dead: on a directory of our own all, else those of our managers.

        What another server's manager leaves is for the next manager of that server.
        """
        shared = self.places.shared()
        records = self._records() if shared else runfile.records(self.places.run_dir).values()
        return [
            Orphan(record, now, timeout=self._cap, uid=self._uid())
            for record in records
            if not record.is_supervised()
        ]
