# SPDX-License-Identifier: MIT
"""What holds a companion that comes after others, and in which order they stop."""

from __future__ import annotations

import pytest
from processtools import T0, end, failure, run_for, start_again

from gunicorn.companion.config import CompanionConfig, copies
from gunicorn.companion.graph import stop_times
from gunicorn.companion.process import CompanionProcess, Event, State
from gunicorn.companion.supervise.order import Stop, Stops, WebTier, hold, unmet_by_web

Processes = dict[str, CompanionProcess]


def make(name: str, numprocs: int | None = None, **values) -> Processes:
    config = CompanionConfig(name, "app:run", numprocs=numprocs, **values)
    return {config.name: CompanionProcess(config) for config in copies(config, numprocs)}


def started(name: str, **values) -> Processes:
    processes = make(name, **values)
    for process in processes.values():
        process.handle(Event.START, T0)
        if not process.config.after:
            process.handle(Event.FORKED, T0, pid=42)
    return processes


def test_waits_for_a_companion_that_may_still_start():
    processes = {**started("a"), **started("b", after=("a",))}
    a, b = processes.values()
    hold(processes, [b], WebTier())
    assert (b.held_by, b.stuck, b.description(T0)) == (("a",), None, "waiting for a")
    run_for(a, 0.5)
    assert a.state is State.BACKOFF
    hold(processes, [b], WebTier())
    # It is tried again: a start is not waited for longer than one of `a` itself, but there is hope.
    why = "a, which keeps failing: exited with status 1"
    assert (b.held_by, b.stuck, b.hopeless) == (("a",), why, False)
    assert b.description(T0) == f"waiting for {why}"
    start_again(a)
    hold(processes, [b], WebTier())
    assert (b.held_by, b.stuck) == (("a",), None)
    a.handle(Event.ALIVE, T0 + 10)
    hold(processes, [b], WebTier())
    assert (b.held_by, b.stuck) == ((), None)


def gives_up(process: CompanionProcess) -> None:
    run_for(process, 0.5)


def is_stopped(process: CompanionProcess) -> None:
    process.handle(Event.STOP, T0 + 1, manual=True)
    end(process, T0 + 1, 0)


def is_killed(process: CompanionProcess) -> None:
    end(process, T0 + 1, 9)


def fails(process: CompanionProcess) -> None:
    end(process, T0 + 1, failure(3))


def is_not_ready(process: CompanionProcess) -> None:
    process.handle(Event.NOT_READY, T0 + 60)
    end(process, T0 + 60, 0)


@pytest.mark.parametrize(
    ("values", "happens", "why"),
    [
        ({"start_retries": 1}, gives_up, "gave up after 1 failed start: exited with status 1"),
        ({}, is_stopped, "was stopped by command"),
        ({"autorestart": "never"}, fails, "has ended: exited with status 3"),
        ({"autorestart": "never"}, is_killed, "has ended: killed by SIGKILL"),
        ({"autorestart": "never", "ready": "notify"}, is_not_ready, "has ended: not ready within 60s"),
    ],
)
def test_shows_why_a_companion_will_not_start(values, happens, why):
    # Those that wait for one that waits are first in the table: what they wait for is found out later.
    processes = {
        **started("c", after=("b",)),
        **started("b", after=("a",)),
        **started("a", **values),
    }
    c, b, a = processes.values()
    happens(a)
    assert a.state is State.STOPPED and not a.done
    hold(processes, [c, b], WebTier())
    assert b.description(T0) == f"waiting for a, which {why}"
    assert c.description(T0) == f"waiting for b, which waits for a, which {why}"
    told = b.status_dict(T0)
    assert (told["state"], told["after"], told["stuck"]) == ("STARTING", ["a"], f"a, which {why}")
    assert told["hopeless"] and c.hopeless
    # Somebody starts it: there is hope again.
    a.handle(Event.START, T0 + 100)
    hold(processes, [c, b], WebTier())
    assert (b.stuck, c.stuck) == (None, None)
    assert c.held_by == ("b",)


