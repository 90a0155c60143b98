# SPDX-License-Identifier: MIT
"""The limits of a companion's starts and runs, its stop signals one after the other, and which failures are
logged.
"""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from processtools import (
    T0,
    backoff,
    end,
    failure,
    make,
    restarting,
    run_for,
    running,
    start_again,
    starting,
    stopping,
)

from gunicorn.companion.checks import StartLimit
from gunicorn.companion.failures import KINDS_LOGGED, LOG_INTERVAL, PERSISTENT, Failures
from gunicorn.companion.process import EXITED, GAVE_UP, Action, Cause, CompanionProcess, Event, State

NOW = T0 + 20
TERM, QUIT, KILL = int(signal.SIGTERM), int(signal.SIGQUIT), int(signal.SIGKILL)

# -- success_exit_codes --------------------------------------------------------


@pytest.mark.parametrize("begin", [starting, running])
@pytest.mark.parametrize(
    ("codes", "status", "well"),
    [
        ((0,), 0, True),
        ((0,), failure(75), False),
        ((0, 75), failure(75), True),
        ((0, 75), failure(1), False),
        ((75,), 0, False),
        ((0, 75), TERM, False),
    ],
)
def test_which_exit_is_a_success(begin: Any, codes: tuple[int, ...], status: int, well: bool) -> None:
    process = begin(autorestart="on-failure", success_exit_codes=codes)
    end(process, T0 + 0.5, status)
    assert process.state is (State.STOPPED if well else State.BACKOFF)
    assert process.done is process.has_been_running is well
    assert process.failures.count == (0 if well else 1)
    assert (process.cause is Cause.EXIT) is well
    assert process.failed_starts == int(begin is starting and not well)


def test_an_unreached_target_is_no_success_whatever_the_code() -> None:
    process = starting(autorestart="on-failure", success_exit_codes=(0, 1))
    end(process, NOW, failure(1), reason="cannot enter /nowhere")
    assert process.state is State.BACKOFF


def test_a_success_that_is_configured_afterwards_counts() -> None:
    process = running(autorestart="never")
    end(process, NOW, failure(75))
    assert not process.done
    process.config = make(autorestart="never", success_exit_codes=(0, 75)).config
    assert process.done
    assert process.description(NOW) == "done, exited with status 75"


# -- start_limit ---------------------------------------------------------------


def starts_until_it_gives_up(process: CompanionProcess, seconds: float, status: int = failure()) -> int:
    """The number of starts, each of which lives so many seconds; at most 30."""
    for number in range(1, 31):
        run_for(process, seconds, status)
        if process.settled == GAVE_UP:
            return number
        start_again(process)
    return 30


@pytest.mark.parametrize(
    ("limit", "delay", "longest", "life", "status", "starts"),
    [
        # Every second or so, whatever the lives and the exits are like.
        (StartLimit(5, 60), 1, None, 0.1, failure(), 5),
        (StartLimit(5, 60), 1, None, 5, failure(), 5),
        (StartLimit(5, 60), 1, None, 5, 0, 5),
        (StartLimit(1, 60), 1, None, 5, failure(), 1),
        # The sixth start would come 60.5 s after the first one, and the others go on like that.
        (StartLimit(5, 60), 2.1, None, 10, failure(), 30),
        (StartLimit(5, 60), 2, None, 9.9, failure(), 5),
        # The delays grow: 5, 10, 20, 40, 60 s. Four starts lie in a minute, and thirteen in ten.
        (StartLimit(5, 60), 5, 60, 0.1, failure(), 30),
        (StartLimit(12, 600), 5, 60, 0.1, failure(), 12),
        (StartLimit(13, 600), 5, 60, 0.1, failure(), 30),
    ],
)
def test_it_gives_up_rather_than_start_too_often(
    limit: StartLimit, delay: float, longest: float | None, life: float, status: int, starts: int
) -> None:
    process = starting(chance=lambda: 0.0, start_limit=limit, restart_delay=delay, restart_delay_max=longest)
    assert starts_until_it_gives_up(process, life, status) == starts
    if starts < 30:
        assert (process.state, process.spent) == (State.STOPPED, str(limit))
        how = "exited with status 1" if status else "exited with status 0"
        assert process.description(NOW) == f"gave up after {limit}: {how}"
        assert process.next_deadline(NOW) is None


def test_one_start_is_one() -> None:
    assert str(StartLimit(1, 0.5)) == "1 start within 0.5s"


def test_starts_that_were_refused_count_for_the_limit() -> None:
    process = make(start_limit=StartLimit(2, 60), restart_delay=1)
    process.handle(Event.START, T0)
    process.handle(Event.START_FAILED, T0, reason="cannot fork")
    process.handle(Event.DELAY_PASSED, T0 + 1)
    assert process.handle(Event.START_FAILED, T0 + 1, reason="cannot fork") == (Action.GIVE_UP,)
    assert process.description(T0 + 1) == "gave up after 2 starts within 60s: cannot fork"


