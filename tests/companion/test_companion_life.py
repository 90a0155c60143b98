# SPDX-License-Identifier: MIT
"""Companions under a real manager: started, stopped, restarted, and however they end."""

from __future__ import annotations

import os
import re
import resource
import signal
import time

import pytest
from harness import Control, descriptors, is_alive, read_proc, session_of, status_field, wait_until
from managertools import empty, gone

from gunicorn.companion.supervise.commands import COMMANDS
from gunicorn.unix import session

pytestmark = pytest.mark.skipif(not session.HAVE_PROC, reason="looks at processes by /proc")


def test_companions_start(managed):
    server = managed("""
        workers = [
            dict(name="rq", target="managertargets:obey"),
            dict(name="off", target=T.obey, autostart=False),
        ]
    """)
    rq = server.wait("rq")
    assert rq["description"] == f"pid {rq['pid']}, uptime 00:00:00"
    assert (rq["restart_count"], rq["exit_count"], rq["kill_count"], rq["manual_stop"]) == (0, 0, 0, False)
    assert abs(rq["started_at"] - time.time()) < 60
    off = server.status()["off"]
    assert (off["state"], off["pid"], off["description"]) == ("STOPPED", None, "not started")
    # Right after its fork it has not called setsid() yet.
    wait_until(lambda: read_proc(rq["pid"]).session == rq["pid"])
    assert read_proc(rq["pid"]).ppid == server.manager
    server.ok("start", "off")
    assert server.wait("off")["manual_stop"] is False


def test_the_status(managed):
    server = managed("workers = [dict(name=n, target=T.obey, autostart=False) for n in ('b', 'a')]")
    reply = server.ok("status")
    assert [entry["name"] for entry in reply["companions"]] == ["b", "a"]
    about = reply["server"]
    assert about.pop("uptime") >= 0
    assert about == {
        "pid": server.master,
        "manager_pid": server.manager,
        "version": "1",
        "application": "app:app",
        "addresses": ["127.0.0.1:8000"],
    }
    assert [entry["name"] for entry in server.ok("status", "b")["companions"]] == ["b"]
    assert "memory" not in reply["companions"][0]
    server.ok("start", "a")
    figures = server.ok("status", "a", memory=True)["companions"][0]["memory"]
    assert figures["rss"] >= figures["private"] > 0


MISSING = "'cmd' is missing; it is one of " + ", ".join(COMMANDS)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, MISSING),
        ({"cmd": 3}, MISSING),
        ({"cmd": "statsu"}, "unknown command statsu: did you mean status?"),
        ({"cmd": "__init__"}, "unknown command __init__"),
        ({"cmd": "stop"}, "'name' is missing: which companion?"),
        ({"cmd": "stop", "name": ["rq"]}, "'name' is missing: which companion?"),
        ({"cmd": "stop", "name": "rqq"}, "no companion named rqq: did you mean rq?"),
        ({"cmd": "status", "name": "zzz"}, "no companion named zzz"),
        (
            {"cmd": "restart", "name": "web"},
            "web is no companion: 'web' shows the web workers, 'web reload' replaces them",
        ),
        ({"cmd": "status", "name": 3}, "'name' is missing: which companion?"),
    ],
)
def test_a_wrong_request_is_an_error(shared, request_, message):
    with Control(shared.socket) as control:
        assert control.ask(request_.pop("cmd", None), **request_) == {"ok": False, "error": message}
        assert control.ask("status")["ok"]


@pytest.fixture(scope="module")
def shared(masters):
    """One manager for the tests that change nothing."""
    from managertools import Managed

    server = Managed(masters, "workers = [dict(name='rq', target=T.obey, autostart=False)]")
    yield server.ready()
    server.end()


def test_stop_start_restart(managed):
    server = managed("workers = [dict(name='rq', target=T.obey)]")
    first = server.pid("rq")
    assert server.ask("start", "rq") == {"ok": True, "message": "rq is already running", "already": ["rq"]}
    assert server.ask("stop", "rq") == {"ok": True, "message": "rq is stopping"}
    stopped = server.wait("rq", "STOPPED")
    assert (stopped["description"], stopped["last_exit_signal"]) == ("stopped manually", "SIGTERM")
    assert server.ask("stop", "rq") == {"ok": True, "message": "rq is already stopped", "already": ["rq"]}
    assert server.ask("start", "rq") == {"ok": True, "message": "rq is starting"}
    second = server.pid("rq", without=[first])
    assert server.ask("restart", "rq") == {"ok": True, "message": "rq is restarting"}
    third = server.wait("rq", without=[second])
    assert (third["restart_count"], third["exit_count"], third["manual_stop"]) == (2, 2, False)
    gone(first, second)


