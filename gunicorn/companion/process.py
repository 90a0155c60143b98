# SPDX-License-Identifier: MIT
"""The life of one companion, as plain data and pure transitions.

Nothing here forks, kills or looks at a clock: ``now`` (monotonic seconds) and wait statuses come in as
arguments, and a tuple of `Action` goes out for the caller to carry out. All changes of state go through
`CompanionProcess.handle` and its table of (state, event). A pair that is not in the table is a bug in the
caller and raises `TransitionError`.
"""

from __future__ import annotations

import enum
import math
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.failures import MIN_START_INTERVAL
from gunicorn.companion.probe import Findings
from gunicorn.companion.runfile import DRAIN_INTERVAL
from gunicorn.companion.status import (
    EXITED,
    GAVE_UP,
    Cause,
    State,
    Status,
    cause_of_exit,
)

__all__ = [
    "ABORT_TIME",
    "EXITED",
    "GAVE_UP",
    "JITTER",
    "LONGEST_WAIT",
    "MIN_START_INTERVAL",
    "POLL_INTERVAL",
    "TRANSITIONS",
    "WAIT_INTERVAL",
    "Action",
    "Cause",
    "CompanionProcess",
    "Event",
    "State",
    "TransitionError",
]

# Members of a session that are not our children give no SIGCHLD: poll for their end at this interval, only
# while a session is ending.
POLL_INTERVAL = 0.05

# A companion of another server may run for long: check whether it has gone after this time, and then at
# intervals that double up to the longest.
WAIT_INTERVAL = 0.25
LONGEST_WAIT = 2.0

# Seconds from SIGABRT to SIGKILL, for a hung process to write the stacks of its threads.
ABORT_TIME = 2.0

# A growing delay is shortened by up to this part, at random: companions that failed together must not come
# back together.
JITTER = 0.1


