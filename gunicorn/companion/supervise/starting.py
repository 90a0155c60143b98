# SPDX-License-Identifier: MIT
"""Start companions: choose those that are due, prepare them, fork, and clean up failures."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field
from socket import socket
from typing import TYPE_CHECKING, Any

from gunicorn.companion import detached
from gunicorn.companion.child.descriptors import runs
from gunicorn.companion.child.ending import flush
from gunicorn.companion.detached import Mark
from gunicorn.companion.process import WAIT_INTERVAL, CompanionProcess, Event, State
from gunicorn.companion.runfile import RunFile
from gunicorn.companion.spawn import Birth, Plan, server_variables, spawn
from gunicorn.companion.supervise import order
from gunicorn.companion.supervise.hooks import Hooks, no_hook
from gunicorn.companion.supervise.notify_sockets import Notifications
from gunicorn.companion.supervise.overrides import KeptState
from gunicorn.companion.supervise.reporting import Reporter
from gunicorn.companion.supervise.rights import Blocked, StartRights
from gunicorn.companion.supervise.sockets import Listeners
from gunicorn.companion.table import ProcessTable

if TYPE_CHECKING:
    from gunicorn.companion.child.watch import SourceWatch

# Companions that are started before others, and the control socket, have their turn.
STARTS_AT_ONCE = 64
# Seconds of head start for new processes.
HEAD_START = 0.002


def _explain(exc: OSError) -> str:
    """What the system says; of a limit also how high it is and where it is set."""
    text = exc.strerror or str(exc)
    if exc.errno != errno.EMFILE:
        return text
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"{text} (the limit is {limit}: LimitNOFILE=, ulimit -n)"


# The right to start, the sockets of `bind`, the address of the notify socket.
_Prepared = tuple[RunFile, list[socket], str | None]


@dataclass(eq=False, repr=False)
class Starter:
    """Starts the companions of *table*, and lets go of what each start was made with.

    *descriptors* lists those of the manager's own, which no child keeps; *spare_descriptors* frees some to
    read files with. ``nofile`` is the limit that companions get; none: the manager's.
    """

    table: ProcessTable
    log: Any
    _: KW_ONLY
    start_rights: StartRights
    listeners: Listeners
    notifications: Notifications
    kept: KeptState
    hooks: Hooks
    reporter: Reporter
    watch: SourceWatch | None
    descriptors: Callable[[], list[int]]
    spare_descriptors: Callable[[], AbstractContextManager[None]]
    nofile: tuple[int, int] | None = None
    # What dead managers have left, as of a moment.
    _left: dict[int, str] = field(default_factory=dict, init=False)
    _left_at: float = field(default=float("-inf"), init=False)

    def start_wanted(self, now: float) -> None:
        """Have those start that are meant to run, and end what a dead manager left of the others."""
        for process in self.table.values():
            wanted = process.config.autostart or self.kept.overrides.stopped.get(process.name) is False
            if wanted and not process.manual_stop and process.settled is None:
                self.table.send(process, Event.START, now)
            else:
                self._end_old_self(process, now)

    def _end_old_self(self, process: CompanionProcess, now: float) -> None:
        """What a dead manager left of a companion that is to be stopped: STOPPING until it is gone."""
        if not self.start_rights.has_older_process(process.name):
            return
        manual, legacy = process.manual_stop, process.legacy
        self.table.send(process, Event.START, now)
        with contextlib.suppress(OSError):
            self._claim(process, now)
        self.table.send(process, Event.STOP, now, manual=manual)
        if legacy is not None:
            process.inherit(legacy)

    def start_due(self, now: float) -> bool:
        """Start what may be started; False if there is more of it."""
        idle = [p for p in self.table.values() if p.pid is None]
        for process in idle:
            if process.due_event(now) is Event.DELAY_PASSED:
                self.table.send(process, Event.DELAY_PASSED, now)
        # What held it up may be in its configuration no more.
        waiting = [p for p in idle if p.state is State.STARTING and (p.config.after or p.held_by)]
        order.hold(self.table, waiting)
        due = [process for process in idle if process.can_start(now)]
        return not due or self.spawn(due)

    def spawn(self, processes: Iterable[CompanionProcess]) -> bool:
        """Fork each of *processes* that no older process blocks; False if some are left for later.

        Prepare all of them, then fork all, then follow up all: after a fork each page that is written to is
        copied, so do as little as possible between two forks.
        """
        found = ((each, its) for each in processes if (its := self._prepare(each)) is not None)
        # Those that have to wait for somebody take no turn away.
        prepared = list(itertools.islice(found, STARTS_AT_ONCE))
        # Companions that have their descriptors must not fail because one more is missing for a moment.
        with self.spare_descriptors():
            close, unwanted = runs(self.descriptors()), server_variables()
            plans = [(each, Plan.of(self._birth(each, its, close), unwanted)) for each, its in prepared]
            # Flush buffers, so that parent and child do not both write them.
            flush()
            if self.hooks.pre_fork is no_hook:
                pids = spawn([plan for _, plan in plans])
                forked = [(process, pid) for (process, _), pid in zip(plans, pids, strict=True)]
            else:
                forked = list(self._hooked(plans))
        now = time.monotonic()
        if forked:
            # The new ones go first, if they are on our core: what follows has time. To yield is not enough,
            # for each of them is a session of its own, which the scheduler may treat as a group.
            time.sleep(HEAD_START)
        self.reporter.flush()
        for process, pid in forked:
            if isinstance(pid, int):
                self.table.send(process, Event.FORKED, now, pid=pid)
                self.log.info("Starting companion %s (pid %d)", process.name, pid)
            else:
                self._fail(process, f"cannot fork: {pid.strerror}")
        return len(prepared) < STARTS_AT_ONCE

    def _hooked(
        self, plans: Iterable[tuple[CompanionProcess, Plan]]
    ) -> Iterator[tuple[CompanionProcess, int | OSError]]:
        """Fork each after its `companion_pre_fork`, but for those that it has stopped."""
        for process, plan in plans:
            self.hooks.before_fork(process)
            if process.state is State.STARTING:
                flush()
                [forked] = spawn([plan])
                yield process, forked

    def _prepare(self, process: CompanionProcess) -> _Prepared | None:
        """Gather what a start needs; None if it must wait, or has failed."""
        try:
            run = self._claim(process, time.monotonic())
        except OSError as exc:
            self._fail(process, f"cannot make its run file: {_explain(exc)}")
            return None
        if run is None:
            return None
        try:
            listeners = self._open_listeners(process)
            if listeners is None:
                return None
            # Where the run file has a name, its directory is one to write to.
            run_dir = None if run.path is None else self.start_rights.run_dir
            return run, listeners, self.notifications.open(process, run_dir)
        except OSError as exc:
            self._fail(process, _explain(exc))
            return None

    def _open_listeners(self, process: CompanionProcess) -> list[socket] | None:
        """Return the sockets of `bind`; None, and the process BLOCKED, while their owner still ends.

        Raises OSError.
        """
        config = process.config
        if not config.bind:
            return []
        try:
            return self.listeners.open(config.group, config.bind)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
        blocked = self._who_listens(process)
        if blocked is None:
            # Its owner may have released the address just before we looked for the owner.
            try:
                return self.listeners.open(config.group, config.bind)
            except OSError as exc:
                blocked = self._who_listens(process) if exc.errno == errno.EADDRINUSE else None
                if blocked is None:
                    raise
        self.table.send(process, Event.BLOCKED, time.monotonic(), pid=blocked.pid)
        return None

    def _who_listens(self, process: CompanionProcess) -> Blocked | None:
        """Return the companion that holds an address of *process* and will release it, or None."""
        config = process.config
        pid = self.start_rights.other_owner(config.group)
        if pid is not None:
            # Over an upgrade copies change hands one by one, and the socket with the last of them.
            return Blocked(pid)
        other = self.listeners.group_on(config.bind, besides=config.group)
        for one in self.table.values():
            if one.config.group == other:
                # The configuration gives an address to one; it has moved, and its last owner still ends.
                return Blocked(one.pid)
        if self.listeners.is_elsewhere(config.bind):
            return Blocked(None)
        return self._left_by_dead_manager(process)

    def _left_by_dead_manager(self, process: CompanionProcess) -> Blocked | None:
        """An older process whose manager is dead, and which keeps the sockets open until it ends."""
        if time.monotonic() >= self._left_at + WAIT_INTERVAL:
            try:
                self._left = detached.may_hold_sockets(self.start_rights.run_dir)
            except OSError:
                # No descriptor is left to look with.
                return None
            self._left_at = time.monotonic()
        copies = (p for p in self.table.values() if p.config.group == process.config.group)
        names = {detached.digest(p.name) for p in copies}
        pid = min((pid for pid, name in self._left.items() if name in names), default=None)
        return None if pid is None else Blocked(pid)

    def _birth(self, process: CompanionProcess, prepared: _Prepared, close: list[tuple[int, int]]) -> Birth:
        hook = self.hooks.post_fork
        run, listeners, notify = prepared
        return Birth(
            config=process.config,
            run=run,
            close=close,
            post_fork=None if hook is no_hook else functools.partial(hook, self.hooks.manager, process),
            nofile=self.nofile,
            watch=self.watch,
            listeners=listeners,
            notify=notify,
            # No later manager stops leftovers of a companion that may run beside its older process.
            mark=str(
                Mark.of(
                    self.start_rights.run_dir if process.config.singleton else None, process.name, os.getpid()
                )
            ),
            # Those of a program are closed as it begins.
            close_logs=getattr(self.log, "close_in_child", None) if process.config.command is None else None,
        )

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

    def _fail(self, process: CompanionProcess, reason: str) -> None:
        self.table.send(process, Event.START_FAILED, time.monotonic(), reason=reason)
        self.release(process)
        self.log.error("Companion %s failed to start: %s", process.name, reason)

    def release(self, process: CompanionProcess) -> None:
        """Its session is empty. Between two starts the right to start it stays ours."""
        if process.state is State.STOPPED:
            self.let_go(process)
        else:
            self.start_rights.clear(process.name)
            self.notifications.discard(process.name)

    def let_go(self, process: CompanionProcess) -> None:
        """Release what a start was given, its run file last."""
        group = process.config.group
        self.notifications.close(process.name)
        copies = (p for p in self.table.values() if p.config.group == group)
        if process.config.bind and all(p.state is State.STOPPED for p in copies):
            # The next start, by us or by another server, opens them again.
            self.listeners.close(group)
        self.kept.write_overrides()
        self.start_rights.release(process.name)
