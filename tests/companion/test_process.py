# SPDX-License-Identifier: MIT
"""The life of a companion: every (state, event) pair, descriptions, deadlines."""

from __future__ import annotations

import itertools
import signal

import pytest
from processtools import T0, backoff, end, make, restarting, running, start_again, starting, stopping

from gunicorn.companion.process import (
    LONGEST_WAIT,
    MIN_START_INTERVAL,
    POLL_INTERVAL,
    TRANSITIONS,
    WAIT_INTERVAL,
    Action,
    Cause,
    Event,
    State,
    TransitionError,
)
from gunicorn.companion.status import format_uptime

MAKERS = {
    State.STOPPED: make,
    State.STARTING: starting,
    State.RUNNING: running,
    State.BACKOFF: backoff,
    State.STOPPING: stopping,
}
NOW = T0 + 20

DETAILS = {
    Event.FORKED: {"pid": 43},
    Event.BLOCKED: {"pid": 7},
    Event.EXITED: {"status": 0},
    Event.START_FAILED: {"reason": "fork refused"},
}

# (state, event) -> state after, actions. Every pair that is not here must be refused.
OUTCOMES = {
    (State.STOPPED, Event.START): (State.STARTING, ()),
    (State.STOPPED, Event.RESTART): (State.STARTING, ()),
    (State.STOPPED, Event.STOP): (State.STOPPED, ()),
    (State.STARTING, Event.START): (State.STARTING, ()),
    (State.STARTING, Event.RESTART): (State.STOPPING, (Action.SIGNAL,)),
    (State.STARTING, Event.STOP): (State.STOPPING, (Action.SIGNAL,)),
    (State.STARTING, Event.FORKED): (State.STARTING, ()),
    (State.STARTING, Event.BLOCKED): (State.STARTING, ()),
    (State.STARTING, Event.START_FAILED): (State.BACKOFF, ()),
    (State.STARTING, Event.ALIVE): (State.RUNNING, ()),
    (State.STARTING, Event.READY): (State.STARTING, ()),
    (State.STARTING, Event.PROBED): (State.STARTING, ()),
    (State.STARTING, Event.BEAT): (State.STARTING, ()),
    (State.STARTING, Event.NOT_READY): (State.STOPPING, (Action.SIGNAL,)),
    (State.STARTING, Event.HUNG): (State.STOPPING, (Action.ABORT,)),
    (State.STARTING, Event.LEASE_LOST): (State.STOPPING, (Action.SIGNAL,)),
    (State.RUNNING, Event.LEASE_LOST): (State.STOPPING, (Action.SIGNAL,)),
    (State.STOPPING, Event.LEASE_LOST): (State.STOPPING, ()),
    (State.STARTING, Event.EXITED): (State.BACKOFF, (Action.KILL,)),
    (State.STARTING, Event.EMPTY): (State.STARTING, (Action.RELEASE,)),
    (State.STARTING, Event.LEFTOVERS_KILLED): (State.STARTING, ()),
    (State.RUNNING, Event.START): (State.RUNNING, ()),
    (State.RUNNING, Event.RESTART): (State.STOPPING, (Action.SIGNAL,)),
    (State.RUNNING, Event.STOP): (State.STOPPING, (Action.SIGNAL,)),
    (State.RUNNING, Event.READY): (State.RUNNING, ()),
    (State.RUNNING, Event.BEAT): (State.RUNNING, ()),
    (State.RUNNING, Event.HUNG): (State.STOPPING, (Action.ABORT,)),
    (State.RUNNING, Event.EXITED): (State.BACKOFF, (Action.KILL,)),
    (State.BACKOFF, Event.START): (State.STARTING, ()),
    (State.BACKOFF, Event.RESTART): (State.STARTING, ()),
    (State.BACKOFF, Event.STOP): (State.STOPPED, (Action.RELEASE,)),
    (State.BACKOFF, Event.EMPTY): (State.BACKOFF, (Action.RELEASE,)),
    (State.BACKOFF, Event.LEFTOVERS_KILLED): (State.BACKOFF, ()),
    (State.BACKOFF, Event.DELAY_PASSED): (State.STARTING, ()),
    (State.STOPPING, Event.START): (State.STOPPING, ()),
    (State.STOPPING, Event.RESTART): (State.STOPPING, ()),
    (State.STOPPING, Event.STOP): (State.STOPPING, ()),
    (State.STOPPING, Event.READY): (State.STOPPING, ()),
    (State.STOPPING, Event.BEAT): (State.STOPPING, ()),
    (State.STOPPING, Event.HUNG): (State.STOPPING, ()),
    (State.STOPPING, Event.EXITED): (State.STOPPING, (Action.KILL,)),
    (State.STOPPING, Event.EMPTY): (State.STOPPED, (Action.RELEASE,)),
    (State.STOPPING, Event.LEFTOVERS_KILLED): (State.STOPPING, ()),
    (State.STOPPING, Event.DEADLINE): (State.STOPPING, (Action.KILL,)),
    (State.STOPPED, Event.DELAY_PASSED): (State.STARTING, ()),
    (State.STARTING, Event.OVERTIME): (State.STOPPING, (Action.SIGNAL,)),
    (State.RUNNING, Event.OVERTIME): (State.STOPPING, (Action.SIGNAL,)),
    (State.RUNNING, Event.RECOVERED): (State.RUNNING, ()),
    # It has one stop signal, and has had it.
    (State.STOPPING, Event.ESCALATE): (State.STOPPING, ()),
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)), ids=lambda v: v.name)
def test_every_pair(state, event):
    process = MAKERS[state]()
    assert process.state is state
    expected = OUTCOMES.get((state, event))
    if expected is None:
        with pytest.raises(TransitionError):
            process.handle(event, NOW, **DETAILS.get(event, {}))
        assert process.state is state
        return
    actions = process.handle(event, NOW, **DETAILS.get(event, {}))
    assert (process.state, actions) == expected


