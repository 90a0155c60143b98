# SPDX-License-Identifier: MIT
"""Companions that fail: which exits bring another start, after which delay, and when nobody tries again."""

from __future__ import annotations

import itertools
import json
import signal

import pytest
from processtools import (
    SEGFAULT,
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

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.failures import Failures
from gunicorn.companion.process import (
    EXITED,
    GAVE_UP,
    JITTER,
    MIN_START_INTERVAL,
    Action,
    CompanionProcess,
    Event,
    State,
)

NOW = T0 + 20

# -- autorestart -------------------------------------------------------------

ALWAYS, ON_FAILURE, NEVER = "always", "on-failure", "never"
STATUSES = {
    "exit 0": 0,
    "exit 1": failure(1),
    "exit 3": failure(3),
    "SIGKILL": int(signal.SIGKILL),
    "SIGTERM": int(signal.SIGTERM),
    "SIGSEGV with a core": SEGFAULT,
}


@pytest.mark.parametrize("begin", [starting, running], ids=["STARTING", "RUNNING"])
@pytest.mark.parametrize("how", STATUSES)
@pytest.mark.parametrize("autorestart", [ALWAYS, ON_FAILURE, NEVER])
def test_which_exits_lead_to_a_restart(autorestart, how, begin):
    process = begin(autorestart=autorestart)
    comes_back = autorestart == ALWAYS or (autorestart == ON_FAILURE and how != "exit 0")
    assert process.handle(Event.EXITED, NOW, status=STATUSES[how])[-1] is Action.KILL
    # Leftovers of the session are waited for in either case.
    assert process.state is (State.BACKOFF if comes_back else State.STOPPING)
    assert process.ending
    assert process.handle(Event.EMPTY, NOW) == (Action.RELEASE,)
    assert process.state is (State.BACKOFF if comes_back else State.STOPPED)
    assert process.settled == (None if comes_back else EXITED)
    assert process.status_dict(NOW)["reason"] == (None if comes_back else "exited")
    assert not process.manual_stop
    if not comes_back:
        assert process.next_deadline(NOW) is None
        assert process.due_event(NOW + 1e6) is None


@pytest.mark.parametrize("status", [0, failure(2), int(signal.SIGTERM)])
def test_a_settled_companion_shows_how_it_ended(status):
    process = running(autorestart=NEVER)
    end(process, NOW, status)
    assert process.description(NOW) == ("done, exited with status 0" if status == 0 else process.last_exit)
    assert process.exit_count == 1


def test_leftovers_of_a_settling_companion_count_no_kill():
    process = running(autorestart=NEVER)
    process.handle(Event.EXITED, NOW, status=0)
    assert process.description(NOW) == "waiting for the processes of pid 42"
    assert process.due_event(NOW + 1e6) is None
    assert process.handle(Event.DEADLINE, NOW) == ()
    assert process.kill_count == 0
    assert process.next_deadline(NOW) is not None


def test_a_failed_start_without_a_retry_shows_its_reason():
    process = starting(autorestart=NEVER)
    end(process, NOW, failure(1), reason="companion_post_fork: ValueError: no")
    assert process.description(NOW) == "companion_post_fork: ValueError: no"


def test_a_refused_fork_is_retried_even_with_autorestart_never():
    process = make(autorestart=NEVER)
    process.handle(Event.START, T0)
    process.handle(Event.START_FAILED, T0, reason="cannot fork: no memory")
    assert process.state is State.BACKOFF


def settled(reason: str = EXITED) -> CompanionProcess:
    process = running(autorestart=NEVER) if reason == EXITED else starting(start_retries=1)
    end(process, T0 + 10 if reason == EXITED else T0 + 0.5)
    assert (process.state, process.settled) == (State.STOPPED, reason)
    return process


@pytest.mark.parametrize(("status", "done"), [(0, True), (failure(), False), (int(signal.SIGTERM), False)])
def test_companions_start_after_a_job_that_is_done(status, done):
    process = running(autorestart=NEVER)
    assert process.has_been_running
    process.handle(Event.EXITED, NOW, status=status)
    assert process.has_been_running is done
    process.handle(Event.EMPTY, NOW)
    assert process.has_been_running is done
    process.handle(Event.STOP, NOW, manual=True)
    assert not process.has_been_running


def test_companions_do_not_start_after_a_waiting_one():
    for process in (make(), starting(), backoff(), stopping()):
        assert not process.has_been_running


@pytest.mark.parametrize("status", [0, failure(3), SEGFAULT])
@pytest.mark.parametrize("reason", [EXITED, GAVE_UP])
def test_the_next_manager_knows_why_a_companion_settled(reason, status):
    old = running(autorestart=NEVER) if reason == EXITED else starting(start_retries=1)
    end(old, T0 + (10 if reason == EXITED else 0.5), status, reason="hook: no" if status == 768 else None)
    new = CompanionProcess(old.config)
    assert old.settled_state is not None
    new.restore_settled(json.loads(json.dumps(old.settled_state)))
    assert new.settled_state == old.settled_state
    assert new.description(NOW) == old.description(NOW)
    assert new.has_been_running is old.has_been_running is (reason == EXITED and status == 0)
    for key in ("reason", "failed_starts", "last_exit_code", "last_exit_signal"):
        assert new.status_dict(NOW)[key] == old.status_dict(NOW)[key]


def test_only_settled_companions_have_state_for_the_next_manager():
    for process in (make(), starting(), running(), backoff(), stopping()):
        assert process.settled_state is None


@pytest.mark.parametrize("reason", [EXITED, GAVE_UP])
@pytest.mark.parametrize("event", [Event.START, Event.RESTART])
def test_a_settled_companion_starts_by_command(reason, event):
    process = settled(reason)
    process.handle(event, NOW)
    assert process.can_start(NOW)
    assert (process.settled, process.reason, process.failed_starts) == (None, None, 0)
    process.handle(Event.FORKED, NOW, pid=43)
    assert process.status_dict(NOW)["reason"] is None


@pytest.mark.parametrize("reason", [EXITED, GAVE_UP])
def test_a_settled_companion_can_be_stopped_by_command(reason):
    process = settled(reason)
    process.reason = "cannot fork"
    process.handle(Event.STOP, NOW, manual=True)
    assert process.description(NOW) == "stopped manually"
    assert process.settled is None
    assert process.status_dict(NOW)["reason"] is None


@pytest.mark.parametrize("reason", [EXITED, GAVE_UP])
def test_a_settled_companion_stays_settled_when_the_server_stops(reason):
    process = settled(reason)
    process.handle(Event.STOP, NOW)
    assert (process.state, process.settled) == (State.STOPPED, reason)
    assert not process.manual_stop


@pytest.mark.parametrize("event", [Event.START, Event.RESTART])
def test_a_start_of_a_settling_companion_waits_for_its_leftovers(event):
    process = running(autorestart=NEVER)
    process.handle(Event.EXITED, NOW, status=0)
    process.handle(event, NOW)
    assert process.settled_state is None
    process.handle(Event.EMPTY, NOW + 1)
    assert process.can_start(NOW + 1)
    assert process.settled is None


def test_a_manual_stop_of_a_settling_companion():
    process = running(autorestart=NEVER)
    process.handle(Event.EXITED, NOW, status=0)
    process.handle(Event.STOP, NOW, manual=True)
    process.handle(Event.EMPTY, NOW + 1)
    assert process.description(NOW + 1) == "stopped manually"


@pytest.mark.parametrize("autorestart", [ALWAYS, ON_FAILURE, NEVER])
def test_autorestart_ignores_stops_and_restarts_by_command(autorestart):
    process = stopping(autorestart=autorestart)
    end(process, NOW, 0)
    assert process.description(NOW) == "stopped manually"
    process = restarting(autorestart=autorestart)
    end(process, NOW, 0)
    assert process.state is State.STARTING


# -- start_retries -----------------------------------------------------------


def fail_starts(process: CompanionProcess, count: int) -> None:
    """*count* starts, each of which dies before it is RUNNING; the first process is there already."""
    for number in range(count):
        if number:
            start_again(process, pid=50 + number)
        run_for(process, 0.5)


@pytest.mark.parametrize("retries", [1, 2, 5])
def test_gives_up_after_start_retries(retries):
    process = starting(start_retries=retries)
    fail_starts(process, retries - 1)
    assert process.failed_starts == retries - 1
    if retries > 1:
        assert process.state is State.BACKOFF
        start_again(process)
    assert process.started_at is not None
    now = process.started_at + 0.5
    assert process.handle(Event.EXITED, now, status=failure()) == (Action.GIVE_UP, Action.KILL)
    assert process.state is State.STOPPING
    starts = "1 failed start" if retries == 1 else f"{retries} failed starts"
    # What the log says at this moment, in which leftovers may be waited for.
    assert process.verdict == f"gave up after {starts}: exited with status 1"
    process.handle(Event.EMPTY, now)
    assert (process.state, process.settled) == (State.STOPPED, GAVE_UP)
    assert process.description(now) == f"gave up after {starts}: exited with status 1"
    assert process.status_dict(now)["reason"] == "gave up"
    assert process.next_deadline(now) is None


def test_never_gives_up_without_start_retries():
    process = starting()
    fail_starts(process, 50)
    assert (process.state, process.failed_starts) == (State.BACKOFF, 50)


def test_a_refused_fork_counts_as_a_failed_start():
    process = make(start_retries=2)
    process.handle(Event.START, T0)
    assert process.handle(Event.START_FAILED, T0, reason="cannot fork") == ()
    process.handle(Event.DELAY_PASSED, T0 + 5)
    # There is no session to wait for.
    assert process.handle(Event.START_FAILED, T0 + 5, reason="cannot fork: no memory") == (Action.GIVE_UP,)
    assert process.state is State.STOPPED
    assert process.description(T0 + 5) == "gave up after 2 failed starts: cannot fork: no memory"


def test_running_resets_failed_starts():
    process = starting(start_retries=3)
    fail_starts(process, 2)
    start_again(process)
    run_for(process, 2)
    assert (process.state, process.failed_starts) == (State.BACKOFF, 0)
    start_again(process)
    fail_starts(process, 2)
    assert process.state is State.BACKOFF


@pytest.mark.parametrize("event", [Event.START, Event.RESTART])
def test_a_command_resets_failed_starts(event):
    process = starting(start_retries=3)
    fail_starts(process, 2)
    process.handle(event, NOW)
    assert process.failed_starts == 0
    process.handle(Event.FORKED, NOW, pid=43)
    fail_starts(process, 2)
    assert process.state is State.BACKOFF


def test_a_restart_of_a_starting_companion_resets_failed_starts():
    process = starting(start_retries=3)
    fail_starts(process, 2)
    start_again(process)
    process.handle(Event.RESTART, NOW)
    end(process, NOW)
    assert (process.state, process.failed_starts) == (State.STARTING, 0)


def test_a_restart_of_a_waiting_companion_resets_failed_starts():
    process = starting(start_retries=3)
    fail_starts(process, 2)
    process.held_by = ("db",)
    process.handle(Event.DELAY_PASSED, NOW)
    assert process.handle(Event.RESTART, NOW) == ()
    assert (process.state, process.failed_starts) == (State.STARTING, 0)


def test_an_exit_after_startsecs_is_no_failed_start_in_a_busy_manager():
    process = starting(startsecs=1, start_retries=1)
    end(process, T0 + 1)
    assert (process.state, process.failed_starts) == (State.BACKOFF, 0)


def test_with_startsecs_of_0_every_fork_is_a_start():
    process = starting(startsecs=0, start_retries=1, restart_delay=0)
    for number in range(5):
        run_for(process, 0)
        assert process.state is State.BACKOFF
        start_again(process, pid=50 + number)


def test_with_startsecs_of_0_an_unreached_target_is_a_failed_start():
    process = starting(startsecs=0, start_retries=2)
    end(process, T0, failure(), reason="cannot enter /nowhere")
    start_again(process)
    end(process, NOW, failure(), reason="cannot enter /nowhere")
    assert process.description(NOW) == "gave up after 2 failed starts: cannot enter /nowhere"


def test_exits_of_a_running_companion_never_give_up():
    process = starting(start_retries=1)
    for number in range(10):
        run_for(process, 3)
        start_again(process, pid=50 + number)
    assert process.state is State.STARTING


# -- the delay ---------------------------------------------------------------


def delays(process: CompanionProcess, count: int, seconds: float = 0.5) -> list[float]:
    """The delays after *count* runs of so many seconds."""
    found = []
    for number in range(count):
        ended = run_for(process, seconds)
        assert process.next_retry_at is not None
        found.append(round(process.next_retry_at - ended, 6))
        start_again(process, pid=50 + number)
    return found


def test_without_a_maximum_the_delay_is_always_the_same():
    assert delays(starting(restart_delay=5), 4) == [5, 5, 5, 5]


def test_the_delay_doubles_up_to_its_maximum():
    process = starting(chance=lambda: 0.0, restart_delay=2, restart_delay_max=20)
    assert delays(process, 6) == [2, 4, 8, 16, 20, 20]


def test_the_delay_is_what_is_shown():
    process = starting(chance=lambda: 0.0, restart_delay=2, restart_delay_max=20)
    delays(process, 2)
    run_for(process, 0.5)
    assert process.exited_at is not None
    assert (
        process.description(process.exited_at)
        == "exited with status 1, retrying in 8s, failed 3 times in a row"
    )
    assert process.delay == 8


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.999999, 1.0])
@pytest.mark.parametrize(
    ("shortest", "longest"), [(5, 5), (5, 5.1), (0, 30), (0.01, 1e9), (1, 300), (0, 0.001), (1e-9, 1e300)]
)
def test_a_delay_with_jitter_is_within_its_bounds(shortest, longest, chance):
    process = starting(
        chance=lambda: chance, startsecs=3600, restart_delay=shortest, restart_delay_max=longest
    )
    now = T0
    for number in range(120):
        process.handle(Event.EXITED, now, status=failure())
        process.handle(Event.EMPTY, now)
        assert shortest <= process.delay <= longest
        if number:
            full = min(longest, max(shortest, MIN_START_INTERVAL) * 2.0 ** min(number, 100))
            assert process.delay >= max(shortest, full * (1 - JITTER)) * (1 - 1e-12)
        assert process.next_retry_at is not None
        process.handle(Event.DELAY_PASSED, process.next_retry_at)
        process.started_at = None
        process.handle(Event.FORKED, now, pid=42)