def test_the_longest_name_can_be_started(managed):
    name = "n" * 200
    server = managed(f"workers = [dict(name='{name}', target=T.obey, numprocs=1, ready='startsecs')]")
    server.wait(f"{name}:0", timeout=5)
    assert (server.run_dir / f"{name}:0.run").exists()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="sets the limit of another process")
def test_companions_that_use_up_the_descriptors_leave_some_to_be_asked_by(managed):
    server = managed("workers = [dict(name='n', target=T.obey, autostart=False, numprocs=40)]")
    used = len(os.listdir(f"/proc/{server.manager}/fd"))
    limit = used + 20
    resource.prlimit(server.manager, resource.RLIMIT_NOFILE, (limit, limit))
    reply = server.ask("start", "n")
    assert reply["ok"], server.log()
    states = {name: (one["state"], one["description"]) for name, one in server.status().items()}
    running = [name for name, (state, _) in states.items() if state in ("STARTING", "RUNNING")]
    failed = [text for state, text in states.values() if state == "BACKOFF"]
    assert running and failed and len(running) + len(failed) == 40
    what, hint = "(run file|notify socket)", f"\\(the limit is {limit}: LimitNOFILE="
    assert all(re.match(f"cannot make its {what}: Too many open files {hint}", t) for t in failed), failed
    # The way out: fewer of them, by configuration or by command.
    server.configure("workers = [dict(name='n', target=T.obey, autostart=False, numprocs=3)]")
    assert len(server.ok("reread")["removed"]) == 37
    wait_until(lambda: sorted(server.status()) == ["n:0", "n:1", "n:2"], 20, server.log)
    for name in ("n:0", "n:1", "n:2"):
        server.pid(name)


CAUSES = """
def exit_hook(manager, companion):
    if companion.cause == "killed" and companion.last_exit_signal:
        manager.log.error("%s died of signal %s", companion.name, companion.last_exit_signal)

settings = dict(startsecs=0, restart_delay=0.1, stop_timeout=20, reload_timeout=20)
workers = [dict(name="rq", target=T.obey, numprocs=2, max_lifetime=LIFETIME)]
"""


def test_why_a_process_has_ended_is_told(managed):
    """By command, for a limit, for another configuration, or by itself: the exit looks the same."""
    server = managed(CAUSES.replace("LIFETIME", "None"))
    pids = {server.pid("rq:0"), server.pid("rq:1")}
    told: list[tuple[str | None, ...]] = []
    exits: dict[str, tuple[str, str]] = {}
    with Control(server.socket) as events:
        events.ask("events")

        def ended(name: str, cause: str, reason: str) -> None:
            found = server.wait(name, without=list(pids))
            pids.add(found["pid"])
            assert (found["last_exit_cause"], found["last_exit_reason"]) == (cause, reason)
            assert found["last_exit_signal"] in ("SIGTERM", "SIGKILL")
            while (name, "RUNNING", cause, reason) not in told:
                event = events.read_reply()
                if event["event"] == "exit":
                    exits[event["name"]] = event["cause"], event["reason"]
                if event["event"] != "state":
                    continue
                told.append(tuple(event[k] for k in ("name", "to", "last_exit_cause", "last_exit_reason")))
            assert exits[name] == (cause, reason)

        assert server.status()["rq:0"]["last_exit_cause"] is None
        server.ok("restart", "rq:0")
        ended("rq:0", "command", "by command")
        server.ok("restart", "rq:1", rolling=True)
        ended("rq:1", "command", "by command, in turn")
        changed = CAUSES.replace("numprocs=2", "numprocs=2, env={'A': 'b'}")
        server.configure(changed.replace("LIFETIME", "None"))
        server.ok("reread")
        ended("rq:0", "reread", "its configuration has changed")
        ended("rq:1", "reread", "its configuration has changed")
        assert "died of signal" not in server.log()
        os.kill(server.pid("rq:0"), signal.SIGKILL)
        ended("rq:0", "killed", "killed by SIGKILL")
        assert server.log().count("died of signal") == 1
        # Before there is a limit, for which it may end just then.
        server.ok("stop", "rq:0")
        found = server.wait("rq:0", "STOPPED")
        assert (found["last_exit_cause"], found["last_exit_reason"]) == ("command", "by command")
        server.ok("start", "rq:0")
        pids.add(server.pid("rq:0"))
        server.configure(changed.replace("LIFETIME", "0.01"))
        server.ok("reread")
        ended("rq:0", "lifetime", "it has lived for 0.01s")
    assert server.log().count("died of signal") == 1


