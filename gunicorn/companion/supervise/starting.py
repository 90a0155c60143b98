# SPDX-License-Identifier: MIT
"""Start companions: choose those that are due, prepare them, fork, and clean up failures."""

from __future__ import annotations

import errno
import functools
import itertools
import resource
import time
from collections.abc import Iterable, Iterator
from socket import socket
from typing import TYPE_CHECKING, Any

from gunicorn.companion.child.descriptors import runs
from gunicorn.companion.child.ending import flush
from gunicorn.companion.detached import Mark
from gunicorn.companion.process import CompanionProcess, Event, State
from gunicorn.companion.runfile import RunFile
from gunicorn.companion.spawn import Birth, Plan, server_variables, spawn
from gunicorn.companion.supervise import order
from gunicorn.companion.supervise.claims import Blocked

if TYPE_CHECKING:
    from gunicorn.companion.manager import CompanionManager

# Companions that are started before others, and the control socket, have their turn.
STARTS_AT_ONCE = 64
# Seconds that new processes are given before we go on.
HEAD_START = 0.002


def no_hook(manager: Any, companion: CompanionProcess) -> None:
    """The default of every hook."""


def _explain(exc: OSError) -> str:
    """What the system says; of a limit also how high it is and where it is set."""
    text = exc.strerror or str(exc)
    if exc.errno != errno.EMFILE:
        return text
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"{text} (the limit is {limit}: LimitNOFILE=, ulimit -n)"


# The right to start, the sockets of `bind`, the address of the notify socket.
_Prepared = tuple[RunFile, list[socket], str | None]