def test_the_two_tables_are_of_the_same_pairs():
    assert set(OUTCOMES) == set(TRANSITIONS)


def test_an_unasked_exit_is_counted_and_waits_for_its_delay():
    process = running(restart_delay=5)
    process.handle(Event.EXITED, T0 + 10, status=signal.SIGKILL)
    process.handle(Event.EMPTY, T0 + 10)
    assert (process.exit_count, process.last_exit_code, process.last_exit_signal) == (1, None, signal.SIGKILL)
    assert process.pid is None
    assert process.due_event(T0 + 14.9) is None
    assert process.due_event(T0 + 15) is Event.DELAY_PASSED
    process.handle(Event.DELAY_PASSED, T0 + 15)
    assert process.can_start(T0 + 15)
    process.handle(Event.FORKED, T0 + 15, pid=43)
    assert process.restart_count == 1


@pytest.mark.parametrize("code", [0, 1, 3, 4, 255])
def test_every_exit_code_leads_to_a_restart(code):
    process = running()
    process.handle(Event.EXITED, T0 + 10, status=code << 8)
    assert process.state is State.BACKOFF
    assert (process.last_exit_code, process.last_exit_signal) == (code, None)
    assert process.description(T0 + 12) == f"exited with status {code}, retrying in 3s"


def test_two_starts_are_never_closer_than_the_least_interval():
    process = starting(restart_delay=0, startsecs=0)
    process.handle(Event.EXITED, T0, status=0)
    process.handle(Event.EMPTY, T0)
    assert process.due_event(T0) is None
    assert process.due_event(T0 + MIN_START_INTERVAL) is Event.DELAY_PASSED
    process.handle(Event.START, T0)
    assert not process.can_start(T0)
    assert process.can_start(T0 + MIN_START_INTERVAL)


def test_leftovers_delay_the_next_start():
    process = running(restart_delay=0)
    process.handle(Event.EXITED, T0 + 10, status=0)
    assert process.ending
    assert process.next_deadline(T0 + 10) <= T0 + 10 + POLL_INTERVAL
    process.handle(Event.DELAY_PASSED, T0 + 10)
    assert process.state is State.STARTING
    assert not process.can_start(T0 + 20)
    assert process.description(T0 + 20) == "waiting for the processes of pid 42"
    process.handle(Event.EMPTY, T0 + 20)
    assert process.can_start(T0 + 20)


def test_a_stop_ends_when_the_session_is_empty():
    process = stopping()
    assert process.manual_stop
    process.handle(Event.EXITED, NOW, status=0)
    assert process.state is State.STOPPING
    process.handle(Event.EMPTY, NOW)
    assert process.state is State.STOPPED
    assert process.description(NOW) == "stopped manually"
    assert process.next_deadline(NOW) is None