def test_why_it_is_killed_is_logged_before_it_writes_its_stacks(managed):
    server = managed("workers = [dict(name='rq', target=T.looks_at_the_log_when_aborted, watchdog=0.3)]")
    assert server.wait_told("rq", "logged") == "True"
    assert re.search(r"Killing companion rq \(pid \d+\): no WATCHDOG=1 for 0\.3s", server.log())


def test_a_companion_that_keeps_failing_is_shown_as_flapping(managed):
    """It lives for longer than `startsecs`, so that no start has failed."""
    server = managed("workers = [dict(name='rq', target=T.exits_when_told, restart_delay=0.05)]")
    pids: list[int] = []
    for count in range(4):
        found = server.wait("rq", without=pids)
        assert (found["failures"], found["flapping"], found["failed_starts"]) == (count, count >= 3, 0)
        assert ("failed" in found["description"]) is (count > 1)
        pids.append(found["pid"])
        (server.directory / f"end-{found['pid']}").touch()
    text = server.wait("rq", without=pids)["description"]
    assert "4 restarts, last: crash (exited with status 3) " in text
    assert text.endswith(" ago, failed 4 times in a row"), text
    assert f"Companion rq (pid {pids[-1]}) exited with status 3, cause: crash; restarting" in server.log()
    server.ok("restart", "rq")
    pids.append(server.pid("rq", without=pids))
    assert server.status()["rq"]["flapping"] is False


def test_during_a_stop_nothing_starts_and_a_restart_can_be_cancelled(managed):
    server = managed("workers = [dict(name='rq', target=T.drain)]")
    pid = server.pid("rq")
    server.wait_told("rq", "runs")
    server.ok("restart", "rq")
    stopping = server.wait("rq", "STOPPING")
    assert stopping["restart_pending"] and stopping["pid"] == pid
    assert stopping["description"] in (f"pid {pid}, SIGKILL in 20s", f"pid {pid}, SIGKILL in 19s")
    for command in ("start", "restart"):
        reply = server.ask(command, "rq")
        assert not reply["ok"]
        assert re.fullmatch(rf"rq is stopping; retry later \(pid {pid}, SIGKILL in \d+s\)", reply["error"])
    server.ok("stop", "rq")
    server.go_on()
    assert server.wait("rq", "STOPPED")["manual_stop"]
    # It got its signal once.
    assert [line.split()[0] for line in server.told("rq")] == ["runs", "SIGTERM", "finished"]


ENDS = {
    "zero": ("exit_0", "exited with status 0", 0, None),
    "three": ("exit_3", "exited with status 3", 3, None),
    "four": ("exit_4", "exited with status 4", 4, None),
    "error": ("fails", "exited with status 1 (RuntimeError: no queue)", 1, None),
}


def test_every_exit_leads_to_a_restart_and_the_manager_lives(managed):
    workers = ", ".join(f"dict(name={name!r}, target=T.{end[0]})" for name, end in ENDS.items())
    server = managed(f"settings = dict(restart_delay=30, startsecs=30)\nworkers = [{workers}]")
    for name, (_, text, code, signum) in ENDS.items():
        found = server.wait(name, "BACKOFF")
        assert found["description"] in (f"{text}, retrying in 30s", f"{text}, retrying in 29s")
        assert (found["last_exit_code"], found["last_exit_signal"]) == (code, signum)
        assert (found["exit_count"], found["pid"]) == (1, None)
    assert server.socket.exists() and is_alive(server.manager)
    assert "RuntimeError: no queue" in server.read("output")
    # A command does not wait for the delay.
    server.ok("start", "three")
    wait_until(lambda: server.status()["three"]["exit_count"] == 2)
    # Nor does anything wait for one that is stopped meanwhile.
    assert server.ok("stop", "four")["message"] == "four is stopped"
    assert server.status()["four"]["description"] == "stopped manually"


