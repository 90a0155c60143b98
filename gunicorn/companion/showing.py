# SPDX-License-Identifier: MIT
"""Describe a companion for people and for programs."""

from __future__ import annotations

import json
import math
from typing import Any

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.failures import Failures
from gunicorn.companion.states import EXITED, GAVE_UP, Cause, State
from gunicorn.unix.process import describe_status
from gunicorn.unix.signals import signal_name


class Shown:
    """The face of `CompanionProcess`, of whose fields it reads these."""

    config: CompanionConfig
    state: State
    pid: int | None
    session: int | None
    waiting_for: int | None
    held_by: tuple[str, ...]
    stops_after: tuple[str, ...]
    stuck: str | None
    hopeless: bool
    started_at: float | None
    exited_at: float | None
    next_retry_at: float | None
    stop_deadline: float | None
    manual_stop: bool
    restart_pending: bool
    killed: bool
    group_asked: bool
    settled: str | None
    reason: str | None
    hint: str | None
    status_text: str | None
    cause: Cause | None
    cause_text: str | None
    failures: Failures
    failed_starts: int
    start_count: int
    exit_count: int
    kill_count: int
    leftovers_killed: int
    last_status: int | None
    last_exit_code: int | None
    last_exit_signal: int | None
    # The lasting part as JSON, and what it was made of.
    _lasting_json: tuple[CompanionConfig, tuple[Any, ...], str] | None = None

    @property
    def restart_count(self) -> int:
        """Starts after the first one, whoever asked for them."""
        return max(0, self.start_count - 1)

    @property
    def done(self) -> bool:
        """Whether it has done its work, and is not to come back."""
        # With a reason it had to be ended, however well it exited then.
        return self.settled == EXITED and self.last_exit_code == 0 and self.reason is None

    def description(self, now: float) -> str:
        """One phrase in the manner of ``supervisorctl status``."""
        if self.state is State.RUNNING:
            return self._describe_running(now)
        if self.state is State.STARTING:
            return self._describe_starting(now)
        if self.state is State.BACKOFF:
            wait = max(0, math.ceil((self.next_retry_at or now) - now))
            count = self.failures.count
            again = f", failed {count} times in a row" if count > 1 else ""
            return f"{self.why}, retrying in {wait}s{again}"
        if self.state is State.STOPPING:
            return self._describe_stopping(now)
        return self._describe_stopped()

    def _describe_running(self, now: float) -> str:
        text = f"pid {self.pid}, uptime {format_uptime(now - (self.started_at or now))}"
        if self.stops_after:
            text += f", is stopped after {', '.join(self.stops_after)}"
        if self.status_text:
            text += f", {self.status_text}"
        if self.failures.count > 1 and self.failures.ongoing(self._uptime(now)):
            text += f", failed {self.failures.count} times in a row: {self.failures.latest}"
        return text

    def _uptime(self, now: float) -> float | None:
        """Seconds since its process was started; None where it has none."""
        return None if self.pid is None or self.started_at is None else now - self.started_at

    def flaps(self, now: float) -> bool:
        """Whether it fails again and again, though it may be RUNNING in between."""
        return self.failures.persist and self.failures.ongoing(self._uptime(now))

    def _describe_stopped(self) -> str:
        if self.manual_stop:
            return "stopped manually"
        if self.settled is not None:
            return f"done, {self.verdict}" if self.done else self.verdict
        return "not started" if self.start_count == 0 else "stopped"

    @property
    def why(self) -> str:
        why = self.reason or self.last_exit
        return f"{why}; {self.hint}" if self.hint else why

    @property
    def verdict(self) -> str:
        """Why it does not restart by itself: ``gave up after 3 failed starts: exited with status 1``."""
        why = self.why
        if self.settled != GAVE_UP:
            return why
        count = f"{self.failed_starts} failed start{'s' if self.failed_starts != 1 else ''}"
        return f"gave up after {count}: {why}"

    def _describe_starting(self, now: float) -> str:
        if self.pid is not None:
            return self._describe_running(now)
        if self.held_by:
            return f"waiting for {self.stuck or ', '.join(self.held_by)}"
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
        return f"SIGKILL in {max(0, math.ceil((self.stop_deadline or now) - now))}s"

    @property
    def last_exit(self) -> str:
        """How the last process ended: ``exited with status 1``, ``killed by SIGKILL``."""
        return "not started" if self.last_status is None else describe_status(self.last_status)

    def status_dict(self, now: float, wall: float | None = None) -> dict[str, Any]:
        """What ``status`` shows of this companion.

        *wall* is the wall-clock time (seconds since the epoch) at monotonic
        *now*; with it the times are shown as wall-clock times, without it they
        are null: a monotonic time means nothing outside this machine.
        """
        return {**self._lasting(None if wall is None else wall - now), **self._passing(now)}

    def status_json(self, now: float, wall: float) -> str:
        """The same as JSON, for a thousand companions at a time: what lasts is kept until it changes."""
        # A clock that was set is noticed, its last digits are not.
        offset = round(wall - now, 1)
        made_of = (
            self.state,
            self.pid,
            self.manual_stop,
            self.restart_pending,
            self.waiting_for,
            self.held_by,
            self.stops_after,
            self.stuck,
            self.hopeless,
            self.settled,
            self.reason,
            self.hint,
            self.status_text,
            self.cause,
            self.cause_text,
            self.failures.count,
            self.failed_starts,
            self.start_count,
            self.exit_count,
            self.kill_count,
            self.leftovers_killed,
            self.last_status,
            self.started_at,
            self.exited_at,
            self.next_retry_at,
            self.stop_deadline,
            offset,
        )
        kept = self._lasting_json
        if kept is None or kept[0] is not self.config or kept[1] != made_of:
            text = json.dumps(self._lasting(wall - now), separators=(",", ":"))
            kept = self._lasting_json = self.config, made_of, text
        passing = json.dumps(self._passing(now), separators=(",", ":"))
        return f"{kept[2][:-1]},{passing[1:]}"

    def _passing(self, now: float) -> dict[str, Any]:
        """The fields that change every second."""
        uptime = self._uptime(now)
        return {
            "description": self.description(now),
            "uptime": None if uptime is None else round(uptime, 3),
            "flapping": self.flaps(now),
        }

    def _lasting(self, offset: float | None) -> dict[str, Any]:
        """The fields that change only with an event. *offset*: from monotonic to wall-clock time."""

        def shown(moment: float | None) -> float | None:
            return None if moment is None or offset is None else round(moment + offset, 3)

        return {
            "name": self.config.name,
            "group": self.config.group,
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
            "next_retry_at": shown(self.next_retry_at),
            "stop_deadline": shown(self.stop_deadline),
        }


def format_uptime(seconds: float) -> str:
    """``03:12:44``, ``1 day, 03:12:44``, ``2 days, 03:12:44``."""
    minutes, secs = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours:02}:{minutes:02}:{secs:02}"
    if not days:
        return clock
    return f"{days} day{'s' if days != 1 else ''}, {clock}"