def test_a_job_that_is_done_delays_no_companion():
    processes = {**started("a", autorestart="on-failure"), **started("b", after=("a",))}
    a, b = processes.values()
    end(a, T0 + 0.1, 0)
    assert a.done and a.failed_starts == 0
    hold(processes, [b], WebTier())
    assert (b.held_by, b.stuck) == ((), None)


def test_names_the_missing_copy_and_the_removed_companion():
    processes = {**started("rq", numprocs=3), **started("b", after=("rq", "off", "gone"))}
    processes.update(make("off"))
    b = processes["b"]
    for name in ("rq:0", "rq:2"):
        processes[name].handle(Event.ALIVE, T0 + 1)
    is_stopped(processes["rq:2"])
    hold(processes, [b], WebTier())
    assert b.held_by == ("rq", "off", "gone")
    assert b.stuck == (
        "rq:2, which was stopped by command; off, which is not started; gone, which no longer exists"
    )
    b.handle(Event.STOP, T0 + 2, manual=True)
    assert (b.held_by, b.stuck) == ((), None)


# -- on the way down -------------------------------------------------------------


def runs(name: str, **values) -> Processes:
    processes = make(name, **values)
    for process in processes.values():
        process.handle(Event.START, T0)
        process.handle(Event.FORKED, T0, pid=42)
    return processes


def told(stops: Stops, processes: Processes, **how) -> list[str]:
    """Whose turn it is; each is told."""
    found = stops.due(processes, **how)
    for process, stop in found:
        process.handle(Event.STOP, T0 + 1, timeout=stop.timeout, manual=stop.manual)
    return sorted(process.name for process, _ in found)


def chain() -> Processes:
    return {
        **runs("store"),
        **runs("rq", numprocs=2, after=("store",)),
        **runs("mail", after=("rq:1",)),
        **runs("alone"),
    }


def test_stops_after_the_companions_that_come_after_it():
    processes, stops = chain(), Stops()
    for name in processes:
        stops.ask(name, Stop())
    assert told(stops, processes) == ["alone", "mail", "rq:0"]
    assert told(stops, processes) == []
    assert processes["store"].description(T0 + 2) == "pid 42, uptime 00:00:02, is stopped after rq:0, rq:1"
    assert processes["rq:1"].status_dict(T0)["stops_after"] == ["mail"]
    end(processes["mail"], T0 + 3)
    assert told(stops, processes) == ["rq:1"]
    end(processes["rq:1"], T0 + 3)
    assert told(stops, processes) == []
    assert processes["store"].stops_after == ("rq:0",)
    end(processes["rq:0"], T0 + 3)
    assert told(stops, processes) == ["store"]
    assert processes["store"].stops_after == ()


def test_a_stop_waits_for_no_companion_that_is_not_stopped():
    processes, stops = chain(), Stops()
    stops.ask("store", Stop(manual=True))
    stops.ask("rq:1", Stop(manual=True))
    assert told(stops, processes) == ["rq:1"]
    end(processes["rq:1"], T0 + 3)
    assert told(stops, processes) == ["store"]
    assert processes["store"].manual_stop
    assert processes["mail"].state is State.STARTING


def test_without_a_process_it_needs_and_serves_no_other():
    processes, stops = {**runs("store"), **runs("rq", after=("store",))}, Stops()
    for name in processes:
        stops.ask(name, Stop())
    run_for(processes["store"], 0.5)
    assert told(stops, processes) == ["rq", "store"]
    assert processes["store"].state is State.STOPPED


def test_a_second_stop_adds_to_the_first():
    processes, stops = {**runs("store"), **runs("rq", after=("store",))}, Stops()
    for name in processes:
        stops.ask(name, Stop(5.0))
    stops.ask("store", Stop(manual=True, reason="asked for"))
    [(_, first)] = stops.due(processes)
    assert first == Stop(5.0)
    processes["rq"].handle(Event.STOP, T0 + 1)
    end(processes["rq"], T0 + 3)
    [(_, second)] = stops.due(processes)
    assert second == Stop(5.0, manual=True, reason="asked for")
    processes["store"].handle(Event.STOP, T0 + 1, **second.details)
    assert processes["store"].manual_stop
    assert processes["store"].stop_deadline == T0 + 6


