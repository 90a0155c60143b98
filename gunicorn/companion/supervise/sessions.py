# SPDX-License-Identifier: MIT
"""The processes of companions: reap them, signal them, keep their deadlines, and end their sessions."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from gunicorn.companion.child.mark import Mark, digest
from gunicorn.companion.failures import MIN_START_INTERVAL
from gunicorn.companion.output.capture import Capture
from gunicorn.companion.process import (
    GAVE_UP,
    Action,
    Cause,
    CompanionProcess,
    Event,
    State,
)
from gunicorn.companion.supervise import detached
from gunicorn.companion.supervise.leases import Leases
from gunicorn.companion.supervise.notify_sockets import Notifications
from gunicorn.companion.supervise.order import Stops
from gunicorn.companion.supervise.probes import Prober, label
from gunicorn.companion.supervise.rights import StartRights
from gunicorn.companion.table import Change, ProcessTable, Reporter
from gunicorn.companion.totals import Totals
from gunicorn.unix import session
from gunicorn.unix.cgroup import OomKills
from gunicorn.unix.kernel import KERNEL, Kernel
from gunicorn.unix.process import term_signal
from gunicorn.unix.signals import signal_name

# Seconds for the leftovers of a stopped companion to notice that they are alone, as helpers do when their
# pipe ends.
GRACE = 0.05

# Seconds after a deadline at which the manager must have been held up itself.
LATE = 1.0


@dataclass(eq=False, repr=False)
class Sessions:
    """Sends the companions of *table* the events of their processes, and carries out what follows.

    *after_exit* is called after each exit, *after_give_up* when there is no next start; *tell* sends the
    master a message. ``children`` is set where descendants that lose their parent become our children:
    prctl(2), PR_SET_CHILD_SUBREAPER.
    """

    table: ProcessTable
    log: Any
    _: KW_ONLY
    start_rights: StartRights
    notifications: Notifications
    totals: Totals
    stops: Stops
    reporter: Reporter
    after_exit: Callable[[CompanionProcess], object]
    after_give_up: Callable[[CompanionProcess], object]
    tell: Callable[[dict[str, Any]], object]
    leases: Leases
    capture: Capture | None = None
    prober: Prober | None = None
    kernel: Kernel = KERNEL
    # Finds what dead managers of a run directory have left.
    left: Callable[[str | None], Mapping[int, Mark]] = detached.left
    children: session.OwnChildren | None = field(default=None, init=False)
    adopted: detached.Adopted | None = field(default=None, init=False)
    _to_kill: set[CompanionProcess] = field(default_factory=set, init=False)
    # By session: when leftovers were seen first, and which of them have had SIGKILL.
    _seen: dict[int, float] = field(default_factory=dict, init=False)
    _killed: dict[int, set[int]] = field(default_factory=dict, init=False)
    # Processes outside of a draining session that have had the stop signal.
    _asked: set[int] = field(default_factory=set, init=False)
    _oom_kills: OomKills = field(init=False)

    def __post_init__(self) -> None:
        self._oom_kills = OomKills(self.kernel.oom_kills)

    def adopt(self, children: session.OwnChildren) -> None:
        """Adopt descendants that lose their parent from now on."""
        self.children = children
        self.adopted = detached.Adopted(children, self.start_rights.run_dir)

    # -- exits ---------------------------------------------------------------

    def reap(self) -> None:
        """Collect every child that has ended, adopted ones included."""
        while (found := self.kernel.wait()) is not None:
            pid, status, cpu = found
            process = self.table.by_pid(pid)
            if process is not None:
                self.totals.note_end(process.name, cpu)
                self._bury(process, pid, status)
            elif self.capture is not None and self.capture.reaped(pid, status):
                pass
            elif self.prober is not None and self.prober.reaped(pid, status):
                self._end_left_by_probes()
            elif self.leases.reaped(pid, status):
                pass
            elif any(p.draining for p in self.table.values()):
                # An adopted process, perhaps the last of a session that may finish.
                self.table.changed = True
            else:
                self._end_left_by_probes()

    def _bury(self, process: CompanionProcess, pid: int, status: int) -> None:
        run = self.start_rights.held(process.name)
        reason, exception = run.report_of(pid) if run is not None else (None, None)
        # Messages that it sent just before its exit count.
        self.notifications.receive(process)
        asked = process.state is State.STOPPING or process.name in self.stops
        obeyed = asked and not process.failing and not process.killed
        self.table.send(
            process,
            Event.EXITED,
            self.kernel.now(),
            status=status,
            reason=reason,
            exception=exception,
            cause=self._cause_of(process, status),
        )
        how = reason or process.last_exit
        if obeyed and reason is None and process.last_exit_code == 0:
            how = "stopped"
        elif obeyed and process.last_exit_signal in [signum for signum, _ in process.config.rungs]:
            how = f"stopped ({signal_name(process.last_exit_signal or 0)})"
        if asked or process.settled is not None:
            self.log.info("Companion %s (pid %d) %s, cause: %s", process.name, pid, how, process.cause)
        else:
            repeats = not process.well and not process.failures.must_log(self.kernel.now())
            (self.log.debug if repeats else self.log.warning)(
                "Companion %s (pid %d) %s, cause: %s; restarting in %.3gs%s",
                process.name,
                pid,
                how,
                process.cause,
                _delay_of(process),
                f"; {process.failures}" if process.failures.count > 1 and not process.well else "",
            )
        if process.settled == GAVE_UP:
            self._give_up(process)
        self.after_exit(process)

    def _cause_of(self, process: CompanionProcess, status: int) -> Cause | None:
        """Return OOM if the kernel has killed it for memory, and LEASE if the guard has; what else has ended
        it shows its status.
        """
        killed = term_signal(status) == signal.SIGKILL and process.state is not State.STOPPING
        if self._oom_kills.note_end(process.pid or 0, killed):
            return Cause.OOM
        return Cause.LEASE if killed and self.leases.has_ended(process) else None

    # -- actions and deadlines -------------------------------------------------

    def observe(self, change: Change) -> None:
        """Carry out what the table of transitions asks for, but the release."""
        process, config = change.process, change.process.config
        if change.event is Event.FORKED:
            self._oom_kills.note_start(process.pid or 0)
        if process.kill_count > change.before.kills:
            self.totals.note_kill(process.name, time.time())
        for action in change.actions:
            if action is Action.SIGNAL:
                self._ask_to_stop(process)
            elif action is Action.ABORT and process.pid is not None:
                self.log.error("Killing companion %s (pid %d): %s", process.name, process.pid, process.reason)
                self.kernel.ask_to_stop(process.pid, signal.SIGABRT, config.stop_as_group)
            elif action is Action.KILL:
                # At the next step, which reads the process table once for all of them.
                self._to_kill.add(process)
            elif action is Action.GIVE_UP and change.event is not Event.EXITED:
                # After an exit, `_bury` does it: it tells of the exit first.
                self._give_up(process)

    def _give_up(self, process: CompanionProcess) -> None:
        self.log.error("Companion %s %s", process.name, process.outlook(self.kernel.now()))
        self.after_give_up(process)
        if process.config.on_give_up == "shutdown":
            self.tell({"gave_up": process.name})

    def _ask_to_stop(self, process: CompanionProcess) -> None:
        name, pid, config, signum = process.name, process.pid, process.config, process.signal_to_stop
        if pid is None:
            # The leader is gone.
            self.kernel.ask_group_to_stop(process.session or 0, signum)
            return
        if process.failing and not process.rung:
            # Log before the signal, so that this line does not cut the companion's traceback in two.
            self.log.error("Stopping companion %s (pid %d): %s", name, pid, process.reason)
        self.log.info("Companion %s (pid %d) gets %s", name, pid, signal_name(signum))
        self.kernel.ask_to_stop(pid, signum, config.stop_as_group)
        if config.stop_as_group:
            self.start_rights.note_group_signalled(name, pid)

    def step(self, now: float) -> None:
        """Act on deadlines that have passed, then kill what is to be killed and find sessions empty."""
        for process in self.table.values():
            if process.due_event(now) is not None:
                self._act_on_deadline(process, now)
        for process in self._end_sessions(now):
            self.table.send(process, Event.EMPTY, now)

    def _act_on_deadline(self, process: CompanionProcess, now: float) -> None:
        if process.due_event(now) in (Event.NOT_READY, Event.HUNG):
            # It may have sent messages that have not been read yet.
            self.notifications.receive(process)
        due = process.due_event(now)
        if due is Event.HUNG and now > (process.watchdog_at or now) + LATE:
            # We were held up ourselves, and perhaps it was with us (a paused container).
            self.table.send(process, Event.BEAT, now)
        elif due is Event.DEADLINE:
            self.log.warning("Companion %s (pid %s) did not stop in time: SIGKILL", process.name, process.pid)
            self.table.send(process, Event.DEADLINE, now)
        elif due is Event.RECOVERED and process.failures.persist:
            self.log.info(
                "Companion %s has recovered after %d failures in a row", process.name, process.failures.count
            )
            self.table.send(process, due, now)
        elif due is not None and due is not Event.DELAY_PASSED:
            self.table.send(process, due, now)

    # -- ending sessions -------------------------------------------------------

    def _end_sessions(self, now: float) -> list[CompanionProcess]:
        """Kill leftovers; return the companions whose session has become empty.

        One read of the process table serves them all, and usually none is needed.
        """
        processes = self.table.values()
        ending = [p for p in processes if p.ending]
        own = {p for p in {*ending, *self._to_kill} if p.name not in self.start_rights.older}
        self._to_kill.clear()
        if not any(p.draining for p in ending):
            self._asked.clear()
        wanted = {p.session for p in own if p.session is not None} | self.start_rights.sessions_to_look_at(
            now
        )
        if not wanted:
            return []
        members: dict[int, list[int]] = {}
        away: dict[str, list[int]] = {}
        try:
            if not self._nothing_is_left(own, wanted):
                members, away = self.kernel.members(wanted), self._away(own)
        except OSError:
            # No descriptor is left to read with. Kill the processes that can be found without one; the next
            # step finds the rest.
            for process in own:
                if process.pid is not None:
                    self.kernel.send(process.pid, signal.SIGKILL)
            return []
        for process in own:
            outside = away.get(process.name, [])
            if process.draining:
                self._ask(process, outside)
            else:
                self._kill(process, members.get(process.session or 0, ()), outside, now)
        older = {p.name: self.start_rights.older[p.name] for p in ending if p not in own}
        gone_before = {
            name
            for name, orphan in older.items()
            if orphan.record.session in wanted and orphan.step(now, members)
        }
        gone_before -= self._end_left_by(gone_before)
        empty: list[CompanionProcess] = []
        for process in ending:
            if process in own:
                gone = process.session not in members and process.name not in away
            else:
                gone = process.name in gone_before
            if gone:
                self.start_rights.older.pop(process.name, None)
                empty.append(process)
                self._seen.pop(process.session or 0, None)
                self._killed.pop(process.session or 0, None)
        self._end_left_by(self.start_rights.step_orphans(now, wanted, members))
        return empty

    def _nothing_is_left(self, own: Iterable[CompanionProcess], wanted: set[int]) -> bool:
        """Whether the sessions *wanted* are empty: their leaders are gone, and nobody was adopted from them.

        A session is inherited only by fork, so all its members descend from its leader. When the leader is a
        zombie, the kernel has given each of its children to the nearest adopting ancestor, which is this
        process; the same holds for every descendant that dies. So if all our children are companions that we
        have forked, no descendant is left.
        """
        if self.children is None or wanted != {
            p.session for p in own if p.pid is None and p.waiting_for is None
        }:
            return False
        children = self.children.read()
        own_children = {p.pid for p in self.table.values()}
        own_children.update(helper.pid for helper in (self.capture, self.prober) if helper is not None)
        own_children |= self.leases.helper_pids
        return children is not None and children <= own_children

    def _kill(
        self, process: CompanionProcess, members: Sequence[int], outside: Sequence[int], now: float
    ) -> None:
        leader, number = process.pid, process.session or 0
        if leader is not None:
            # Kill the leader first: a supervisor in it would respawn what we kill. Right after the fork it
            # has not called setsid() yet, so `members` may not list it.
            self.kernel.send(leader, signal.SIGKILL)
        leftovers = [pid for pid in (*members, *outside) if pid != leader]
        early = leftovers and now < self._seen.setdefault(number, now) + GRACE
        if early and leader is None and process.state is State.STOPPING and not process.killed:
            return
        killed = self._killed.setdefault(number, set())
        fresh = [pid for pid in leftovers if pid not in killed]
        if fresh:
            killed.update(fresh)
            # Before the kill: dead processes have no names.
            self._report_leftovers(process, fresh, outside)
        for pid in leftovers:
            self.kernel.send(pid, signal.SIGKILL)

    def _report_leftovers(
        self, process: CompanionProcess, pids: Sequence[int], outside: Collection[int]
    ) -> None:
        """Log that *pids* are killed with the session of *process*; *outside*: those that have left it."""
        now = self.kernel.now()
        how = "is killed together with" if process.pid is not None else "has exited and left behind"
        self.log.warning(
            "Companion %s (pid %s) %s %s: SIGKILL", process.name, process.session, how, session.names_of(pids)
        )
        asked = process.state is State.STOPPING and process.settled is None and not process.killed
        if asked and process.pid is None and not process.config.stop_as_group:
            self.log.warning(
                "Companion %s: stop_as_group sends them the stop signal and lets them finish", process.name
            )
        hint = None
        if outside and process.pid is None and (process.state is not State.STOPPING or process.settled):
            # Nobody has asked it to end: as a daemon does, which another one would be started beside.
            hint = f"pid {', '.join(map(str, outside))} had detached itself: run it in the foreground"
            self.log.warning("Companion %s: %s", process.name, hint)
        self.table.send(process, Event.LEFTOVERS_KILLED, now, count=len(pids), reason=hint)
        self.reporter.broadcast("leftovers killed", process, now, pids=list(pids))

    # -- processes that have left their session --------------------------------

    def _away(self, processes: Iterable[CompanionProcess]) -> dict[str, list[int]]:
        """Map names of *processes* to the pids that have left their session and lost their parent."""
        if self.adopted is None:
            return {}
        everyone = self.table.values()
        sessions = {p.session for p in everyone}
        found = self.adopted.of([p.name for p in processes], [p.pid for p in everyone if p.pid is not None])
        return {
            name: outside
            for name, pids in found.items()
            if (outside := [pid for pid in pids if session.session_of(pid) not in sessions])
        }

    def belonging(self) -> Mapping[int, int]:
        """Map processes that have left their session and lost their parent to that session."""
        sessions = {p.name: p.session for p in self.table.values()}
        try:
            away = self._away(self.table.values())
        except OSError:
            return {}
        return {pid: sessions[name] or 0 for name, pids in away.items() for pid in pids}

    def _ask(self, process: CompanionProcess, outside: Iterable[int]) -> None:
        """Send the stop signal, once, to processes outside the process group that had it."""
        for pid in outside:
            if pid not in self._asked:
                self._asked.add(pid)
                self.kernel.ask_to_stop(pid, process.signal_to_stop)

    # -- what dead managers have left --------------------------------------------

    def _end_left_by(self, names: Collection[str]) -> set[str]:
        """Kill leftovers of the older processes of *names*; return the names that had some."""
        if not names or self.adopted is None:
            return set()
        wanted = {digest(name): name for name in names}
        try:
            left = self.left(self.start_rights.run_dir)
        except OSError:
            # No descriptor is left to look with; the next step does.
            return set(names)
        found = {pid: wanted[mark.name] for pid, mark in left.items() if mark.name in wanted}
        if found:
            self._report_old_leftovers(found)
        for pid in found:
            self.kernel.send(pid, signal.SIGKILL)
        return set(found.values())

    def end_left(self) -> list[str]:
        """Kill leftovers of dead managers; return the names whose older processes are still ending.

        Their leftovers follow.
        """
        if self.adopted is None:
            return []
        try:
            older = self.start_rights.with_older_processes()
        except OSError:
            return []
        busy = {digest(name) for name in older}
        run_dir = self.start_rights.run_dir
        detached.end_left(
            lambda: self.left(run_dir), self._report_old_leftovers, lambda mark: mark.name not in busy
        )
        return older

    def _end_left_by_probes(self) -> None:
        """Kill what commands of `probe` and `liveness` have left, for a prober that was killed.

        It comes to us generation by generation, as the one before it ends.
        """
        checked = [p.name for p in self.table.values() if p.config.probe or p.config.liveness]
        if not checked or self.adopted is None:
            return
        own = [p.pid for p in self.table.values() if p.pid is not None]
        with contextlib.suppress(OSError):
            for pids in self.adopted.of([label(name) for name in checked], own).values():
                for pid in pids:
                    self.kernel.send(pid, signal.SIGKILL)

    def _report_old_leftovers(self, pids: Collection[int]) -> None:
        self.log.warning("Companions of a dead manager left behind %s: SIGKILL", session.names_of(pids))

    def descriptors(self) -> list[int]:
        return [self.children.fd] if self.children is not None and self.children.fd >= 0 else []

    def close(self) -> None:
        if self.children is not None:
            self.children.close()


def _delay_of(process: CompanionProcess) -> float:
    """Seconds from its exit to its next start."""
    wait = (process.next_retry_at or 0.0) - (process.exited_at or 0.0)
    # In a crash loop the delay may be longer than configured.
    return wait if wait > MIN_START_INTERVAL else process.delay
