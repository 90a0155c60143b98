# SPDX-License-Identifier: MIT
"""The companion manager: one child of the arbiter, which runs every companion.

It forks, watches, restarts and stops them, and answers the control socket, all
from one wait. Decisions are `CompanionProcess`'s; here they are carried out.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gunicorn.app.start import follow_surroundings
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.control import ControlServer
from gunicorn.companion.link import Link
from gunicorn.companion.process import (
    MIN_START_INTERVAL,
    POLL_INTERVAL,
    WAIT_INTERVAL,
    Action,
    Cause,
    CompanionProcess,
    Event,
    State,
)
from gunicorn.companion.spawn import become_subreaper, prepare_parent
from gunicorn.companion.supervise import commands, figures, rereading
from gunicorn.companion.supervise.claims import Claims
from gunicorn.companion.supervise.endings import Endings
from gunicorn.companion.supervise.hearing import Hearing
from gunicorn.companion.supervise.limits import Limits
from gunicorn.companion.supervise.masterline import MasterLine
from gunicorn.companion.supervise.notices import Notice
from gunicorn.companion.supervise.order import Stop, Stops
from gunicorn.companion.supervise.orders import Elder, Orders, follow
from gunicorn.companion.supervise.reread import Scaled, digest, scale
from gunicorn.companion.supervise.rolling import Rolling
from gunicorn.companion.supervise.sharedstate import Rights, SharedState
from gunicorn.companion.supervise.sockets import Listeners
from gunicorn.companion.supervise.starting import Starter, no_hook
from gunicorn.glogging import reopen_logs
from gunicorn.unix import session, spare
from gunicorn.unix.poller import Poller
from gunicorn.unix.process import describe_status
from gunicorn.unix.signals import SignalInbox, signal_name, unblock_all

if TYPE_CHECKING:
    from gunicorn.companion.child.watch import SourceWatch

Outcome = tuple[bool, str]
Configs = list[CompanionConfig]
Hook = Callable[[Any, CompanionProcess], Any]

SIGNALS = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "CHLD", "TTIN", "TTOU", "WINCH")

# Seconds after a deadline at which the manager must have been held up itself.
LATE = 1.0
# Seconds that adopted processes are given to be gone after SIGKILL.
END_OF_ADOPTED = 2.0


class CompanionManager:
    """Runs the companions of *configs*; ``processes`` maps name to `CompanionProcess`.

    *load_configs* reads the configuration anew and returns the companions in it;
    it raises with a text for people (`ConfigUnreadable` where the file may not be read).
    *adopt_config* is called when what it has read is to count.
    *follow_log* is called at a SIGHUP, which may have changed where the log goes.
    *control_path*: none, no control socket. *run_dir*: none, no run files.
    *server* is what ``status`` tells of the server; ``started`` in it is
    monotonic. *shared* holds what an earlier manager of this server left behind; *elder*, over an upgrade,
    what the manager of the old master leaves, which is followed for as long as *beside_elder* says.
    *pre_fork* and *on_exit* are called in the manager, *post_fork* in the companion.
    *umask* shapes the mode of the Unix sockets in `bind`.
    """

    def __init__(
        self,
        configs: Configs,
        log: Any,
        *,
        load_configs: Callable[[], Configs] | None = None,
        adopt_config: Callable[[], Any] = lambda: None,
        follow_log: Callable[[], Any] | None = None,
        control_path: str | None = None,
        control_mode: int = 0o600,
        run_dir: str | None = None,
        pre_fork: Hook = no_hook,
        post_fork: Hook = no_hook,
        on_exit: Hook = no_hook,
        graceful_timeout: float = 30,
        stop_order: str = "reverse",
        server: Mapping[str, Any] | None = None,
        link: Link | None = None,
        watch: SourceWatch | None = None,
        shared: SharedState | None = None,
        elder: SharedState | None = None,
        beside_elder: bool = False,
        umask: int = 0,
    ) -> None:
        self.log = log
        self.load_configs = load_configs
        self.adopt_config = adopt_config
        self.follow_log = follow_log or log.reopen_files
        self.pre_fork = pre_fork
        self.post_fork = post_fork
        self.on_exit = on_exit
        self.graceful_timeout = graceful_timeout
        self.stop_order = stop_order
        self.server = dict(server or {})
        self.watch = watch
        self.pid = os.getpid()
        self.stopping = False
        # Whether the stop makes room for another manager, and the server goes on.
        self.replaced = False
        self.shared = shared
        state = {} if shared is None else shared.read()
        self.elder: Elder | None = None
        if elder is not None:
            if not state:
                # The first manager of a new master takes over what holds in the old one. What has ended or
                # given up there is tried with the new code.
                orders = Orders.of(elder.read()).as_state()
                state = {**orders, "elder": orders}
            if isinstance(seen := state.get("elder"), dict):
                self.elder = Elder(elder, Orders.of(seen))
        self._beside_elder = beside_elder
        self.orders = Orders.of(state)
        self.orders.configuration = digest(configs)
        self.scaled: Scaled = self.orders.scaled
        self.processes: dict[str, CompanionProcess] = {
            c.name: CompanionProcess(c) for c in scale(configs, self.scaled)
        }
        for name, process in self.processes.items():
            process.manual_stop = self.orders.stopped.get(name, False)
        for name, legacy in state.get("settled", {}).items():
            if name in self.processes:
                self.processes[name].inherit(legacy)
        self.poller = Poller()
        self.inbox = SignalInbox([getattr(signal, "SIG" + name) for name in SIGNALS])
        self.control: ControlServer | None = None
        if control_path is not None:
            self.control = ControlServer(control_path, control_mode, self._answer, self.poller, log)
        self.master = MasterLine(link, self.poller, self._hear_master, self._lose_master)
        self.rights = Rights(shared, None if self.elder is None else self.elder.shared)
        self.claims = Claims(run_dir, log, self.rights)
        self.listeners = Listeners(log, umask=umask, rights=self.rights)
        self.endings = Endings(self.claims, self._tell_leftovers, self._tell_left)
        self.hearing = Hearing(self.poller, log, self._take_notice)
        self.starter = Starter(self)
        self.rolling = Rolling()
        self.limits = Limits(self.rolling, log, self.endings.belonging)
        self.stops = Stops()
        # Every companion has a next one in the server that takes over.
        self.handing_over = False
        self._pids: dict[int, CompanionProcess] = {}
        # Whether something has happened to a companion since all of them were looked at, and when
        # that is due without it.
        self._changed = True
        self._due: float | None = None
        self._files: dict[str, str] = {}
        # What is to be logged, once there is time.
        self._unsaid: list[Callable[[], Any]] = []
        self.nofile: tuple[int, int] | None = None
        self._reported_running: int | None = None
        self._kept_state: dict[str, Any] = {}
        self._orders_changed = False
        self._keeps_state = True

    # -- the loop ----------------------------------------------------------

    def run(self) -> None:
        """The body of the forked child: returns when every companion has ended."""
        self.pid = os.getpid()
        self._prepare()
        try:
            self.keep_state()
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
        self.master.open()
        if self.watch is not None:
            self.poller.add(self.watch.fileno(), self._on_change)
        if become_subreaper():
            self.endings.adopt(session.OwnChildren())
        prepare_parent()
        spare.keep()
        self._raise_file_limit()
        self.hearing.tidy_up(self.claims.run_dir)
        if self.control is not None:
            self.control.open(time.monotonic())

    def _raise_file_limit(self) -> None:
        """One run file a companion and one descriptor a client: 1024 may be too few.

        A companion gets the limit that the server was started with.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):
            if soft != hard:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                self.nofile = (soft, hard)

    def _close(self) -> None:
        if self.control is not None:
            self.control.close()
        self.listeners.close_all()
        if self.finished:
            self._end_adopted()
        self.endings.close()
        self.inbox.close()

    def step(self, now: float) -> None:
        """One pass: everything that has happened or is due."""
        for signum in self.inbox.drain():
            self._on_signal(signum, now)
        try:
            self.reap_processes()
            if self.control is not None:
                self.control.tick(now)
            # Most wake-ups are a client's, and concern no companion; with a thousand of them a look at each
            # is what would take the time.
            if self._changed or (self._due is not None and now >= self._due):
                # What was reaped just now is past, not to come.
                self._look_at_all(time.monotonic())
        finally:
            self.say()

    def _look_at_all(self, now: float) -> None:
        self._changed = False
        self._follow_elder(now)
        late = [p for p in self.processes.values() if p.due_event(now) is not None]
        self.enforce_deadlines(now, late)
        self.end_sessions(now)
        self.stop_due(now)
        self.promote_running(now, late)
        self.check_limits(now)
        self.retry_backoff(now)
        self.forget_removed()
        self.keep_state()
        self._report_running()
        self._due = self._next_deadline(now)

    def _report_running(self) -> None:
        count = figures.count_running(self.processes.values())
        if count != self._reported_running:
            self._reported_running = count
            self.log.debug("Companions running: %d", count, extra=figures.gauge(figures.RUNNING, count))

    def _next_deadline(self, now: float) -> float | None:
        """When companions must be looked at again; None: when something happens."""
        times = [t for p in self.processes.values() if (t := p.next_deadline(now)) is not None]
        if self.claims.has_strays:
            times.append(now + POLL_INTERVAL)
        if self.elder is not None:
            times.append(now + WAIT_INTERVAL)
        if self.limits.due is not None:
            times.append(self.limits.due)
        return min(times, default=None)

    def _timeout(self, now: float) -> float | None:
        """Until the nearest deadline; None: until something happens."""
        if self._changed:
            return 0.0
        times = [] if self._due is None else [self._due]
        if self.control is not None and self.control.next_attempt is not None:
            times.append(self.control.next_attempt)
        return max(0.0, min(times) - now) if times else None

    @property
    def finished(self) -> bool:
        """Whether a stop has come to its end."""
        return (
            self.stopping
            and not self.claims.has_strays
            and all(p.state is State.STOPPED for p in self.processes.values())
        )

    def _on_signal(self, signum: int, now: float) -> None:
        if signum == signal.SIGTERM:
            # What the arbiter wrote before it sent the signal comes first.
            self.master.receive()
            self.stop_all()
        elif signum in (signal.SIGINT, signal.SIGQUIT):
            if self.stopping:
                self.log.info("Killing all companions: a second %s", signal_name(signum))
            self.stop_all(0.0 if self.stopping else self.graceful_timeout)
        elif signum == signal.SIGHUP:
            # What the arbiter wrote before it sent the signal comes first.
            self.master.receive()
            self.reread()
            self.follow_log()
        elif signum == signal.SIGUSR1:
            reopen_logs(self.log)
            if self.control is not None and not self.stopping:
                self.control.check(now)
        elif signum == signal.SIGUSR2:
            self.stop_all(reload=True)

    def _hear_master(self, message: dict[str, Any]) -> None:
        self.server.update(message.get("server", {}))
        self._files.update(message.get("files", {}))
        if changes := message.get("surroundings"):
            self._follow_surroundings(changes)
        if message.get("run_files"):
            self.claims.renew()
            self.hearing.renew(self.processes.values(), self.claims.run_dir)
        if message.get("make_room") and not self.stopping:
            self._make_room()
        if message.get("orphans"):
            self.claims.find_strays(self.processes, time.monotonic())
            self._changed = True
        if message.get("promoted"):
            self._beside_elder = False
            self._changed = True
        if "handing_over" in message:
            self.handing_over = bool(message["handing_over"])
        if "ping" in message:
            self.tell({"pong": message["ping"]})

    def _follow_surroundings(self, changes: Mapping[str, Any]) -> None:
        """A reload has changed the environment, the import path or the directory of the master."""
        try:
            follow_surroundings(changes)
        except OSError as exc:
            self.log.warning(
                "Companions start in the directory from before the reload until their manager is replaced:"
                " the user of the companions cannot enter %s: %s",
                changes["directory"],
                exc.strerror,
            )

    def _make_room(self) -> None:
        """The next manager takes over. This one ends what it runs; there, each waits for its older self."""
        self.stop_all(reload=True)
        if self.control is not None:
            self.control.close()
            self.control = None
        self.keep_state()
        # From now on the next one writes there.
        self._keeps_state = False
        self.tell({"made_room": True})

    def _lose_master(self) -> None:
        self.log.warning("The master is gone; stopping companions")
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
            self.log.info("Restarting companion %s: %s has changed", process.name, change.path)
            self.restart_process(process.name, Cause.CODE, f"{change.path} has changed")

    def look_again(self) -> None:
        """Something has happened that concerns companions."""
        self._changed = True

    def take_files(self) -> dict[str, str]:
        """The configuration files that the arbiter read for us, once."""
        files, self._files = self._files, {}
        return files

    def tell(self, message: dict[str, Any]) -> None:
        """Say something to the master."""
        self.master.tell(message)

    # -- what outlives this manager ------------------------------------------

    def _state(self) -> dict[str, Any]:
        processes = self.processes.items()
        state = self.orders.as_state()
        state["settled"] = {name: legacy for name, process in processes if (legacy := process.legacy)}
        if self.elder is not None:
            state["elder"] = self.elder.orders.as_state()
        return state

    def keep_state(self) -> None:
        """Write it down for the next manager, and for that of a new master."""
        self._orders_changed = False
        state = self._state()
        if state == self._kept_state or self.shared is None or not self._keeps_state:
            return
        self._kept_state = state
        try:
            self.shared.write(state)
        except OSError as exc:
            self.log.error("Commands so far will be lost with this companion manager: %s", exc.strerror)

    def keep_orders(self) -> None:
        """The same, but only where a command has been given: what is let go after it others may take."""
        if self._orders_changed:
            self.keep_state()

    def note_order(self, name: str, *, stopped: bool) -> None:
        """The companion *name* was stopped or started by command."""
        self.orders.stopped[name] = stopped
        self._orders_changed = True

    @property
    def must_follow_first(self) -> bool:
        """Whether something was asked of the old master's manager that has not been done here."""
        return self.elder is not None and self.elder.has_changed

    def _follow_elder(self, now: float) -> None:
        elder, last = self.elder, not self._beside_elder
        if elder is None:
            return
        if elder.has_changed and not self.stopping:
            before, orders = elder.look()
            follow(self, before, orders, now)
        if last:
            # Whoever gave commands there is gone.
            self.elder = None
            self.rights.forget(elder.shared)
            elder.shared.close()

    # -- starting ----------------------------------------------------------

    def start_all(self) -> None:
        """Start what is meant to run; end what a dead manager left and nobody configures any more."""
        now = time.monotonic()
        older = self.endings.end_left()
        self.claims.find_strays(self.processes, now)
        for process in self.processes.values():
            wanted = process.config.autostart or self.orders.stopped.get(process.name) is False
            if wanted and not process.manual_stop and process.settled is None:
                self.send_event(process, Event.START, now)
            else:
                self._end_old_self(process, now)
        self.step(now)
        if older:
            # Some of them may have come to their end meanwhile.
            self.endings.end_left()

    def _end_old_self(self, process: CompanionProcess, now: float) -> None:
        """What a dead manager left of a companion that is to be stopped: STOPPING until it is gone."""
        if not self.claims.has_old_self(process.name):
            return
        manual, legacy = process.manual_stop, process.legacy
        self.send_event(process, Event.START, now)
        with contextlib.suppress(OSError):
            self.starter.claim(process, now)
        self.send_event(process, Event.STOP, now, manual=manual)
        if legacy is not None:
            process.inherit(legacy)

    def retry_backoff(self, now: float) -> None:
        """Start what has waited long enough, and for everybody that it has to wait for."""
        if not self.starter.start_due(now):
            self._changed = True

    def spawn_process(self, process: CompanionProcess) -> None:
        """Fork *process*, unless an older self of it is still there."""
        self.starter.spawn([process])

    def forked(self, process: CompanionProcess, pid: int, now: float) -> None:
        """*process* runs as *pid*."""
        self._pids[pid] = process
        self.send_event(process, Event.FORKED, now, pid=pid)
        self.log.info("Starting companion %s (pid %d)", process.name, pid)

    def call_hook(self, name: str, hook: Hook, process: CompanionProcess) -> None:
        """A hook that raises changes nothing else."""
        try:
            hook(self, process)
        except (Exception, SystemExit):
            self.log.exception("%s failed for companion %s", name, process.name)

    def descriptors(self) -> list[int]:
        """Every descriptor of the manager's own, which no child of it is to keep."""
        fds = self.claims.descriptors()
        fds.extend(self.inbox.pipe)
        fds.extend(self.hearing.descriptors())
        fds.extend(self.listeners.descriptors())
        fds.extend(self.master.descriptors())
        fds.extend(self.endings.descriptors())
        fds.extend(spare.descriptors())
        if self.watch is not None:
            fds.append(self.watch.fileno())
        if self.control is not None:
            fds.extend(self.control.descriptors())
        if self.shared is not None:
            fds.append(self.shared.fd)
        if self.elder is not None:
            fds.append(self.elder.shared.fd)
        return fds

    @contextlib.contextmanager
    def spare_descriptors(self) -> Iterator[None]:
        """Have some to read files with, even if companions have used up the others."""
        if self.control is None:
            yield
            return
        self.control.reserve.release_all()
        try:
            yield
        finally:
            self.control.reserve.fill()

    # -- what companions say ---------------------------------------------------

    def _take_notice(self, process: CompanionProcess, notice: Notice) -> None:
        now = time.monotonic()
        if notice.status is not None:
            process.status_text = notice.status
        if notice.watchdog:
            self.send_event(process, Event.BEAT, now)
        if notice.ready:
            self.send_event(process, Event.READY, now)
        if notice.trigger and process.pid is not None and process.state is not State.STOPPING:
            self.send_event(process, Event.HUNG, now, reason="it sent WATCHDOG=trigger")

    # -- events and their consequences ---------------------------------------

    def send_event(self, process: CompanionProcess, event: Event, now: float, **details: Any) -> None:
        """Let *event* happen to *process*, and do what follows from it."""
        # A sign of life only puts a deadline off.
        self._changed = self._changed or event is not Event.BEAT
        before, manual = figures.Snapshot.of(process), process.manual_stop
        actions = process.handle(event, now, **details)
        if process.manual_stop is not manual:
            self.note_order(process.name, stopped=process.manual_stop)
        for action in actions:
            self._act(process, action)
        after = figures.Snapshot.of(process)
        if before == after:
            return
        for metric, number in figures.counted(before, after).items():
            extra = figures.counter(metric, number, process.name)
            self.log.debug("Companion %s: %s +%d", process.name, metric, number, extra=extra)
        if before.state is not after.state:
            if after.state is State.RUNNING:
                self.log.info("Companion %s is RUNNING", process.name)
            self._tell_subscribers(process, before.state, now)

    def _tell_subscribers(self, process: CompanionProcess, before: State, now: float) -> None:
        if self.control is not None and self.control.has_subscribers:
            self.control.broadcast(commands.state_event(process, before, now))

    def _act(self, process: CompanionProcess, action: Action) -> None:
        config = process.config
        if action is Action.SIGNAL and process.pid is None:
            # Its leader is gone.
            session.ask_group_to_stop(process.session or 0, config.stop_signal)
        elif action is Action.SIGNAL and process.pid is not None:
            if process.failing:
                # Before the signal: what it writes for that must not be cut in two by this line.
                self.log.error(
                    "Stopping companion %s (pid %d): %s", process.name, process.pid, process.reason
                )
            self.log.info(
                "Companion %s (pid %d) gets %s", process.name, process.pid, signal_name(config.stop_signal)
            )
            session.ask_to_stop(process.pid, config.stop_signal, config.stop_as_group)
            if config.stop_as_group:
                self.claims.note_group_signalled(process.name, process.pid)
        elif action is Action.ABORT and process.pid is not None:
            self.log.error("Killing companion %s (pid %d): %s", process.name, process.pid, process.reason)
            session.ask_to_stop(process.pid, signal.SIGABRT, config.stop_as_group)
        elif action is Action.KILL:
            self.endings.kill(process)
        elif action is Action.RELEASE:
            self.starter.release(process)
        elif action is Action.GIVE_UP:
            self.log.error("Companion %s %s", process.name, process.verdict)
            if config.on_give_up == "shutdown":
                self.tell({"gave_up": process.name})

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
            # One that was adopted: perhaps the last of a session that is let finish.
            self._changed = self._changed or any(p.draining for p in self.processes.values())
            return
        run = self.claims.held(process.name)
        reason = run.error_of(pid) if run is not None else None
        # Its last words.
        self.hearing.hear(process)
        asked = process.state is State.STOPPING or process.name in self.stops
        obeyed = asked and not process.failing and not process.killed
        self.send_event(process, Event.EXITED, time.monotonic(), status=status, reason=reason)
        delay = None if asked or process.settled is not None else self._delay_of(process)
        said = reason or describe_status(status)
        if obeyed and reason is None and process.last_exit_code == 0:
            said = "stopped"
        elif obeyed and process.last_exit_signal == process.config.stop_signal:
            said = f"stopped ({signal_name(process.config.stop_signal)})"
        told = functools.partial(self._tell_exit, process.name, pid, said, delay)
        if delay is None:
            told()
        else:
            # Where it is started again at once, that comes first.
            self._unsaid.append(told)
        self.call_hook("companion_exit", self.on_exit, process)

    @staticmethod
    def _delay_of(process: CompanionProcess) -> float:
        """Seconds from its exit to its next start."""
        wait = (process.next_retry_at or 0.0) - (process.exited_at or 0.0)
        # In a crash loop there is more to wait for than what is configured.
        return wait if wait > MIN_START_INTERVAL else process.delay

    def _tell_exit(self, name: str, pid: int, said: str, delay: float | None) -> None:
        if delay is None:
            self.log.info("Companion %s (pid %d) %s", name, pid, said)
        else:
            self.log.warning("Companion %s (pid %d) %s; restarting in %.3gs", name, pid, said, delay)

    def say(self) -> None:
        """Log what there was no time for."""
        unsaid, self._unsaid = self._unsaid, []
        for say in unsaid:
            say()

    def promote_running(self, now: float, late: Iterable[CompanionProcess]) -> None:
        """STARTING becomes RUNNING after `startsecs`. *late*: all for whom something is due."""
        for process in late:
            if process.due_event(now) is Event.ALIVE:
                self.send_event(process, Event.ALIVE, now)

    def enforce_deadlines(self, now: float, late: Iterable[CompanionProcess]) -> None:
        """End what of *late* did not stop, did not become ready, or has fallen silent, in its time."""
        for process in late:
            due = process.due_event(now)
            if due in (Event.NOT_READY, Event.HUNG):
                # It may have spoken while nobody here listened.
                self.hearing.hear(process)
                due = process.due_event(now)
            if due is Event.HUNG and now > (process.watchdog_at or now) + LATE:
                # We were held up ourselves, and perhaps it was with us (a paused container).
                self.send_event(process, Event.BEAT, now)
            elif due is Event.DEADLINE:
                self.log.warning(
                    "Companion %s (pid %s) did not stop in time: SIGKILL", process.name, process.pid
                )
                self.send_event(process, Event.DEADLINE, now)
            elif due in (Event.NOT_READY, Event.HUNG):
                self.send_event(process, due, now)

    def check_limits(self, now: float) -> None:
        """Restart what lives or grows beyond its limit, and what else waits for its turn to be restarted."""
        if self.stopping:
            return
        self.limits.check(self.processes.values(), now)
        if not self.rolling:
            return
        for process, reason, cause in list(self.rolling.turns(self.processes)):
            self.log.info("Restarting companion %s: %s", process.name, reason)
            self.send_event(process, Event.RESTART, now, cause=cause, reason=reason)

    def end_sessions(self, now: float) -> None:
        """SIGKILL to the sessions that must end; EMPTY for those that have."""
        for process in self.endings.step(self.processes.values(), now):
            self.send_event(process, Event.EMPTY, now)

    def _tell_left(self, pids: Collection[int]) -> None:
        self.log.warning("Companions of a dead manager left behind %s: SIGKILL", session.names_of(pids))

    def _tell_leftovers(self, process: CompanionProcess, pids: Sequence[int], away: Collection[int]) -> None:
        """Say what is killed with the session of *process*, or after it; *away*: what has left it."""
        now = time.monotonic()
        whom = session.names_of(pids)
        how = "is killed together with" if process.pid is not None else "has exited and left behind"
        self.log.warning("Companion %s (pid %s) %s %s: SIGKILL", process.name, process.session, how, whom)
        asked = process.state is State.STOPPING and process.settled is None and not process.killed
        if asked and process.pid is None and not process.config.stop_as_group:
            self.log.warning(
                "Companion %s: stop_as_group sends them the stop signal and lets them finish", process.name
            )
        hint = None
        if away and process.pid is None and (process.state is not State.STOPPING or process.settled):
            # Nobody has asked it to end: as a daemon does, which another one would be started beside.
            hint = f"pid {', '.join(map(str, away))} had detached itself: run it in the foreground"
            self.log.warning("Companion %s: %s", process.name, hint)
        self.send_event(process, Event.LEFTOVERS_KILLED, now, count=len(pids), reason=hint)
        if self.control is not None and self.control.has_subscribers:
            self.control.broadcast(commands.leftovers_event(process, pids, now))

    def _end_adopted(self) -> None:
        """What called setsid() and lost its parent has become our child; it goes with us."""
        deadline = time.monotonic() + END_OF_ADOPTED
        told = False
        while time.monotonic() < deadline:
            try:
                children = session.children_of(os.getpid())
            except OSError:
                # No descriptor is left to look with.
                known = self.endings.children.read() if self.endings.children is not None else None
                children = sorted(known or ())
            if not children:
                return
            if not told and (names := session.names_of([pid for pid in children if session.exists(pid)])):
                self.log.warning("Companions left behind %s: SIGKILL", names)
            told = True
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
            return self._is_stopping(process)
        self._take_stop_back(process)
        if process.state is State.RUNNING:
            return True, f"{name} is already running"
        if process.state is State.STARTING:
            return True, self._is_starting(process)
        self.send_event(process, Event.START, time.monotonic())
        self._note_start(process)
        return True, f"{name} is starting"

    @property
    def why_nothing_starts(self) -> str:
        """What is told to those who ask for a start while all companions stop."""
        if self.replaced:
            return "all companions are restarting with their manager; retry later"
        return "the server is stopping"

    def _is_stopping(self, process: CompanionProcess) -> Outcome:
        """The refusal of a start, with the time that it may still take."""
        return False, f"{process.name} is stopping; retry later ({process.description(time.monotonic())})"

    def _is_starting(self, process: CompanionProcess) -> str:
        """``rq is starting already``, or what it waits for."""
        if process.pid is not None:
            return f"{process.name} is already starting"
        return f"{process.name} is {process.description(time.monotonic())}"

    def _note_start(self, process: CompanionProcess) -> None:
        """One that does not start by itself is to run in the next manager, too."""
        if not process.config.autostart:
            self.note_order(process.name, stopped=False)

    def stop_process(self, name: str) -> Outcome:
        """Stop a companion and keep it stopped."""
        return self.stop_processes([self.processes[name]])[name]

    def stop_processes(self, processes: Iterable[CompanionProcess]) -> dict[str, Outcome]:
        """Stop them and keep them stopped; one that others of them come after is told when those are gone."""
        stopped = {process.name: process.state is State.STOPPED for process in processes}
        for name in stopped:
            self.stops.ask(name, Stop(manual=True))
            self.note_order(name, stopped=True)
        self.stop_due(time.monotonic())
        return {name: (True, self._is_stopped(name, already)) for name, already in stopped.items()}

    def _take_stop_back(self, process: CompanionProcess) -> None:
        if process.name in self.stops:
            self.stops.drop(process)
            self.note_order(process.name, stopped=False)

    def _is_stopped(self, name: str, already: bool) -> str:
        process = self.processes[name]
        if already:
            return f"{name} is already stopped"
        if process.stops_after:
            return f"{name} is stopped after {', '.join(process.stops_after)}"
        return f"{name} is {'stopped' if process.state is State.STOPPED else 'stopping'}"

    def restart_process(self, name: str, cause: Cause = Cause.COMMAND, reason: str = "by command") -> Outcome:
        """Stop a companion within its `reload_timeout` and start it again."""
        process = self.processes[name]
        if process.state is State.STOPPING:
            return self._is_stopping(process)
        self._take_stop_back(process)
        # Without a process its restart is the start that it waits for.
        coming = process.state is State.STARTING and process.pid is None
        self.send_event(process, Event.RESTART, time.monotonic(), cause=cause, reason=reason)
        process.manual_stop = False
        self._note_start(process)
        return True, self._is_starting(process) if coming else f"{name} is restarting"

    def restart_in_turn(self, name: str) -> Outcome:
        """Restart a companion as soon as no other copy of it is down for that."""
        process = self.processes[name]
        if process.state is State.STOPPED:
            return self.start_process(name)
        if process.state is State.STOPPING or (process.state is State.STARTING and process.pid is None):
            return self.restart_process(name)
        self.rolling.ask(name, "by command, in turn")
        return True, f"{name} will restart when its turn comes"

    def stop_all(self, timeout: float | None = None, *, reload: bool = False) -> None:
        """Stop every companion in its order, each within its own timeout (at most *timeout*).

        Repeated without *timeout* it changes nothing: a service manager signals every
        process of the unit, and the arbiter does it too.
        """
        if not reload:
            self.replaced = False
        if self.stopping and timeout is None:
            return
        self.replaced = reload
        now, again = time.monotonic(), self.stopping
        self.stopping = self._changed = True
        if reload:
            # The next manager brings new code: what has failed with the old one is tried again.
            for process in self.processes.values():
                process.settled = None
        self.stops.clear(self.processes)
        reason = "its manager is replaced" if reload else "the server stops"
        for process in self.processes.values():
            own = process.config.reload_timeout if reload else process.config.stop_timeout
            limit = own if timeout is None else min(own, timeout)
            # One on its way out has a deadline of its own; only a restart is off.
            has_one = process.state is State.STOPPING and timeout is None
            self.stops.ask(process.name, Stop(None if has_one else limit, cause=Cause.SERVER, reason=reason))
        # With a manager that takes over each of them has a successor, which waits for it and for no other.
        self.stop_due(now, together=again or reload or self.handing_over)
        if timeout is not None:
            self.claims.hasten(now + timeout)

    def stop_due(self, now: float, *, together: bool = False) -> None:
        """Tell those to stop whose turn has come. *together*: it is everybody's."""
        together = together or self.stop_order != "reverse"
        while found := self.stops.due(self.processes, together=together):
            for process, stop in found:
                self.send_event(process, Event.STOP, now, **stop.details)

    def status(self, name: str | None = None, memory: bool = False) -> dict[str, Any]:
        """The reply to ``status``; KeyError for a name that there is not."""
        return commands.status(self, name, memory)

    def handle_command(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request of the control socket."""
        reply = commands.answer(self, request)
        self.keep_state()
        return reply

    def _answer(self, request: dict[str, Any]) -> dict[str, Any] | bytes:
        reply = commands.encoded_answer(self, request)
        # Most questions change nothing, and what has to be kept is gathered from all companions.
        if self._changed:
            self.keep_state()
        return reply

    def after_command(self) -> None:
        """Begin at once what needs no waiting, so that the reply is followed by the new state."""
        self._changed = True
        if not self.stopping:
            now = time.monotonic()
            self.check_limits(now)
            self.retry_backoff(now)

    # -- another configuration -------------------------------------------------

    def reread(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Read the configuration again and apply the difference; on any error nothing changes."""
        return rereading.reread(self, dry_run=dry_run)

    def reread_config(self, configs: Configs) -> dict[str, Any]:
        """Make *configs*, which are valid, the configuration; tell what changed, by name."""
        found = rereading.apply(self, scale(configs, self.scaled))
        self.log.info("Companions reread: %s", found)
        return {"ok": True, **found.as_dict()}

    def forget_removed(self) -> None:
        """Let go of what was configured away and has ended."""
        for name in [n for n, p in self.processes.items() if p.removed and p.state is State.STOPPED]:
            self.starter.let_go(self.processes.pop(name))
            self.orders.stopped.pop(name, None)
            self.log.info("Companion %s is gone", name)