def test_a_stopping_companion_is_told_not_to_come_back():
    processes, stops = {**runs("store"), **runs("rq", after=("store",))}, Stops()
    processes["store"].handle(Event.RESTART, T0)
    for name in processes:
        stops.ask(name, Stop())
    assert told(stops, processes) == ["rq", "store"]
    assert not processes["store"].restart_pending


def test_together_none_waits():
    processes, stops = chain(), Stops()
    for name in processes:
        stops.ask(name, Stop(0.0))
    assert told(stops, processes, together=True) == sorted(processes)
    assert all(process.stop_deadline == T0 + 1 for process in processes.values())


def test_a_waiting_stop_can_be_cancelled():
    processes, stops = chain(), Stops()
    for name in ("store", "rq:0"):
        stops.ask(name, Stop())
    told(stops, processes)
    assert "store" in stops
    stops.drop(processes["store"])
    end(processes["rq:0"], T0 + 3)
    assert told(stops, processes) == []
    assert "store" not in stops and processes["store"].stops_after == ()


def line() -> Processes:
    return {**runs("store"), **runs("job", after=("store",)), **runs("rq", numprocs=2, after=("job",))}


def test_order_holds_through_a_companion_that_is_gone():
    processes, stops = line(), Stops()
    processes["job"].handle(Event.STOP, T0 + 1)
    end(processes["job"], T0 + 1)
    for name in processes:
        stops.ask(name, Stop())
    # As with a job that was done long ago.
    assert told(stops, processes) == ["job", "rq:0", "rq:1"]
    assert told(stops, processes) == []
    assert processes["store"].stops_after == ("rq:0", "rq:1")
    end(processes["rq:0"], T0 + 3)
    assert told(stops, processes) == []
    end(processes["rq:1"], T0 + 3)
    assert told(stops, processes) == ["store"]


@pytest.mark.parametrize("removed", [False, True])
def test_order_holds_through_a_companion_that_dies_meanwhile(removed):
    processes, stops = line(), Stops()
    for name in processes:
        stops.ask(name, Stop())
    assert told(stops, processes) == ["rq:0", "rq:1"]
    assert processes["store"].stops_after == ("job",)
    run_for(processes["job"], 0.5)
    assert told(stops, processes) == ["job"]
    if removed:
        del processes["job"]
    assert told(stops, processes) == []
    assert processes["store"].stops_after == ("rq:0", "rq:1")
    for name in ("rq:0", "rq:1"):
        end(processes[name], T0 + 3)
    assert told(stops, processes) == ["store"]


def test_a_stop_does_not_wait_for_a_companion_that_was_started_again():
    processes, stops = {**runs("store"), **runs("rq", after=("store",))}, Stops()
    stops.ask("rq", Stop(manual=True))
    assert told(stops, processes) == ["rq"]
    end(processes["rq"], T0 + 3)
    processes["rq"].handle(Event.START, T0 + 4)
    processes["rq"].handle(Event.FORKED, T0 + 4, pid=43)
    stops.ask("store", Stop(manual=True))
    assert told(stops, processes) == ["store"]


def test_a_stop_does_not_wait_for_a_cancelled_stop():
    processes, stops = chain(), Stops()
    for name in ("store", "rq:1", "mail"):
        stops.ask(name, Stop(manual=True))
    assert told(stops, processes) == ["mail"]
    assert processes["store"].stops_after == ("rq:1",)
    stops.drop(processes["rq:1"])
    end(processes["mail"], T0 + 3)
    assert told(stops, processes) == ["store"]