def test_jitter_is_drawn_anew_each_time():
    draws = itertools.cycle([0.0, 1.0])
    process = starting(chance=lambda: next(draws), restart_delay=100, restart_delay_max=100_000)
    found = delays(process, 5)
    assert found[0] == 100
    assert [round(delay / 100 / 2**n, 3) for n, delay in enumerate(found)][1:] in (
        [1.0, 1.0, 1.0, 1.0],
        [0.9, 0.9, 0.9, 0.9],
        [1.0, 0.9, 1.0, 0.9],
        [0.9, 1.0, 0.9, 1.0],
    )


def test_a_run_longer_than_the_longest_delay_starts_over():
    process = starting(chance=lambda: 0.0, restart_delay=2, restart_delay_max=20)
    # It outlasts each delay, and dies again.
    assert delays(process, 5, seconds=15) == [2, 4, 8, 16, 20]
    assert delays(process, 1, seconds=20) == [20]
    assert delays(process, 1, seconds=20.1) == [2]
    assert delays(process, 2) == [4, 8]


def test_a_run_that_ends_well_starts_over_and_lets_nothing_grow():
    process = starting(chance=lambda: 0.0, restart_delay=2, restart_delay_max=20, success_exit_codes=(0, 75))
    assert delays(process, 3, seconds=3) == [2, 4, 8]
    for status in (0, failure(75)):
        ended = run_for(process, 3, status)
        assert process.next_retry_at == ended + 2
        start_again(process)
    assert delays(process, 2, seconds=3) == [2, 4]


