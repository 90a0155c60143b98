# SPDX-License-Identifier: MIT
"""The companion manager: one child of the arbiter, which runs every companion.

It forks, watches, restarts and stops them, and answers the control socket, all
from one wait. Decisions are `CompanionProcess`'s; here they are carried out.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gunicorn.companion import figures, runfile, session
from gunicorn.companion.checks import did_you_mean
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.control import ControlServer, error
from gunicorn.companion.link import Link
from gunicorn.companion.process import POLL_INTERVAL, Action, CompanionProcess, Event, State
from gunicorn.companion.runfile import Orphan, RunFile
from gunicorn.companion.spawn import Birth, become_subreaper, spawn
from gunicorn.companion.watch import SourceWatch
from gunicorn.unix.poller import READABLE, WRITABLE, Poller
from gunicorn.unix.process import describe_status
from gunicorn.unix.signals import SignalInbox, signal_name, unblock_all

Outcome = tuple[bool, str]
Configs = list[CompanionConfig]

SIGNALS = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "CHLD", "TTIN", "TTOU", "WINCH")

# Seconds that adopted processes are given to be gone after SIGKILL.
END_OF_ADOPTED = 2.0


class ConfigUnreadable(Exception):
    """The configuration may not be read by the user that the manager runs as."""


def no_hook(manager: CompanionManager, companion: CompanionProcess) -> None:
    """The default companion_post_fork."""


class CompanionManager:
    """Runs the companions of *configs*; ``processes`` maps name to `CompanionProcess`.

    *load_configs* reads the configuration anew and returns the companions in it;
    it raises with a text for people (`ConfigUnreadable` where the file may not be read).
    *follow_log* is called at a SIGHUP, which may have changed where the log goes.
    *control_path*: none, no control socket. *run_dir*: none, no run files.
    *server* is what ``status`` tells of the server; ``started`` in it is
    monotonic. *state* is what an earlier manager of this server left behind.
    """

    def __init__(
        self,
        configs: Configs,
        log: Any,
        *,
        load_configs: Callable[[], Configs] | None = None,
        follow_log: Callable[[], Any] | None = None,
        control_path: str | None = None,
        control_mode: int = 0o600,
        run_dir: str | None = None,
        post_fork: Callable[[CompanionManager, CompanionProcess], Any] = no_hook,
        graceful_timeout: float = 30,
        server: Mapping[str, Any] | None = None,
        link: Link | None = None,
        watch: SourceWatch | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.log = log
        self.load_configs = load_configs
        self.follow_log = follow_log or log.reopen_files
        self.run_dir = run_dir
        self.post_fork = post_fork
        self.graceful_timeout = graceful_timeout
        self.server = dict(server or {})
        self.link = link
        self.watch = watch
        self.pid = os.getpid()
        self.stopping = False
        self.processes: dict[str, CompanionProcess] = {c.name: CompanionProcess(c) for c in configs}
        for name in (state or {}).get("manual_stop", ()):
            if name in self.processes:
                self.processes[name].manual_stop = True
        self.poller = Poller()
        self.inbox = SignalInbox([getattr(signal, "SIG" + name) for name in SIGNALS])
        self.control: ControlServer | None = None
        if control_path is not None:
            self.control = ControlServer(control_path, control_mode, self.handle_command, self.poller, log)
        self._pids: dict[int, CompanionProcess] = {}
        self._runs: dict[str, RunFile] = {}
        self._orphans: dict[str, Orphan] = {}
        self._strays: dict[str, Orphan] = {}
        self._to_kill: set[CompanionProcess] = set()
        # Whose wait for another server has been logged.
        self._waiting: set[str] = set()
        self._files: dict[str, str] = {}
        self._nofile: tuple[int, int] | None = None
        self._reported_running: int | None = None
        self._run_dir_complaint: str | None = None
        self._told_state: dict[str, Any] = {"manual_stop": sorted((state or {}).get("manual_stop", ()))}

    # -- the loop ----------------------------------------------------------

    def run(self) -> None:
        """The body of the forked child: returns when every companion has ended."""
        self.pid = os.getpid()
        self._prepare()
        try:
            self.start_all()
            while not self.finished:
                self.poller.wait(self._timeout(time.monotonic()))
                self.step(time.monotonic())
        finally:
            self._close()

    def _prepare(self) -> None:
        """Signals first: from here on one that arrives is heard."""
        self.inbox.install()
        unblock_all()
        self.poller.add(self.inbox.fileno(), lambda events: None)
        if self.link is not None:
            self.poller.add(self.link.fileno(), self._on_link)
        if self.watch is not None:
            self.poller.add(self.watch.fileno(), self._on_change)
        become_subreaper()
        self._raise_file_limit()
        if self.control is not None:
            self.control.open(time.monotonic())

    def _raise_file_limit(self) -> None:
        """One run file a companion and one descriptor a client: 1024 may be too few.

        A companion gets the limit that the server was started with.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            self._nofile = (soft, hard)

    def _close(self) -> None:
        if self.control is not None:
            self.control.close()
        if self.finished:
            self._end_adopted()
        self.inbox.close()

    def step(self, now: float) -> None:
        """One pass: everything that has happened or is due."""
        for signum in self.inbox.drain():
            self._on_signal(signum, now)
        self.reap_processes()
        self.enforce_deadlines(now)
        self.end_sessions(now)
        self.retry_backoff(now)
        self.promote_running(now)
        self._forget_removed()
        if self.control is not None:
            self.control.tick(now)
        self._tell_state()
        self._report_running()

    def _report_running(self) -> None:
        count = figures.count_running(self.processes.values())
        if count != self._reported_running:
            self._reported_running = count
            self.log.debug("%d companions run", count, extra=figures.gauge(figures.RUNNING, count))

    def _timeout(self, now: float) -> float | None:
        """Until the nearest deadline; None: until something happens."""
        times = [t for p in self.processes.values() if (t := p.next_deadline(now)) is not None]
        if self._strays:
            times.append(now + POLL_INTERVAL)
        if self.control is not None and self.control.next_attempt is not None:
            times.append(self.control.next_attempt)
        if not times:
            return None
        return max(0.0, min(times) - now)

    @property
    def finished(self) -> bool:
        """Whether a stop has come to its end."""
        return (
            self.stopping
            and not self._strays
            and all(p.state is State.STOPPED for p in self.processes.values())
        )

    def _on_signal(self, signum: int, now: float) -> None:
        if signum == signal.SIGTERM:
            self.stop_all()
        elif signum in (signal.SIGINT, signal.SIGQUIT):
            if self.stopping:
                self.log.info("Companions are killed: a second %s", signal_name(signum))
            self.stop_all(0.0 if self.stopping else self.graceful_timeout)
        elif signum == signal.SIGHUP:
            # What the arbiter wrote before it sent the signal comes first.
            if self.link is not None:
                self._on_link(0)
            self.reread()
            self.follow_log()
        elif signum == signal.SIGUSR1:
            self.log.reopen_files()
            if self.control is not None and not self.stopping:
                self.control.check(now)
        elif signum == signal.SIGUSR2:
            self.stop_all(reload=True)

    def _on_link(self, events: int) -> None:
        assert self.link is not None
        if self.link.ended:
            return
        self._flush_link()
        for message in self.link.receive():
            self.server.update(message.get("server", {}))
            self._files.update(message.get("files", {}))
        if self.link.ended:
            self.poller.remove(self.link.fileno())
            self.log.warning("The master is gone; companions are stopped")
            # First of all the address is made free for a new server.
            if self.control is not None:
                self.control.close_listener()
            self.stop_all()

    def _on_change(self, events: int) -> None:
        assert self.watch is not None
        for change in self.watch.receive():
            process = self._pids.get(change.pid)
            if process is None or process.state not in (State.STARTING, State.RUNNING):
                continue
            if change.inherited:
                self.log.warning(
                    "%s has changed, but is in the master's memory: restart the server", change.path
                )
                continue
            self.log.info("Companion %s restarts: %s has changed", process.name, change.path)
            self.restart_process(process.name)

    def take_files(self) -> dict[str, str]:
        """The configuration files that the arbiter read for us, once."""
        files, self._files = self._files, {}
        return files

    def _tell(self, message: dict[str, Any]) -> None:
        if self.link is not None:
            self.link.send(message)
            self._flush_link()

    def _flush_link(self) -> None:
        """Send what the arbiter takes now, and the rest when it takes it."""
        if self.link is not None and self.link.fileno() in self.poller:
            self.poller.modify(self.link.fileno(), READABLE if self.link.flush() else READABLE | WRITABLE)

    def _tell_state(self) -> None:
        """The arbiter keeps for a next manager what must outlive this one."""
        names = sorted(name for name, process in self.processes.items() if process.manual_stop)
        state = {"manual_stop": names}
        if state != self._told_state:
            self._told_state = state
            self._tell({"state": state})

    # -- starting ----------------------------------------------------------

    def start_all(self) -> None:
        """Start what is meant to run; end what a dead manager left and nobody configures any more."""
        now = time.monotonic()
        for name, orphan in runfile.orphans(self.run_dir, now).items():
            if name not in self.processes:
                self.log.info("Ending %s (pid %d), which is configured no more", name, orphan.record.pid)
                self._strays[name] = orphan
        for process in self.processes.values():
            if process.config.autostart and not process.manual_stop:
                self._send_event(process, Event.START, now)
            else:
                self._end_old_self(process, now)
        self.step(now)

    def _end_old_self(self, process: CompanionProcess, now: float) -> None:
        """What a dead manager left of a companion that is to be stopped: STOPPING until it is gone."""
        record = runfile.peek(self.run_dir, process.name)
        if record is None or record.supervised:
            return
        manual = process.manual_stop
        self._send_event(process, Event.START, now)
        with contextlib.suppress(OSError):
            self._claim(process, now)
        self._send_event(process, Event.STOP, now, manual=manual)

    def spawn_process(self, process: CompanionProcess) -> None:
        """Fork *process*, unless an older self of it is still there."""
        now = time.monotonic()
        try:
            run = self._claim(process, now)
        except OSError as exc:
            self._fail_start(process, f"cannot make its run file: {exc.strerror}")
            return
        if run is None:
            return
        birth = Birth(
            config=process.config,
            run=run,
            close=self._descriptors(besides=run),
            post_fork=lambda: self.post_fork(self, process),
            nofile=self._nofile,
            watch=self.watch,
        )
        try:
            pid = spawn(birth)
        except OSError as exc:
            self._fail_start(process, f"cannot fork: {exc.strerror}")
            return
        now = time.monotonic()
        self._pids[pid] = process
        self._send_event(process, Event.FORKED, now, pid=pid)
        self.log.info("Companion %s runs as pid %d", process.name, pid)

    def _fail_start(self, process: CompanionProcess, reason: str) -> None:
        run = self._runs.pop(process.name, None)
        if run is not None:
            run.release()
        self._send_event(process, Event.START_FAILED, time.monotonic(), reason=reason)
        self.log.error("Companion %s does not start: %s", process.name, reason)

    def _claim(self, process: CompanionProcess, now: float) -> RunFile | None:
        """The locked run file; None, and the process BLOCKED, while an older self is in the way."""
        name = process.name
        run = self._runs.get(name)
        if run is None:
            run = RunFile.claim(self._usable_run_dir(), name)
            if run is None:
                record = runfile.peek(self.run_dir, name)
            else:
                self._runs[name] = run
                record = run.read()
        else:
            record = run.read()
        if record is not None and not record.supervised:
            # One that was configured no more has been told already.
            orphan = self._orphans.get(name) or self._strays.pop(name, None)
            if orphan is None or orphan.record.pid != record.pid:
                orphan = Orphan(record, now, run)
            self._orphans[name] = orphan
            if not orphan.step(now):
                if process.waiting_for != record.pid:
                    self.log.info("Companion %s waits for its old self, pid %d", name, record.pid)
                self._send_event(process, Event.BLOCKED, now, pid=record.pid, session=record.session)
                return None
            del self._orphans[name]
        if run is None:
            pid = record.pid if record is not None else None
            if name not in self._waiting:
                self._waiting.add(name)
                self.log.info(
                    "Companion %s waits: another server runs it (pid %s)", name, pid or "unknown yet"
                )
            self._send_event(process, Event.BLOCKED, now, pid=pid)
            return None
        self._waiting.discard(name)
        run.clear()
        return run

    def _usable_run_dir(self) -> str | None:
        """The run directory, or None and one warning where it cannot be used."""
        if self.run_dir is None:
            return None
        try:
            os.makedirs(self.run_dir, mode=0o700, exist_ok=True)
            if not os.access(self.run_dir, os.W_OK | os.X_OK):
                raise PermissionError(13, "it is not writable")
        except OSError as exc:
            if self._run_dir_complaint != exc.strerror:
                self._run_dir_complaint = exc.strerror
                self.log.warning(
                    "No run files in %s: %s. Should the manager be killed, companions that ignore"
                    " their stop signal may run beside their successors",
                    self.run_dir,
                    exc.strerror,
                )
            return None
        return self.run_dir

    def _descriptors(self, besides: RunFile) -> list[int]:
        """Every descriptor of the manager's own, for the child to close."""
        fds = [run.fd for run in self._runs.values() if run is not besides]
        fds.extend(self.inbox.pipe)
        if self.link is not None:
            fds.append(self.link.fileno())
        if self.watch is not None:
            fds.append(self.watch.fileno())
        if self.control is not None:
            fds.extend(self.control.descriptors())
        return fds

    # -- events and their consequences ---------------------------------------

    def _send_event(self, process: CompanionProcess, event: Event, now: float, **details: Any) -> None:
        before = figures.Snapshot.of(process)
        for action in process.handle(event, now, **details):
            self._act(process, action)
        for metric, number in figures.counted(before, figures.Snapshot.of(process)).items():
            extra = figures.counter(metric, number, process.name)
            self.log.debug("Companion %s: %s +%d", process.name, metric, number, extra=extra)

    def _act(self, process: CompanionProcess, action: Action) -> None:
        if action is Action.SIGNAL and process.pid is not None:
            config = process.config
            self.log.info(
                "Companion %s (pid %d) gets %s", process.name, process.pid, signal_name(config.stop_signal)
            )
            session.ask_to_stop(process.pid, config.stop_signal, config.stop_as_group)
        elif action is Action.KILL:
            self._to_kill.add(process)
        elif action is Action.RELEASE:
            run = self._runs.pop(process.name, None)
            if run is not None:
                run.release()

    def reap_processes(self) -> None:
        """Collect every child that has ended, adopted ones included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.handle_exit(pid, status)

    def handle_exit(self, pid: int, status: int) -> None:
        """*pid* has ended with the wait status *status*; one that is no companion is ignored."""
        process = self._pids.pop(pid, None)
        if process is None:
            return
        run = self._runs.get(process.name)
        record = run.read() if run is not None else None
        reason = record.error if record is not None and record.pid == pid else None
        asked = process.state is State.STOPPING
        self._send_event(process, Event.EXITED, time.monotonic(), status=status, reason=reason)
        if asked:
            self.log.info("Companion %s (pid %d) %s", process.name, pid, describe_status(status))
            return
        self.log.warning(
            "Companion %s (pid %d) %s; it is started again in %gs",
            process.name,
            pid,
            reason or describe_status(status),
            process.restart_delay,
        )

    def retry_backoff(self, now: float) -> None:
        """Start what has waited long enough."""
        for process in list(self.processes.values()):
            if process.due_event(now) is Event.DELAY_PASSED:
                self._send_event(process, Event.DELAY_PASSED, now)
            if process.can_start(now):
                self.spawn_process(process)

    def promote_running(self, now: float) -> None:
        """STARTING becomes RUNNING after `startsecs`."""
        for process in self.processes.values():
            if process.due_event(now) is Event.ALIVE:
                self._send_event(process, Event.ALIVE, now)
                self.log.debug("Companion %s is RUNNING", process.name)

    def enforce_deadlines(self, now: float) -> None:
        """SIGKILL for what did not end in time."""
        for process in self.processes.values():
            if process.due_event(now) is Event.DEADLINE:
                self.log.warning(
                    "Companion %s (pid %s) did not stop in time: SIGKILL", process.name, process.pid
                )
                self._send_event(process, Event.DEADLINE, now)

    def end_sessions(self, now: float) -> None:
        """SIGKILL to the sessions that must end; EMPTY for those that have.

        One look at the process table serves them all.
        """
        ending = [p for p in self.processes.values() if p.ending]
        to_kill = [p for p in {*ending, *self._to_kill} if p.name not in self._orphans]
        self._to_kill.clear()
        wanted = {p.session for p in to_kill if p.session is not None}
        # An old self that only drains costs no look at all processes of the machine.
        old_selves = (*self._orphans.values(), *self._strays.values())
        wanted.update(orphan.record.session for orphan in old_selves if not orphan.drains(now))
        if not wanted:
            return
        members = session.members(wanted)
        for process in to_kill:
            if process.pid is not None:
                # Before the others, for whose death it would have an answer; and just after its
                # fork it is not in its session yet.
                session.send(process.pid, signal.SIGKILL)
            for pid in members.get(process.session or 0, ()):
                session.send(pid, signal.SIGKILL)
        for process in ending:
            orphan = self._orphans.get(process.name)
            if orphan is None:
                empty = process.session not in members
            else:
                empty = orphan.record.session in wanted and orphan.step(now, members)
            if empty:
                self._orphans.pop(process.name, None)
                self._send_event(process, Event.EMPTY, now)
        for name, orphan in list(self._strays.items()):
            if orphan.record.session in wanted and orphan.step(now, members):
                del self._strays[name]
                self._drop_stray_record(name)

    def _drop_stray_record(self, name: str) -> None:
        with contextlib.suppress(OSError):
            run = RunFile.claim(self.run_dir, name)
            if run is not None:
                run.release()

    def _forget_removed(self) -> None:
        for name in [n for n, p in self.processes.items() if p.removed and p.state is State.STOPPED]:
            del self.processes[name]
            self.log.info("Companion %s is gone", name)

    def _end_adopted(self) -> None:
        """What called setsid() and lost its parent has become our child; it goes with us."""
        deadline = time.monotonic() + END_OF_ADOPTED
        while time.monotonic() < deadline:
            children = session.children_of(os.getpid())
            if not children:
                return
            for pid in children:
                session.send(pid, signal.SIGKILL)
            # Their own children come to us next, and are found in the next round.
            self.poller.wait(POLL_INTERVAL)
            self.inbox.drain()
            self.reap_processes()

    # -- commands ----------------------------------------------------------

    def start_process(self, name: str) -> Outcome:
        """Start a companion that is stopped or waits for its next start."""
        process = self.processes[name]
        if process.state is State.STOPPING:
            return False, f"{name} is stopping; retry"
        if process.state in (State.STARTING, State.RUNNING):
            return True, f"{name} runs already"
        self._send_event(process, Event.START, time.monotonic())
        return True, f"{name} is starting"

    def stop_process(self, name: str) -> Outcome:
        """Stop a companion and keep it stopped."""
        process = self.processes[name]
        stopped = process.state is State.STOPPED
        self._send_event(process, Event.STOP, time.monotonic(), manual=True)
        if stopped:
            return True, f"{name} is stopped already"
        return True, f"{name} is {'stopped' if process.state is State.STOPPED else 'stopping'}"

    def restart_process(self, name: str) -> Outcome:
        """Stop a companion within its `reload_timeout` and start it again."""
        process = self.processes[name]
        if process.state is State.STOPPING:
            return False, f"{name} is stopping; retry"
        self._send_event(process, Event.RESTART, time.monotonic())
        process.manual_stop = False
        return True, f"{name} is restarting"

    def stop_all(self, timeout: float | None = None, *, reload: bool = False) -> None:
        """Stop every companion at once, each within its own timeout (at most *timeout*).

        Repeated without *timeout* it changes nothing: a service manager signals every
        process of the unit, and the arbiter does it too.
        """
        if self.stopping and timeout is None:
            return
        now = time.monotonic()
        self.stopping = True
        for process in self.processes.values():
            own = process.config.reload_timeout if reload else process.config.stop_timeout
            limit = own if timeout is None else min(own, timeout)
            if process.state is State.STOPPING and timeout is None:
                # On its way out under a deadline of its own; only a restart is off.
                self._send_event(process, Event.STOP, now)
            else:
                self._send_event(process, Event.STOP, now, timeout=limit)
        if timeout is not None:
            for orphan in (*self._orphans.values(), *self._strays.values()):
                orphan.deadline = min(orphan.deadline, now + timeout)

    def status(self, name: str | None = None, memory: bool = False) -> dict[str, Any]:
        """The reply to ``status``; KeyError for a name that there is not."""
        now, wall = time.monotonic(), time.time()
        chosen = self.processes.values() if name is None else [self.processes[name]]
        companions = []
        for process in chosen:
            shown = process.status_dict(now, wall)
            if memory:
                shown["memory"] = session.memory(process.pid) if process.pid is not None else None
            companions.append(shown)
        companions.sort(key=lambda shown: shown["name"])
        server = {key: value for key, value in self.server.items() if key != "started"}
        server["uptime"] = round(now - self.server["started"], 3) if "started" in self.server else None
        server["manager_pid"] = self.pid
        return {"ok": True, "server": server, "companions": companions}

    def handle_command(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request of the control socket."""
        command = request.get("cmd")
        handler = COMMANDS.get(command) if isinstance(command, str) else None
        if handler is None:
            if not isinstance(command, str):
                return error("'cmd' is missing; it is one of " + ", ".join(COMMANDS))
            return error(f"unknown command {did_you_mean(command, COMMANDS)}")
        try:
            reply = handler(self, request)
        except Exception:
            # A fault here must not take the companions down.
            self.log.exception("The command %r failed", command)
            return error("internal error; see the server's log")
        self._tell_state()
        return reply

    def _named(self, request: Mapping[str, Any]) -> str:
        name = request.get("name")
        if not isinstance(name, str):
            raise LookupError("'name' is missing: which companion?")
        if name not in self.processes:
            raise LookupError(f"no companion named {did_you_mean(name, self.processes)}")
        return name

    def _command_status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            name = self._named(request) if request.get("name") is not None else None
        except LookupError as exc:
            return error(str(exc.args[0]))
        return self.status(name, memory=bool(request.get("memory")))

    def _command_on_one(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            name = self._named(request)
        except LookupError as exc:
            return error(str(exc.args[0]))
        command = request["cmd"]
        if self.stopping and command != "stop":
            return error("the server is stopping")
        methods: dict[str, Callable[[str], Outcome]] = {
            "start": self.start_process,
            "stop": self.stop_process,
            "restart": self.restart_process,
        }
        ok, message = methods[command](name)
        self._after_command()
        return {"ok": ok, "message": message} if ok else {**error(message), "message": message}

    def _after_command(self) -> None:
        """Begin at once what needs no waiting, so that the reply is followed by the new state."""
        now = time.monotonic()
        if not self.stopping:
            self.retry_backoff(now)

    def _command_reread(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self.stopping:
            return error("the server is stopping")
        return self.reread()

    # -- reread ------------------------------------------------------------

    def reread(self) -> dict[str, Any]:
        """Read the configuration again and apply the difference; on any error nothing changes."""
        if self.stopping:
            return error("the server is stopping")
        if self.load_configs is None:
            return {**error("this manager has no configuration to read"), "kept_old_config": True}
        try:
            configs = self.load_configs()
        except ConfigUnreadable as exc:
            self._tell({"unreadable": True})
            return self._refuse_reread(f"{exc}; send SIGHUP to the master, which may read it")
        except SystemExit as exc:
            return self._refuse_reread(f"the configuration calls sys.exit({exc})")
        except Exception as exc:
            return self._refuse_reread(str(exc) or type(exc).__name__)
        result = self.reread_config(configs)
        self._tell({"reread": {config.name: config.fingerprint for config in configs}})
        self._after_command()
        return result

    def _refuse_reread(self, reason: str) -> dict[str, Any]:
        self.log.error("Companions keep their configuration: %s", reason)
        return {**error(reason), "kept_old_config": True}

    def reread_config(self, configs: Configs) -> dict[str, Any]:
        """Make *configs*, which are valid, the configuration; tell what changed, by name."""
        now = time.monotonic()
        wanted = {config.name: config for config in configs}
        changes: dict[str, list[str]] = {
            kind: [] for kind in ("added", "removed", "restarted", "updated", "unchanged")
        }
        for name, process in list(self.processes.items()):
            if name not in wanted and not process.removed:
                changes["removed"].append(name)
                self._remove(process, now)
        for name, config in wanted.items():
            known = self.processes.get(name)
            if known is None or known.removed:
                changes["added"].append(name)
                self._add(known, config, now)
            else:
                changes[self._update(known, config, now)].append(name)
        self._forget_removed()
        self.log.info(
            "Companions reread: %s",
            ", ".join(f"{len(names)} {kind}" for kind, names in changes.items() if names) or "none",
        )
        return {"ok": True, **{kind: sorted(names) for kind, names in changes.items()}}

    def _add(self, known: CompanionProcess | None, config: CompanionConfig, now: float) -> None:
        if known is None:
            known = self.processes[config.name] = CompanionProcess(config)
        # A name that comes back waits, as STOPPING, for its old process.
        known.config = config
        known.removed = False
        if config.autostart and not known.manual_stop:
            self._send_event(known, Event.START, now)

    def _remove(self, process: CompanionProcess, now: float) -> None:
        process.removed = True
        self._send_event(process, Event.STOP, now)

    def _update(self, process: CompanionProcess, config: CompanionConfig, now: float) -> str:
        """Give *process* its new configuration; the word for what that was."""
        old, process.config = process.config, config
        if old.fingerprint == config.fingerprint:
            return "unchanged"
        if old.shape_hash != config.shape_hash:
            if process.pid is not None and process.state in (State.STARTING, State.RUNNING):
                self._send_event(process, Event.RESTART, now)
                return "restarted"
            if process.state is State.BACKOFF:
                self._send_event(process, Event.RESTART, now)
                return "restarted"
        self._record_limits(process)
        return "updated"

    def _record_limits(self, process: CompanionProcess) -> None:
        """How what runs is to be stopped, for a next manager that finds it without this one."""
        run = self._runs.get(process.name)
        record = run.read() if run is not None else None
        if run is not None and record is not None and record.pid == process.pid:
            config = process.config
            run.write(replace(record, stop_signal=config.stop_signal, stop_timeout=config.stop_timeout))


_Handler = Callable[[CompanionManager, Mapping[str, Any]], dict[str, Any]]

# A fixed table: what a client names is never looked up as an attribute.
COMMANDS: dict[str, _Handler] = {
    "status": CompanionManager._command_status,
    "start": CompanionManager._command_on_one,
    "stop": CompanionManager._command_on_one,
    "restart": CompanionManager._command_on_one,
    "reread": CompanionManager._command_reread,
}