@pytest.mark.parametrize("delay", [0, 30])
def test_a_death_is_told_before_the_start_that_follows(managed, delay):
    server = managed(f"workers = [dict(name='rq', target=T.obey, restart_delay={delay})]")
    first = server.pid("rq")
    os.kill(first, signal.SIGKILL)
    death = f"Companion rq (pid {first}) killed by SIGKILL, cause: killed; restarting in {delay}s"
    if delay:
        # Though nothing follows.
        wait_until(lambda: death in server.log())
        server.ok("start", "rq")
    start = f"Starting companion rq (pid {server.pid('rq', without=[first])})"
    wait_until(lambda: start in server.log())
    assert death in server.log()[: server.log().index(start)]


@pytest.mark.parametrize(
    ("target", "code"), [("forks_and_dies", 5), ("double_forks", 6), ("hides_a_child", 7)]
)
def test_leftovers_of_the_session_end_before_the_next_start(managed, target, code):
    server = managed(f"workers = [dict(name='rq', target=T.{target}, restart_delay=0)]")
    left = [int(server.wait_told("rq", "left", count)) for count in (1, 2)]
    # The second has begun: of the first nothing is there any more.
    assert not is_alive(left[0])
    assert server.status()["rq"]["last_exit_code"] == code
    server.ok("stop", "rq")
    server.wait("rq", "STOPPED")
    gone(*left)


def test_a_manager_without_a_descriptor_left_goes_on(managed):
    server = managed("""
        workers = [
            dict(name="rq", target=T.ignore, restart_delay=0),
            dict(name="stubborn", target=T.ignore, stop_timeout=0.3),
            dict(name="calm", target=T.obey),
        ]
    """)
    calm, rq = server.pid("calm"), server.pid("rq")
    child = int(server.wait_told("rq", f"runs {rq} with"))
    stubborn = server.pid("stubborn")
    server.wait_told("stubborn", "runs")
    limit = resource.prlimit(server.manager, resource.RLIMIT_NOFILE)
    with Control(server.socket) as control:
        server.ok("status")
        used = descriptors(server.manager)
        lowest = next(fd for fd in range(4096) if fd not in used)
        resource.prlimit(server.manager, resource.RLIMIT_NOFILE, (lowest, limit[1]))
        try:
            os.kill(rq, signal.SIGKILL)
            control.ask("stop", "stubborn")
            gone(child, stubborn)
        finally:
            resource.prlimit(server.manager, resource.RLIMIT_NOFILE, limit)
    server.pid("rq", without=[rq])
    server.wait("stubborn", "STOPPED")
    assert server.peer() == server.manager
    assert server.pid("calm") == calm


def test_detached_processes_end_with_their_companion(managed):
    server = managed("workers = [dict(name='rq', target=T.escapes), dict(name='other', target=T.escapes)]")
    pid, other = server.pid("rq"), server.pid("other")
    escapees = [int(server.wait_told(name, "escaped")) for name in ("rq", "other")]
    for escapee in escapees:
        wait_until(lambda escapee=escapee: read_proc(escapee).ppid == server.manager)
    server.ok("stop", "rq")
    found = server.wait("rq", "STOPPED")
    assert found["leftovers_killed"] == 1
    # When STOPPED is shown.
    assert not is_alive(pid) and not is_alive(escapees[0])
    assert is_alive(escapees[1]) and server.pid("other") == other
    server.signal(signal.SIGTERM)
    server.wait_end()
    assert not is_alive(escapees[1])


def helpers_of(server, name: str, count: int = 1) -> list[int]:
    return [int(server.wait_told(name, "helper", 2 * count - each)) for each in (1, 0)]


@pytest.mark.parametrize("way", ["crash", "stop", "restart"])
def test_a_detached_process_is_known_by_what_it_has_inherited(managed, way):
    server = managed("workers = [dict(name='rq', target=T.has_helpers, restart_delay=0)]")
    pid = server.pid("rq")
    helpers = helpers_of(server, "rq")
    if way == "crash":
        os.kill(pid, signal.SIGKILL)
    else:
        server.ok(way, "rq")
    if way == "stop":
        server.wait("rq", "STOPPED")
    else:
        # The next one has begun: of the first nothing is there any more.
        server.wait_told("rq", "helper", 3)
    assert not any(map(is_alive, helpers))
    if way != "stop":
        # The end of the test kills whom it knows.
        server.wait_told("rq", "helper", 4)