class Starter:
    """Starts the companions of *manager*, and lets go of what each start was made with."""

    def __init__(self, manager: CompanionManager) -> None:
        self.manager = manager

    def start_due(self, now: float) -> bool:
        """Start what may be started; False if there is more of it."""
        manager = self.manager
        idle = [p for p in manager.processes.values() if p.pid is None]
        for process in idle:
            if process.due_event(now) is Event.DELAY_PASSED:
                manager.send_event(process, Event.DELAY_PASSED, now)
        # What held it up may be in its configuration no more.
        waiting = [p for p in idle if p.state is State.STARTING and (p.config.after or p.held_by)]
        order.hold(manager.processes, waiting)
        due = [process for process in idle if process.can_start(now)]
        return not due or self.spawn(due)

    def spawn(self, processes: Iterable[CompanionProcess]) -> bool:
        """Fork each of *processes* that no older self is in the way of; False if some are left for later.

        Everything that goes before comes first for all of them, then the forks, then what follows: after
        a fork each page that is written to is copied, so as little as can be happens between two.
        """
        manager = self.manager
        found = ((each, its) for each in processes if (its := self._prepare(each)) is not None)
        # Those that have to wait for somebody take no turn away.
        prepared = list(itertools.islice(found, STARTS_AT_ONCE))
        # What has got its own descriptors now is not to fail for want of one to read with for a moment.
        with manager.spare_descriptors():
            close, unwanted = runs(manager.descriptors()), server_variables()
            plans = [(each, Plan.of(self._birth(each, its, close), unwanted)) for each, its in prepared]
            # What is buffered must be written once, not by parent and child.
            flush()
            if manager.pre_fork is no_hook:
                pids = spawn([plan for _, plan in plans])
                forked = [(process, pid) for (process, _), pid in zip(plans, pids, strict=True)]
            else:
                forked = list(self._hooked(plans))
        now = time.monotonic()
        if forked:
            # The new ones go first, if they are on our core: what follows has time. To yield is not enough,
            # for each of them is a session of its own, which the scheduler may treat as a group.
            time.sleep(HEAD_START)
        manager.say()
        for process, pid in forked:
            if isinstance(pid, int):
                manager.forked(process, pid, now)
            else:
                self._fail(process, f"cannot fork: {pid.strerror}")
        return len(prepared) < STARTS_AT_ONCE

    def _hooked(
        self, plans: Iterable[tuple[CompanionProcess, Plan]]
    ) -> Iterator[tuple[CompanionProcess, int | OSError]]:
        """Fork each after its `companion_pre_fork`, but for those that it has stopped."""
        manager = self.manager
        for process, plan in plans:
            manager.call_hook("companion_pre_fork", manager.pre_fork, process)
            if process.state is State.STARTING:
                flush()
                [forked] = spawn([plan])
                yield process, forked

    def _prepare(self, process: CompanionProcess) -> _Prepared | None:
        """What a start is made with; None where it has to wait, or has failed."""
        manager, config = self.manager, process.config
        try:
            run = self.claim(process, time.monotonic())
        except OSError as exc:
            self._fail(process, f"cannot make its run file: {_explain(exc)}")
            return None
        if run is None:
            return None
        try:
            listeners = manager.listeners.open(config.group, config.bind) if config.bind else []
            # Where the run file has a name, its directory is one to write to.
            run_dir = None if run.path is None else manager.claims.run_dir
            return run, listeners, manager.hearing.open(process, run_dir)
        except OSError as exc:
            blocked = self._who_listens(process) if exc.errno == errno.EADDRINUSE else None
            if blocked is not None:
                manager.send_event(process, Event.BLOCKED, time.monotonic(), pid=blocked.pid)
            else:
                self._fail(process, _explain(exc))
            return None

    def _who_listens(self, process: CompanionProcess) -> Blocked | None:
        """Who has an address of *process* and is to give it up; None where nobody of ours is."""
        manager, config = self.manager, process.config
        pid = manager.claims.other_owner(config.group)
        if pid is not None:
            # Over an upgrade copies change hands one by one, and the socket with the last of them.
            return Blocked(pid)
        other = manager.listeners.group_on(config.bind, besides=config.group)
        for one in manager.processes.values():
            if one.config.group == other:
                # The configuration gives an address to one; it has moved, and its last owner still ends.
                return Blocked(one.pid)
        return Blocked(None) if manager.listeners.is_elsewhere(config.bind) else None

    def _birth(self, process: CompanionProcess, prepared: _Prepared, close: list[tuple[int, int]]) -> Birth:
        manager, hook = self.manager, self.manager.post_fork
        run, listeners, notify = prepared
        return Birth(
            config=process.config,
            run=run,
            close=close,
            post_fork=None if hook is no_hook else functools.partial(hook, manager, process),
            nofile=manager.nofile,
            watch=manager.watch,
            listeners=listeners,
            notify=notify,
            # No next manager ends what is left of one that may run beside its older self.
            mark=str(
                Mark.of(
                    manager.claims.run_dir if process.config.singleton else None, process.name, manager.pid
                )
            ),
            # Those of a program are closed as it begins.
            close_logs=getattr(manager.log, "close_in_child", None)
            if process.config.command is None
            else None,
        )

    def claim(self, process: CompanionProcess, now: float) -> RunFile | None:
        """The locked run file; None, and the process BLOCKED, while an older self is in the way."""
        manager = self.manager
        claimed = manager.claims.claim(process.name, now, singleton=process.config.singleton)
        if isinstance(claimed, Blocked):
            manager.send_event(process, Event.BLOCKED, now, pid=claimed.pid, session=claimed.session)
            return None
        if manager.must_follow_first:
            # Over an upgrade: this may be free because it was stopped by command.
            manager.claims.clear(process.name)
            manager.look_again()
            return None
        return claimed

    def _fail(self, process: CompanionProcess, reason: str) -> None:
        manager = self.manager
        manager.send_event(process, Event.START_FAILED, time.monotonic(), reason=reason)
        self.release(process)
        manager.log.error("Companion %s failed to start: %s", process.name, reason)

    def release(self, process: CompanionProcess) -> None:
        """Its session is empty. Between two starts the right to start it stays ours."""
        if process.state is State.STOPPED:
            self.let_go(process)
        else:
            self.manager.claims.clear(process.name)
            self.manager.hearing.forget(process.name)

    def let_go(self, process: CompanionProcess) -> None:
        """Give up what a start is made with, the right to it last."""
        manager, group = self.manager, process.config.group
        manager.hearing.close(process.name)
        copies = (p for p in manager.processes.values() if p.config.group == group)
        if process.config.bind and all(p.state is State.STOPPED for p in copies):
            # Whoever is started next, by us or by another server, opens them anew.
            manager.listeners.close(group)
        manager.keep_orders()
        manager.claims.release(process.name)