class Event(enum.Enum):
    """The events of a companion."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    FORKED = "forked"
    BLOCKED = "blocked"
    START_FAILED = "start failed"
    ALIVE = "alive for startsecs"
    EXITED = "exited"
    EMPTY = "session empty"
    DELAY_PASSED = "delay passed"
    DEADLINE = "deadline passed"
    READY = "ready"
    PROBED = "probe succeeded"
    BEAT = "alive by its own word"
    NOT_READY = "not ready in time"
    HUNG = "silent for too long"
    LEFTOVERS_KILLED = "what it left behind was killed"
    LEASE_LOST = "lost its lease"
    OVERTIME = "ran for longer than max_runtime"
    RECOVERED = "has run for longer than its failures"
    ESCALATE = "the next stop signal is due"


class Action(enum.Enum):
    """What the manager has to do after an event."""

    SIGNAL = "send the stop signal"
    KILL = "SIGKILL to every process of the session"
    RELEASE = "clear the run record"
    ABORT = "have it write its stacks: SIGABRT"
    GIVE_UP = "report that it is not retried"


class TransitionError(Exception):
    """Raised for an event that cannot happen in this state."""


@dataclass(frozen=True, slots=True)
class Details:
    """The details of an event; which fields count depends on the event."""

    now: float
    pid: int | None = None
    session: int | None = None
    status: int | None = None
    reason: str | None = None
    timeout: float | None = None
    manual: bool = False
    count: int = 0
    cause: Cause | None = None
    exception: str | None = None


class CompanionProcess(Status):
    """One companion: its data, and the transitions that change them. *chance* gives numbers from 0 to 1."""

    def __init__(self, config: CompanionConfig, chance: Callable[[], float] = random.random) -> None:
        super().__init__(config)
        self.chance = chance

    def __repr__(self) -> str:
        return f"<companion {self.name} {self.state.value} pid={self.pid}>"

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def has_been_running(self) -> bool:
        """Whether companions that come after it may start: it is RUNNING, or a job that is done."""
        return self.state is State.RUNNING or self.done

    @property
    def settled_state(self) -> dict[str, Any] | None:
        """The reason why it stays stopped, for the next manager; None if it does not."""
        if self.settled is None:
            return None
        return {
            "settled": self.settled,
            "reason": self.reason,
            "last_status": self.last_status,
            "failed_starts": self.failed_starts,
            "spent": self.spent,
            "gave_up_at": self.gave_up_at,
        }

    def restore_settled(self, state: Mapping[str, Any]) -> None:
        """Take over the ``settled_state`` of the same companion in an earlier manager."""
        self.settled = state["settled"]
        self.reason = state["reason"]
        self.failed_starts = state["failed_starts"]
        self.spent, self.gave_up_at = state.get("spent"), state.get("gave_up_at")
        if state["last_status"] is not None:
            self._note_status(state["last_status"])

    # -- transitions -------------------------------------------------------

    def handle(self, event: Event, now: float, **details: Any) -> tuple[Action, ...]:
        """Apply *event*; return the actions, in order. Raises TransitionError if the table has no entry for
        the pair.
        """
        step = TRANSITIONS.get((self.state, event))
        if step is None:
            raise TransitionError(f"companion {self.name}: {event.value!r} in state {self.state.value}")
        before = self.state
        actions = step(self, Details(now, **details))
        if self.state is not before:
            self.since = now
        return actions

    def _want_start(self, d: Details) -> tuple[Action, ...]:
        """STARTING without a process: the manager forks as soon as `can_start` allows."""
        self.state = State.STARTING
        self.manual_stop = False
        self.restart_pending = False
        self.failing = False
        self.killed = False
        self.group_asked = False
        self.stop_deadline = None
        self.settled = self.spent = self.gave_up_at = None
        self.stays_down = False
        self.reason = None
        self.held_by, self.stuck, self.hopeless = (), None, False
        self.standby = False
        self.wait = 0.0
        self.next_retry_at = self._earliest_start(d.now)
        return ()

    def _start_afresh(self, d: Details) -> tuple[Action, ...]:
        """Start on request: earlier failures no longer count."""
        self._count_anew()
        self.failures.forget()
        return self._want_start(d)

    def _retry_given_up(self, d: Details) -> tuple[Action, ...]:
        """Start `retry_after` a give-up. Nothing shows that it fails no more, so the failures go on."""
        self._count_anew()
        return self._want_start(d)

    def _count_anew(self) -> None:
        self.failed_starts = self.delays = 0
        self.tries.clear()

    def _earliest_start(self, now: float) -> float:
        if self.started_at is None:
            return now
        return max(now, self.started_at + self.failures.start_interval)

    def _nothing(self, d: Details) -> tuple[Action, ...]:
        return ()

    def _forked(self, d: Details) -> tuple[Action, ...]:
        self.pid = self.session = d.pid
        self.waiting_for = None
        self.started_at = d.now
        self.next_retry_at = None
        self.status_text = None
        self.notified = self.probed = False
        self.probe_findings, self.liveness_findings = Findings(), Findings()
        self.start_count += 1
        self.starts.append(d.now)
        self.tries.append(d.now)
        self.jitter_share = self.chance()
        return ()

    def _blocked(self, d: Details) -> tuple[Action, ...]:
        """An older process lives. *session*: we stop it. None: another server supervises it (or holds its
        record), and we retry in a moment.
        """
        # 0: the process of another server, whose pid is not known.
        self.waiting_for = d.pid if d.pid is not None or d.session is not None else 0
        self.session = d.session
        if d.session is not None:
            self.next_retry_at = d.now + POLL_INTERVAL
        else:
            self.wait = min(LONGEST_WAIT, max(WAIT_INTERVAL, 2 * self.wait))
            # Check all waiting companions together.
            self.next_retry_at = (d.now // self.wait + 1) * self.wait
        return ()

    def _alive(self, d: Details) -> tuple[Action, ...]:
        self.state = State.RUNNING
        if not self.awaited:
            self.failed_starts = 0
        self.hint = None
        return self._beat(d)

    def _ready(self, d: Details) -> tuple[Action, ...]:
        """READY=1, which counts only with `ready` = "notify"."""
        self.notified = True
        return self._ready_by_all(d)

    def _probed(self, d: Details) -> tuple[Action, ...]:
        """Its `probe` has succeeded as often as wanted."""
        self.probed = True
        return self._ready_by_all(d)

    def _ready_by_all(self, d: Details) -> tuple[Action, ...]:
        """With both `ready` = "notify" and `probe`, both must have come."""
        if self.pid is None or not self.waits_for_readiness or self.unready:
            return ()
        return self._alive(d)

    @property
    def waits_for_readiness(self) -> bool:
        """Whether it is RUNNING when it is known to be ready, and not after `startsecs`."""
        return self.config.ready == "notify" or self.config.probe is not None

    @property
    def unready(self) -> bool:
        """Whether a sign of readiness is still missing."""
        return (self.config.ready == "notify" and not self.notified) or (
            self.config.probe is not None and not self.probed
        )

    def _beat(self, d: Details) -> tuple[Action, ...]:
        self.watchdog_at = None if self.config.watchdog is None else d.now + self.config.watchdog
        return ()

    def _not_ready(self, d: Details) -> tuple[Action, ...]:
        self.failed_starts += 1
        reason = f"not ready within {self.config.start_timeout:g}s"
        if self.config.probe is not None and self.probe_findings.trouble:
            reason += f": {self.probe_findings.trouble}"
        self._fail(d.now, Cause.NOT_READY, reason, self.config.stop_timeout)
        return self._first_signal(d.now)

    def _hung(self, d: Details) -> tuple[Action, ...]:
        reason = d.reason or f"no WATCHDOG=1 for {self.config.watchdog or 0:g}s"
        self._fail(d.now, d.cause or Cause.WATCHDOG, reason, ABORT_TIME)
        return (Action.ABORT,)

    def _hung_starting(self, d: Details) -> tuple[Action, ...]:
        """It has sent WATCHDOG=trigger; the watchdog's clock runs only in RUNNING."""
        if self.pid is None:
            return ()
        self.failed_starts += 1
        return self._hung(d)

    def _overtime(self, d: Details) -> tuple[Action, ...]:
        if self.awaited or self.state is State.STARTING:
            self.failed_starts += 1
        reason = f"it ran for longer than max_runtime, {self.config.max_runtime or 0:g}s"
        self._fail(d.now, Cause.MAX_RUNTIME, reason, self.config.stop_timeout)
        return self._first_signal(d.now)

    def _lease_lost(self, d: Details) -> tuple[Action, ...]:
        """It has until the timeout of the event, and starts again when it has another lease."""
        if self.pid is None:
            return ()
        # Whether the run of a schedule is made again, who gets the lease finds out.
        return self._restart(d) if self.config.schedule is None else self._stop(d)

    def _lease_lost_stopping(self, d: Details) -> tuple[Action, ...]:
        """The end of its lease comes before that of its stop."""
        if d.timeout is not None and self.stop_deadline is not None:
            self.stop_deadline = min(self.stop_deadline, d.now + d.timeout)
        return ()

    def _fail(self, now: float, cause: Cause, reason: str, timeout: float) -> None:
        """End it as a stop would; then treat it as if it had exited by itself."""
        self._begin_stop(now + timeout, failing=True)
        self.rung, self.well = None, False
        self.reason = reason
        self.cause, self.cause_text = cause, reason
        self.failures.note(now - (self.started_at or now), reason)

    def _begin_stop(self, deadline: float, *, failing: bool) -> None:
        """Go to STOPPING. *failing*: what follows its end is what follows an exit."""
        self.state = State.STOPPING
        self.failing = failing
        self.restart_pending = self.killed = False
        self.group_asked = self.config.stop_as_group
        self.stop_deadline = deadline

    def _start_failed(self, d: Details) -> tuple[Action, ...]:
        """There is no process: the fork was refused, or the run file could not be made."""
        self.reason = d.reason
        self.waiting_for = None
        self.started_at = d.now
        self.tries.append(d.now)
        self.failed_starts += 1
        self.well = False
        self.failures.note(0.0, d.reason or "not started")
        return self._try_again(d)

    def _exited(self, d: Details) -> tuple[Action, ...]:
        # With `startsecs` of 0, or a busy manager, RUNNING may have been due already. With a reason, it did
        # not reach its target.
        was_running = d.reason is None and self.due_event(d.now) is Event.ALIVE
        self._record_exit(d)
        self.reason = d.reason
        self.cause = d.cause or cause_of_exit(self.last_status or 0, self.config.success_exit_codes)
        self.cause_text = d.reason or self.last_exit
        # Without its lease it did not fail.
        good = self.ended_well or self.cause is Cause.LEASE
        if self.awaited or (self.state is State.STARTING and not was_running):
            # A job that is done has not failed, even if it was quicker than `startsecs`.
            good = good and not self._comes_back
            self.failed_starts = 0 if good else self.failed_starts + 1
        else:
            self.failed_starts = 0
        self.well = good
        if not good:
            self.failures.note(self.latest_run, self.cause_text)
        if self.config.stop_as_group and self.last_exit_signal == self.config.stop_signal:
            return self._asked_by_others(d)
        actions = self._try_again(d) if self._comes_back else self._settle(EXITED)
        return (*actions, Action.KILL)

    def _asked_by_others(self, d: Details) -> tuple[Action, ...]:
        """Let its group end as at a stop, then count the exit: somebody else has sent it the stop signal."""
        self._begin_stop(d.now + self.config.stop_timeout, failing=True)
        return self._first_signal(d.now)

    @property
    def _comes_back(self) -> bool:
        """Whether the latest exit leads to another start."""
        if self.config.schedule is not None:
            return (self.failing or not self.ended_well) and self._may_try_again
        if self.config.autorestart == "on-failure":
            # A process that had to be ended has failed, even if it then exited with 0.
            return self.failing or not self.ended_well
        return self.config.autorestart == "always"

    @property
    def _may_try_again(self) -> bool:
        """Whether `schedule_retries` leaves another try of this run."""
        return len(self.tries) <= self.config.schedule_retries

    def _try_again(self, d: Details) -> tuple[Action, ...]:
        """Go to BACKOFF; or give up, after `start_retries` failed starts or by `start_limit`."""
        if self.config.schedule is not None and not self._may_try_again:
            return self._settle(EXITED)
        retries, limit = self.config.start_retries, self.config.start_limit
        if retries is not None and self.failed_starts >= retries:
            count = self.failed_starts
            return self._give_up(d, f"{count} failed start{'s' if count != 1 else ''}")
        next_start = self._back_off(d)
        if limit is not None and sum(t > next_start - limit.seconds for t in self.tries) >= limit.starts:
            return self._give_up(d, str(limit))
        return ()

    def _give_up(self, d: Details, spent: str) -> tuple[Action, ...]:
        self.spent, self.gave_up_at = spent, d.now
        return (*self._settle(GAVE_UP), Action.GIVE_UP)

    def _settle(self, settled: str) -> tuple[Action, ...]:
        """Go to STOPPED without a command, through STOPPING while leftovers of the session end."""
        self.settled = settled
        self.failing = False
        self.next_retry_at = self.stop_deadline = None
        self.killed = self.session is not None
        self.state = State.STOPPING if self.killed else State.STOPPED
        return ()

    def _back_off(self, d: Details) -> float:
        """Wait for the next start; return when that is."""
        self.state = State.BACKOFF
        self.failing = False
        self.killed = False
        self.stop_deadline = None
        self.delay = self._next_delay()
        self.next_retry_at = max(d.now + self.delay, self._earliest_start(d.now))
        return self.next_retry_at

    def _next_delay(self) -> float:
        """`restart_delay`; after failures in a row twice as much each time, up to `restart_delay_max`.

        A run that is longer than the longest delay ends the row: one that outlasts a short delay, and dies
        again, has not recovered.
        """
        shortest, longest = self.config.restart_delay, self.config.restart_delay_max
        if longest is None:
            return shortest
        # A failed start is no run, however long it took.
        if self.well or (self.failed_starts == 0 and self.latest_run > longest):
            self.delays = 0
        if self.well:
            return shortest
        self.delays += 1
        if self.delays == 1:
            return shortest
        # 0 would never grow, and a float has no larger powers of two.
        grown = max(shortest, MIN_START_INTERVAL) * 2.0 ** min(self.delays - 1, 100)
        delay = min(longest, grown)
        return max(shortest, delay - delay * JITTER * self.chance())

    @property
    def latest_run(self) -> float:
        """Seconds from the latest start to its end."""
        if self.started_at is None or self.exited_at is None:
            return 0.0
        return max(0.0, self.exited_at - self.started_at)

    def _record_exit(self, d: Details) -> None:
        assert d.status is not None
        self.pid = None
        self.exited_at = d.now
        self.exit_count += 1
        self.exception = d.exception
        self._note_status(d.status)

    def _note_status(self, status: int) -> None:
        self.last_status = status
        code = os.waitstatus_to_exitcode(status)
        self.last_exit_code = code if code >= 0 else None
        self.last_exit_signal = -code if code < 0 else None

    def _stop(self, d: Details) -> tuple[Action, ...]:
        """Ask a running process to end within the timeout of the event."""
        self._note_manual(d)
        self.cause = Cause.COMMAND if d.manual else d.cause
        self.cause_text = "by command" if d.manual else d.reason
        timeout = self.config.stop_timeout if d.timeout is None else d.timeout
        if self.config.stop_signals:
            # A longer `reload_timeout` gives no signal more time than it has.
            timeout = min(timeout, self.config.stop_timeout)
        self._begin_stop(d.now + timeout, failing=False)
        return self._first_signal(d.now)

    def _first_signal(self, now: float) -> tuple[Action, ...]:
        """Send the first stop signal; a later one where there is no time left for the first."""
        self.rung = 0
        while self._escalates(now):
            self.rung += 1
        return (Action.SIGNAL,)

    def _escalates(self, now: float) -> bool:
        """Whether the next stop signal is due."""
        next_rung = self._next_rung()
        return next_rung is not None and now >= next_rung[0]

    def _escalate(self, d: Details) -> tuple[Action, ...]:
        """Send the next stop signal; with less time than before, one of the later ones."""
        if not self._escalates(d.now):
            return ()
        while self.rung is not None and self._escalates(d.now):
            self.rung += 1
        return (Action.SIGNAL,)

    @property
    def signal_to_stop(self) -> int:
        """The stop signal whose turn it is."""
        rungs = self.config.rungs
        # A reread may have made them fewer.
        return rungs[min(self.rung or 0, len(rungs) - 1)][0]

    def _restart(self, d: Details) -> tuple[Action, ...]:
        timeout = self.config.reload_timeout if d.timeout is None else d.timeout
        actions = self._stop(replace(d, timeout=timeout, manual=False))
        self.manual_stop = False
        self.restart_pending = True
        return actions

    def _stop_or_settle(self, d: Details) -> tuple[Action, ...]:
        """Stop a companion that is between two processes, or whose process is still starting."""
        if self.pid is not None:
            return self._stop(d)
        self._note_manual(d)
        self.restart_pending = False
        self.next_retry_at = None
        self.reason = None
        self.held_by, self.stuck, self.hopeless = (), None, False
        self.standby = False
        if self.session is not None:
            # The leader is gone and its leftovers have had SIGKILL, or an older process ends by its own
            # deadline: just wait.
            self.state = State.STOPPING
            self.killed = self.waiting_for is None
            return ()
        self.state = State.STOPPED
        self.waiting_for = None
        return (Action.RELEASE,)

    def _restart_starting(self, d: Details) -> tuple[Action, ...]:
        """Restart; without a process, the pending start is the restart."""
        if self.pid is not None:
            return self._restart(d)
        self._count_anew()
        self.failures.forget()
        return ()

    def _stop_stopped(self, d: Details) -> tuple[Action, ...]:
        self._note_manual(d)
        self.stays_down = True
        return ()

    def _stop_stopping(self, d: Details) -> tuple[Action, ...]:
        self._note_manual(d)
        self.restart_pending = False
        self.stays_down = True
        if self.failing:
            self.failing = False
            self.reason = None
        if d.timeout is not None and self.stop_deadline is not None:
            # A quicker stop, after SIGINT to the server for example. Never move a deadline to a later time.
            self.stop_deadline = min(self.stop_deadline, d.now + d.timeout)
        return ()

    def _come_back(self, d: Details) -> tuple[Action, ...]:
        """Start it again after its end: a reread has removed it and brings it back."""
        # A next manager must not take it for one that has settled.
        self.settled = None
        self.restart_pending = True
        return ()

    def _note_manual(self, d: Details) -> None:
        if d.manual:
            self.manual_stop = True
            self.settled = self.reason = None

    def _exited_stopping(self, d: Details) -> tuple[Action, ...]:
        self._record_exit(d)
        if not self.failing:
            self.reason = d.reason
        # A launcher may exit at once, while the processes that do the work finish it.
        return () if self.draining else (Action.KILL,)

    def _deadline(self, d: Details) -> tuple[Action, ...]:
        if self.killed:
            return ()
        self.killed = True
        self.kill_count += 1
        return (Action.KILL,)

    def _leftovers_killed(self, d: Details) -> tuple[Action, ...]:
        self.leftovers_killed += d.count
        self.hint = d.reason or self.hint
        return ()

    def _recovered(self, d: Details) -> tuple[Action, ...]:
        self.failures.forget()
        return ()

    def _empty(self, d: Details) -> tuple[Action, ...]:
        """The session that was still ending is empty: nothing blocks the next start."""
        self.session = self.waiting_for = None
        return (Action.RELEASE,)

    def _empty_stopping(self, d: Details) -> tuple[Action, ...]:
        self.session = self.waiting_for = None
        self.stop_deadline = None
        self.killed = False
        if self.restart_pending:
            return (Action.RELEASE, *self._start_afresh(d))
        if self.failing:
            return (Action.RELEASE, *(self._try_again(d) if self._comes_back else self._settle(EXITED)))
        self.state = State.STOPPED
        return (Action.RELEASE,)

    # -- what is due -------------------------------------------------------

    @property
    def ending(self) -> bool:
        """Whether it waits for leftovers of a session, whose exits give no SIGCHLD."""
        return self.pid is None and self.session is not None

    @property
    def draining(self) -> bool:
        """Whether leftovers of its session may finish, because they got the stop signal too."""
        return self.state is State.STOPPING and self.ending and self.group_asked and not self.killed

    def can_start(self, now: float) -> bool:
        """Whether the manager should fork it now."""
        return (
            self.state is State.STARTING
            and self.pid is None
            and self.session is None
            and not self.held_by
            and not self.standby
            and self.next_retry_at is not None
            and now >= self.next_retry_at
        )

    def _coming(self) -> tuple[float, Event] | None:
        """The next event by the clock, and its time."""
        found = [self._coming_in_state(), self._coming_to_its_limits()]
        return min((each for each in found if each is not None), key=lambda each: each[0], default=None)

    def _coming_to_its_limits(self) -> tuple[float, Event] | None:
        """The end of its `max_runtime`, or of its failures in a row."""
        if self.started_at is None or self.pid is None or self.state is State.STOPPING:
            return None
        proof = self.failures.proof if self.failures.count and self.state is State.RUNNING else math.inf
        limit = math.inf if self.config.max_runtime is None else self.config.max_runtime
        if proof < limit:
            return self.started_at + proof, Event.RECOVERED
        return None if limit == math.inf else (self.started_at + limit, Event.OVERTIME)

    def _coming_in_state(self) -> tuple[float, Event] | None:
        if self.state is State.STARTING and self.pid is not None and self.started_at is not None:
            if self.unready:
                return self.started_at + self.config.start_timeout, Event.NOT_READY
            if self.waits_for_readiness:
                # A reread has taken away the sign that was missing.
                return self.started_at, Event.ALIVE
            return self.started_at + self.config.startsecs, Event.ALIVE
        if self.state is State.RUNNING and self.watchdog_at is not None:
            return self.watchdog_at, Event.HUNG
        if self.state is State.BACKOFF and self.next_retry_at is not None:
            return self.next_retry_at, Event.DELAY_PASSED
        if self.state is State.STOPPED and self.settled == GAVE_UP and self.retry_at is not None:
            return self.retry_at, Event.DELAY_PASSED
        if self.state is State.STOPPING and self.stop_deadline is not None and not self.killed:
            if (next_rung := self._next_rung()) is not None:
                return next_rung[0], Event.ESCALATE
            return self.stop_deadline, Event.DEADLINE
        return None

    def due_event(self, now: float) -> Event | None:
        """The event that is due by the clock, if any."""
        coming = self._coming()
        return coming[1] if coming is not None and now >= coming[0] else None

    def next_deadline(self, now: float) -> float | None:
        """When the manager must look at this companion again; None: only when something happens."""
        coming = self._coming()
        when = None if coming is None else coming[0]
        if self.pid is None:
            if self.session is not None:
                when = _earlier(when, now + (DRAIN_INTERVAL if self.draining else POLL_INTERVAL))
            elif self.state is State.STARTING and not self.held_by and not self.standby:
                when = _earlier(when, self.next_retry_at)
        elif self.state is State.RUNNING and self.expires_at is not None and self.expires_at > now:
            # Once this has passed, the restart waits for its turn, not for a time.
            when = _earlier(when, self.expires_at)
        return when

    @property
    def expires_at(self) -> float | None:
        """When its `max_lifetime` is over; a changed configuration applies at once."""
        if self.pid is None or self.started_at is None or self.config.max_lifetime is None:
            return None
        return (
            self.started_at + self.config.max_lifetime + self.config.max_lifetime_jitter * self.jitter_share
        )

    def is_expired(self, now: float) -> bool:
        """Whether its `max_lifetime` is over."""
        return self.state is State.RUNNING and self.expires_at is not None and now >= self.expires_at


