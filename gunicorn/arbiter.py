# SPDX-License-Identifier: MIT
"""The master process: it listens, forks workers, watches them, and answers signals.

``run()`` is one loop around one wait. What the pool of workers needs is decided in
``gunicorn.pool``; here it is carried out.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from gunicorn import SERVER_SOFTWARE, __version__, handoff, pool, sock, systemd
from gunicorn.announce import Situation
from gunicorn.errors import AppImportError, ConfigError, HaltServer
from gunicorn.loading import getcwd
from gunicorn.pidfile import Pidfile
from gunicorn.reload import one_line, switch_configuration
from gunicorn.unix.poller import Poller
from gunicorn.unix.process import describe_status, exit_code, set_process_title, term_signal
from gunicorn.unix.signals import SignalInbox, blocked_signals, reset_to_default, signal_name

if TYPE_CHECKING:
    from gunicorn.companion.parent import ManagerHandle

# Heartbeats, and whether the old master is still there, are looked at this often.
TICK = 1.0
# While old workers wait for new ones to boot.
BOOT_TICK = 0.1
# How long an old worker waits for its successor to boot, if no worker timeout says it.
BOOT_WAIT = 30.0
# A process that got SIGKILL and is not gone after this is stuck in the kernel; nobody can wait for it.
LAST_REAP = 5.0


class Arbiter:
    """Runs *app* in worker processes, until it is told to stop.

    Making one only sets up the environment and, where configured, loads the application.
    """

    # Exit codes of a worker that could not start; the server ends with the same.
    WORKER_BOOT_ERROR = 3
    APP_LOAD_ERROR = 4

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

    # Every instance has its own; these say what there is.
    START_CTX: dict[Any, Any] = {}
    LISTENERS: list[Any] = []
    WORKERS: dict[int, Any] = {}
    PIPE: list[int] = []
    SIG_QUEUE: list[int] = []

    def __init__(self, app: Any) -> None:
        os.environ["SERVER_SOFTWARE"] = SERVER_SOFTWARE

        self.LISTENERS = []
        self.WORKERS = {}
        self.PIPE = []
        # What has been heard and not been handled yet, oldest first.
        self.SIG_QUEUE = []

        self.log: Any = None
        self.cfg: Any = None
        self.worker_class: Any = None
        self.pid: int | None = None
        self.pidfile: Pidfile | None = None
        self.systemd = False
        self.worker_age = 0
        # The successor that this master has started, and the master that this one is to succeed.
        self.reexec_pid = 0
        self.master_pid = 0
        self.started_at = 0.0
        # The one companion child, and what is kept of it from one to the next; none without companions.
        self.companion_manager_pid = 0
        self.companions: ManagerHandle | None = None

        self.inbox: SignalInbox | None = None
        self.poller = Poller()
        self.unit = systemd.Unit(self)
        self._num_workers: int | None = None
        self._reported_workers: int | None = None
        self._records: dict[int, pool.WorkerRecord] = {}
        self._pacing = pool.Pacing()
        # The addresses that LISTENERS were made for, in the same order.
        self.bound: list[Any] = []
        self._env_before: dict[str, str | None] = {}
        self._ready_to_fork = False
        self._started = False
        self._stopping = False
        self._halting = False
        self._in_child = False
        # The server stops because it cannot go on, not because somebody said so; and why.
        self._failed = False
        self._halt_reason = ""

        # A successor starts as this process did: its command line, working directory, environment.
        # The original arguments keep ``-m gunicorn`` and what the interpreter itself was given.
        start = getattr(app, "_start", None)
        self.START_CTX = {
            0: sys.executable,
            "args": [sys.executable, *(sys.orig_argv[1:] or sys.argv)],
            "cwd": start.directory if start is not None else getcwd(),
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
        if self.log is None:
            self.log = self.cfg.logger_class(self.cfg)
        self.worker_class = self.cfg.worker_class
        self.address = self.cfg.address
        self.timeout = self.cfg.timeout
        self.proc_name = self.cfg.proc_name
        self.log.debug("The configuration is:\n%s", self.cfg)
        self.set_environment(self.cfg.env)
        # A reload is for the code on disk, which the master's memory would hide from its children.
        if self.cfg.preload_app and not self.cfg.reload:
            self.app.wsgi()
        if self._num_workers != self.cfg.workers:
            self.num_workers = self.cfg.workers

    def set_environment(self, variables: Mapping[str, str]) -> None:
        """Have ``raw_env`` in the environment, and what an earlier one set not any more."""
        for name, value in self._env_before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._env_before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)

    def _hook(self, name: str, *args: Any) -> None:
        """Call a hook of the configuration; what it raises is logged, and the server goes on."""
        try:
            getattr(self.cfg, name)(*args)
        except Exception:
            self.log.exception("The hook %s failed", name)

    # -- start ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Hear signals, write the pid file, listen. Raises HaltServer if that cannot be done."""
        self.pid = os.getpid()
        self.started_at = time.monotonic()
        self.log.info("Gunicorn %s starts as process %s", __version__, self.pid)
        try:
            given = handoff.inherited(os.environ, self.pid)
        except ValueError as exc:
            raise HaltServer(str(exc)) from exc
        self.master_pid, self.systemd = given.master_pid, given.systemd
        self.unit.open(os.environ, self.pid)
        handoff.forget(os.environ)
        try:
            self.check_companions(self.cfg)
        except ConfigError as exc:
            raise HaltServer(str(exc)) from exc
        self.init_signals()
        self.pidfile = self.make_pidfile(self.cfg.pidfile)
        self.cfg.on_starting(self)
        self._started = True
        if not self.LISTENERS:
            self.LISTENERS = sock.create_sockets(self.cfg, self.log, given.fds)
        same = len(self.cfg.address) == len(self.LISTENERS)
        self.bound = list(self.cfg.address) if same else [listener.cfg_addr for listener in self.LISTENERS]
        self.log_listeners(self.LISTENERS)
        self.log.info("Workers: %s of class %s", self.num_workers, self.cfg.worker_class_str)
        self.check_worker_class()
        if self.cfg.reload and self.cfg.preload_app:
            self.log.info("With reload nothing is preloaded: each process loads the code that is on disk")
        self.cfg.when_ready(self)

    def init_signals(self) -> None:
        """Have signals recorded, each to be handled by the loop when its turn comes."""
        if self.inbox is None:
            self.inbox = SignalInbox([*self.SIGNALS, signal.SIGCHLD])
        self.inbox.install()
        self.PIPE = list(self.inbox.pipe)
        self.poller.add(self.inbox.fileno(), self._take_signals)

    def hear_signals_again(self) -> None:
        """After a configuration file was run: it, or what it imports, may have set handlers of its own."""
        if self.inbox is not None:
            self.inbox.install()

    def _take_signals(self, events: int) -> None:
        assert self.inbox is not None
        self.SIG_QUEUE.extend(self.inbox.drain())

    def log_listeners(self, listeners: list[Any]) -> None:
        self.log.info("Listening on %s", ", ".join(map(str, listeners)))

    def make_pidfile(self, path: str | None) -> Pidfile | None:
        """Write the pid file that is configured as *path*, if one is. Raises HaltServer."""
        if path is None:
            return None
        # Beside that of the master which this one is to succeed.
        pidfile = Pidfile(f"{path}.2" if self.master_pid else path)
        try:
            pidfile.create(os.getpid())
        except RuntimeError as exc:
            raise HaltServer(str(exc)) from exc
        return pidfile

    def check_worker_class(self) -> None:
        if hasattr(self.worker_class, "check_config"):
            self.worker_class.check_config(self.cfg, self.log)

    def _set_title(self) -> None:
        name = f"{self.proc_name}.2" if self.master_pid else self.proc_name
        set_process_title(f"master [{name}]")

    # -- the loop ------------------------------------------------------------------------------

    def run(self) -> None:
        """Start, serve until told to stop, and end the process with the fitting exit status."""
        try:
            self.start()
            self._set_title()
            self.manage_workers()
            while True:
                self.sleep()
                self._handle_signals()
                self.maybe_promote_master()
                self.reap_workers()
                self.murder_workers()
                self.manage_workers()
                self.unit.step(time.monotonic())
        except (StopIteration, KeyboardInterrupt):
            self.halt()
        except HaltServer as exc:
            self.halt(exc.reason, exc.exit_status)
        except SystemExit as exc:
            if self._in_child or self._halting:
                raise
            # From a hook: the workers must not outlive it.
            status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
            self.halt("a hook has asked to exit", status)
        except Exception:
            self.log.exception("The master cannot go on")
            self.stop(False)
            self._leave(1)

    def sleep(self) -> None:
        """Wait until a signal comes, a descriptor is ready or something is due."""
        self.poller.wait(0 if self.SIG_QUEUE else self._timeout(time.monotonic()))

    def _timeout(self, now: float) -> float:
        """Seconds until the loop has something to do, whatever happens."""
        waits = [TICK]
        if self.companions is not None:
            companions_due = self.companions.next_deadline()
            if companions_due is not None:
                waits.append(companions_due - now)
        unit_due = self.unit.next_deadline(now)
        if unit_due is not None:
            waits.append(unit_due - now)
        records = self._all_records()
        kill_at = pool.next_kill(records)
        if kill_at is not None:
            waits.append(kill_at - now)
        if not self._stopping:
            plan = self._plan(now)
            if plan.spawn:
                waits.append(self._pacing.pause(now))
            if plan.waiting:
                waits.append(BOOT_TICK)
        return max(0.0, min(waits))

    def situation(self, now: float) -> Situation:
        """What counts of this server for its service manager."""
        records = self._all_records()
        return Situation(
            pid=self.pid or 0,
            wanted=self.num_workers,
            booted=pool.count_booted(records),
            ready=pool.all_booted(records, self.num_workers),
            companions=len(self.cfg.companion_workers),
            successor=self.reexec_pid,
            waiting=self.master_pid != 0,
            stopping=self._stopping,
            left=len(records),
            companions_left=self.companion_manager_pid != 0,
            reason=self._halt_reason,
        )

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

    # -- one method a signal -------------------------------------------------------------------

    def handle_chld(self, sig: int, frame: FrameType | None) -> None:
        """A child has ended."""
        self.reap_workers()

    def handle_hup(self) -> None:
        """Read the configuration again and replace the workers."""
        self.reload()

    def handle_term(self) -> None:
        """Stop gracefully."""
        raise StopIteration

    def handle_int(self) -> None:
        """Stop at once."""
        self.stop(False)
        raise StopIteration

    def handle_quit(self) -> None:
        """Stop at once."""
        self.stop(False)
        raise StopIteration

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
        self._reopen_logs()
        self.kill_workers(signal.SIGUSR1)
        self.signal_companion_manager(signal.SIGUSR1)

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

    def _reopen_logs(self) -> None:
        try:
            self.log.reopen_files()
        except OSError as exc:
            self.log.error("The log files cannot be opened again: %s", exc)

    # -- upgrade -------------------------------------------------------------------------------

    def reexec(self) -> None:
        """Start a new master from the program on disk, which gets the sockets of this one."""
        if self.reexec_pid:
            self.log.warning("A new master runs already, as process %s", self.reexec_pid)
            return
        if self.master_pid:
            self.log.warning("This master is itself waiting to succeed process %s", self.master_pid)
            return
        master_pid = os.getpid()
        with blocked_signals():
            self.reexec_pid = os.fork()
            if self.reexec_pid == 0 and self.inbox is not None:
                reset_to_default(self.inbox.signals)
        if self.reexec_pid == 0:
            self._exec_successor(master_pid)

    def _exec_successor(self, master_pid: int) -> None:
        self._in_child = True
        try:
            self.cfg.pre_exec(self)
            pid = os.getpid()
            environ = handoff.reexec_environment(
                self.START_CTX["env"],
                master_pid=master_pid,
                fds=[listener.fileno() for listener in self.LISTENERS],
                systemd_pid=pid if self.systemd else None,
                pid=pid,
            )
            os.chdir(self.START_CTX["cwd"])
            os.execvpe(self.START_CTX[0], self.START_CTX["args"], environ)
        except Exception:
            # No path leads from here back into the loop: there would be two of it.
            self.log.exception("The new master cannot be started")
            sys.exit(1)

    def maybe_promote_master(self) -> None:
        """Take the place of the old master once it is gone."""
        if not self.master_pid or self.master_pid == os.getppid():
            return
        self.log.info("The old master is gone, this one takes its place")
        self.master_pid = 0
        if self.pidfile is not None and self.cfg.pidfile is not None:
            try:
                self.pidfile.rename(self.cfg.pidfile)
            except RuntimeError as exc:
                self.log.error("The pid file stays %s: %s", self.pidfile.fname, exc)
        self._set_title()

    # -- stop ----------------------------------------------------------------------------------

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop everything and end the process with *exit_status*."""
        self._halting = True
        if reason is not None:
            log = self.log.error if exit_status else self.log.info
            log("The server halts: %s", reason)
            self._halt_reason = reason
        self._failed = exit_status != 0
        self.stop()
        self._leave(exit_status)

    def _leave(self, exit_status: int) -> None:
        self._halting = True
        self.log.info("The master ends")
        if self._started:
            self._hook("on_exit", self)
        # Last: whoever waits for the file to go may start the next server.
        if self.pidfile is not None:
            self.pidfile.unlink()
        self.unit.leave(time.monotonic())
        sys.exit(exit_status)

    def stop(self, graceful: bool = True) -> None:
        """Close the listeners, have the workers end, and return when they are gone.

        They get ``graceful_timeout`` seconds, whether they finish their requests or not. Signals
        are heard meanwhile: SIGINT or SIGQUIT ends everything now.
        """
        replaced = self.reexec_pid != 0 or self.master_pid != 0
        unlink = not replaced and not self.systemd and not self.cfg.reuse_port
        sock.close_sockets(self.LISTENERS, unlink)
        self.LISTENERS = []
        if self.inbox is None:
            return
        self._stopping = True
        self._begin_stop(graceful, time.monotonic())
        while not self._stopped(time.monotonic()):
            self.unit.step(time.monotonic())
            self._report_workers()
            self.sleep()
            self._handle_signals_while_stopping()
            self.reap_workers()
        self._report_workers()

    def _begin_stop(self, graceful: bool, now: float) -> None:
        """Tell all children to end. One that has been told so already is not told twice."""
        if self.companions is not None:
            # Told at the same moment as the workers, and given longer.
            self.companions.begin_stop(graceful and not self._failed)
        limit = now + self.cfg.graceful_timeout
        for pid in list(self.WORKERS):
            record = self._record(pid)
            told, record.retiring = record.retiring, True
            record.kill_at = limit if record.kill_at is None else min(limit, record.kill_at)
            if not graceful:
                self.kill_worker(pid, signal.SIGQUIT)
            elif not told:
                self.kill_worker(pid, signal.SIGTERM)

    def _stopped(self, now: float) -> bool:
        """One step of the stop: True when no child is left that is worth waiting for."""
        self._kill_due(now)
        companions_gone = self.companions is None or self.companions.stopped()
        return companions_gone and all(
            record.killed_at is not None and now - record.killed_at >= LAST_REAP
            for record in self._all_records()
        )

    def _handle_signals_while_stopping(self) -> None:
        while self.SIG_QUEUE:
            signum = self.SIG_QUEUE.pop(0)
            if signum in (signal.SIGINT, signal.SIGQUIT):
                self._end_now()
            elif signum == signal.SIGUSR1:
                self.handle_usr1()

    def _end_now(self) -> None:
        """A second SIGINT or SIGQUIT: nobody is waited for any more."""
        now = time.monotonic()
        for record in self._all_records():
            record.kill_at = now
        if self.companions is not None:
            self.companions.hasten()

    # -- reload --------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read the configuration again; apply it and replace the workers, or leave all as it is."""
        self.unit.reload_begins(time.monotonic())
        try:
            switch_configuration(self)
        except (Exception, SystemExit) as exc:
            self.unit.reload_refused(one_line(exc))
            self.log.error("The new configuration is not taken over, all stays as it was: %s", one_line(exc))
            self.log.debug("Where it failed:", exc_info=True)
            return
        finally:
            self.hear_signals_again()
        self._hook("on_reload", self)
        self._set_title()
        for record in self._all_records():
            record.outdated = True
        self.reload_companion_manager()
        self.manage_workers()

    def check_reload(self, cfg: Any) -> None:
        """Raise what is wrong with *cfg* before any of it is applied."""
        self.check_companions(cfg)

    # -- workers -------------------------------------------------------------------------------

    def _record(self, pid: int) -> pool.WorkerRecord:
        """The record of one of ``WORKERS``."""
        record = self._records.get(pid)
        if record is None:
            # Not started by spawn_worker(): seen for the first time, and taken for one that boots.
            worker = self.WORKERS[pid]
            record = pool.WorkerRecord(pid, worker.age, time.monotonic(), worker.tmp.last_update())
            self._records[pid] = record
        return record

    def _all_records(self) -> list[pool.WorkerRecord]:
        return [self._record(pid) for pid in self.WORKERS]

    def _plan(self, now: float) -> pool.Plan:
        records = self._all_records()
        for record in records:
            if not record.booted:
                record.booted = self._last_beat(record.pid) not in (None, record.first_beat)
            record.leaving = record.leaving or self._says_it_leaves(record.pid)
        return pool.plan(records, self.num_workers, now, self.timeout or BOOT_WAIT)

    def _last_beat(self, pid: int) -> float | None:
        try:
            beat: float = self.WORKERS[pid].tmp.last_update()
        except (OSError, ValueError):
            # Its file cannot be read: no reason to end it.
            return None
        return beat

    def _says_it_leaves(self, pid: int) -> bool:
        """Whether a worker ends on its own account, after `max_requests` for one."""
        try:
            # Heartbeats that are not ours may not know the word.
            return getattr(self.WORKERS[pid].tmp, "leaving", False) is True
        except (OSError, ValueError):
            return False

    def murder_workers(self) -> None:
        """End workers whose heart has stopped: SIGABRT, so that they can say where they hang, then SIGKILL.

        Those that were told to end and have not done so in time get SIGKILL as well.
        """
        now = time.monotonic()
        beats = {pid: beat for pid in self.WORKERS if (beat := self._last_beat(pid)) is not None}
        for pid in pool.overdue(beats, self.timeout, now):
            worker, record = self.WORKERS[pid], self._record(pid)
            if record.retiring and not worker.aborted:
                continue  # it has a deadline of its own, and not every class beats while it drains
            if not worker.aborted:
                self.log.critical("The worker %s has not answered for %s s", pid, self.timeout)
                worker.aborted = True
                record.kill_at = now + pool.ABORT_GRACE
                self.kill_worker(pid, signal.SIGABRT)
            elif record.kill_at is None:
                self.kill_worker(pid, signal.SIGKILL)
        self._kill_due(now)

    def _kill_due(self, now: float) -> None:
        for record in pool.due_for_kill(self._all_records(), now):
            self.log.error("The worker %s did not end in time: SIGKILL", record.pid)
            record.killed_at = now
            self.kill_worker(record.pid, signal.SIGKILL)

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
            if pid == self.reexec_pid:
                self.reexec_pid = 0
                self.log.warning("The new master %s, this one stays", describe_status(status))
            elif pid == self.companion_manager_pid:
                self._bury_companion_manager(status)
            elif pid in self.WORKERS:
                halt = self._bury_worker(pid, status) or halt
            else:
                # As process 1 of a container, this one inherits the orphans of all others.
                self.log.debug("The process %s, none of ours, %s", pid, describe_status(status))
        if halt is not None and not self._stopping:
            raise HaltServer(*halt)

    def _bury_worker(self, pid: int, status: int) -> tuple[str, int] | None:
        """Account for the end of a worker; return why and how that ends the server, if it does."""
        record = self._record(pid)
        if not record.booted:
            record.booted = self._last_beat(pid) not in (None, record.first_beat)
        worker = self.WORKERS.pop(pid)
        del self._records[pid]
        now = time.monotonic()
        self._pacing.worker_ended(
            now, now - record.spawned_at, booted=record.booted, asked=record.retiring, failed=status != 0
        )
        self._log_end(pid, status, asked=record.retiring)
        worker.tmp.close()
        self._hook("child_exit", self, worker)
        return pool.halt_reason(
            exit_code(status),
            record.booted,
            boot_error=self.WORKER_BOOT_ERROR,
            load_error=self.APP_LOAD_ERROR,
        )

    def _log_end(self, pid: int, status: int, *, asked: bool) -> None:
        log = self.log.debug if asked or status == 0 else self.log.error
        hint = " (out of memory?)" if term_signal(status) == signal.SIGKILL and not asked else ""
        log("The worker %s %s%s", pid, describe_status(status), hint)

    def manage_workers(self) -> None:
        """Start and retire workers, so that there are as many as wanted, all of this configuration."""
        now = time.monotonic()
        if self._plan(now).spawn:
            self.spawn_workers()
        for pid in self._plan(now).retire:
            self._retire(pid, now)
        self._report_workers()
        self.manage_companion_manager()

    def _retire(self, pid: int, now: float) -> None:
        """Have a worker finish what it does and end; it is told once, and killed at the deadline."""
        record = self._record(pid)
        record.retiring = True
        deadline = now + self.cfg.graceful_timeout
        record.kill_at = deadline if record.kill_at is None else min(deadline, record.kill_at)
        self.kill_worker(pid, signal.SIGTERM)

    def _report_workers(self) -> None:
        count = len(self.WORKERS)
        if count != self._reported_workers:
            self._reported_workers = count
            gauge = {"metric": "gunicorn.workers", "value": count, "mtype": "gauge"}
            self.log.debug("%s workers", count, extra=gauge)

    def spawn_workers(self) -> None:
        """Start the workers that are missing: a few at a time, and none while failed ones are waited out.

        The loop comes back for the others, so that signals are heard in between.
        """
        now = time.monotonic()
        missing = min(self._plan(now).spawn, pool.SPAWN_BATCH)
        for _ in range(missing):
            if self._pacing.pause(time.monotonic()) > 0:
                return
            self.spawn_worker()

    def spawn_worker(self) -> int:
        """Fork one worker and return its pid; 0 if the system refuses. In the worker, it does not return."""
        self.prepare_to_fork()
        self.worker_age += 1
        worker = self.worker_class(
            self.worker_age, self.pid, self.LISTENERS, self.app, self.timeout / 2.0, self.cfg, self.log
        )
        first_beat = worker.tmp.last_update()
        self._hook("pre_fork", self, worker)
        with blocked_signals():
            try:
                pid = os.fork()
            except OSError as exc:
                self.log.error("A worker cannot be started: %s", exc)
                self._pacing.start_failed(time.monotonic())
                worker.tmp.close()
                return 0
            if pid == 0:
                self._leave_master(worker)
        if pid == 0:
            self._run_worker(worker)
        worker.pid = pid
        self.WORKERS[pid] = worker
        self._records[pid] = pool.WorkerRecord(pid, worker.age, time.monotonic(), first_beat=first_beat)
        return pid

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
        if self.cfg.preload_app and self.cfg.gc_freeze:
            # What is frozen no collection visits: its pages stay shared, as nobody writes into them.
            gc.collect()
            gc.freeze()

    def _leave_master(self, worker: Any) -> None:
        """In the new worker, while signals are held back: let go of what is the master's alone."""
        self._in_child = True
        if self.inbox is None:
            return
        try:
            # Until the worker sets its own, a stop ends it at once (it serves nobody yet), and a
            # rotated log is not written on.
            handlers: dict[int, Any] = {signal.SIGUSR1: getattr(worker, "handle_usr1", signal.SIG_IGN)}
            reset_to_default(self.inbox.signals, handlers)
            self.inbox.close()
            for sibling in self.WORKERS.values():
                sibling.tmp.close()
        except Exception:
            # An exception that went on from here would end in the master's loop.
            self.log.exception("The worker %s cannot let go of the master's things", os.getpid())
            sys.exit(self.WORKER_BOOT_ERROR)

    def _run_worker(self, worker: Any) -> None:
        """The life of a worker, to the end of its process. Nothing leads from here back into the loop."""
        status: Any = 0
        try:
            worker.pid = os.getpid()
            set_process_title(f"worker [{self.proc_name}]")
            self.log.info("The worker %s starts", worker.pid)
            self.cfg.post_fork(self, worker)
            worker.init_process()
        except SystemExit as exc:
            status = exc.code
        except AppImportError as exc:
            self.log.error("The application cannot be loaded: %s", exc)
            self.log.debug("Where it failed:", exc_info=True)
            status = self.APP_LOAD_ERROR
        except BaseException:
            self.log.exception("The worker %s failed", worker.pid)
            status = 255 if worker.booted else self.WORKER_BOOT_ERROR
        try:
            self.log.info("The worker %s ends", worker.pid)
            worker.tmp.close()
            self.cfg.worker_exit(self, worker)
        except Exception:
            self.log.exception("The worker %s failed at its end", worker.pid)
        sys.exit(status)

    def kill_workers(self, sig: int) -> None:
        """Send *sig* to every worker."""
        for pid in list(self.WORKERS):
            self.kill_worker(pid, sig)

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send *sig* to one worker. If it is gone, and so was reaped by somebody else, forget it."""
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            worker = self.WORKERS.pop(pid, None)
            self._records.pop(pid, None)
            if worker is not None:
                worker.tmp.close()
                self._hook("child_exit", self, worker)

    # -- companions ----------------------------------------------------------------------------

    def check_companions(self, cfg: Any) -> None:
        """Raise ConfigError for companions that could not run; a plain web server imports nothing."""
        if not cfg.companion_workers:
            return
        from gunicorn.companion.config import build_companion_configs

        try:
            build_companion_configs(cfg)
        except ValueError as exc:
            raise ConfigError(str(exc)) from exc

    def _companion_handle(self) -> ManagerHandle:
        if self.companions is None:
            from gunicorn.companion.parent import ManagerHandle

            self.companions = ManagerHandle(self)
        return self.companions

    def manage_companion_manager(self) -> None:
        """Have a manager while companions are configured, and none without them.

        A master that is to succeed another leaves the companions to it until it is gone.
        """
        now = time.monotonic()
        if self.companion_manager_pid:
            if self.companions is not None:
                self.companions.tick(now)
        elif (
            self.cfg.companion_workers
            and not self.master_pid
            and (self.companions is None or self.companions.may_spawn(now))
        ):
            self.spawn_companion_manager()

    def spawn_companion_manager(self) -> None:
        """Fork the companion manager. In it, this does not return."""
        self.prepare_to_fork()
        handle = self._companion_handle()
        try:
            theirs = handle.before_fork()
            with blocked_signals():
                pid = os.fork()
                if pid == 0:
                    self._in_child = True
                    handle.run_manager(theirs)
        except (OSError, ValueError) as exc:
            handle.spawn_failed()
            self.log.error("The companion manager cannot be started: %s", exc)
            return
        self.companion_manager_pid = pid
        handle.forked(theirs)
        self.log.info("The companion manager is process %s", pid)

    def signal_companion_manager(self, sig: int) -> None:
        """Send *sig* to the manager, if there is one; forget it if it is gone."""
        if not self.companion_manager_pid:
            return
        try:
            os.kill(self.companion_manager_pid, sig)
        except ProcessLookupError:
            self.companion_manager_pid = 0
            if self.companions is not None:
                self.companions.reaped()

    def stop_companion_manager(self, sig: int) -> None:
        """Have the manager end, by SIGTERM or a quicker signal; it is killed when its time is over."""
        if self.companion_manager_pid and self.companions is not None:
            self.companions.ending()
        self.signal_companion_manager(sig)

    def reload_companion_manager(self) -> None:
        """Have the companions follow the configuration that was just applied."""
        if self.companions is not None or self.companion_manager_pid:
            self._companion_handle().reload()
        self.manage_companion_manager()

    def companion_manager_stop_timeout(self) -> float:
        """Seconds that the manager is given at a stop; 0 with no companions."""
        if self.companions is None and not self.cfg.companion_workers:
            return 0
        return self._companion_handle().stop_timeout()

    def _bury_companion_manager(self, status: int) -> None:
        self.companion_manager_pid = 0
        expected = self._stopping
        if self.companions is not None:
            expected = expected or self.companions.kill_at is not None
            self.companions.reaped(clean=status == 0)
        log = self.log.info if expected else self.log.error
        log("The companion manager %s", describe_status(status))