def test_detached_processes_count_for_the_memory_of_their_companion(managed):
    server = managed("workers = [dict(name='rq', target=T.has_helpers), dict(name='small', target=T.obey)]")
    server.pid("rq")
    server.wait_told("rq", "runs")

    def sizes() -> dict[str, int]:
        found = server.ok("status", memory=True)["companions"]
        return {entry["name"]: entry["memory"]["private"] for entry in found}

    # Two have 30 MB each, once they have written them.
    wait_until(lambda: sizes()["rq"] > 60_000_000)
    assert sizes()["small"] < 30_000_000


def test_a_companion_that_daemonizes_is_not_started_twice(managed):
    server = managed("""
        workers = [dict(name="rq", target=T.has_helpers, env={"LEAVES": "1"}, restart_delay=20, startsecs=1)]
    """)
    helpers = helpers_of(server, "rq")
    gone(*helpers)
    found = server.wait("rq", "BACKOFF")
    pids = ", ".join(map(str, sorted(helpers)))
    assert (
        f"exited with status 0; pid {pids} had detached itself: run it in the foreground"
        in found["description"]
    )
    assert f"Companion rq: pid {pids} had detached itself: run it in the foreground" in server.log()
    assert found["leftovers_killed"] == 2


def test_detached_processes_of_a_draining_group_get_the_stop_signal(managed):
    server = managed(
        "workers = [dict(name='rq', target=T.has_helpers, stop_as_group=True, stop_timeout=0.5)]"
    )
    server.pid("rq")
    helpers = helpers_of(server, "rq")
    server.wait_told("rq", "runs")
    server.ok("stop", "rq")
    found = server.wait("rq", "STOPPED")
    # They ignore the signal.
    assert (found["kill_count"], found["leftovers_killed"]) == (1, 2)
    assert not any(map(is_alive, helpers))


def test_a_companion_that_ignores_its_signal_is_killed_with_its_session(managed):
    server = managed("workers = [dict(name='rq', target=T.ignore, stop_timeout=0.3)]")
    pid = server.pid("rq")
    child = int(server.wait_told("rq", f"runs {pid} with"))
    assert session_of(pid) == sorted([pid, child])
    begun = time.monotonic()
    server.ok("stop", "rq")
    found = server.wait("rq", "STOPPED")
    assert time.monotonic() - begun >= 0.3
    assert (found["kill_count"], found["last_exit_signal"]) == (1, "SIGKILL")
    assert session_of(pid) == []


def test_a_job_may_finish_with_its_children(managed):
    server = managed("workers = [dict(name='rq', target=T.drain)]")
    pid = server.pid("rq")
    child = int(server.wait_told("rq", f"runs {pid} with"))
    server.ok("stop", "rq")
    server.wait_told("rq", "SIGTERM")
    assert is_alive(child)
    server.go_on()
    found = server.wait("rq", "STOPPED")
    assert (found["last_exit_code"], found["kill_count"]) == (0, 0)
    # What is left when the leader is gone goes at once, which is told.
    assert not is_alive(child)
    assert found["leftovers_killed"] == 1
    assert f"Companion rq (pid {pid}) has exited and left behind {child} " in server.log()


@pytest.mark.parametrize("as_group", [False, True])
def test_stop_as_group(managed, as_group):
    server = managed(
        f"workers = [dict(name='rq', target=T.launcher, stop_as_group={as_group}, stop_timeout=0.5)]"
    )
    server.pid("rq")
    child = int(server.wait_told("rq", "child"))
    server.ok("stop", "rq")
    found = server.wait("rq", "STOPPED")
    assert found["kill_count"] == (0 if as_group else 1)
    assert server.told("rq")[1:] == (["child obeys", "launcher ends"] if as_group else [])
    assert not is_alive(child)