def test_the_default_delays():
    config = CompanionConfig("rq", "app:run")
    process = starting(chance=lambda: 0.0, restart_delay_max=config.restart_delay_max)
    assert delays(process, 7) == [5, 10, 20, 40, 60, 60, 60]
    process = starting(chance=lambda: 0.0, restart_delay=300, restart_delay_max=config.restart_delay_max)
    assert delays(process, 3) == [300, 300, 300]


def test_the_first_failure_of_a_long_run_waits_for_the_shortest_delay():
    process = starting(chance=lambda: 0.0, restart_delay=2, restart_delay_max=100)
    assert delays(process, 1, seconds=10_000) == [2]


def test_a_start_that_fails_late_does_not_start_over():
    process = starting(chance=lambda: 0.0, restart_delay=2, restart_delay_max=100, startsecs=1000)
    assert delays(process, 4, seconds=500) == [2, 4, 8, 16]


def test_refused_forks_do_not_start_over():
    process = make(chance=lambda: 0.0, restart_delay=2, restart_delay_max=100)
    process.handle(Event.START, T0)
    found, now = [], T0
    for _ in range(4):
        process.handle(Event.START_FAILED, now, reason="cannot fork")
        assert process.next_retry_at is not None
        found.append(process.next_retry_at - now)
        now = process.next_retry_at
        process.handle(Event.DELAY_PASSED, now)
    assert found == [2, 4, 8, 16]


