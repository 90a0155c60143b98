# SPDX-License-Identifier: MIT
"""What is known of a companion, and how it is shown to people and to programs. Pure."""

from __future__ import annotations

import enum
import math
import os
import signal
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gunicorn.companion.checks import MAX_START_LIMIT
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.failures import Failures
from gunicorn.companion.probe import Findings, Probe
from gunicorn.unix.process import describe_status
from gunicorn.unix.signals import signal_name

# Why a companion is STOPPED without a command.
EXITED = "exited"
GAVE_UP = "gave up"

# Starts that are remembered for the number of those in the last hour.
STARTS_KEPT = 1000


class State(enum.Enum):
    """What a companion is. The names are supervisord's; no other is ever shown."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"
    STOPPING = "STOPPING"


class Cause(str, enum.Enum):
    """Why a process of a companion has ended, or why there is none. A string too, for hooks and for JSON.

    ``status``, ``events``, ``history``, the log and the metrics use these words and no others.
    """

    EXIT = "exit"  # by itself, with status 0 or another of success_exit_codes
    CRASH = "crash"  # by itself, with another status or by a fault such as SIGSEGV
    KILLED = "killed"  # by a signal that the server did not send
    OOM = "oom"  # by the kernel, for memory
    COMMAND = "command"
    MEMORY = "memory"
    LIFETIME = "lifetime"
    SCHEDULE = "schedule"  # its next run was due
    CODE = "code"  # a file that it has loaded has changed
    RELOAD = "reload"  # of the server, by SIGHUP
    REREAD = "reread"  # by command: its configuration has changed, or is gone
    NOT_READY = "not ready"
    WATCHDOG = "watchdog"
    LIVENESS = "liveness"
    MAX_RUNTIME = "max_runtime"
    UPGRADE = "upgrade"  # another master takes over
    SERVER = "server"  # it stops
    LEASE = "lease"  # it was lost, or could not be renewed in time
    DEPENDENCY = "dependency"  # a companion in its `after` is not RUNNING
    START_FAILED = "start failed"  # there was no process
    GAVE_UP = "gave up"

    def __str__(self) -> str:
        return self.value


# The signals of a process that goes wrong by itself.
FAULTS = frozenset(
    {
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGSYS,
        signal.SIGTRAP,
    }
)


def cause_of_exit(status: int, success: Collection[int] = (0,)) -> Cause:
    """Return the cause of an end that nobody asked for, by its wait status; *success*: codes of success."""
    code = os.waitstatus_to_exitcode(status)
    if code in success:
        return Cause.EXIT
    return Cause.CRASH if code > 0 or -code in FAULTS else Cause.KILLED


class LeaseStatus(Protocol):
    """What the manager knows of a lease: `supervise.lease.Lease`."""

    @property
    def description(self) -> str: ...
    def as_dict(self) -> dict[str, Any]: ...


@dataclass
class ScheduleStatus:
    """The schedule of a companion as `status` shows it. *next_at*: monotonic seconds; *clock*: ``03:30``.

    *last*: the latest run that has ended. *kept_elsewhere*: another manager does. *facts*:
    counts for `status`. *runs*: the latest ones.
    """

    next_at: float | None = None
    clock: str | None = None
    last: Mapping[str, Any] | None = None
    kept_elsewhere: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    runs: Sequence[Mapping[str, Any]] = ()


@dataclass(eq=False, repr=False)
class Status:
    """The data of a companion. All times are monotonic seconds.

    ``state`` is the actual state; ``manual_stop``, ``restart_pending``, ``failing`` (it ends, and will be
    retried after its delay) and ``removed`` are intentions.
    """

    config: CompanionConfig
    state: State = State.STOPPED
    # The child of this manager.
    pid: int | None = None
    # The session that must be empty before the next start; it outlives `pid` while leftovers end.
    session: int | None = None
    # The pid of an older process of its own, which somebody else started (0: not known).
    waiting_for: int | None = None
    # Seconds from the latest check for such a process to the next.
    wait: float = 0.0
    # When it came to its state; and its latest starts.
    since: float | None = None
    starts: deque[float] = field(default_factory=lambda: deque(maxlen=STARTS_KEPT))
    started_at: float | None = None
    exited_at: float | None = None
    next_retry_at: float | None = None
    stop_deadline: float | None = None
    watchdog_at: float | None = None
    # Of `ready` = "notify" and `probe`: what its latest process has passed.
    notified: bool = False
    probed: bool = False
    # What the checks of its latest process have found.
    probe_findings: Findings = field(default_factory=Findings)
    liveness_findings: Findings = field(default_factory=Findings)
    manual_stop: bool = False
    restart_pending: bool = False
    failing: bool = False
    removed: bool = False
    killed: bool = False
    # The whole process group has had the stop signal, and has until `stop_deadline`, whether or not its
    # leader has left before.
    group_asked: bool = False
    # The stop signal that it had last, as an index of `CompanionConfig.rungs`; None: it had none of them.
    rung: int | None = None
    # Why it is STOPPED without a command: EXITED or GAVE_UP; in the latter case after what, and since when it
    # waits for `retry_after`.
    settled: str | None = None
    spent: str | None = None
    gave_up_at: float | None = None
    # It has been told to stop, so that `retry_after` brings no start. The next manager is not told that.
    stays_down: bool = False
    # The companions that must be RUNNING before it starts; which of them fail or are stopped, and why; and
    # whether they stay so unless somebody helps.
    held_by: tuple[str, ...] = ()
    stuck: str | None = None
    hopeless: bool = False
    # Its lease, if it needs one; and whether nothing but that keeps it from a start.
    lease: LeaseStatus | None = None
    standby: bool = False
    # The companions that are being stopped before it.
    stops_after: tuple[str, ...] = ()
    # Its share of `max_lifetime_jitter`, drawn at the fork; `expires_at` follows the configuration.
    jitter_share: float = 0.0
    # Its own words: STATUS= of sd_notify(3).
    status_text: str | None = None
    reason: str | None = None
    # A hint for the operator about the way it exits.
    hint: str | None = None
    # Why its latest process has ended, as a word and as a sentence; and the exception that ended it.
    cause: Cause | None = None
    cause_text: str | None = None
    exception: str | None = None
    failures: Failures = field(default_factory=Failures)
    failed_starts: int = 0
    # A job that web workers wait for: its failure is a failed start, however long it ran.
    awaited: bool = False
    # Whether the latest process has done what it should.
    well: bool = False
    # With a `schedule`: when it runs next, and what its latest runs have come to.
    timing: ScheduleStatus = field(default_factory=ScheduleStatus)
    # Starts since somebody asked for one, for `start_limit` and `schedule_retries`.
    tries: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_START_LIMIT))
    # The delay before the latest start, and how many before it have grown.
    delay: float = 0.0
    delays: int = 0
    start_count: int = 0
    exit_count: int = 0
    kill_count: int = 0
    # Processes that it has left behind at its end, which got SIGKILL.
    leftovers_killed: int = 0
    last_status: int | None = None
    last_exit_code: int | None = None
    last_exit_signal: int | None = None

    @property
    def restart_count(self) -> int:
        """Starts after the first one, whoever asked for them."""
        return max(0, self.start_count - 1)

    @property
    def ended_well(self) -> bool:
        """Whether its latest process has exited with success."""
        # With a reason it had to be ended, however well it exited then.
        return self.last_exit_code in self.config.success_exit_codes and self.reason is None

    @property
    def done(self) -> bool:
        """Whether it has done its work, and is not to come back."""
        return self.settled == EXITED and self.ended_well

    @property
    def retry_at(self) -> float | None:
        """When it is started again by itself; after a give-up by the `retry_after` of this moment."""
        if self.settled != GAVE_UP:
            return self.next_retry_at
        if self.gave_up_at is None or self.stays_down or self.config.retry_after is None:
            return None
        return self.gave_up_at + self.config.retry_after

    def description(self, now: float) -> str:
        """One phrase in the manner of ``supervisorctl status``."""
        if self.state is State.RUNNING:
            return self._describe_running(now)
        if self.state is State.STARTING:
            return self._describe_starting(now)
        if self.state is State.BACKOFF:
            wait = max(0, math.ceil((self.next_retry_at or now) - now))
            again = f", {self.failures}" if self.failures.count > 1 else ""
            return f"{self.why}, retrying in {wait}s{again}"
        if self.state is State.STOPPING:
            return self._describe_stopping(now)
        return self._describe_stopped(now)

    def _describe_running(self, now: float) -> str:
        text = f"pid {self.pid}, uptime {format_uptime(now - (self.started_at or now))}"
        if self.stops_after:
            text += f", is stopped after {', '.join(self.stops_after)}"
        if self.status_text:
            text += f", {self.status_text}"
        text += self._describe_checks()
        if self.restart_count and self.config.schedule is None:
            text += f", {self.restart_count} restart{'s' if self.restart_count != 1 else ''}"
            if self.cause is not None and self.exited_at is not None:
                text += f", last: {self._describe_last_end()} {format_age(now - self.exited_at)} ago"
        if self.failures.count > 1 and self.failures.ongoing(self._uptime(now)):
            text += f", {self.failures}"
        return text

    def _describe_checks(self) -> str:
        """``, not ready: connection refused``; nothing while all checks succeed."""
        if self.state is State.STARTING and self.config.probe is not None and self.probe_findings.trouble:
            return f", not ready: {self.probe_findings.trouble}"
        liveness = self.config.liveness
        if self.state is State.RUNNING and liveness is not None and self.liveness_findings.failures:
            found = self.liveness_findings
            count = f"{found.failures} of {liveness.failures}"
            return f", liveness fails ({count}): {found.trouble or 'it has just succeeded again'}"
        return ""

    def checks(self) -> dict[str, tuple[Probe, Findings]]:
        """The checks that are configured, by their key."""
        each = {
            "probe": (self.config.probe, self.probe_findings),
            "liveness": (self.config.liveness, self.liveness_findings),
        }
        return {key: (probe, found) for key, (probe, found) in each.items() if probe is not None}

    def _describe_last_end(self) -> str:
        """Return the cause, and what it does not say by itself: ``crash (KeyError: 'price')``."""
        if self.cause in _CAUSES_THAT_SAY_ALL:
            return str(self.cause)
        text = self.exception or self.cause_text or ""
        if not text.startswith(str(self.cause)):
            return f"{self.cause} ({text})"
        # ``killed by SIGKILL`` has the cause in it; so has ``not ready within 60s: connection refused``.
        short, _, more = text.partition(": ")
        return f"{short} ({more})" if more else text

    def _uptime(self, now: float) -> float | None:
        """Seconds since its process was started; None where it has none."""
        return None if self.pid is None or self.started_at is None else now - self.started_at

    def flaps(self, now: float) -> bool:
        """Whether it fails again and again, though it may be RUNNING in between."""
        return self.failures.persist and self.failures.ongoing(self._uptime(now))

    def _watchdog_age(self, now: float) -> float | None:
        """Seconds since its last sign of life; None where nothing waits for one."""
        if self.pid is None or self.watchdog_at is None or self.config.watchdog is None:
            return None
        return round(max(0.0, now - self.watchdog_at + self.config.watchdog), 3)

    def _describe_stopped(self, now: float) -> str:
        if self.config.schedule is not None:
            return self._describe_schedule(now)
        if self.manual_stop:
            return "stopped manually"
        if self.settled is not None:
            return f"done, {self.verdict}" if self.done else self.outlook(now)
        return "not started" if self.start_count == 0 else "stopped"

    def _describe_schedule(self, now: float) -> str:
        """Return ``next run in 3h, at 03:30; last run failed 2h ago: exited with status 1``."""
        timing = self.timing
        if self.manual_stop:
            text = "stopped manually, and its schedule with it"
        elif timing.kept_elsewhere:
            text = "another manager keeps its schedule"
        elif timing.next_at is None:
            text = "its schedule waits for the first 'start'"
        else:
            text = f"next run in {format_age(math.ceil(timing.next_at - now))}"
            text += f", at {timing.clock}" if timing.clock else ""
        last = timing.last
        if last is None:
            return text
        if not last["good"]:
            return f"{text}; last run failed: {last['how']}"
        took = last["took"]
        return f"{text}; last run took {f'{took:.1f}s' if took < 10 else format_age(took)}"

    @property
    def why(self) -> str:
        why = self.reason or self.last_exit
        return f"{why}; {self.hint}" if self.hint else why

    @property
    def verdict(self) -> str:
        """Why it does not restart by itself: ``gave up after 3 failed starts: exited with status 1``."""
        return self.why if self.settled != GAVE_UP else f"gave up after {self.spent}: {self.why}"

    def outlook(self, now: float) -> str:
        """The verdict, and when the next try is: ``gave up after …; next try in 4m``."""
        if self.settled != GAVE_UP or self.retry_at is None:
            return self.verdict
        return f"{self.verdict}; next try in {format_age(math.ceil(self.retry_at - now))}"

    def _describe_starting(self, now: float) -> str:
        if self.pid is not None:
            return self._describe_running(now)
        if self.held_by:
            return f"waiting for {self.stuck or ', '.join(self.held_by)}"
        if self.standby and self.lease is not None:
            return f"standby: {self.lease.description}"
        if self.waiting_for is not None:
            return f"waiting for pid {self.waiting_for}" if self.waiting_for else "waiting for another server"
        if self.session is not None:
            return f"waiting for the processes of pid {self.session}"
        return "about to start"

    def _describe_stopping(self, now: float) -> str:
        if self.pid is None:
            text = f"waiting for the processes of pid {self.waiting_for or self.session}"
            return f"{text}, {self._describe_deadline(now)}" if self.group_asked and not self.killed else text
        if self.killed or self.stop_deadline is None:
            return f"pid {self.pid}, SIGKILL sent"
        return f"pid {self.pid}, {self._describe_deadline(now)}"

    def _describe_deadline(self, now: float) -> str:
        next_at, signum = self.stop_deadline, int(signal.SIGKILL)
        if (next_rung := self._next_rung()) is not None:
            next_at, signum = next_rung
        return f"{signal_name(signum)} in {max(0, math.ceil((next_at or now) - now))}s"

    def _rung_at(self, index: int) -> float:
        """When the signal of this index is due: where the time is short, the first ones have less of it."""
        return (self.stop_deadline or 0.0) - sum(seconds for _, seconds in self.config.rungs[index:])

    def _next_rung(self) -> tuple[float, int] | None:
        """When which stop signal comes before SIGKILL; None if there is no other."""
        rungs = self.config.rungs
        if self.stop_deadline is None or self.rung is None or self.rung + 1 >= len(rungs):
            return None
        if self.pid is None and not self.group_asked:
            # What is left is killed.
            return None
        return self._rung_at(self.rung + 1), rungs[self.rung + 1][0]

    def _schedule_dict(self, shown: Callable[[float | None], float | None]) -> dict[str, Any] | None:
        """What ``status`` shows of its schedule; None if it has none."""
        if self.config.schedule is None:
            return None
        return {
            "times": self.config.schedule,
            "timezone": self.config.schedule_timezone,
            "next": None if self.manual_stop else shown(self.timing.next_at),
            "last": self.timing.last,
            "kept_elsewhere": self.timing.kept_elsewhere,
            **self.timing.facts,
        }

    @property
    def last_exit(self) -> str:
        """How the last process ended: ``exited with status 1 (KeyError: 'price')``, ``killed by SIGKILL``."""
        if self.last_status is None:
            return "not started"
        if self.cause is Cause.OOM:
            return "killed by the kernel for memory"
        text = describe_status(self.last_status)
        return f"{text} ({self.exception})" if self.exception else text

    def status_dict(self, now: float, wall: float | None = None) -> dict[str, Any]:
        """Return what ``status`` shows of this companion.

        *wall* is the wall-clock time (seconds since the epoch) at monotonic *now*. Without it the times are
        null, because a monotonic time means nothing outside this machine.
        """
        uptime = self._uptime(now)

        def shown(moment: float | None) -> float | None:
            return None if moment is None or wall is None else round(moment - now + wall, 3)

        return {
            "name": self.config.name,
            "group": self.config.group,
            "groups": list(self.config.groups),
            "index": self.config.index,
            "state": self.state.value,
            "pid": self.pid,
            "autostart": self.config.autostart,
            "autorestart": self.config.autorestart,
            "done": self.done,
            "manual_stop": self.manual_stop,
            "restart_pending": self.restart_pending,
            "waiting_for": self.waiting_for or None,
            "after": list(self.held_by),
            "stops_after": list(self.stops_after),
            "standby": self.standby,
            "lease": None if self.lease is None else self.lease.as_dict(),
            "stuck": self.stuck,
            "hopeless": self.hopeless,
            "reason": self.settled or self.reason,
            "status_text": self.status_text,
            "failures": self.failures.count,
            "failed_starts": self.failed_starts,
            "restart_count": self.restart_count,
            "exit_count": self.exit_count,
            "kill_count": self.kill_count,
            "leftovers_killed": self.leftovers_killed,
            "last_exit_code": self.last_exit_code,
            "last_exit_signal": None if self.last_exit_signal is None else signal_name(self.last_exit_signal),
            "last_exit_cause": self.cause,
            "last_exit_reason": self.cause_text,
            "restart_delay": self.config.restart_delay,
            "started_at": shown(self.started_at),
            "exited_at": shown(self.exited_at),
            "next_retry_at": shown(self.retry_at),
            "stop_deadline": shown(self.stop_deadline),
            "description": self.description(now),
            "uptime": None if uptime is None else round(uptime, 3),
            "flapping": self.flaps(now),
            "schedule": self._schedule_dict(shown),
            "watchdog": self.config.watchdog,
            "watchdog_age": self._watchdog_age(now),
            "probes": {
                key: _findings_dict(probe, found, shown(found.at))
                for key, (probe, found) in self.checks().items()
            },
        }


def _findings_dict(probe: Probe, found: Findings, at: float | None) -> dict[str, Any]:
    """What ``status`` shows of one key; null where there was no check yet."""
    result = found.result
    return {
        "checks": str(probe),
        "good": None if result is None else result.good,
        "at": None if result is None else at,
        "took": None if result is None else result.took,
        "reason": found.trouble,
        "output": None if result is None else result.output,
        "successes": found.successes,
        "failures": found.failures,
        "allowed": probe.failures,
    }


_CAUSES_THAT_SAY_ALL = {Cause.COMMAND, Cause.RELOAD, Cause.OOM, Cause.EXIT}


def format_age(seconds: float) -> str:
    """``8s``, ``12m``, ``3h``, ``2d``: as exact as the past needs to be."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def format_uptime(seconds: float) -> str:
    """``03:12:44``, ``1 day, 03:12:44``, ``2 days, 03:12:44``."""
    minutes, secs = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours:02}:{minutes:02}:{secs:02}"
    if not days:
        return clock
    return f"{days} day{'s' if days != 1 else ''}, {clock}"