@pytest.mark.parametrize(
    ("event", "limit"),
    [(Event.STOP, 70), (Event.RESTART, 40), (Event.HUNG, 12), (Event.NOT_READY, 70)],
    ids=lambda v: getattr(v, "name", ""),
)
def test_a_group_that_was_asked_to_stop_has_the_time_of_its_leader(event, limit):
    make_one = starting if event is Event.NOT_READY else running
    process = make_one(stop_as_group=True)
    process.handle(event, T0 + 10)
    assert process.handle(Event.EXITED, T0 + 11, status=0) == ()
    assert process.draining
    assert process.state is State.STOPPING
    assert process.description(T0 + 11) == f"waiting for the processes of pid 42, SIGKILL in {limit - 11}s"
    assert process.due_event(T0 + limit - 0.1) is None
    assert process.due_event(T0 + limit) is Event.DEADLINE
    assert process.handle(Event.DEADLINE, T0 + limit) == (Action.KILL,)
    assert not process.draining
    assert process.kill_count == 1


def test_a_group_that_was_asked_to_stop_and_is_gone_in_time_is_not_killed():
    process = running(stop_as_group=True)
    process.handle(Event.RESTART, T0 + 10)
    process.handle(Event.EXITED, T0 + 11, status=0)
    process.handle(Event.EMPTY, T0 + 20)
    assert (process.state, process.kill_count) == (State.STARTING, 0)
    assert process.can_start(T0 + 20)


def test_a_quicker_stop_counts_for_a_group_whose_leader_is_gone():
    process = running(stop_as_group=True)
    process.handle(Event.STOP, T0 + 10)
    process.handle(Event.EXITED, T0 + 11, status=0)
    process.handle(Event.STOP, T0 + 12, timeout=0)
    assert process.due_event(T0 + 12) is Event.DEADLINE


@pytest.mark.parametrize("make_one", [starting, running])
def test_leftovers_without_a_stop_signal_are_killed(make_one):
    process = make_one(stop_as_group=True)
    assert process.handle(Event.EXITED, T0 + 11, status=0) == (Action.KILL,)
    assert not process.draining


@pytest.mark.parametrize("autorestart", ["always", "on-failure", "never"])
def test_a_group_with_a_stop_signal_from_outside_may_finish(autorestart):
    process = running(stop_as_group=True, autorestart=autorestart)
    assert process.handle(Event.EXITED, T0 + 11, status=signal.SIGTERM) == (Action.SIGNAL,)
    assert process.draining
    assert process.due_event(T0 + 71) is Event.DEADLINE
    process.handle(Event.EMPTY, T0 + 20)
    assert process.state is (State.STOPPED if autorestart == "never" else State.BACKOFF)
    assert process.description(T0 + 20).startswith("killed by SIGTERM")


def test_a_stop_after_a_stop_signal_from_outside():
    process = running(stop_as_group=True)
    process.handle(Event.EXITED, T0 + 11, status=signal.SIGTERM)
    assert process.handle(Event.STOP, T0 + 12, timeout=30) == ()
    assert process.stop_deadline == T0 + 42
    process.handle(Event.EMPTY, T0 + 20)
    assert process.state is State.STOPPED


@pytest.mark.parametrize("state", [State.STARTING, State.BACKOFF, State.STOPPING], ids=lambda v: v.name)
def test_leftovers_that_were_killed_are_counted_apart(state):
    process = MAKERS[state]()
    process.handle(Event.LEFTOVERS_KILLED, NOW, count=2)
    shown = process.status_dict(NOW)
    assert (shown["kill_count"], shown["leftovers_killed"]) == (0, 2)


def test_a_hint_about_an_exit_is_shown_until_it_runs():
    process = running(restart_delay=5)
    process.handle(Event.EXITED, T0 + 10, status=0)
    process.handle(Event.LEFTOVERS_KILLED, T0 + 10, count=1, reason="pid 7 had detached itself")
    process.handle(Event.EMPTY, T0 + 10)
    assert process.description(T0 + 12) == "exited with status 0; pid 7 had detached itself, retrying in 3s"
    process.handle(Event.DELAY_PASSED, T0 + 15)
    process.handle(Event.FORKED, T0 + 15, pid=43)
    process.handle(Event.ALIVE, T0 + 16)
    process.handle(Event.EXITED, T0 + 17, status=0)
    process.handle(Event.EMPTY, T0 + 17)
    assert process.description(T0 + 17) == "exited with status 0, retrying in 5s"


def test_sigkill_at_the_deadline_is_counted_once():
    process = stopping(stop_timeout=60)
    assert process.due_event(T0 + 69.9) is None
    assert process.due_event(T0 + 70) is Event.DEADLINE
    assert process.handle(Event.DEADLINE, T0 + 70) == (Action.KILL,)
    assert process.handle(Event.DEADLINE, T0 + 71) == ()
    assert process.kill_count == 1
    assert process.due_event(T0 + 71) is None


