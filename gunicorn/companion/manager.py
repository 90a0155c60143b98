# SPDX-License-Identifier: MIT
"""The companion manager: one child of the arbiter, which runs every companion.

It forks, watches, restarts and stops them, and answers the control socket, all
from one wait. Its parts, in ``supervise``, know the table of companions and never the manager.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gunicorn.app.start import follow_surroundings
from gunicorn.companion.child import streams
from gunicorn.companion.control import ControlServer
from gunicorn.companion.leasing.handle import LeaseGuard, LeaseKeeper
from gunicorn.companion.output.capture import Capture
from gunicorn.companion.probing.handle import ProberHandle
from gunicorn.companion.process import (
    POLL_INTERVAL,
    WAIT_INTERVAL,
    Cause,
    CompanionProcess,
    Event,
    State,
)
from gunicorn.companion.server.link import Link
from gunicorn.companion.spawn import Launch, spawn
from gunicorn.companion.supervise.changes import Changes, Configs, Follower, digest, scale
from gunicorn.companion.supervise.commands import Commands
from gunicorn.companion.supervise.dumps import Dumps
from gunicorn.companion.supervise.lease import new_owner
from gunicorn.companion.supervise.leases import LeaseHelper, Leases
from gunicorn.companion.supervise.memory import Limits
from gunicorn.companion.supervise.notify_sockets import Notifications, remove_stale
from gunicorn.companion.supervise.order import Rolling, Stops, WebTier, unmet_by_web
from gunicorn.companion.supervise.overrides import KeptState
from gunicorn.companion.supervise.probes import Prober, Probes
from gunicorn.companion.supervise.questions import Questions
from gunicorn.companion.supervise.rights import StartRights
from gunicorn.companion.supervise.schedules import Schedules
from gunicorn.companion.supervise.sessions import Sessions
from gunicorn.companion.supervise.sharedstate import Rights, SharedState
from gunicorn.companion.supervise.sockets import KeptSocket, Listeners
from gunicorn.companion.supervise.starter import Hook, Hooks, Starter, no_hook
from gunicorn.companion.supervise.steering import Outcome, Steering
from gunicorn.companion.supervise.web import WebWorkers
from gunicorn.companion.table import Entry, ProcessTable, Reporter
from gunicorn.glogging import reopen_logs
from gunicorn.unix import session, spare
from gunicorn.unix.kernel import KERNEL, Kernel
from gunicorn.unix.libc import become_subreaper
from gunicorn.unix.poller import Poller
from gunicorn.unix.signals import SignalInbox, signal_name, unblock_all
from gunicorn.unix.unreadoutput import discard_unread_output

if TYPE_CHECKING:
    from gunicorn.companion.child.stacks import StackFile
    from gunicorn.companion.child.watch import SourceWatch
    from gunicorn.scoreboard import Scoreboard

SIGNALS = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "CHLD", "TTIN", "TTOU", "WINCH")

# Seconds to wait for adopted processes after SIGKILL.
END_OF_ADOPTED = 2.0


class CompanionManager:
    """Runs the companions of *configs*; ``processes`` maps name to `CompanionProcess`.

    *load_configs* rereads the configuration and returns its companions; it raises with a text for people
    (`ConfigUnreadable` if the file may not be read). *adopt_config* is called when what it has read is to
    count. *follow_log* is called at a SIGHUP, which may have changed the log's destination. *control_path*:
    none, no control socket. *run_dir*: none, no run files. *server* is what ``status`` tells of the server;
    ``started`` in it is monotonic. *shared* holds what an earlier manager of this server left behind;
    *old_state*, during an upgrade, where the manager of the old master writes the same; its commands are
    followed while *beside_old_master*. *pre_fork*, *on_exit* and *on_give_up* are called in the manager,
    *post_fork* in the companion. *umask* shapes the mode of the Unix sockets in `bind`. *log_lines* and
    *log_format* are about captured output; with 0 lines none is captured. *web_tier* is the place of the web
    workers in the order of starts and stops. *scoreboard* has the web workers; they and companions write
    their stacks into *stacks*. *sockets*: those of `bind` that an earlier manager has opened. *prober* makes
    the checks of `probe` and `liveness`; *lease_keeper* and *lease_guard* serve `lease`. *kernel* and *fork*
    are the operating system.
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
        on_give_up: Hook = no_hook,
        graceful_timeout: float = 30,
        stop_order: str = "reverse",
        web_tier: WebTier | None = None,
        server: Mapping[str, Any] | None = None,
        link: Link | None = None,
        watch: SourceWatch | None = None,
        shared: SharedState | None = None,
        old_state: SharedState | None = None,
        beside_old_master: bool = False,
        umask: int = 0,
        log_lines: int = 0,
        log_format: str = "raw",
        scoreboard: Scoreboard | None = None,
        stacks: StackFile | None = None,
        sockets: Sequence[KeptSocket] = (),
        prober: Prober | None = None,
        lease_keeper: LeaseHelper | None = None,
        lease_guard: LeaseHelper | None = None,
        kernel: Kernel = KERNEL,
        fork: Callable[[Sequence[Launch]], list[int | OSError]] = spawn,
    ) -> None:
        # Hooks read this and the log.
        self.pid = os.getpid()
        self.log = log
        self.follow_log = follow_log or log.reopen_files
        self.graceful_timeout = graceful_timeout
        self.server = dict(server or {})
        self.watch = watch
        self.kernel = kernel
        # When companions must be looked at again, whether or not something happens.
        self._due: float | None = None
        # What the last reload of the master has changed here; None until it has.
        self._reread: dict[str, Any] | None = None
        # Configuration files that the master has read for the reload that is under way.
        self.files: dict[str, str] = {}

        self.kept = KeptState(shared, old_state, log)
        overrides = self.kept.overrides
        overrides.configuration = digest(configs)
        self.table = ProcessTable(scale(configs, overrides.scaled))
        self.kept.restore(self.table)

        self.poller = Poller()
        # A hook that prints must not hold up the stop.
        at_once = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT), discard_unread_output)
        self.inbox = SignalInbox([getattr(signal, "SIG" + name) for name in SIGNALS], at_once)
        self.control: ControlServer | None = None
        if control_path is not None:
            self.control = ControlServer(control_path, control_mode, self._answer, self.poller, log)
        self.link = link
        self.hooks = Hooks(
            self, log, pre_fork=pre_fork, post_fork=post_fork, on_exit=on_exit, on_give_up=on_give_up
        )
        self.reporter = Reporter(self.table, log, self.control)
        self.notifications = Notifications(self.table, log, self.poller, kernel)

        self.capture: Capture | None = None
        if log_lines:
            self.capture = self._make_capture(log_lines, log_format)
        self.prober: Prober = prober or ProberHandle(log, self.poller)

        self.leases = Leases(
            self.table,
            log,
            keeper=lease_keeper or LeaseKeeper(log, self.poller, new_owner(os.getppid())),
            guard=lease_guard or LeaseGuard(log, self.poller),
            history=self.kept.history,
            kernel=kernel,
        )

        rights = Rights(shared, None if self.kept.old is None else old_state)
        self.start_rights = StartRights(run_dir, log, rights, kernel=kernel)
        self.listeners = Listeners(
            log,
            umask=umask,
            rights=rights,
            tell=self.tell_master,
            kept=sockets,
            beside_owner=beside_old_master,
        )
        self.web_tier = web_tier or WebTier()
        stops = Stops(self.web_tier)
        self.sessions = Sessions(
            self.table,
            log,
            start_rights=self.start_rights,
            notifications=self.notifications,
            totals=self.kept.totals,
            stops=stops,
            reporter=self.reporter,
            after_exit=self.hooks.after_exit,
            after_give_up=self.hooks.after_give_up,
            tell=self.tell_master,
            capture=self.capture,
            prober=self.prober,
            leases=self.leases,
            kernel=kernel,
        )
        self.probes = Probes(
            self.table,
            log,
            prober=self.prober,
            history=self.kept.history,
            run_dir=run_dir,
            capture=self.capture,
            kernel=kernel,
        )
        self.rolling = Rolling(self.web_tier)
        self.limits = Limits(self.rolling, log, self.sessions.belonging)
        self.starter = Starter(
            self.table,
            log,
            start_rights=self.start_rights,
            listeners=self.listeners,
            notifications=self.notifications,
            kept=self.kept,
            hooks=self.hooks,
            leases=self.leases,
            web_tier=self.web_tier,
            capture=self.capture,
            watch=watch,
            stacks=stacks,
            descriptors=self._descriptors,
            spare_descriptors=self._spare_descriptors,
            kernel=kernel,
            fork=fork,
        )
        self.schedules = Schedules(
            self.table,
            log,
            kept=self.kept,
            start_rights=self.start_rights,
            leases=self.leases,
            kernel=kernel,
        )
        self.starter.may_run = self.schedules.may_run
        self.kept.history.tell = self._on_entry
        self.table.observers = [
            self.kept.history.observe,
            self.sessions.observe,
            self.leases.observe,
            self.starter.observe,
            self.reporter.observe,
            self.schedules.observe,
        ]

        self.steering = Steering(
            self.table,
            stops=stops,
            rolling=self.rolling,
            kept=self.kept,
            start_rights=self.start_rights,
            stop_order=stop_order,
            kernel=kernel,
        )
        self.changes = Changes(
            self.table,
            log,
            steering=self.steering,
            starter=self.starter,
            kept=self.kept,
            start_rights=self.start_rights,
            load_configs=load_configs,
            adopt_config=adopt_config,
            tell=self.tell_master,
            spare_descriptors=self._spare_descriptors,
            after_command=self._after_command,
            kernel=kernel,
        )
        self.follower = Follower(
            self.table,
            log,
            kept=self.kept,
            rights=rights,
            steering=self.steering,
            changes=self.changes,
            beside_old_master=beside_old_master,
        )
        self.questions = Questions(None if link is None else self.tell_master)
        self.dumps = Dumps(
            self.table,
            file=stacks,
            scoreboard=scoreboard,
            belonging=self.sessions.belonging,
            kernel=kernel,
        )
        self.commands = Commands(
            self.table,
            log,
            steering=self.steering,
            changes=self.changes,
            server=self.server,
            belonging=self.sessions.belonging,
            after_command=self._after_command,
            web=WebWorkers(scoreboard, server=self.server, questions=self.questions),
            questions=self.questions,
            leases=self.leases,
            capture=self.capture,
            dumps=self.dumps,
            kernel=kernel,
        )

    def _make_capture(self, log_lines: int, log_format: str) -> Capture | None:
        """None where there is no memory for it: companions then write where the manager does."""
        try:
            return Capture(
                self.log,
                self.poller,
                line_format=log_format,
                most_lines=log_lines,
                on_event=self._on_log_event,
            )
        except OSError as exc:
            self.log.warning("The output of companions is not captured: %s", exc.strerror)
            return None

    def _on_log_event(self, message: dict[str, Any]) -> None:
        """The log keeper reports that output was lost."""
        process = self.table.get(message["dropped"])
        if process is not None:
            details = {key: message[key] for key in ("bytes", "lines", "sink")}
            self.reporter.broadcast("log-dropped", process, self.kernel.now(), **details)

    def _on_entry(self, entry: Entry) -> None:
        """Count what the history notes, and tell it."""
        self.kept.totals.note(entry)
        self.reporter.tell(entry)

    # -- the loop ----------------------------------------------------------

    def run(self) -> None:
        """The body of the forked child: returns when every companion has ended."""
        self.pid = os.getpid()
        self._prepare()
        try:
            self.begin()
            while not self.finished:
                self.poller.wait(self.timeout(self.kernel.now()))
                self.step(self.kernel.now())
        finally:
            self._close()

    def begin(self) -> None:
        """Start the companions that are meant to run; stop orphans that are no longer configured."""
        self.kept.write()
        now = self.kernel.now()
        older = self.sessions.end_left()
        self.start_rights.find_orphans(self.table, now)
        self.starter.start_wanted(now)
        self.starter.close_unused()
        self.step(now)
        if older:
            # Some of them may have come to their end meanwhile.
            self.sessions.end_left()

    def step(self, now: float) -> None:
        """One pass: everything that has happened or is due."""
        for signum in self.inbox.drain():
            self._on_signal(signum, now)
        self.reap_processes()
        if self.control is not None:
            self.control.tick(now)
        if self.capture is not None:
            self.capture.tick(now)
        self.prober.tick(now)
        self.leases.tick(now)
        self.dumps.step(now)
        # Most wake-ups are a client's, and concern no companion: look at all of them only if needed.
        if self.table.changed or (self._due is not None and now >= self._due):
            # Read the clock again: a process that was just reaped is an old event, not a new one.
            self._look_at_all(self.kernel.now())

    def _look_at_all(self, now: float) -> None:
        self.table.changed = False
        self.follower.step(now)
        self.sessions.step(now)
        self.leases.step(now)
        self.steering.stop_due(now)
        self._restart_in_turn(now)
        self.schedules.step(now, stopping=self.steering.stopping)
        self.retry_backoff(now)
        self._look_at_web()
        self.changes.forget_removed()
        self.probes.step()
        if self.capture is not None:
            self.capture.forget(self.table)
        self.kept.write()
        self.reporter.count_running()
        self._due = self._next_deadline(now)

    def reap_processes(self) -> None:
        """Collect every child that has ended, adopted ones included."""
        self.sessions.reap()

    def _restart_in_turn(self, now: float) -> None:
        """Restart companions beyond their limits, and those that wait for their turn to be restarted."""
        if self.steering.stopping:
            return
        self.limits.check(self.table.values(), now)
        for failed, names in self.rolling.stop_changes(self.table):
            self.log.error(
                "The change of companion %s stops: %s %s. With the old configuration stay: %s",
                failed.config.group,
                failed.name,
                failed.verdict,
                ", ".join(names),
            )
        for process, reason, cause in list(self.rolling.turns(self.table)):
            self.log.info("Restarting companion %s: %s", process.name, reason)
            self.table.send(process, Event.RESTART, now, cause=cause, reason=reason)

    def retry_backoff(self, now: float) -> None:
        """Start companions whose delay is over and whose dependencies run."""
        self.starter.start_due(now)

    def _look_at_web(self) -> None:
        """Tell the master when web workers may start, or stop: in both cases it waits."""
        web = self.web_tier
        # The message may have come before the signal; then no stop has been asked for yet.
        if web.stopping and web.may_stop and self.steering.stopping and not web.told:
            web.told = True
            self.tell_master({"web_may_stop": True})
        if not web.waiting or self.steering.stopping:
            return
        found = unmet_by_web(self.table, web)
        for name in web.after:
            for process in self.table.chosen(name):
                process.awaited = bool(found.names) and process.config.is_job
        held_by = found.stuck or ", ".join(found.names)
        if not found.names:
            web.waiting = False
            self.tell_master({"web_may_start": list(web.after)})
        elif held_by != web.held_by:
            self.tell_master({"web_cannot_start" if found.hopeless else "web_held_by": held_by})
        web.held_by = self.server["web_held_by"] = held_by or None

    def _next_deadline(self, now: float) -> float | None:
        """When companions must be looked at again; None: when something happens."""
        times = [t for p in self.table.values() if (t := p.next_deadline(now)) is not None]
        if self.start_rights.orphans:
            times.append(now + POLL_INTERVAL)
        if self.kept.old is not None:
            times.append(now + WAIT_INTERVAL)
        if self.limits.due is not None:
            times.append(self.limits.due)
        if (lease_at := self.leases.next_deadline(now)) is not None:
            times.append(lease_at)
        if self.schedules.due is not None:
            times.append(self.schedules.due)
        return min(times, default=None)

    def timeout(self, now: float) -> float | None:
        """Seconds until the nearest deadline; None: until something happens."""
        if self.table.changed:
            return 0.0
        times = [] if self._due is None else [self._due]
        if self.control is not None and self.control.next_attempt is not None:
            times.append(self.control.next_attempt)
        if self.capture is not None and self.capture.start_at is not None:
            times.append(self.capture.start_at)
        if self.prober.start_at is not None:
            times.append(self.prober.start_at)
        if self.leases.start_at is not None:
            times.append(self.leases.start_at)
        if self.dumps.due is not None:
            times.append(self.dumps.due)
        return max(0.0, min(times) - now) if times else None

    @property
    def finished(self) -> bool:
        """Whether a stop has come to its end."""
        return (
            self.steering.stopping
            and not self.start_rights.orphans
            and all(p.state is State.STOPPED for p in self.table.values())
        )

    # -- beginning and end -------------------------------------------------

    def _prepare(self) -> None:
        """Signals first: none is lost from here on."""
        self.inbox.install()
        unblock_all()
        # Once, and not in each companion, whose private memory it would be.
        streams.replace_standard_streams()
        self.poller.add(self.inbox.fileno(), lambda events: None)
        if self.link is not None:
            self.link.watch(self.poller, self._on_message, self._on_master_gone)
        if self.watch is not None:
            self.poller.add(self.watch.fileno(), self._on_change)
        if become_subreaper():
            self.sessions.adopt(session.OwnChildren())
        spare.ONE.fill()
        self._raise_file_limit()
        remove_stale(self.start_rights.run_dir)
        if self.capture is not None:
            self.capture.start()
        if self.control is not None:
            self.control.open(self.kernel.now())

    def _raise_file_limit(self) -> None:
        """One run file a companion and one descriptor a client: 1024 may be too few.

        A companion gets the limit that the server was started with.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):
            if soft != hard:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                self.starter.nofile = self.prober.nofile = (soft, hard)

    def _close(self) -> None:
        if self.control is not None:
            self.control.close()
        self.listeners.close_all()
        if self.finished:
            self.leases.end()
            self.prober.end()
            self._end_adopted()
            if self.capture is not None:
                self.capture.end()
        self.sessions.close()
        self.schedules.close()
        self.inbox.close()

    def _end_adopted(self) -> None:
        """What called setsid() and lost its parent has become our child; it goes with us."""
        deadline = self.kernel.now() + END_OF_ADOPTED
        told = False
        while self.kernel.now() < deadline:
            try:
                children = session.children_of(os.getpid())
            except OSError:
                # No descriptor is left to look with.
                known = self.sessions.children.read() if self.sessions.children is not None else None
                children = sorted(known or ())
            helpers = (self.capture, self.prober)
            helper_pids = {helper.pid for helper in helpers if helper is not None} | self.leases.helper_pids
            children = [pid for pid in children if pid not in helper_pids]
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

    # -- signals, and what the master says ----------------------------------

    def _on_signal(self, signum: int, now: float) -> None:
        if signum == signal.SIGTERM:
            if self.link is not None:
                # The master may have written before it sent the signal: that another server takes over, or
                # that web workers stop as well.
                self.link.read()
            self.stop_all()
        elif signum in (signal.SIGINT, signal.SIGQUIT):
            if self.link is not None:
                # The answer to a client's shutdown; or that web workers stop as well.
                self.link.read()
            if self.steering.stopping:
                self.log.info("Killing all companions: a second %s", signal_name(signum))
            self.stop_all(0.0 if self.steering.stopping else self.graceful_timeout)
        elif signum == signal.SIGHUP:
            self._reload()
        elif signum == signal.SIGUSR1:
            self._reopen_logs()
        elif signum == signal.SIGUSR2:
            self.stop_all(reload=True)

    def _on_message(self, message: dict[str, Any]) -> None:
        """Do what the master asks for. Signals are for people, and for a stop, which must not be missed."""
        now = self.kernel.now()
        if "reload" in message:
            self._reload(**message["reload"])
        if "reopen" in message:
            self._reopen_logs()
        if "check_socket" in message:
            self._check_socket(now)
        if "run_files" in message:
            self.start_rights.renew()
            self.notifications.renew(self.start_rights.run_dir)
        if "replace" in message and message["replace"] == "after this one":
            self.stop_all(reload=True)
        elif "replace" in message and not self.steering.stopping:
            self._make_room()
        if "orphans" in message:
            self.start_rights.find_orphans(self.table, now)
            self.table.changed = True
        if "promoted" in message:
            self.follower.beside_old_master = self.web_tier.beside_old_master = False
            self.listeners.promoted()
            self.table.changed = True
            self._check_socket(now)
        if "handing_over" in message:
            self.steering.handing_over = bool(message["handing_over"])
        if "handed" in message:
            self.listeners.leave_files(message["handed"])
        if "web_ready" in message:
            self.web_tier.ready = bool(message["web_ready"])
            self.table.changed = True
        if "web_stopping" in message:
            self.web_tier.stopping = bool(message["web_stopping"])
            self.table.changed = True
        if "answer" in message:
            self.questions.answered(message["answer"])
        if "upgrade_result" in message:
            self.server["upgrade"] = message["upgrade_result"]
        if "reload_result" in message:
            self._note_reload(message["reload_result"])
        if "ping" in message:
            self.tell_master({"pong": message["ping"]})

    def tell_master(self, message: dict[str, Any], fd: int | None = None) -> None:
        """Send *message*, with a copy of the socket *fd* if there is one; never blocks."""
        if self.link is not None:
            self.link.send(message, fd)

    def _reload(
        self,
        *,
        server: Mapping[str, Any] | None = None,
        files: dict[str, str] | None = None,
        surroundings: Mapping[str, Any] | None = None,
        web_is_held: bool | None = None,
    ) -> None:
        """Read the configuration again, after a reload of the master with what that has changed."""
        self.server.update(server or {})
        if surroundings:
            self._follow_surroundings(surroundings)
        if web_is_held is not None:
            self.web_tier.waiting = web_is_held
            self.web_tier.held_by = self.server["web_held_by"] = None
            for process in self.table.values():
                process.awaited = False
        self.files = files or {}
        self._reread = self.changes.reread(cause=Cause.RELOAD)
        self.files = {}
        self.follow_log()
        if self.capture is not None:
            self.capture.reopen()

    def _note_reload(self, result: dict[str, Any]) -> None:
        """Note for `status` what has come of a reload: in the master, and of the companions."""
        if result["result"] == "pending":
            self._reread = None
        self.server["reload"] = {**result, "companions": self._reread}

    def _reopen_logs(self) -> None:
        reopen_logs(self.log)
        if self.capture is not None:
            self.capture.reopen()
        self._check_socket(self.kernel.now())

    def _check_socket(self, now: float) -> None:
        """Make the control socket's file again if it is gone."""
        if self.control is not None and not self.steering.stopping:
            self.control.check(now)

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
        """Let the next manager take over. This one stops its companions; there, each waits for its older
        process.
        """
        # First: a companion without a process is stopped at once, and its socket would be closed.
        self.listeners.hand_over()
        self.stop_all(reload=True)
        if self.control is not None:
            self.control.close()
            self.control = self.reporter.control = None
        self.kept.hand_over()
        self.tell_master({"made_room": True})

    def _on_master_gone(self) -> None:
        self.log.warning("The master is gone; stopping companions")
        self.questions.master_gone()
        # Web workers end by themselves, unseen by us. What waits for them in a stop is told now.
        self.web_tier.stopping = False
        self.table.changed = True
        # First free the address for a new server.
        if self.control is not None:
            self.control.close_listener()
        self.stop_all()

    def _on_change(self, events: int) -> None:
        assert self.watch is not None
        for change in self.watch.receive():
            process = self.table.by_pid(change.pid)
            if process is None or process.state not in (State.STARTING, State.RUNNING):
                continue
            if process.config.schedule is not None:
                # Its next run has the new code.
                continue
            if change.inherited:
                self.log.warning(
                    "%s has changed, but is in the master's memory: restart the server", change.path
                )
                continue
            self.log.info("Restarting companion %s: %s has changed", process.name, change.path)
            self.steering.restart(process.name, Cause.CODE, f"{change.path} has changed")

    # -- files and descriptors -----------------------------------------------

    def _descriptors(self) -> list[int]:
        """Every descriptor of the manager's own, which no child of it is to keep."""
        fds = [*self.start_rights.descriptors(), *self.schedules.descriptors()]
        fds.extend(self.inbox.pipe)
        fds.extend(self.notifications.descriptors())
        fds.extend(self.listeners.descriptors())
        fds.extend([] if self.link is None else [self.link.fileno()])
        fds.extend(self.sessions.descriptors())
        fds.extend(spare.ONE.fds)
        if self.watch is not None:
            fds.append(self.watch.fileno())
        if self.capture is not None:
            fds.extend(self.capture.descriptors())
        fds.extend(self.prober.descriptors())
        fds.extend(self.leases.descriptors())
        if self.control is not None:
            fds.extend(self.control.descriptors())
        fds.extend(self.kept.descriptors())
        return fds

    @contextlib.contextmanager
    def _spare_descriptors(self) -> Iterator[None]:
        """Have some to read files with, even if companions have used up the others."""
        if self.control is None:
            yield
            return
        self.control.reserve.release_all()
        try:
            yield
        finally:
            self.control.reserve.fill()

    # -- commands ----------------------------------------------------------

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request of the control socket."""
        reply = self.commands.answer(request)
        # Most questions change nothing, and what has to be kept is gathered from all companions.
        if self.table.changed:
            self.kept.write()
        return reply

    def _after_command(self) -> None:
        """Begin at once what needs no waiting, so that the reply is followed by the new state."""
        self.table.changed = True
        if not self.steering.stopping:
            now = self.kernel.now()
            self._restart_in_turn(now)
            self.retry_backoff(now)

    # -- for hooks and embedders ---------------------------------------------

    @property
    def processes(self) -> Mapping[str, CompanionProcess]:
        return self.table

    def spawn_process(self, process: CompanionProcess) -> None:
        """Fork *process*, unless an older process of it is still there."""
        self.starter.start([process])

    def start_process(self, name: str) -> Outcome:
        """Start a companion that is stopped or waits for its next start."""
        return self.steering.start(name)

    def stop_process(self, name: str) -> Outcome:
        """Stop a companion and keep it stopped."""
        return self.steering.stop([self.table[name]])[name]

    def restart_process(self, name: str) -> Outcome:
        """Stop a companion within its `reload_timeout` and start it again."""
        return self.steering.restart(name)

    def stop_all(self, timeout: float | None = None, *, reload: bool = False) -> None:
        """Stop every companion, each within its own timeout (at most *timeout*)."""
        self.steering.stop_all(timeout, reload=reload)

    def reread_config(self, configs: Configs) -> dict[str, Any]:
        """Make *configs*, which are valid, the configuration; tell what changed, by name."""
        return self.changes.use(configs)