@pytest.mark.parametrize("event", [Event.START, Event.RESTART])
def test_a_command_starts_the_delay_over(event):
    process = starting(chance=lambda: 0.0, restart_delay=2, restart_delay_max=100)
    delays(process, 4)
    run_for(process, 0.5)
    assert process.exited_at is not None
    now = process.exited_at
    process.handle(event, now)
    process.handle(Event.FORKED, now, pid=90)
    assert delays(process, 2) == [2, 4]


def test_no_delay_is_no_fork_loop():
    process = starting(restart_delay=0, startsecs=0)
    assert delays(process, 5, seconds=0) == [MIN_START_INTERVAL] * 5


def test_no_delay_can_grow():
    process = starting(chance=lambda: 0.0, restart_delay=0, restart_delay_max=1, startsecs=0)
    found = delays(process, 8, seconds=0.01)
    assert found[0] == pytest.approx(MIN_START_INTERVAL - 0.01)
    assert found[1:] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1, 1, 1])


def test_restart_delay_max_changed_by_reread():
    process = starting(chance=lambda: 0.0, restart_delay=2, restart_delay_max=100)
    grown = process.config
    assert delays(process, 3) == [2, 4, 8]
    process.config = make(restart_delay=3).config
    assert delays(process, 2) == [3, 3]
    process.config = grown
    assert delays(process, 1)[0] <= 100