def _earlier(a: float | None, b: float | None) -> float | None:
    return a if b is None or (a is not None and a < b) else b


_Step = Callable[[CompanionProcess, Details], "tuple[Action, ...]"]
_P = CompanionProcess

# Absent pairs cannot happen: a STOPPED companion has no process that could exit, a RUNNING one no delay that
# could pass.
TRANSITIONS: dict[tuple[State, Event], _Step] = {
    (State.STOPPED, Event.START): _P._start_afresh,
    (State.STOPPED, Event.RESTART): _P._start_afresh,
    (State.STOPPED, Event.STOP): _P._stop_stopped,
    (State.STOPPED, Event.DELAY_PASSED): _P._retry_given_up,
    (State.STARTING, Event.START): _P._nothing,
    (State.STARTING, Event.RESTART): _P._restart_starting,
    (State.STARTING, Event.STOP): _P._stop_or_settle,
    (State.STARTING, Event.FORKED): _P._forked,
    (State.STARTING, Event.BLOCKED): _P._blocked,
    (State.STARTING, Event.START_FAILED): _P._start_failed,
    (State.STARTING, Event.ALIVE): _P._alive,
    (State.STARTING, Event.READY): _P._ready,
    (State.STARTING, Event.PROBED): _P._probed,
    (State.STARTING, Event.BEAT): _P._nothing,
    (State.STARTING, Event.NOT_READY): _P._not_ready,
    (State.STARTING, Event.HUNG): _P._hung_starting,
    (State.STARTING, Event.OVERTIME): _P._overtime,
    (State.STARTING, Event.LEASE_LOST): _P._lease_lost,
    (State.STARTING, Event.EXITED): _P._exited,
    (State.STARTING, Event.EMPTY): _P._empty,
    (State.STARTING, Event.LEFTOVERS_KILLED): _P._leftovers_killed,
    (State.RUNNING, Event.START): _P._nothing,
    (State.RUNNING, Event.RESTART): _P._restart,
    (State.RUNNING, Event.STOP): _P._stop,
    (State.RUNNING, Event.READY): _P._nothing,
    (State.RUNNING, Event.BEAT): _P._beat,
    (State.RUNNING, Event.HUNG): _P._hung,
    (State.RUNNING, Event.OVERTIME): _P._overtime,
    (State.RUNNING, Event.LEASE_LOST): _P._lease_lost,
    (State.RUNNING, Event.RECOVERED): _P._recovered,
    (State.RUNNING, Event.EXITED): _P._exited,
    (State.BACKOFF, Event.START): _P._start_afresh,
    (State.BACKOFF, Event.RESTART): _P._start_afresh,
    (State.BACKOFF, Event.STOP): _P._stop_or_settle,
    (State.BACKOFF, Event.EMPTY): _P._empty,
    (State.BACKOFF, Event.LEFTOVERS_KILLED): _P._leftovers_killed,
    (State.BACKOFF, Event.DELAY_PASSED): _P._want_start,
    (State.STOPPING, Event.START): _P._come_back,
    (State.STOPPING, Event.RESTART): _P._come_back,
    (State.STOPPING, Event.STOP): _P._stop_stopping,
    (State.STOPPING, Event.READY): _P._nothing,
    (State.STOPPING, Event.BEAT): _P._nothing,
    (State.STOPPING, Event.HUNG): _P._nothing,
    (State.STOPPING, Event.LEASE_LOST): _P._lease_lost_stopping,
    (State.STOPPING, Event.EXITED): _P._exited_stopping,
    (State.STOPPING, Event.EMPTY): _P._empty_stopping,
    (State.STOPPING, Event.LEFTOVERS_KILLED): _P._leftovers_killed,
    (State.STOPPING, Event.ESCALATE): _P._escalate,
    (State.STOPPING, Event.DEADLINE): _P._deadline,
}