def test_a_process_that_had_to_be_ended_counts_for_the_limit() -> None:
    process = running(start_limit=StartLimit(1, 60), watchdog=10)
    process.handle(Event.HUNG, T0 + 11)
    process.handle(Event.EXITED, T0 + 12, status=0)
    assert process.handle(Event.EMPTY, T0 + 12) == (Action.RELEASE, Action.GIVE_UP)


def test_starts_that_were_asked_for_begin_the_count_anew() -> None:
    process = running(start_limit=StartLimit(3, 60), restart_delay=1)
    for _ in range(10):
        now = run_for(process, 2) if process.state is not State.RUNNING else T0 + 2
        process.handle(Event.RESTART, now)
        if process.state is State.STOPPING:
            end(process, now)
        assert process.can_start(now + 1)
        process.handle(Event.FORKED, now + 1, pid=43)
    assert starts_until_it_gives_up(process, 2) == 3


# -- retry_after ---------------------------------------------------------------


def given_up(**values: Any) -> CompanionProcess:
    process = starting(start_retries=2, **values)
    assert starts_until_it_gives_up(process, 0.5) == 2
    assert process.exited_at is not None
    return process


def test_without_retry_after_it_stays_stopped() -> None:
    process = given_up()
    assert process.next_deadline(NOW) is process.due_event(NOW + 1e6) is process.retry_at is None


def test_it_is_tried_afresh_after_a_give_up() -> None:
    process = given_up(retry_after=300, restart_delay_max=60, chance=lambda: 0.0)
    at = process.exited_at or 0
    assert process.description(at) == "gave up after 2 failed starts: exited with status 1; next try in 5m"
    assert process.description(at + 299) == process.verdict + "; next try in 1s"
    assert process.status_dict(at, wall=0.0)["next_retry_at"] == 300
    assert process.next_deadline(at) == at + 300
    assert process.due_event(at + 299.9) is None
    assert process.due_event(at + 300) is Event.DELAY_PASSED
    process.handle(Event.DELAY_PASSED, at + 300)
    assert (process.settled, process.spent, process.gave_up_at) == (None, None, None)
    assert process.can_start(at + 300)
    process.handle(Event.FORKED, at + 300, pid=77)
    # Starts and delays are counted anew, the failures are not over.
    run_for(process, 0.5)
    assert (process.state, process.failed_starts, process.delay) == (State.BACKOFF, 1, 5)
    assert process.failures.count == 3
    start_again(process)
    run_for(process, 0.5)
    assert process.settled == GAVE_UP
    assert process.retry_at == (process.exited_at or 0) + 300


def test_retry_after_waits_for_leftovers() -> None:
    process = starting(start_retries=1, retry_after=5)
    process.handle(Event.EXITED, T0 + 0.5, status=failure())
    assert process.state is State.STOPPING
    assert process.due_event(T0 + 10) is None
    process.handle(Event.EMPTY, T0 + 10)
    assert process.due_event(T0 + 10) is Event.DELAY_PASSED


def test_retry_after_changed_by_reread_holds_at_once() -> None:
    process = given_up()
    at = process.exited_at or 0
    process.config = make(start_retries=2, retry_after=60).config
    assert process.next_deadline(at) == at + 60
    process.config = make(start_retries=2).config
    assert process.next_deadline(at) is None


@pytest.mark.parametrize("manual", [True, False])
def test_a_stop_ends_the_wait_for_the_next_try(manual: bool) -> None:
    process = given_up(retry_after=60)
    process.handle(Event.STOP, NOW, manual=manual)
    assert process.due_event(NOW + 1e6) is None
    assert process.settled == (None if manual else GAVE_UP)
    # After another start it is as before.
    process.handle(Event.START, NOW)
    process.handle(Event.FORKED, NOW, pid=43)
    starts_until_it_gives_up(process, 0.5)
    assert process.retry_at is not None


def test_a_stop_while_leftovers_end_is_the_end_of_the_tries_too() -> None:
    process = starting(start_retries=1, retry_after=5)
    process.handle(Event.EXITED, T0 + 0.5, status=failure())
    process.handle(Event.STOP, T0 + 1)
    process.handle(Event.EMPTY, T0 + 10)
    assert (process.state, process.due_event(NOW)) == (State.STOPPED, None)


def test_a_job_that_has_ended_is_not_tried_again() -> None:
    process = running(autorestart="never", start_retries=1, retry_after=5)
    end(process, NOW)
    assert process.settled == EXITED
    assert process.due_event(NOW + 1e6) is None