def test_a_removed_companion_is_forgotten():
    processes, stops = chain(), Stops()
    for name in ("store", "rq:0"):
        stops.ask(name, Stop())
    told(stops, processes)
    del processes["rq:0"]
    assert told(stops, processes) == ["store"]
    stops.ask("alone", Stop())
    del processes["alone"]
    assert told(stops, processes) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], 0),
        ([("a", 5, ()), ("b", 7, ())], 7),
        ([("a", 5, ()), ("b", 7, ("a",))], 12),
        ([("a", 5, ()), ("b", 7, ("a",)), ("c", 1, ("a",)), ("d", 9, ("c", "b"))], 21),
        ([("a", 5, ()), ("b", 7, ("a",)), ("c", 20, ())], 20),
        ([("a", 5, ("gone",)), ("b", 7, ("a:0",))], 12),
        ([(f"c{n}", 1, (f"c{n - 1}",) if n else ()) for n in reversed(range(3000))], 3000),
    ],
)
def test_a_stop_may_take_as_long_as_the_longest_chain(given, expected):
    configs = [
        CompanionConfig(name, "app:run", stop_timeout=seconds, after=after) for name, seconds, after in given
    ]
    times = stop_times(configs, (), lambda config: config.stop_timeout, 30)
    assert max(times.values(), default=0) == expected


# -- the web tier ----------------------------------------------------------------


def test_waits_for_the_web_workers():
    processes, web = {**started("b", after=("web",))}, WebTier()
    (b,) = processes.values()
    hold(processes, [b], web)
    assert b.description(T0) == "waiting for web"
    assert not b.hopeless
    web.ready = True
    hold(processes, [b], web)
    assert b.held_by == ()


def does_its_job(process: CompanionProcess) -> None:
    end(process, T0 + 5, 0)


def runs_on(process: CompanionProcess) -> None:
    process.handle(Event.ALIVE, T0 + 1)


def is_blocked(process: CompanionProcess) -> None:
    """Another server has a process of its own."""
    end(process, T0 + 1, 0)
    process.handle(Event.DELAY_PASSED, T0 + 10)
    process.handle(Event.BLOCKED, T0 + 10, pid=4713)


JOB = {"autorestart": "on-failure"}


@pytest.mark.parametrize(
    ("values", "happens", "beside", "why", "hopeless"),
    [
        ({}, runs_on, False, None, False),
        ({}, lambda process: None, False, "a", False),
        (JOB, runs_on, False, "a, which is a job and has not ended yet", False),
        (JOB, does_its_job, False, None, False),
        ({**JOB, "ready": "notify"}, lambda p: p.handle(Event.READY, T0 + 1), False, None, False),
        ({"autorestart": "never"}, runs_on, False, "a, which is a job and has not ended yet", False),
        ({"autorestart": "never"}, fails, False, "a, which has ended: exited with status 3", True),
        ({}, gives_up, False, "a, which keeps failing: exited with status 1", False),
        (
            {"start_retries": 1},
            gives_up,
            False,
            "a, which gave up after 1 failed start: exited with status 1",
            True,
        ),
        ({}, is_stopped, False, "a, which was stopped by command", True),
        ({}, is_blocked, False, "a", False),
        # The old master ends when the new web workers serve: they cannot wait for its companions to end.
        ({}, is_blocked, True, None, False),
    ],
)
def test_web_workers_wait(values, happens, beside, why, hopeless):
    processes = started("a", **values)
    happens(processes["a"])
    found = unmet_by_web(processes, WebTier(("a",), waiting=True, beside_old_master=beside))
    assert (found.stuck or ", ".join(found.names) or None, found.hopeless) == (why, hopeless)


def test_a_job_that_web_workers_wait_for_gives_up_however_long_it_runs():
    (job,) = started("a", autorestart="on-failure", start_retries=2).values()
    job.awaited = True
    run_for(job, 100)
    start_again(job)
    run_for(job, 100)
    assert (job.state, job.verdict) == (State.STOPPED, "gave up after 2 failed starts: exited with status 1")
    # No other one does: it has run well for a while each time.
    (other,) = started("a", autorestart="on-failure", start_retries=2).values()
    for _ in range(3):
        run_for(other, 100)
        start_again(other)