def test_a_restart_has_the_reload_timeout_and_starts_again():
    process = restarting(reload_timeout=30)
    assert process.stop_deadline == T0 + 40
    assert process.restart_pending and not process.manual_stop
    process.handle(Event.EXITED, NOW, status=0)
    process.handle(Event.EMPTY, NOW)
    assert process.state is State.STARTING
    assert process.can_start(NOW)
    assert not process.restart_pending


def test_a_stop_cancels_a_pending_restart():
    process = restarting()
    process.handle(Event.STOP, T0 + 11, manual=True)
    process.handle(Event.EXITED, NOW, status=0)
    process.handle(Event.EMPTY, NOW)
    assert process.state is State.STOPPED
    assert process.manual_stop


def test_a_quicker_stop_moves_the_deadline_and_a_slower_one_does_not():
    process = stopping(stop_timeout=60)
    process.handle(Event.STOP, T0 + 11, timeout=5)
    assert process.stop_deadline == T0 + 16
    process.handle(Event.STOP, T0 + 11, timeout=500)
    assert process.stop_deadline == T0 + 16


def test_start_and_restart_end_a_manual_stop():
    for event in (Event.START, Event.RESTART):
        process = make()
        process.manual_stop = True
        process.handle(event, T0)
        assert not process.manual_stop


def test_waits_for_an_older_process():
    process = make()
    process.handle(Event.START, T0)
    process.handle(Event.BLOCKED, T0, pid=7, session=7)
    assert process.description(T0) == "waiting for pid 7"
    assert process.status_dict(T0)["pid"] is None
    assert not process.can_start(T0 + 100)
    process.handle(Event.EMPTY, T0 + 100)
    assert process.can_start(T0 + 100)


def test_a_stop_waits_for_an_older_process():
    process = make()
    process.handle(Event.START, T0)
    process.handle(Event.BLOCKED, T0, pid=7, session=7)
    process.handle(Event.STOP, T0 + 1, manual=True)
    assert process.state is State.STOPPING
    process.handle(Event.EMPTY, T0 + 2)
    assert process.state is State.STOPPED


def test_a_stop_does_not_wait_for_another_server():
    process = make()
    process.handle(Event.START, T0)
    process.handle(Event.BLOCKED, T0, pid=7)
    assert T0 < process.next_deadline(T0) <= T0 + WAIT_INTERVAL
    process.handle(Event.STOP, T0 + 1, manual=True)
    assert process.state is State.STOPPED


def test_checks_for_another_server_become_rarer_at_common_times():
    process = make()
    process.handle(Event.START, T0)
    moments = [T0]
    for _ in range(6):
        process.handle(Event.BLOCKED, moments[-1], pid=7)
        moments.append(process.next_retry_at)
        assert process.can_start(moments[-1]) and not process.can_start(moments[-1] - 0.01)
    intervals = (WAIT_INTERVAL, 0.5, 1.0, LONGEST_WAIT, LONGEST_WAIT, LONGEST_WAIT)
    for before, after, interval in zip(moments, moments[1:], intervals, strict=False):
        assert after % interval == 0 and 0 < after - before <= interval
    # Another start begins with the shortest one.
    process.handle(Event.STOP, moments[-1], manual=True)
    process.handle(Event.START, moments[-1])
    process.handle(Event.BLOCKED, moments[-1], pid=7)
    assert process.next_retry_at <= moments[-1] + WAIT_INTERVAL


def test_a_running_companion_needs_no_wake_up():
    assert running().next_deadline(NOW) is None
    assert starting(startsecs=3).next_deadline(T0) == T0 + 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "00:00:00"),
        (-3, "00:00:00"),
        (59.9, "00:00:59"),
        (3600, "01:00:00"),
        (86399, "23:59:59"),
        (86400, "1 day, 00:00:00"),
        (86400 + 3 * 3600 + 12 * 60 + 44, "1 day, 03:12:44"),
        (2 * 86400 + 3 * 3600 + 12 * 60 + 44, "2 days, 03:12:44"),
        (400 * 86400, "400 days, 00:00:00"),
    ],
)
def test_uptime(seconds, text):
    assert format_uptime(seconds) == text


def exits(status):
    process = running()
    process.handle(Event.EXITED, T0 + 10, status=status)
    return process