# -- not ready in time -------------------------------------------------------


def not_ready(**values) -> CompanionProcess:
    process = starting(ready="notify", start_timeout=30, **values)
    assert process.due_event(T0 + 29.9) is None
    assert process.next_deadline(T0) == T0 + 30
    assert process.due_event(T0 + 30) is Event.NOT_READY
    assert process.handle(Event.NOT_READY, T0 + 30) == (Action.SIGNAL,)
    return process


def test_with_notify_startsecs_does_not_count():
    process = starting(ready="notify", startsecs=1)
    assert process.due_event(T0 + 10) is None
    process.handle(Event.READY, T0 + 10)
    assert process.state is State.RUNNING
    assert process.next_deadline(T0 + 10) is None


def test_ready_without_a_process_is_ignored():
    process = make(ready="notify")
    process.handle(Event.START, T0)
    process.handle(Event.READY, T0)
    assert process.state is State.STARTING


def test_with_startsecs_notify_does_not_count():
    process = starting(ready="startsecs")
    process.handle(Event.READY, T0 + 0.1)
    assert process.state is State.STARTING


@pytest.mark.parametrize("status", [0, failure(), int(signal.SIGTERM), int(signal.SIGKILL)])
@pytest.mark.parametrize("autorestart", [ALWAYS, ON_FAILURE, NEVER])
def test_not_ready_in_time_is_a_failed_start_whatever_the_exit(autorestart, status):
    process = not_ready(autorestart=autorestart, stop_timeout=7)
    assert (process.state, process.stop_deadline) == (State.STOPPING, T0 + 37)
    assert process.description(T0 + 30) == "pid 42, SIGKILL in 7s"
    end(process, T0 + 31, status)
    if autorestart == NEVER:
        assert (process.state, process.settled) == (State.STOPPED, EXITED)
        assert process.description(T0 + 31) == "not ready within 30s"
        assert not process.has_been_running
    else:
        assert process.state is State.BACKOFF
        assert process.description(T0 + 31) == "not ready within 30s, retrying in 5s"
    assert process.failed_starts == 1


