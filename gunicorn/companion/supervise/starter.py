# SPDX-License-Identifier: MIT
"""Start companions: choose those that are due, prepare and fork them, and release what a start was given."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field
from socket import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from gunicorn.companion.child.mark import Mark, digest
from gunicorn.companion.output.capture import Capture
from gunicorn.companion.process import WAIT_INTERVAL, Action, Cause, CompanionProcess, Event, State
from gunicorn.companion.runfile import RunFile
from gunicorn.companion.spawn import Launch, spawn
from gunicorn.companion.supervise import detached, order
from gunicorn.companion.supervise.leases import Leases
from gunicorn.companion.supervise.notify_sockets import Notifications
from gunicorn.companion.supervise.overrides import KeptState
from gunicorn.companion.supervise.rights import Blocked, StartRights
from gunicorn.companion.supervise.sockets import Listeners
from gunicorn.companion.table import Change, ProcessTable
from gunicorn.settings.monitor import MONITOR_TARGET
from gunicorn.unix.kernel import KERNEL, Kernel

if TYPE_CHECKING:
    from gunicorn.companion.child.stacks import StackFile
    from gunicorn.companion.child.watch import SourceWatch

# Companions that are started before others, and the control socket, have their turn.
STARTS_AT_ONCE = 64

Hook = Callable[[Any, CompanionProcess], Any]


def no_hook(manager: Any, companion: CompanionProcess) -> None:
    """The default of every hook."""


@dataclass(eq=False, repr=False)
class Hooks:
    """The hooks of companions, called with *manager* as their first argument; `post_fork` in the child."""

    manager: Any
    log: Any
    _: KW_ONLY
    pre_fork: Hook = no_hook
    post_fork: Hook = no_hook
    on_exit: Hook = no_hook
    on_give_up: Hook = no_hook

    def set(self, *, pre_fork: Hook, post_fork: Hook, on_exit: Hook, on_give_up: Hook) -> None:
        """Use these from now on."""
        self.pre_fork, self.post_fork, self.on_exit = pre_fork, post_fork, on_exit
        self.on_give_up = on_give_up

    def before_fork(self, process: CompanionProcess) -> None:
        self._call("companion_pre_fork", self.pre_fork, process)

    def after_exit(self, process: CompanionProcess) -> None:
        self._call("companion_exit", self.on_exit, process)

    def after_give_up(self, process: CompanionProcess) -> None:
        self._call("companion_give_up", self.on_give_up, process)

    def _call(self, name: str, hook: Hook, process: CompanionProcess) -> None:
        """A hook that raises changes nothing else."""
        try:
            hook(self.manager, process)
        except (Exception, SystemExit):
            self.log.exception("%s failed for companion %s", name, process.name)


class _Prepared(NamedTuple):
    """The right to start, the sockets of `bind`, the address of the notify socket, the pipes of output, and
    that of `Launch.gate`.
    """

    run: RunFile
    listeners: list[socket]
    notify: str | None
    pipes: Mapping[int, int]
    gate: tuple[int, int] | None


@dataclass(eq=False, repr=False)
class Starter:
    """Starts the companions of *table*, and releases what each start was given.

    *descriptors* lists those of the manager's own, which no child keeps; *spare_descriptors* frees some to
    read files with. *fork* makes a process of each `Launch`. ``nofile`` is their limit of open files; none:
    the manager's.
    """

    table: ProcessTable
    log: Any
    _: KW_ONLY
    start_rights: StartRights
    listeners: Listeners
    notifications: Notifications
    kept: KeptState
    hooks: Hooks
    leases: Leases
    watch: SourceWatch | None
    descriptors: Callable[[], list[int]]
    spare_descriptors: Callable[[], AbstractContextManager[None]]
    capture: Capture | None = None
    stacks: StackFile | None = None
    web_tier: order.WebTier = field(default_factory=order.WebTier)
    kernel: Kernel = KERNEL
    fork: Callable[[Sequence[Launch]], list[int | OSError]] = spawn
    # Whether the run of a companion with a schedule is still to be made, by this server.
    may_run: Callable[[CompanionProcess], bool] = lambda process: True
    nofile: tuple[int, int] | None = None
    # What dead managers have left, as of a moment.
    _left: dict[int, str] = field(default_factory=dict, init=False)
    _left_at: float = field(default=float("-inf"), init=False)

    # -- what is to start --------------------------------------------------

    def start_wanted(self, now: float) -> None:
        """Begin to start companions that are meant to run, and to end what a dead manager left of all."""
        for process in self.table.values():
            wanted = process.config.autostart or self.kept.overrides.stopped.get(process.name) is False
            wanted = wanted and not process.manual_stop and process.settled is None
            # `Schedules` starts the others.
            wanted = wanted and process.config.schedule is None
            if wanted:
                self.table.send(process, Event.START, now)
            if self.start_rights.has_older_process(process.name):
                self._end_older_process(process, now, wanted)

    def close_unused(self) -> None:
        """Close sockets of companions that are not to start, or exist no more.

        An earlier manager may have left some, and a set that shared its sockets may have some for each copy.
        """
        for owner in self.listeners.groups():
            self._close_unused(owner)

    def _close_unused(self, owner: str) -> None:
        if all(p.state is State.STOPPED for p in self.table.values() if p.config.socket_owner == owner):
            # The next start, by us or by another server, opens them again.
            self.listeners.close(owner)

    def _end_older_process(self, process: CompanionProcess, now: float, wanted: bool) -> None:
        """End what a dead manager left of *process*, even if that is not to start, or waits for others."""
        manual, settled = process.manual_stop, process.settled_state
        if not wanted:
            self.table.send(process, Event.START, now)
        with contextlib.suppress(OSError):
            self._claim(process, now)
        if not wanted:
            self.table.send(process, Event.STOP, now, manual=manual)
        if settled is not None:
            process.restore_settled(settled)

    def start_due(self, now: float) -> None:
        """Start companions that are due."""
        idle = [p for p in self.table.values() if p.pid is None]
        for process in idle:
            if process.due_event(now) is Event.DELAY_PASSED:
                self.table.send(process, Event.DELAY_PASSED, now)
        # What held it up may be in its configuration no more.
        waiting = [p for p in idle if p.state is State.STARTING and (p.config.after or p.held_by)]
        held_before = {p.name: p.held_by for p in waiting}
        order.hold(self.table, waiting, self.web_tier)
        for process in waiting:
            if process.held_by and not held_before[process.name]:
                why = f"waiting for {process.stuck or ', '.join(process.held_by)}"
                self.log.info("Companion %s is %s, cause: %s", process.name, why, Cause.DEPENDENCY)
                self.kept.history.add("waiting", process.name, cause=Cause.DEPENDENCY, reason=why)
        due = [process for process in idle if process.can_start(now)]
        if due:
            self.start(due)

    # -- a start -----------------------------------------------------------

    def start(self, processes: Iterable[CompanionProcess]) -> None:
        """Fork those of *processes* that no older process blocks.

        Many are left for the next pass, which follows at once.
        """
        found = ((each, its) for each in processes if (its := self._prepare(each)) is not None)
        # A companion that has to wait takes no turn away.
        prepared = list(itertools.islice(found, STARTS_AT_ONCE))
        close = self.descriptors()
        launches = [(process, self._launch(process, its, close)) for process, its in prepared]
        if self.hooks.pre_fork is no_hook:
            self._fork(launches)
            return
        for process, launch in launches:
            self.hooks.before_fork(process)
            # The hook may have stopped it.
            if process.state is State.STARTING:
                self._fork([(process, launch)])
            else:
                _open_gate(launch, b"")
                if self.capture is not None:
                    self.capture.discard(launch.pipes)

    def _fork(self, launches: Sequence[tuple[CompanionProcess, Launch]]) -> None:
        """Fork them all, and only then record the outcomes.

        Of each page that the manager writes to between two forks, the children before keep a copy.
        """
        # A start must not fail because one more descriptor is missing for a moment.
        with self.spare_descriptors():
            outcomes = self.fork([launch for _, launch in launches])
        for (process, launch), outcome in zip(launches, outcomes, strict=True):
            if isinstance(outcome, OSError):
                if self.capture is not None:
                    self.capture.discard(launch.pipes)
                _open_gate(launch, b"")
                self._fail(process, f"cannot fork: {outcome.strerror}")
                continue
            if self.capture is not None:
                self.capture.started(process.config, outcome, launch.pipes)
            self.table.send(process, Event.FORKED, self.kernel.now(), pid=outcome)
            _open_gate(launch, b"x")
            log = self.log.debug if process.failures.persist else self.log.info
            log("Starting companion %s (pid %d)", process.name, outcome)

    def _prepare(self, process: CompanionProcess) -> _Prepared | None:
        """Gather what a start needs; None if it must wait, or has failed."""
        try:
            run = self._claim(process, self.kernel.now())
        except OSError as exc:
            self._fail(process, f"cannot make its run file: {_explain(exc)}")
            return None
        # Only then: a lease is not to be held for a companion that cannot start.
        if run is None or not self.leases.may_start(process) or not self.may_run(process):
            return None
        try:
            listeners = self._open_listeners(process)
            if listeners is None:
                return None
            # Where the run file has a name, its directory is one to write to.
            run_dir = None if run.path is None else self.start_rights.run_dir
            notify = self.notifications.open(process, run_dir)
            pipes = {} if self.capture is None else self.capture.open(process.config)
            gate = None if process.config.lease_name is None else os.pipe()
            return _Prepared(run, listeners, notify, pipes, gate)
        except OSError as exc:
            self._fail(process, _explain(exc))
            return None

    def _claim(self, process: CompanionProcess, now: float) -> RunFile | None:
        """Return the locked run file; None, and the process BLOCKED, while an older process is in the way."""
        claimed = self.start_rights.claim(process.name, now, singleton=process.config.singleton)
        if isinstance(claimed, Blocked):
            self.table.send(process, Event.BLOCKED, now, pid=claimed.pid, session=claimed.session)
            return None
        if self.kept.must_follow_first:
            # Over an upgrade: this may be free because it was stopped by command.
            self.start_rights.clear(process.name)
            self.table.changed = True
            return None
        return claimed

    def _open_listeners(self, process: CompanionProcess) -> list[socket] | None:
        """Return the sockets of `bind`; None, and the process BLOCKED, while their owner still ends.

        Raises OSError.
        """
        config = process.config
        if not config.bind:
            return []
        for last in (False, True):
            try:
                return self.listeners.open(config.socket_owner, config.bind)
            except OSError as exc:
                blocked = self._who_listens(process) if exc.errno == errno.EADDRINUSE else None
                # Once more: its owner may have released the address just before we looked for the owner.
                if blocked is None and (last or exc.errno != errno.EADDRINUSE):
                    raise
            if blocked is not None:
                self.table.send(process, Event.BLOCKED, self.kernel.now(), pid=blocked.pid)
                return None
        raise AssertionError("unreachable")

    def _who_listens(self, process: CompanionProcess) -> Blocked | None:
        """Return the companion that holds an address of *process* and will release it, or None."""
        config = process.config
        pid = self.start_rights.other_owner(config.group)
        if pid is not None:
            # Over an upgrade copies change hands one by one, and the socket with the last of them.
            return Blocked(pid)
        other = self.listeners.group_on(config.bind, besides=config.socket_owner)
        for one in self.table.values():
            if one.config.socket_owner == other:
                # The configuration gives an address to one; it has moved, and its last owner still ends.
                return Blocked(one.pid)
        for one in self.table.values():
            if one.config.group == config.group and one.state is State.STOPPING:
                # Its copies share sockets now that some had for themselves, or the other way round.
                return Blocked(one.pid)
        if self.listeners.is_elsewhere(config.bind):
            return Blocked(None)
        return self._left_by_dead_manager(process)

    def _left_by_dead_manager(self, process: CompanionProcess) -> Blocked | None:
        """An older process whose manager is dead, and which keeps the sockets open until it ends."""
        now = self.kernel.now()
        if now >= self._left_at + WAIT_INTERVAL:
            try:
                self._left = detached.may_hold_sockets(self.start_rights.run_dir)
            except OSError:
                # No descriptor is left to look with.
                return None
            self._left_at = now
        copies = (p for p in self.table.values() if p.config.group == process.config.group)
        names = {digest(p.name) for p in copies}
        pid = min((pid for pid, name in self._left.items() if name in names), default=None)
        return None if pid is None else Blocked(pid)

    def _launch(self, process: CompanionProcess, prepared: _Prepared, close: list[int]) -> Launch:
        config = process.config
        # The hook prepares a process for the application's code, of which the monitor runs none.
        hook = no_hook if config.target == MONITOR_TARGET else self.hooks.post_fork
        return Launch(
            config=config,
            run=prepared.run,
            close=close,
            post_fork=None if hook is no_hook else functools.partial(hook, self.hooks.manager, process),
            nofile=self.nofile,
            watch=self.watch,
            stacks=self.stacks,
            listeners=prepared.listeners,
            notify=prepared.notify,
            pipes=prepared.pipes,
            # No later manager stops leftovers of a companion that may run beside its older process.
            mark=str(
                Mark.of(
                    self.start_rights.run_dir if process.config.singleton else None, process.name, os.getpid()
                )
            ),
            grant=self.leases.grant(process),
            gate=prepared.gate,
            # Those of a program are closed as it begins.
            close_logs=getattr(self.log, "close_in_child", None) if config.command is None else None,
            repeats={process.exception, process.failures.latest} if process.failures.count else (),
            repeats_until=self.kernel.now() + process.failures.proof,
        )

    def _fail(self, process: CompanionProcess, reason: str) -> None:
        self.table.send(process, Event.START_FAILED, self.kernel.now(), reason=reason)
        self._release(process)
        log = self.log.error if process.failures.must_log(self.kernel.now()) else self.log.debug
        again = f"; {process.failures}" if process.failures.count > 1 else ""
        log("Companion %s failed to start: %s%s", process.name, reason, again)

    # -- its end -----------------------------------------------------------

    def observe(self, change: Change) -> None:
        """Release what a start was given when the table of transitions asks for it."""
        if Action.RELEASE in change.actions:
            self._release(change.process)

    def _release(self, process: CompanionProcess) -> None:
        """Its session is empty. Between two starts the right to start it stays ours."""
        if process.state is State.STOPPED:
            self.let_go(process)
        else:
            self.start_rights.clear(process.name)
            self.notifications.discard(process.name)

    def let_go(self, process: CompanionProcess) -> None:
        """Release what a start was given, its run file last."""
        self.notifications.close(process.name)
        if process.config.bind:
            self._close_unused(process.config.socket_owner)
        # A released companion may start elsewhere at once, and must know of a stop by command.
        self.kept.write_overrides()
        self.start_rights.release(process.name)


def _open_gate(launch: Launch, word: bytes) -> None:
    """Let the child go on with *word*; without one there is no child."""
    if launch.gate is not None:
        reading, writing = launch.gate
        # The child may be dead; the reading end is still open here.
        if word:
            os.write(writing, word)
        os.close(reading)
        os.close(writing)


def _explain(exc: OSError) -> str:
    """What the system says; of a limit also how high it is and where it is set."""
    text = exc.strerror or str(exc)
    if exc.errno != errno.EMFILE:
        return text
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"{text} (the limit is {limit}: LimitNOFILE=, ulimit -n)"