@pytest.mark.parametrize("way", ["stop", "restart", "reread", "term", "usr2"])
def test_a_group_finishes_its_work_after_its_leader(managed, way):
    server = managed("workers = [dict(name='rq', target=T.leaves_at_once, stop_as_group=True)]")
    pid = server.pid("rq")
    child = int(server.wait_told("rq", "child"))
    if way in ("stop", "restart"):
        server.ok(way, "rq")
    elif way == "reread":
        server.configure("workers = [dict(name='other', target=T.obey)]")
        assert server.ok("reread")["removed"] == ["rq"]
    else:
        server.signal(signal.SIGTERM if way == "term" else signal.SIGUSR2)
    server.wait_told("rq", "asked")
    waits = f"waiting for the processes of pid {pid}, SIGKILL in "
    wait_until(lambda: server.wait("rq", "STOPPING")["description"].startswith(waits))
    assert is_alive(child)
    server.go_on()
    server.wait_told("rq", "finished")
    gone(child)
    if way == "stop":
        assert server.wait("rq", "STOPPED")["kill_count"] == 0
    elif way == "restart":
        server.pid("rq", without=[pid])
    elif way == "reread":
        wait_until(lambda: "Companion rq is gone" in server.log())
    else:
        server.wait_end()
    assert server.told("rq").count("asked") == 1
    assert "SIGKILL" not in server.log()


def test_a_group_with_a_signal_from_outside_finishes_its_work(managed):
    server = managed("workers = [dict(name='rq', target=T.leaves_at_once, stop_as_group=True)]")
    pid = server.pid("rq")
    child = int(server.wait_told("rq", "child"))
    os.kill(pid, signal.SIGTERM)
    gone(pid)
    server.wait_told("rq", "asked")
    assert is_alive(child)
    server.go_on()
    server.pid("rq", without=[pid, None])
    assert "finished" in server.told("rq")
    assert "SIGKILL" not in server.log()


def test_a_group_that_does_not_finish_is_killed_at_the_deadline(managed):
    server = managed(
        "workers = [dict(name='rq', target=T.leaves_at_once, stop_as_group=True, stop_timeout=0.4)]"
    )
    server.pid("rq")
    child = int(server.wait_told("rq", "child"))
    begun = time.monotonic()
    server.ok("stop", "rq")
    found = server.wait("rq", "STOPPED")
    assert time.monotonic() - begun >= 0.4
    assert (found["kill_count"], found["leftovers_killed"]) == (1, 1)
    assert not is_alive(child)


def test_a_second_int_ends_a_group_at_once(managed):
    server = managed(
        "workers = [dict(name='rq', target=T.leaves_at_once, stop_as_group=True)]", graceful_timeout=60
    )
    pid = server.pid("rq")
    child = int(server.wait_told("rq", "child"))
    server.signal(signal.SIGTERM)
    gone(pid)
    server.signal(signal.SIGINT)
    server.wait_end()
    assert not is_alive(child)


def test_subscribers_are_told_of_leftovers_that_are_killed(managed):
    server = managed("workers = [dict(name='rq', target=T.drain)]")
    pid = server.pid("rq")
    child = int(server.wait_told("rq", f"runs {pid} with"))
    server.go_on()
    with Control(server.socket) as control:
        assert control.ask("events")["ok"]
        server.ok("stop", "rq")
        event = control.read_reply()
        while event.get("event") != "leftovers killed":
            event = control.read_reply()
    assert (event["name"], event["pids"]) == ("rq", [child])


def test_other_stop_signals(managed):
    server = managed("workers = [dict(name='rq', target=T.drain, stop_signal='USR2')]")
    pid = server.pid("rq")
    server.wait_told("rq", "runs")
    server.ok("stop", "rq")
    assert server.wait_told("rq", "SIGUSR2") == str(pid)
    server.go_on()
    server.wait("rq", "STOPPED")


def test_unusual_companions_run_and_stop(managed):
    server = managed("""
        workers = [
            dict(name="closes", target=T.closes_output),
            dict(name="other", target=T.becomes_sleep),
            dict(name="threads", target=T.threads),
            dict(name="frozen", target=T.obey),
        ]
    """)
    names = ("closes", "other", "threads", "frozen")
    pids = [server.pid(name) for name in names]
    server.wait_told("closes", "runs")
    server.wait_told("threads", "threads 2")
    wait_until(lambda: "sleep" in status_field(pids[1], "Name"))
    server.wait_told("frozen", "runs")
    os.kill(pids[3], signal.SIGSTOP)
    wait_until(lambda: read_proc(pids[3]).state == "T")
    # Each is what it was, and the manager has not noticed a thing.
    assert [server.pid(name) for name in names] == pids
    for name in names:
        server.ok("stop", name)
    for name in names:
        found = server.wait(name, "STOPPED")
        assert (found["last_exit_signal"], found["kill_count"]) == ("SIGTERM", 0)
    assert server.socket.exists()