@pytest.mark.parametrize(
    ("process", "now", "text"),
    [
        (running(), T0 + 2 * 86400 + 3661, "pid 42, uptime 2 days, 01:01:01"),
        (starting(), T0 + 0.5, "pid 42, uptime 00:00:00"),
        (exits(1 << 8), T0 + 12.1, "exited with status 1, retrying in 3s"),
        (exits(signal.SIGKILL), T0 + 12, "killed by SIGKILL, retrying in 3s"),
        (exits(signal.SIGSEGV | 0x80), T0 + 12, "killed by SIGSEGV, retrying in 3s"),
        (exits(0), T0 + 99, "exited with status 0, retrying in 0s"),
        (make(), T0, "not started"),
        (stopping(stop_timeout=60), T0 + 10, "pid 42, SIGKILL in 60s"),
    ],
)
def test_description(process, now, text):
    assert process.description(now) == text


def test_a_failed_start_shows_its_reason():
    process = make(restart_delay=5)
    process.handle(Event.START, T0)
    process.handle(Event.START_FAILED, T0, reason="cannot fork: no memory")
    assert process.description(T0 + 1) == "cannot fork: no memory, retrying in 4s"
    process.handle(Event.DELAY_PASSED, T0 + 5)
    process.handle(Event.FORKED, T0 + 5, pid=43)
    process.handle(Event.EXITED, T0 + 6, status=256, reason="companion_post_fork: ValueError: no")
    assert process.description(T0 + 6) == (
        "companion_post_fork: ValueError: no, retrying in 5s, failed 2 times in a row"
    )


def test_wall_clock_times_follow_the_wall_clock_and_deadlines_do_not():
    process = stopping(stop_timeout=60)
    before = process.status_dict(T0 + 20, wall=5_000_000.0)
    # The clock is set back by an hour: what is shown moves, what is due does not.
    after = process.status_dict(T0 + 20, wall=5_000_000.0 - 3600)
    assert before["stop_deadline"] == 5_000_050.0
    assert after["stop_deadline"] == before["stop_deadline"] - 3600
    assert before["description"] == after["description"]
    assert process.due_event(T0 + 20) is None
    assert process.status_dict(T0 + 20)["stop_deadline"] is None


def test_status_shows_names_of_signals():
    shown = exits(signal.SIGUSR1).status_dict(T0 + 10, wall=0.0)
    assert shown["last_exit_signal"] == "SIGUSR1"
    assert shown["last_exit_code"] is None
    assert shown["state"] == "BACKOFF"
    assert shown["exit_count"] == 1


# -- schedules -------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_failed_run_is_tried_again_so_often(retries):
    process = running(schedule="@daily", schedule_retries=retries, autorestart="never")
    for pid in range(43, 43 + retries):
        end(process, (process.started_at or 0) + 2)
        assert process.state is State.BACKOFF
        start_again(process, pid)
    end(process, (process.started_at or 0) + 2)
    assert (process.state, process.done) == (State.STOPPED, False)
    # The next time begins anew.
    process.handle(Event.START, T0 + 1000)
    process.handle(Event.FORKED, T0 + 1000, pid=99)
    end(process, T0 + 1001)
    assert process.state is (State.BACKOFF if retries else State.STOPPED)


def test_a_run_that_ends_well_is_not_tried_again():
    process = running(schedule="@daily", schedule_retries=3, autorestart="never")
    end(process, T0 + 2, status=0)
    assert (process.state, process.done) == (State.STOPPED, True)


def test_a_run_that_takes_too_long_has_failed_even_with_exit_code_0():
    process = running(schedule="@daily", schedule_retries=1, max_runtime=5, autorestart="never")
    process.handle(Event.OVERTIME, T0 + 5)
    end(process, T0 + 6, status=0)
    assert process.state is State.BACKOFF


@pytest.mark.parametrize("retries", [0, 1])
def test_a_run_without_a_process_has_failed(retries):
    process = make(schedule="@daily", schedule_retries=retries, autorestart="never", start_limit=None)
    process.handle(Event.START, T0)
    process.handle(Event.START_FAILED, T0, reason="cannot fork")
    assert process.state is (State.BACKOFF if retries else State.STOPPED)
    assert not process.done


def test_a_run_that_loses_its_lease_is_stopped_for_good():
    process = running(schedule="@daily", schedule_retries=1, autorestart="never")
    process.handle(Event.LEASE_LOST, T0 + 5, cause=Cause.LEASE, reason="lost", timeout=1.0)
    end(process, T0 + 6)
    assert (process.state, process.manual_stop) == (State.STOPPED, False)
