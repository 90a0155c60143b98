# SPDX-License-Identifier: MIT
"""The master process: it listens, manages workers and companions, and handles signals.

``run()`` is one loop around one wait. Each kind of children has its own part: ``master.workforce``,
``companion.server.handle``, ``master.succession``; ``shutdown`` and ``reload`` concern all of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from gunicorn import SERVER_SOFTWARE, __version__, sock
from gunicorn.app.start import apply_environ
from gunicorn.errors import ConfigError, HaltServer
from gunicorn.glogging import reopen_logs
from gunicorn.loading import getcwd
from gunicorn.logs.files import never_block
from gunicorn.master import commands, handoff, pool
from gunicorn.master.announce import Situation
from gunicorn.master.shutdown import Shutdown
from gunicorn.master.succession import Succession
from gunicorn.settings.http import check_protocol
from gunicorn.unix.process import describe_end
from gunicorn.unix.signals import Interrupted, SignalInbox, blocked_signals, in_turn, signal_name, unblock_all
from gunicorn.unix.unreadoutput import discard_unread_output

# Seconds between checks of the heartbeats and of the old master.
TICK = 1.0
# While old workers wait for new ones to boot.
BOOT_TICK = 0.05


# They overtake signals that came before them.
STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
# One worker more or less each time.
COUNTED = frozenset({signal.SIGTTIN, signal.SIGTTOU})
# They may take long: the loop looks after its children before it handles the next signal.
LENGTHY = frozenset({signal.SIGHUP, signal.SIGUSR2})


class StopAsked(StopIteration):
    """Ends the loop; raised by the handler of a signal. No hook raises it by accident."""


class Arbiter(Shutdown, Succession):
    """Runs *app* in worker processes, until it is told to stop.

    The constructor only sets up the environment and, if configured, loads the application.
    """

    SIGNALS = [
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
    ]
    # A signal's number -> what its handler's name ends in.
    SIG_NAMES: dict[int, str] = {signum: signum.name[3:].lower() for signum in (*SIGNALS, signal.SIGCHLD)}

    # For readers of the class: every instance has its own.
    START_CTX: dict[Any, Any] = {}
    LISTENERS: list[Any] = []
    WORKERS: dict[int, Any] = {}
    PIPE: list[int] = []
    SIG_QUEUE: list[int] = []

    def __init__(self, app: Any) -> None:
        os.environ["SERVER_SOFTWARE"] = SERVER_SOFTWARE

        super().__init__()
        self.PIPE = []
        self._num_workers: int | None = None
        self._env_before: dict[str, str | None] = {}
        self._reaped = 0

        # A successor starts as this process did: its command line, working directory, environment.
        # The original arguments keep ``-m gunicorn`` and what the interpreter itself was given.
        start = getattr(app, "_start", None)
        directory = start.directory if start is not None else getcwd()
        self.START_CTX = {
            0: sys.executable,
            "args": [sys.executable, *(sys.orig_argv[1:] or sys.argv)],
            "cwd": directory if os.path.isdir(directory) else getcwd(),
            "env": dict(app.cfg.env_orig),
        }
        self.setup(app)

    def _get_num_workers(self) -> int:
        return self._num_workers or 0

    def _set_num_workers(self, value: int) -> None:
        before, self._num_workers = self._num_workers, value
        self._hook("nworkers_changed", self, value, before)

    num_workers = property(_get_num_workers, _set_num_workers)

    # -- configuration -------------------------------------------------------------------------

    def setup(self, app: Any) -> None:
        """Take over the configuration of *app*: at the start, and again at a reload."""
        self.app = app
        self.cfg = app.cfg
        self.reserve_descriptors()
        if self.log is None:
            self.log = self.cfg.logger_class(self.cfg)
        self.worker_class = self.cfg.worker_class
        self.address = self.cfg.address
        self.timeout = self.cfg.timeout
        self.proc_name = self.cfg.proc_name
        self.log.debug("The configuration is:\n%s", self.cfg)
        self.set_environment(self.cfg.env)
        # With `reload` it would hide the code on disk from the children. While the server runs it could end
        # the master or hold it up, and leave modules there that the next attempt takes for new ones.
        if self.cfg.preload_app and not self.cfg.reload and not self._started:
            self.app.wsgi()
            self.preloaded = True
        if self._num_workers != self.cfg.workers:
            self.num_workers = self.cfg.workers

    def set_environment(self, variables: Mapping[str, str]) -> None:
        """Set *variables*, those of ``raw_env``, and undo what an earlier ``raw_env`` has set."""
        apply_environ(self._env_before)
        self._env_before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)

    # -- start ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Handle signals, write the pid file, listen. Raises HaltServer if that cannot be done."""
        self.pid = os.getpid()
        self.started_at = time.monotonic()
        self.log.info("Gunicorn %s starts as process %s", __version__, self.pid)
        self._warn_of_settings()
        try:
            self.given = handoff.inherited(os.environ, self.pid)
        except ValueError as exc:
            raise HaltServer(str(exc)) from exc
        self.master_pid, self.systemd = self.given.master_pid, self.given.systemd
        if self.given.companion_state_fd is not None:
            try:
                os.set_inheritable(self.given.companion_state_fd, False)
            except OSError:
                self.given = self.given._replace(companion_state_fd=None)
        if self.given.scoreboard_fd is not None:
            with contextlib.suppress(OSError):  # what is no descriptor is found when it is used
                os.set_inheritable(self.given.scoreboard_fd, False)
        self.upgrade.inherit(self.given)
        self.unit.open(os.environ, self.pid)
        handoff.forget(os.environ)
        try:
            self.check_companions(self.cfg, outputs=False)
        except ConfigError as exc:
            raise HaltServer(str(exc)) from exc
        self.take_companion_sockets()
        self.init_signals()
        # The next steps may wait: a hook for a database, or we for an address that another server has.
        with self.interruptible():
            self._start_listening()

    def _start_listening(self) -> None:
        # A stop half-way would leave a stale file.
        with blocked_signals():
            self.pidfile = self.make_pidfile(self.cfg.pidfile)
        self.cfg.on_starting(self)
        self._started = True
        try:
            sock.check_tls(self.cfg)
        except ConfigError as exc:
            raise HaltServer(str(exc)) from exc
        if not self.LISTENERS:
            self.LISTENERS = sock.create_sockets(self.cfg, self.log, self.given.fds)
        same = len(self.cfg.address) == len(self.LISTENERS)
        self.bound = list(self.cfg.address) if same else [listener.cfg_addr for listener in self.LISTENERS]
        self.log_listeners(self.LISTENERS)
        self.log.info("Workers: %s of class %s", self.num_workers, self.cfg.worker_class_str)
        self.check_worker_class()
        if self.cfg.reload and self.cfg.preload_app:
            self.log.info("preload_app has no effect with reload: each process loads the code on disk")
        self.cfg.when_ready(self)

    def init_signals(self) -> None:
        """Record signals from now on; the loop handles each in its turn."""
        if self.inbox is None:
            # A hook that prints may hold up the loop that would handle them.
            at_once = dict.fromkeys(STOPS, discard_unread_output)
            self.inbox = SignalInbox([*self.SIGNALS, signal.SIGCHLD], at_once)
        self.inbox.install()
        # Also for the children: they inherit the mask, and a watchdog's SIGABRT must reach them.
        unblock_all()
        self.PIPE = list(self.inbox.pipe)
        self.poller.add(self.inbox.fileno(), self._take_signals)

    def interruptible(self) -> contextlib.AbstractContextManager[None]:
        """Within the block a signal to stop interrupts a wait with Interrupted."""
        return contextlib.nullcontext() if self.inbox is None else self.inbox.interrupting(STOPS)

    def _take_signals(self, events: int) -> None:
        assert self.inbox is not None
        self.SIG_QUEUE.extend(self.inbox.drain())

    def log_listeners(self, listeners: list[Any]) -> None:
        self.log.info("Listening on %s", ", ".join(map(str, listeners)))

    def check_worker_class(self) -> None:
        check_protocol(self.cfg)
        if hasattr(self.worker_class, "check_config"):
            self.worker_class.check_config(self.cfg, self.log)

    # -- the loop ------------------------------------------------------------------------------

    def run(self) -> None:
        """Start, serve until told to stop, and end the process with the fitting exit status."""
        never_block()
        try:
            self.start()
            self._set_title()
            self.manage_workers()
            while True:
                self.sleep()
                # First: to a master that is not promoted yet some signals mean another thing.
                self.maybe_promote_master()
                self._handle_signals()
                self.reap_workers()
                self.murder_workers()
                self.manage_workers()
                self.upgrade.step(time.monotonic())
                self.unit.step(time.monotonic())
        except (StopAsked, KeyboardInterrupt):
            self.halt()
        except Interrupted as exc:
            self.log.info("Received %s while starting", signal_name(exc.signum))
            self.halt()
        except HaltServer as exc:
            self.halt(exc.reason, exc.exit_status)
        except SystemExit as exc:
            if self._in_child or self._halting:
                raise
            # From a hook: the workers must not outlive it.
            status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
            self.halt("a hook asked to exit", status)
        except BaseException as exc:
            if self._in_child:
                raise
            self.log.exception("The master failed")
            self._halt_reason = f"the master failed: {type(exc).__name__}: {exc}"
            self.end(False, 1)

    def sleep(self) -> None:
        """Wait until a signal comes, a descriptor is ready or something is due."""
        self.beat()
        self.poller.wait(0 if self.SIG_QUEUE else self._timeout(time.monotonic()))

    def beat(self) -> None:
        """Note on the scoreboard that the loop turns, and how many workers are wanted."""
        if self.scoreboard is not None:
            self.scoreboard.beat(
                self.wanted_workers,
                self.cfg.worker_class_str,
                self.cfg.threads,
                fixed=self.num_workers,
                most=self.cfg.workers_max,
            )
            if self.cfg.monitor and self.timeline is not None:
                self.timeline.tick(time.monotonic(), self.scoreboard)

    def _timeout(self, now: float) -> float:
        """Seconds until the loop has something to do, whatever happens."""
        deadlines = [
            self.companions.next_deadline() if self.companions is not None else None,
            self.unit.next_deadline(now),
            self.upgrade.next_deadline(now),
            pool.next_kill(self._all_records()),
        ]
        waits = [TICK, *(deadline - now for deadline in deadlines if deadline is not None)]
        if not self.stopping:
            plan = self._plan(now)
            look = self.next_look(now)
            if look is not None:
                waits.append(look - now)
            if plan.spawn:
                waits.append(self._pacing.pause(now))
            if plan.waiting:
                proof = pool.next_proof(self._all_records(), now)
                waits.append(BOOT_TICK if proof is None else min(BOOT_TICK, proof - now))
        return max(0.0, min(waits))

    def situation(self, now: float) -> Situation:
        """Return the facts about this server for its service manager."""
        records = self._all_records()
        return Situation(
            pid=self.pid or 0,
            wanted=self.wanted_workers,
            booted=pool.count_booted(records),
            ready=not self.web_is_held and pool.all_booted(records, self.num_workers),
            held_by=self._what_holds_web(),
            companions=len(self.cfg.companion_workers),
            successor=self.reexec_pid,
            waiting=self.master_pid != 0,
            stopping=self.stopping,
            left=len(records),
            companions_left=self.companion_manager_pid != 0,
            reason=self._halt_reason,
        )

    def _what_holds_web(self) -> str:
        """What web workers wait for before they start; "" if they don't."""
        if not self.web_is_held:
            return ""
        told = self.companions.web.held_by if self.companions is not None else ""
        return told or ", ".join(self.cfg.web_after)

    def wakeup(self) -> None:
        """End the loop's wait now."""
        if self.inbox is not None:
            self.inbox.wake()

    def signal(self, sig: int, frame: FrameType | None = None) -> None:
        """Record *sig* as if it had arrived."""
        if self.inbox is not None:
            self.inbox.receive(sig, frame)
        else:
            self.SIG_QUEUE.append(sig)

    def _handle_signals(self) -> None:
        self.SIG_QUEUE[:] = in_turn(self.SIG_QUEUE, STOPS, COUNTED)
        while self.SIG_QUEUE:
            signum = self.SIG_QUEUE.pop(0)
            name = self.SIG_NAMES.get(signum)
            if name is None:
                self.log.error("The signal %s has no handler", signal_name(signum))
            elif name == "chld":
                self.handle_chld(signum, None)
            else:
                self.log.info("Received %s", signal_name(signum))
                getattr(self, f"handle_{name}")()
            if signum in LENGTHY:
                return

    # -- one method a signal -------------------------------------------------------------------

    def handle_chld(self, sig: int, frame: FrameType | None) -> None:
        """A child has ended. Or it was stopped, the manager perhaps."""
        before = self._reaped
        self.reap_workers()
        if self._reaped == before and self.companions is not None:
            self.companions.suspect()

    def handle_hup(self) -> None:
        """Read the configuration again and replace the workers."""
        self.reload()

    def handle_term(self) -> None:
        """Stop gracefully."""
        if self.upgrade.ends_first(signal.SIGTERM):
            return
        raise StopAsked

    def handle_int(self) -> None:
        """Stop at once."""
        self._stop_quickly(signal.SIGINT)

    def handle_quit(self) -> None:
        """Stop at once."""
        self._stop_quickly(signal.SIGQUIT)

    def _stop_quickly(self, sig: int) -> None:
        if self.upgrade.ends_first(sig):
            return
        self.stop(False)
        raise StopAsked

    def handle_ttin(self) -> None:
        """One worker more."""
        self.num_workers += 1
        self.manage_workers()

    def handle_ttou(self) -> None:
        """One worker less; the last one stays."""
        if self.num_workers > 1:
            self.num_workers -= 1
            self.manage_workers()

    def handle_usr1(self) -> None:
        """Reopen the log files: here, in the workers and in the companion manager."""
        reopen_logs(self.log)
        self.kill_workers(signal.SIGUSR1)
        if self.companions is not None:
            self.companions.reopen_logs()

    def handle_usr2(self) -> None:
        """Start a new master beside this one."""
        self.reexec()

    def handle_winch(self) -> None:
        """End all workers gracefully and keep the master. A terminal sends this on a resize: not then."""
        if self.cfg.daemon:
            self.num_workers = 0
            self.manage_workers()
        else:
            self.log.debug("SIGWINCH is ignored: this server is not a daemon")

    # -- commands ------------------------------------------------------------------------------

    def command(self, cmd: str, **wanted: Any) -> dict[str, Any]:
        """Do what a client of the control socket wants; return the answer. Raises ValueError with why not."""
        return commands.answer(self, cmd, **wanted)

    # -- children ------------------------------------------------------------------------------

    def reap_workers(self) -> None:
        """Collect the children that have ended. Raises HaltServer if one shows that no worker can start."""
        halt: tuple[str, int] | None = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            self._reaped += 1
            if pid == self.reexec_pid:
                self.bury_successor(status)
            elif pid in self.WORKERS:
                halt = self._bury_worker(pid, status) or halt
            elif self.companions is None or not self.companions.bury(pid, status):
                # As process 1 of a container, this one inherits the orphans of all others.
                self.log.debug("The orphan process %s %s", pid, describe_end(status))
        if halt is not None and not self.stopping:
            raise HaltServer(*halt)

    def manage_workers(self) -> None:
        """Start and retire workers, so that there are as many as wanted, all of this configuration."""
        now = time.monotonic()
        self._settle_reload(now)
        self.look_after_workers(now)
        if self._plan(now).spawn:
            self.spawn_workers()
        for pid in self._plan(now).retire:
            self._retire(pid, now)
        self._report_workers()
        self._report_backlog(now)
        self.manage_companion_manager()