def test_the_next_manager_tries_again_at_the_same_time() -> None:
    old = given_up(retry_after=300)
    new = CompanionProcess(old.config)
    new.restore_settled(json.loads(json.dumps(old.settled_state)))
    assert new.retry_at == old.retry_at
    assert new.description(NOW) == old.description(NOW)


# -- max_runtime ---------------------------------------------------------------


@pytest.mark.parametrize("autorestart", ["always", "on-failure", "never"])
@pytest.mark.parametrize("status", [0, TERM, KILL])
def test_a_job_that_runs_for_too_long_has_failed(autorestart: str, status: int) -> None:
    process = running(max_runtime=30, autorestart=autorestart, stop_timeout=7)
    assert process.next_deadline(T0 + 1) == T0 + 30
    assert process.due_event(T0 + 29.9) is None
    assert process.due_event(T0 + 30) is Event.OVERTIME
    assert process.handle(Event.OVERTIME, T0 + 30) == (Action.SIGNAL,)
    assert (process.state, process.stop_deadline) == (State.STOPPING, T0 + 37)
    end(process, T0 + 31, status)
    assert (process.cause, process.cause_text) == ("max_runtime", "it ran for longer than max_runtime, 30s")
    assert (process.failures.count, process.failed_starts, process.done) == (1, 0, False)
    if autorestart == "never":
        assert (process.state, process.settled) == (State.STOPPED, EXITED)
        assert process.description(NOW) == process.cause_text
    else:
        assert process.description(T0 + 31) == f"{process.cause_text}, retrying in 5s"


def test_a_start_that_takes_longer_than_max_runtime_has_failed() -> None:
    process = starting(max_runtime=3, startsecs=5, start_retries=1)
    assert process.due_event(T0 + 3) is Event.OVERTIME
    process.handle(Event.OVERTIME, T0 + 3)
    end(process, T0 + 4)
    assert process.description(T0 + 4) == (
        "gave up after 1 failed start: it ran for longer than max_runtime, 3s"
    )


def test_max_runtime_changed_by_reread_holds_at_once() -> None:
    process = running(max_runtime=30)
    process.config = make().config
    assert process.next_deadline(NOW) is None
    process.config = make(max_runtime=10).config
    assert process.due_event(NOW) is Event.OVERTIME


def test_what_is_due_first_comes_first() -> None:
    process = running(max_runtime=30, watchdog=10)
    assert process.next_deadline(T0 + 1) == T0 + 11
    process.handle(Event.BEAT, T0 + 25)
    assert process.next_deadline(T0 + 25) == T0 + 30


# -- stop_signals --------------------------------------------------------------

LADDER = {"stop_signals": ((TERM, 60.0), (QUIT, 10.0))}


def signals(process: CompanionProcess, now: float, until: float) -> list[tuple[float, int]]:
    """The signals that it gets from its stop at *now* on, with their seconds."""
    found = [(0.0, process.signal_to_stop)]
    begun = now
    while not process.killed:
        coming = process.next_deadline(now)
        assert coming is not None and coming <= until
        now = max(now, coming)
        due = process.due_event(now)
        assert due is not None
        actions = process.handle(due, now)
        if actions:
            found.append((now - begun, KILL if actions == (Action.KILL,) else process.signal_to_stop))
    return found


@pytest.mark.parametrize(
    ("timeout", "expected"),
    [
        (None, [(0, TERM), (60, QUIT), (70, KILL)]),
        # More time than they have is not used.
        (100, [(0, TERM), (60, QUIT), (70, KILL)]),
        # With less, the first has less of it, and the last has what it needs.
        (30, [(0, TERM), (20, QUIT), (30, KILL)]),
        (10, [(0, QUIT), (10, KILL)]),
        (5, [(0, QUIT), (5, KILL)]),
        (0, [(0, QUIT), (0, KILL)]),
    ],
)
def test_stop_signals_come_one_after_the_other(
    timeout: float | None, expected: list[tuple[float, int]]
) -> None:
    process = running(**LADDER)
    assert process.handle(Event.STOP, T0 + 10, timeout=timeout) == (Action.SIGNAL,)
    assert signals(process, T0 + 10, T0 + 80) == expected
    assert process.kill_count == 1


def test_of_three_signals_each_has_its_turn() -> None:
    process = running(stop_signals=((2, 5.0), (TERM, 20.0), (QUIT, 10.0)))
    process.handle(Event.STOP, NOW, timeout=16)
    assert signals(process, NOW, NOW + 35) == [(0, TERM), (6, QUIT), (16, KILL)]


def test_a_restart_has_the_reload_timeout_for_all_its_stop_signals() -> None:
    assert signals(restarting(**LADDER), T0 + 10, T0 + 80) == [(0, TERM), (20, QUIT), (30, KILL)]