def test_not_ready_in_time_can_give_up():
    process = not_ready(start_retries=1)
    process.handle(Event.EXITED, T0 + 31, status=0)
    assert process.handle(Event.EMPTY, T0 + 31) == (Action.RELEASE, Action.GIVE_UP)
    assert process.description(T0 + 31) == "gave up after 1 failed start: not ready within 30s"


def test_a_late_exit_before_ready_is_a_failed_start():
    process = starting(ready="notify", startsecs=0, start_retries=1)
    end(process, T0 + 20)
    assert process.settled == GAVE_UP


def test_a_start_that_was_not_ready_does_not_start_the_delay_over():
    process = starting(
        chance=lambda: 0.0, ready="notify", start_timeout=30, restart_delay=2, restart_delay_max=100
    )
    found = []
    for number in range(3):
        assert process.started_at is not None
        now = process.started_at + 30
        process.handle(Event.NOT_READY, now)
        end(process, now + 1)
        found.append(process.delay)
        start_again(process, pid=50 + number)
    assert found == [2, 4, 8]


def test_autorestart_and_retries_changed_by_reread_hold_for_what_runs():
    process = running()
    process.config = make(autorestart=NEVER).config
    end(process, NOW)
    assert process.settled == EXITED
    process = starting()
    fail_starts(process, 4)
    process.config = make(start_retries=3).config
    # What waits for its next start has it; then it has failed too often.
    start_again(process)
    run_for(process, 0.5)
    assert process.description(NOW) == "gave up after 5 failed starts: exited with status 1"


def test_start_timeout_changed_by_reread_holds_at_once():
    process = starting(ready="notify", start_timeout=30)
    process.config = make(ready="notify", start_timeout=90).config
    assert process.due_event(T0 + 30) is None
    process.config = make(ready="startsecs", startsecs=1).config
    assert process.due_event(T0 + 30) is Event.ALIVE


# -- the watchdog ------------------------------------------------------------


def hung(**values) -> CompanionProcess:
    process = running(watchdog=10, **values)
    assert process.due_event(T0 + 10.9) is None
    assert process.next_deadline(T0 + 1) == T0 + 11
    assert process.due_event(T0 + 11) is Event.HUNG
    assert process.handle(Event.HUNG, T0 + 11) == (Action.ABORT,)
    return process


def test_a_sign_of_life_moves_the_watchdog_on():
    process = running(watchdog=10)
    for now in (T0 + 5, T0 + 14, T0 + 23):
        process.handle(Event.BEAT, now)
        assert process.due_event(now + 9.9) is None
        assert process.next_deadline(now) == now + 10
    assert process.due_event(T0 + 33) is Event.HUNG


def test_the_watchdog_waits_for_running():
    process = starting(watchdog=1, startsecs=100)
    process.handle(Event.BEAT, T0)
    assert process.due_event(T0 + 50) is None
    process.handle(Event.ALIVE, T0 + 100)
    assert process.due_event(T0 + 100.9) is None
    assert process.due_event(T0 + 101) is Event.HUNG


def test_without_a_watchdog_no_companion_is_hung():
    process = running()
    process.handle(Event.BEAT, T0 + 5)
    assert process.due_event(T0 + 1e9) is None


def test_the_watchdog_of_an_earlier_process_is_not_the_next_one_s():
    process = running(watchdog=10, restart_delay=30)
    end(process, T0 + 5)
    assert process.due_event(T0 + 20) is None
    start_again(process)
    assert process.due_event(T0 + 35.5) is None
    process.handle(Event.ALIVE, T0 + 36)
    assert process.watchdog_at == T0 + 46