def test_what_web_workers_wait_for_finds_the_companions_of_the_old_master():
    processes = {
        **started("store"),
        **started("migrate", after=("store",)),
        **started("rq", after=("store",)),
    }
    is_blocked(processes["store"])
    web = WebTier(("migrate",), waiting=True, beside_old_master=True)
    waiting = [processes["migrate"], processes["rq"]]
    hold(processes, waiting, web)
    assert [process.held_by for process in waiting] == [(), ("store",)]
    # The others wait for the new ones, and so do all when web workers run.
    web.waiting = False
    hold(processes, waiting, web)
    assert [process.held_by for process in waiting] == [("store",), ("store",)]


def web_chain() -> tuple[Processes, WebTier, Stops]:
    processes = {
        **runs("store"),
        **runs("rq", after=("store",)),
        **runs("front", after=("web",)),
        **runs("log", stop_after=("rq", "web")),
    }
    web = WebTier(("store",))
    return processes, web, Stops(web)


def test_web_workers_stop_between_the_companions():
    processes, web, stops = web_chain()
    web.stopping = True
    for name in processes:
        stops.ask(name, Stop())
    assert told(stops, processes) == ["front", "rq"]
    assert not web.may_stop
    assert processes["store"].stops_after == ("rq", "web")
    assert processes["log"].stops_after == ("rq", "web")
    end(processes["rq"], T0 + 2)
    end(processes["front"], T0 + 2)
    assert told(stops, processes) == []
    assert web.may_stop
    assert processes["store"].stops_after == ("web",)
    web.stopping = False
    assert told(stops, processes) == ["log", "store"]


@pytest.mark.parametrize(
    ("stopping", "how", "expected", "may_stop"),
    [
        # A manager that stops alone does not wait for workers that go on.
        (False, {}, ["front", "rq"], False),
        (True, {"together": True}, ["front", "log", "rq", "store"], True),
        # Another master takes over: companions do not wait for each other.
        (True, {"only_web": True}, ["front", "rq"], True),
    ],
)
def test_stops_without_the_order(stopping, how, expected, may_stop):
    processes, web, stops = web_chain()
    web.stopping = stopping
    for name in processes:
        stops.ask(name, Stop())
    assert told(stops, processes, **how) == expected
    assert web.may_stop is may_stop
    for name in ("rq", "front"):
        end(processes[name], T0 + 3)
    web.stopping = False
    assert set(told(stops, processes)) == {*processes} - {*expected}


def test_may_stop_although_no_companion_is_left():
    web = WebTier(("store",), stopping=True)
    stops = Stops(web)
    assert stops.due({}) == []
    assert web.may_stop


@pytest.mark.parametrize(
    ("given", "web_after", "expected"),
    [
        # Web workers that nothing is to do with have their own time.
        ([("a", 5, {})], (), {"a": 5}),
        ([("a", 5, {})], ("a",), {"a": 35, "web": 30}),
        ([("a", 5, {"after": ("web",)})], (), {"a": 5, "web": 35}),
        ([("a", 5, {"stop_after": ("web",)})], (), {"a": 35, "web": 30}),
        ([("a", 5, {}), ("b", 7, {"after": ("web",)})], ("a",), {"a": 42, "web": 37, "b": 7}),
        ([("a", 5, {}), ("b", 7, {"stop_after": ("a",)})], (), {"a": 5, "b": 12}),
        ([("a", 5, {}), ("b", 7, {"groups": ("g",)})], ("@g",), {"a": 5, "b": 37, "web": 30}),
        ([("a", 5, {"stop_after": ("@g",)}), ("b", 7, {"groups": ("g",)})], (), {"a": 12, "b": 7}),
    ],
)
def test_a_stop_with_the_web_tier(given, web_after, expected):
    configs = [CompanionConfig(name, "app:run", stop_timeout=time, **values) for name, time, values in given]
    assert stop_times(configs, web_after, lambda config: config.stop_timeout, 30) == expected