def test_a_quicker_stop_brings_the_next_signal_sooner() -> None:
    process = stopping(**LADDER)
    assert process.description(T0 + 10) == "pid 42, SIGQUIT in 60s"
    process.handle(Event.STOP, T0 + 11, timeout=15)
    assert process.description(T0 + 11) == "pid 42, SIGQUIT in 5s"
    assert signals(process, T0 + 11, T0 + 30) == [(0, TERM), (5, QUIT), (15, KILL)]
    process = stopping(**LADDER)
    process.handle(Event.STOP, T0 + 11, timeout=0)
    assert signals(process, T0 + 11, T0 + 30) == [(0, TERM), (0, QUIT), (0, KILL)]


def test_each_end_that_asks_uses_the_stop_signals() -> None:
    for process, event in (
        (running(max_runtime=5, **LADDER), Event.OVERTIME),
        (starting(ready="notify", start_timeout=5, **LADDER), Event.NOT_READY),
    ):
        assert process.handle(event, NOW) == (Action.SIGNAL,)
        assert signals(process, NOW, NOW + 70) == [(0, TERM), (60, QUIT), (70, KILL)]
        end(process, NOW + 70, KILL)
        assert process.state is State.BACKOFF


def test_a_hung_process_gets_no_stop_signal() -> None:
    process = running(watchdog=5, **LADDER)
    process.handle(Event.HUNG, NOW)
    assert process.due_event(NOW + 1) is None
    assert process.due_event(NOW + 2) is Event.DEADLINE


@pytest.mark.parametrize("as_group", [True, False])
def test_the_rest_of_a_group_gets_the_later_signals_too(as_group: bool) -> None:
    process = running(stop_as_group=as_group, **LADDER)
    process.handle(Event.STOP, NOW)
    process.handle(Event.EXITED, NOW + 1, status=0)
    assert process.due_event(NOW + 60) is (Event.ESCALATE if as_group else None)


def test_stop_signals_changed_by_reread_during_a_stop() -> None:
    process = stopping(stop_signals=((2, 5.0), (TERM, 20.0), (QUIT, 10.0)))
    process.handle(Event.ESCALATE, T0 + 15)
    process.handle(Event.ESCALATE, T0 + 35)
    assert process.signal_to_stop == QUIT
    process.config = make().config
    assert process.signal_to_stop == TERM
    assert process.due_event(T0 + 45) is Event.DEADLINE


# -- the log -------------------------------------------------------------------


def test_the_first_failures_are_logged_then_one_a_minute_and_another_kind() -> None:
    failures = Failures()
    logged = []
    for second in range(400):
        failures.note(0.5, "KeyError" if second != 100 else "ValueError")
        if failures.must_log(float(second)):
            logged.append(second)
    assert logged == [0, 1, 2, 62, 100, 160, 220, 280, 340]


def test_a_failure_that_is_always_another_one_is_not_logged_each_time() -> None:
    failures = Failures()
    logged = 0
    for second in range(50):
        failures.note(0.5, f"KeyError: {second}")
        logged += failures.must_log(second)
    assert logged == KINDS_LOGGED


def test_failures_after_a_recovery_are_logged_again() -> None:
    failures = Failures()
    for _ in range(5):
        failures.note(0.5, "KeyError")
        failures.must_log(T0)
    assert not failures.must_log(T0 + LOG_INTERVAL - 1)
    failures.note(100, "KeyError")
    assert (failures.count, failures.must_log(T0 + 1)) == (1, True)
    for _ in range(PERSISTENT):
        failures.note(0.5, "KeyError")
        failures.must_log(T0 + 2)
    assert not failures.must_log(T0 + 3)


def test_after_a_recovery_each_kind_is_new() -> None:
    failures = Failures()
    for number in range(KINDS_LOGGED):
        failures.note(0.5, f"kind {number}")
        assert failures.must_log(T0)
    failures.forget()
    for number in range(KINDS_LOGGED):
        failures.note(0.5, f"kind {number}")
        assert failures.must_log(T0), number


def test_a_run_that_proves_itself_ends_the_failures() -> None:
    process = starting()
    for _ in range(PERSISTENT):
        run_for(process, 3)
        start_again(process)
    started_at = process.started_at or 0
    process.handle(Event.ALIVE, started_at + 1)
    assert process.failures.persist and process.flaps(started_at + 9)
    assert process.next_deadline(started_at + 1) == started_at + 10
    assert process.due_event(started_at + 10) is Event.RECOVERED
    process.handle(Event.RECOVERED, started_at + 10)
    assert process.failures.count == 0
    assert process.next_deadline(started_at + 10) is None
    assert backoff().due_event(T0 + 11) is None