def test_a_hung_companion_is_aborted_killed_and_retried():
    process = hung()
    assert process.state is State.STOPPING
    assert process.stop_deadline is not None
    assert T0 + 11 < process.stop_deadline < T0 + 20
    assert process.due_event(process.stop_deadline) is Event.DEADLINE
    assert process.handle(Event.DEADLINE, process.stop_deadline) == (Action.KILL,)
    assert process.kill_count == 1
    end(process, T0 + 14, int(signal.SIGKILL))
    assert process.state is State.BACKOFF
    assert process.description(T0 + 14) == "no WATCHDOG=1 for 10s, retrying in 5s"
    assert process.failed_starts == 0


@pytest.mark.parametrize("autorestart", [ALWAYS, ON_FAILURE])
def test_a_hung_companion_has_failed_whatever_the_exit(autorestart):
    process = hung(autorestart=autorestart)
    end(process, T0 + 12, 0)
    assert process.state is State.BACKOFF


def test_a_hung_companion_without_a_restart_shows_why():
    process = hung(autorestart=NEVER)
    end(process, T0 + 12, int(signal.SIGABRT))
    assert (process.state, process.settled) == (State.STOPPED, EXITED)
    assert process.description(T0 + 12) == "no WATCHDOG=1 for 10s"


def test_waits_for_leftovers_of_a_hung_companion():
    process = hung()
    process.handle(Event.EXITED, T0 + 12, status=int(signal.SIGABRT))
    assert process.state is State.STOPPING
    assert process.ending
    process.handle(Event.EMPTY, T0 + 13)
    assert process.state is State.BACKOFF
    assert process.next_retry_at == T0 + 18


def test_messages_of_a_stopping_companion_are_ignored():
    process = hung()
    deadline = process.stop_deadline
    for event in (Event.BEAT, Event.READY, Event.HUNG):
        assert process.handle(event, T0 + 11.5) == ()
    assert (process.state, process.stop_deadline) == (State.STOPPING, deadline)


def test_trigger_counts_before_running_too():
    process = starting(ready="notify")
    assert process.handle(Event.HUNG, T0 + 1, reason="asked for by itself") == (Action.ABORT,)
    end(process, T0 + 2, int(signal.SIGABRT))
    assert process.description(T0 + 2) == "asked for by itself, retrying in 5s"
    assert process.failed_starts == 1


# -- commands while it fails -------------------------------------------------


@pytest.mark.parametrize("fail", [not_ready, hung])
@pytest.mark.parametrize("exited", [False, True], ids=["alive", "leftovers"])
def test_a_stop_of_a_hung_companion_is_a_stop(fail, exited):
    process = fail(start_retries=1)
    if exited:
        process.handle(Event.EXITED, T0 + 31, status=failure())
    assert process.handle(Event.STOP, T0 + 31, manual=True) == ()
    if not exited:
        process.handle(Event.EXITED, T0 + 32, status=failure())
    process.handle(Event.EMPTY, T0 + 33)
    assert process.description(T0 + 33) == "stopped manually"
    assert process.status_dict(T0 + 33)["reason"] is None


@pytest.mark.parametrize("fail", [not_ready, hung])
@pytest.mark.parametrize("event", [Event.START, Event.RESTART])
def test_a_start_of_a_hung_companion_does_not_wait_for_the_delay(fail, event):
    process = fail(start_retries=1)
    process.handle(event, T0 + 31)
    end(process, T0 + 32)
    assert process.can_start(T0 + 32)
    assert process.failed_starts == 0


def test_a_stop_in_backoff_forgets_why():
    process = backoff()
    process.reason = "no WATCHDOG=1 for 10s"
    process.handle(Event.STOP, NOW, manual=True)
    assert process.status_dict(NOW)["reason"] is None


def test_a_stopped_companion_waits_for_no_other():
    process = make(after=["db"])
    process.handle(Event.START, T0)
    process.held_by = ("db",)
    assert process.description(T0) == "waiting for db"
    assert (process.can_start(T0 + 9), process.next_deadline(T0)) == (False, None)
    process.handle(Event.STOP, T0 + 1, manual=True)
    assert process.status_dict(T0 + 1)["after"] == []
    assert process.description(T0 + 1) == "stopped manually"