def test_a_start_that_fails_says_why(managed, tmp_path):
    server = managed(f"""
        settings = dict(restart_delay=30)
        def hook(manager, companion):
            if companion.name == "hook":
                raise ValueError("no database")
        workers = [
            dict(name="cwd", target=T.obey, cwd="/nonexistent"),
            dict(name="hook", target=T.obey),
            dict(name="import", target="nosuchmodule:run"),
            dict(name="attribute", target="managertargets:nosuch"),
            dict(name="log", target=T.obey, stdout={str(tmp_path / "d")!r}),
        ]
    """)
    reasons = {
        "cwd": "cannot enter cwd /nonexistent: No such file or directory",
        "hook": "companion_post_fork: ValueError: no database",
        "import": "cannot import nosuchmodule:run: ModuleNotFoundError: No module named 'nosuchmodule'",
        "attribute": "module 'managertargets' has no 'nosuch' to run",
    }
    for name, reason in reasons.items():
        found = server.wait(name, "BACKOFF")
        assert found["description"].rpartition(", retrying")[0] == reason
        assert reason in server.log()
        assert found["last_exit_code"] == 1
    # A directory that came to be where the log is to go.
    log = server.pid("log")
    (tmp_path / "d").unlink()
    (tmp_path / "d").mkdir()
    server.ok("restart", "log")
    assert "cannot open stdout" in server.wait("log", "BACKOFF", without=[log])["description"]


def test_without_a_run_directory_or_a_socket_companions_run(managed):
    server = managed("workers = [dict(name='rq', target=T.obey)]", run_dir=None)
    server.wait("rq")
    server.kill_manager()
    silent = managed("workers = [dict(name='rq', target=T.obey)]", control=None, run_dir="/dev/null/run")
    pid = int(silent.wait_told("rq", "runs"))
    assert silent.log().count("No run files in /dev/null/run: Not a directory") == 1
    silent.signal(signal.SIGTERM)
    silent.wait_end()
    gone(pid)


def test_a_companion_has_nothing_of_the_manager_open(managed):
    server = managed(
        "workers = [dict(name='a', target=T.obey), dict(name='b', target=T.obey, autostart=False)]"
    )
    server.pid("a")
    with Control(server.socket) as control:
        # Forked while a client is connected.
        control.ask("start", "b")
        for name in ("a", "b"):
            pid = server.pid(name)
            server.wait_told(name, "runs")
            files = descriptors(pid)
            log = files.pop(next(fd for fd, path in files.items() if path == str(server.directory / "log")))
            assert log
            assert sorted(files) == [0, 1, 2], files
            assert files[0] == "/dev/null"


def test_an_idle_manager_is_not_scheduled(managed):
    server = managed("workers = [dict(name=f'c{n}', target=T.obey) for n in range(20)]")
    for n in range(20):
        server.wait(f"c{n}")
        server.wait_told(f"c{n}", "runs")

    def switches() -> int:
        return int(status_field(server.manager, "voluntary_ctxt_switches"))

    def settled() -> bool:
        before = switches()
        time.sleep(0.1)
        return switches() == before

    wait_until(settled)
    before = switches()
    # This is what it is about: that nothing happens in this time.
    time.sleep(2)
    assert switches() == before


def test_clients_delay_no_companion(managed):
    server = managed("workers = [dict(name='rq', target=T.obey)]")
    pid = server.pid("rq")
    with Control(server.socket) as half, Control(server.socket) as deaf, Control(server.socket) as garbage:
        half.send(b'{"cmd": ')
        deaf.sock.setblocking(False)
        try:
            while True:
                deaf.sock.send(b'{"cmd": "status"}\n' * 1000)
        except BlockingIOError:
            pass
        garbage.send(b"x" * 100_000 + b"\n")
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        server.pid("rq", without=[pid])
        assert time.monotonic() - begun < 5
        assert garbage.read_reply()["error"] == "a request is at most 65536 bytes long"


def test_a_session_ends_before_a_stop_is_told(managed):
    server = managed("workers = [dict(name='rq', target=T.forks_and_dies, restart_delay=30)]")
    left = int(server.wait_told("rq", "left"))
    server.wait("rq", "BACKOFF")
    server.ok("stop", "rq")
    server.wait("rq", "STOPPED")
    assert not is_alive(left)
    empty(left)
