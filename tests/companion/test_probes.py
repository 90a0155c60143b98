# SPDX-License-Identifier: MIT
"""`probe` and `liveness`: what they may hold, how results are counted, and what follows from them."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from companiontools import make_cfg
from processworld import CALM, Nature, World, expand

from gunicorn.companion.child.sdnotify import Notice
from gunicorn.companion.config import CompanionConfig, build_companion_configs
from gunicorn.companion.probe import Findings, Probe, Result, Url, check_probe, parse_tcp, parse_url
from gunicorn.companion.process import Cause, State
from gunicorn.companion.supervise.probes import LATE_NOTE

# After the start of this process, of which it was one of the first acts.
IMPORTED_AT = time.clock_gettime(time.CLOCK_BOOTTIME)

# -- what they may hold ------------------------------------------------------------

GOOD: dict[str, Any] = {"tcp": "127.0.0.1:8001"}


@pytest.mark.parametrize(
    ("value", "probe"),
    [
        (GOOD, Probe("tcp", "127.0.0.1:8001")),
        ({"tcp": "unix:/run/x"}, Probe("tcp", "unix:/run/x")),
        ({"command": ["test", "-e", "x"]}, Probe("command", ("test", "-e", "x"))),
        ({"file": "x"}, Probe("file", "x")),
        ({"log": r"on port \d+"}, Probe("log", r"on port \d+")),
        ({"http": "http://[::1]/", "status": 204}, Probe("http", "http://[::1]/", status=(204,))),
        (
            {**GOOD, "every": 1, "timeout": 2, "failures": 4, "successes": 5, "delay": 6},
            Probe("tcp", "127.0.0.1:8001", 1, 2, 4, 5, 6),
        ),
    ],
)
def test_what_is_right(value: Any, probe: Probe) -> None:
    assert check_probe(value) == probe


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("curl x", "'curl x' is not a dictionary such as {'tcp': '127.0.0.1:8001'}"),
        ({}, "give one of command, http, tcp, file, log: there is none"),
        ({**GOOD, "file": "x"}, "not tcp and file together"),
        ({**GOOD, "evry": 1}, "evry: did you mean every?"),
        ({"test": ["CMD", "x"]}, "test: here it is command, without its first word CMD"),
        ({**GOOD, "periodSeconds": 1}, "periodSeconds: here it is every"),
        ({"command": ["CMD-SHELL", "x"]}, "command: 'CMD-SHELL' is a word of compose files"),
        ({"command": "redis-cli ping"}, "command: 'redis-cli ping' is one string"),
        ({**GOOD, "every": 0}, "every: 0 leaves no time"),
        ({**GOOD, "every": 5e-324}, "every: 5e-324 is less than 0.1 seconds"),
        ({**GOOD, "timeout": None}, "timeout: None is not a number of seconds"),
        ({**GOOD, "failures": 0}, "failures: 0 is not a number of 1 or more"),
        ({**GOOD, "successes": True}, "successes: True is not a number of 1 or more"),
        ({**GOOD, "delay": -1}, "delay: -1 is not a time"),
        ({**GOOD, "status": [200]}, "status: it belongs to http, not to tcp"),
        ({"http": "http://127.0.0.1/", "status": []}, "status: [] is not a list of status codes"),
        ({"http": "http://127.0.0.1/", "status": [2000]}, "status: 2000 is not a status code"),
        ({"http": "https://127.0.0.1/"}, "http: https is not spoken"),
        ({"http": "127.0.0.1/x"}, "http: '127.0.0.1/x' is not of the form http://127.0.0.1:8001/health"),
        ({"http": "http://127.0.0.1:x/"}, "http: 'http://127.0.0.1:x/' is not a URL: Port"),
        ({"http": "http://127.0.0.1/a b"}, "http: 'http://127.0.0.1/a b' is not a URL"),
        ({"http": "http://127.0.0.1/\r\nX: y"}, "is not a URL"),
        ({"http": "http://me:pw@127.0.0.1/"}, "http: a name and a password in the URL are not sent"),
        ({"http": "http://shop.example/"}, "http: 'shop.example' is neither an IP address nor 'localhost'"),
        ({"http": 5}, "http: 5 is not a string"),
        ({"tcp": "127.0.0.1"}, "tcp: '127.0.0.1' has no port"),
        ({"tcp": "db:5432"}, "tcp: 'db' is neither an IP address nor 'localhost'"),
        ({"tcp": "fd://3"}, "tcp: 'fd://3': a descriptor cannot be used here"),
        ({"tcp": "[::1]"}, "tcp: '[::1]' has no port"),
        ({"tcp": "::1:80"}, "tcp: '::1:80' has no port"),
        ({"file": ""}, "file: '' is not a path"),
        ({"log": "("}, "log: '(' is not a regular expression: "),
        ({"log": ""}, "log: '' is not a regular expression"),
    ],
)
def test_what_is_wrong(value: Any, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        check_probe(value)
    cfg = make_cfg({"name": "x", "target": "a:b", "liveness": value})
    with pytest.raises(ValueError, match="'x': liveness: "):
        build_companion_configs(cfg)


def test_a_log_needs_captured_output() -> None:
    cfg = make_cfg({"name": "x", "target": "a:b", "probe": {"log": "ready"}})
    assert build_companion_configs(cfg)
    cfg.companion_log_lines = 0
    with pytest.raises(
        ValueError, match="'x': probe: log needs captured output, and companion_log_lines is 0"
    ):
        build_companion_configs(cfg)


def test_copies_have_probes_of_their_own() -> None:
    found = {"http": "http://127.0.0.1:81%(index)02d/%(group)s", "status": [204], "every": 5}
    cfg = make_cfg(
        {"name": "x", "target": "a:b", "numprocs": 2, "probe": found, "liveness": {"log": r"%(name)s 100%%"}}
    )
    first, second = build_companion_configs(cfg)
    assert first.probe == Probe("http", "http://127.0.0.1:8100/x", every=5, status=(204,))
    assert second.probe is not None and second.probe.what == "http://127.0.0.1:8101/x"
    assert second.liveness == Probe("log", "x:1 100%")
    cfg.companion_workers[0]["probe"] = {"tcp": "db%(index)d:5"}
    with pytest.raises(ValueError, match="probe: tcp: 'db0' is neither"):
        build_companion_configs(cfg)
    cfg.companion_workers[0]["probe"] = {"log": "100%"}
    with pytest.raises(ValueError, match="a plain '%' is written '%%'"):
        build_companion_configs(cfg)


def test_addresses() -> None:
    assert parse_url("http://localhost/a?b=c") == Url(("127.0.0.1", 80), "localhost", "/a?b=c")
    assert parse_url("http://[::1]:81") == Url(("::1", 81), "[::1]:81", "/")
    assert parse_tcp("localhost:5") == ("127.0.0.1", 5)
    assert parse_tcp("[::1]:5") == ("::1", 5)
    assert parse_tcp("unix:/a") == "/a"


def test_secrets_are_not_shown() -> None:
    assert str(Probe("http", "http://127.0.0.1/?token=hush")) == "http http://127.0.0.1/?token=***"
    assert "hush" not in str(Probe("command", ("check", "--password", "hush")))


# -- counting ------------------------------------------------------------------------

YES, NO, QUICK = Result(True), Result(False, "no"), Result(False, "no", quick=True)


@pytest.mark.parametrize(
    ("results", "passed", "failed"),
    [
        ([YES], False, False),
        ([YES, YES], True, False),
        ([YES, NO, YES], False, False),
        ([NO, NO], False, False),
        ([NO, NO, NO], False, True),
        # One good result is no recovery yet.
        ([NO, NO, YES, NO], False, True),
        ([NO, NO, YES, YES, NO], False, False),
        ([QUICK, QUICK, QUICK, NO], False, False),
    ],
)
def test_counts(results: list[Result], passed: bool, failed: bool) -> None:
    probe = Probe("tcp", "[::1]:7", failures=3, successes=2)
    findings = Findings()
    for result in results:
        findings.note(result, probe, 5.0)
    assert (findings.passed(probe), findings.failed(probe)) == (passed, failed)
    assert findings.trouble == results[-1].reason if not results[-1].good else findings.trouble is None


# -- what follows ----------------------------------------------------------------------


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    with contextlib.ExitStack() as stack:

        def make(config: CompanionConfig, **values: Any) -> World:
            world = World(expand(config), **values)
            stack.callback(world.close)
            return world

        yield make


PROBE = Probe("tcp", "[::1]:7", every=2, failures=2)


def test_a_liveness_that_fails_ends_the_companion_as_its_watchdog_does(
    make_world: Callable[..., World],
) -> None:
    world = make_world(CompanionConfig("rq", "app:rq", liveness=PROBE), nature=Nature(works=False))
    rq = world.processes["rq"]
    world.advance(1.02)
    assert rq.state is State.RUNNING
    assert rq.description(world.kernel.time).endswith("liveness fails (1 of 2): no")
    world.nature = CALM
    world.advance(2)
    assert (rq.state, rq.cause, rq.last_exit_signal) == (State.BACKOFF, Cause.LIVENESS, 6)
    assert rq.description(world.kernel.time).startswith(
        "liveness failed 2 times in a row: no, retrying in 5s"
    )
    history = world.ask("history")["history"]
    assert [entry["event"] for entry in history] == ["start", "liveness fails", "exit"]
    assert history[-1]["cause"] == "liveness"
    counters = world.manager.kept.totals.of("rq")
    assert (counters["ends"], counters["failures"]) == ({"liveness": 1}, {})
    world.advance(60)
    # What the next process has to show is its own.
    assert rq.state is State.RUNNING
    assert rq.status_dict(world.kernel.time)["probes"]["liveness"]["failures"] == 0


def test_a_liveness_that_recovers(make_world: Callable[..., World]) -> None:
    world = make_world(CompanionConfig("rq", "app:rq", liveness=PROBE), nature=Nature(works=False))
    world.advance(1.02)
    [life] = world.ours("rq")
    life.nature = CALM
    world.advance(20)
    rq = world.processes["rq"]
    assert (rq.state, rq.start_count, rq.liveness_findings.failures) == (State.RUNNING, 1, 0)
    events = [entry["event"] for entry in world.ask("history")["history"]]
    assert events == ["start", "liveness fails", "liveness succeeds"]


@pytest.mark.parametrize("first", ["probe", "notify"])
def test_with_probe_and_notify_both_must_come(make_world: Callable[..., World], first: str) -> None:
    nature = Nature(ready=0.0 if first == "probe" else None)
    world = make_world(
        CompanionConfig("rq", "app:rq", probe=PROBE, ready="notify"), nature=Nature(ready=None)
    )
    rq = world.processes["rq"]
    [life] = world.ours("rq")
    if first == "probe":
        life.nature = nature
        world.advance(2.1)
        assert (rq.probed, rq.state) == (True, State.STARTING)
        assert not world.prober.jobs
        world.say("rq", Notice(ready=True))
    else:
        world.say("rq", Notice(ready=True))
        assert rq.state is State.STARTING
        life.nature = CALM
        world.advance(2.1)
    assert rq.state is State.RUNNING


def test_not_ready_in_time_says_why(make_world: Callable[..., World]) -> None:
    config = CompanionConfig("rq", "app:rq", probe=PROBE, start_timeout=5, startsecs=0)
    world = make_world(config, nature=Nature(ready=None))
    rq = world.processes["rq"]
    world.advance(4)
    assert rq.description(world.kernel.time).endswith("not ready: no")
    world.advance(2)
    assert (rq.state, rq.cause) == (State.BACKOFF, Cause.NOT_READY)
    assert rq.description(world.kernel.time).startswith("not ready within 5s: no, ")


def test_a_reread_applies_to_the_running_process(make_world: Callable[..., World]) -> None:
    world = make_world(CompanionConfig("rq", "app:rq", probe=PROBE), nature=Nature(ready=None))
    rq = world.processes["rq"]
    [old] = world.prober.jobs
    changed = PROBE._replace(every=9)
    world.reread([CompanionConfig("rq", "app:rq", probe=changed)])
    world.settle()
    [job] = world.prober.jobs.values()
    assert job["job"] != old
    assert job["probe"] == changed
    # Without a probe, `startsecs` decides, and is over.
    world.advance(2)
    world.reread([CompanionConfig("rq", "app:rq", liveness=PROBE)])
    world.settle()
    assert (rq.state, rq.start_count) == (State.RUNNING, 1)
    [job] = world.prober.jobs.values()
    assert not job["first"]
    world.reread([CompanionConfig("rq", "app:rq")])
    world.settle()
    assert not world.prober.started
    # Both, of which one has come, and the other is not waited for any more.
    world.reread([CompanionConfig("rq", "app:rq", probe=PROBE, ready="notify")])
    world.restart("rq")
    world.advance(0.5)
    world.say("rq", Notice(ready=True))
    assert rq.state is State.STARTING
    world.reread([CompanionConfig("rq", "app:rq", ready="notify")])
    world.settle()
    assert rq.state is State.RUNNING


def test_a_rolling_restart_waits_for_the_probe(make_world: Callable[..., World]) -> None:
    world = make_world(CompanionConfig("rq", "app:rq", numprocs=2, probe=PROBE, start_timeout=60))
    world.advance(5)
    world.nature = Nature(ready=None)
    world.ask("restart", name="rq", rolling=True)
    world.advance(30)
    found = world.processes.values()
    assert sorted((p.state.value, p.start_count) for p in found) == [("RUNNING", 1), ("STARTING", 2)]
    for life in world.kernel.lives:
        life.nature = CALM
    world.nature = CALM
    world.advance(10)
    assert [(p.state, p.start_count) for p in found] == [(State.RUNNING, 2)] * 2


def test_a_result_of_a_process_that_is_gone_does_not_count(make_world: Callable[..., World]) -> None:
    world = make_world(CompanionConfig("rq", "app:rq", probe=PROBE), nature=Nature(ready=None))
    [serial] = world.prober.jobs
    world.restart("rq")
    world.advance(0.2)
    assert serial not in world.prober.jobs
    good = {"good": True, "reason": "", "output": "", "took": 0.0, "quick": False}
    world.prober.on_message({"result": serial, **good})
    assert world.processes["rq"].state is State.STARTING


def test_what_a_process_does_at_once_comes_after_its_start(make_world: Callable[..., World]) -> None:
    """The manager notes the start of many companions after the last of their forks."""
    world = make_world(CompanionConfig("rq", "app:rq", probe=PROBE))
    probes, rq = world.manager.probes, world.processes["rq"]
    # Of a simulated process the kernel knows nothing.
    assert probes._age(rq) == pytest.approx(LATE_NOTE)
    rq.pid = os.getpid()
    assert time.clock_gettime(time.CLOCK_BOOTTIME) - probes._age(rq) < IMPORTED_AT
    rq.pid = world.prober.jobs[1]["pid"]