def test_waiting_for_another_server_is_over_when_the_start_fails():
    process = make()
    process.handle(Event.START, T0)
    process.handle(Event.BLOCKED, T0, pid=7)
    process.handle(Event.START_FAILED, T0 + 1, reason="cannot make its run file: no space")
    assert process.status_dict(T0 + 1)["waiting_for"] is None


# -- failures in a row ---------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "count", "proof"),
    [
        ([], 0, 0),
        ([0.1], 1, 10),
        ([0.1, 9.9, 10.0], 3, 20),
        # It has lasted longer than it had to prove.
        ([0.1, 0.1, 10.1], 1, 20.2),
        ([90, 90, 90, 90], 4, 180),
        ([4000, 500, 600], 3, 600),
        ([4000, 601], 1, 600),
    ],
)
def test_failures_in_a_row(runs, count, proof):
    failures = Failures()
    for run in runs:
        failures.note(run, f"after {run}")
    assert (failures.count, failures.proof) == (count, pytest.approx(proof))
    assert failures.persist is (count >= 3)
    assert failures.latest == (f"after {runs[-1]}" if runs else None)
    assert failures.ongoing(proof) is failures.ongoing(None) is (count > 0)
    assert not failures.ongoing(proof + 0.001)
    failures.forget()
    assert (failures.count, failures.ongoing(None), failures.start_interval) == (0, False, MIN_START_INTERVAL)


@pytest.mark.parametrize(
    ("values", "status", "reason", "counts", "cause"),
    [
        ({}, 0, None, False, "exit"),
        ({}, failure(), None, True, "crash"),
        ({}, SEGFAULT, None, True, "crash"),
        ({}, signal.SIGKILL, None, True, "killed"),
        ({}, signal.SIGTERM, None, True, "killed"),
        ({}, failure(), "companion_post_fork: no", True, "crash"),
        ({"startsecs": 20}, 0, None, True, "exit"),
        ({"startsecs": 20, "autorestart": "on-failure"}, 0, None, False, "exit"),
        ({"startsecs": 20, "autorestart": "on-failure"}, failure(), None, True, "crash"),
    ],
)
def test_which_exit_is_a_failure(values, status, reason, counts, cause):
    process = starting(**values)
    run_for(process, 10, status, reason=reason)
    assert process.failures.count == int(counts)
    assert process.cause == cause == f"{process.cause}" == json.loads(json.dumps(process.cause))
    assert process.cause_text == (reason or process.last_exit)


def test_a_hung_companion_has_failed_and_a_stopped_one_has_not():
    for fail, cause in ((not_ready, "not ready"), (hung, "watchdog")):
        process = fail()
        assert (process.failures.count, process.cause, process.cause_text) == (1, cause, process.reason)
        end(process, T0 + 40, 0)
        assert process.failures.count == 1
    for process in (stopping(), restarting()):
        end(process, T0 + 20, SEGFAULT)
        assert process.failures.count == 0
    refused = make()
    refused.handle(Event.START, T0)
    refused.handle(Event.START_FAILED, T0, reason="cannot fork")
    assert (refused.failures.count, refused.failures.latest) == (1, "cannot fork")


def test_a_crash_loop_without_a_delay_comes_to_one_start_a_second():
    process = starting(startsecs=0, restart_delay=0)
    starts = [T0]
    for _ in range(20):
        run_for(process, 0.001)
        starts.append(start_again(process))
    intervals = [round(later - earlier, 6) for earlier, later in itertools.pairwise(starts)]
    assert intervals[:5] == [0.05] * 5
    assert intervals[5:10] == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert set(intervals[10:]) == {1.0}
    # One that does its work and is to be repeated at once does not fail.
    process = starting(startsecs=0, restart_delay=0)
    for _ in range(20):
        run_for(process, 0.001, 0)
        assert start_again(process) - (process.exited_at or 0) < 0.05
    # Who asks for a start does not wait.
    process = starting(startsecs=0, restart_delay=0)
    for _ in range(20):
        run_for(process, 0.001)
        start_again(process)
    now = run_for(process, 0.5)
    process.handle(Event.START, now)
    assert process.can_start(now)
