# SPDX-License-Identifier: MIT
"""When companions are restarted: autorestart, start_retries, limits of memory and lifetime."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time

import pytest
from e2e_apps import JOBS
from e2e_companions import companion_server, entry, pids_in, reconfigure, signals, starts
from harness import LINUX, Background, Server, wait_until

TARGETS = (
    JOBS
    + '''
from gunicorn.companion import notify

def exits():
    """Exits once the file <name>.go is there, with the status in it."""
    begin()
    path = os.path.join(HERE, f"{name()}.go")
    while not os.path.exists(path):
        time.sleep(0.02)
    with open(path) as f:
        status = int(f.read())
    os.unlink(path)
    sys.exit(status)

def grows():
    """The first process of each name takes 80 MB; asked to stop, it works on for a moment."""
    global held
    if not os.path.exists(os.path.join(HERE, f"{name()}.starts")):
        held = bytearray(os.urandom(2**20) * 80)
    ages()

def raises():
    begin()
    raise KeyError("price")

def ages():
    """Says itself that it is ready: on a busy machine startsecs may pass before the target's first line."""
    global begin
    note = begin
    def begin():
        note()
        notify(ready=True)
    drain()
'''
)
FILES = {"jobs.py": TARGETS}


def end_with(server: Server, name: str, status: int) -> int:
    """Have *name* exit with *status*; return its pid."""
    pid: int = server.wait_companion(name)["pid"]
    server.write(f"{name}.go", str(status))
    return pid


def exits(name: str, **keys):
    return entry(name, "exits", restart_delay=0.1, **keys)


# -- limits, and stop signals one after the other --

UNTIL = {"UNTIL": "x"}
HOOK = """
def companion_give_up(manager, companion):
    manager.log.error("ALARM: %s %s", companion.name, companion.verdict)
"""


def test_starts_and_runs_have_limits_and_a_stop_has_several_signals() -> None:
    quick = {"restart_delay": 0.05, "restart_delay_max": 0.2}
    server = companion_server(
        entry("loops", "raises", startsecs=0, **quick),
        entry("often", "exit3", startsecs=0, start_limit="4/1h", retry_after=0.3, **quick),
        entry("job", "exits", startsecs=60, autorestart="on-failure", success_exit_codes=[0, 75]),
        entry("next", "idle", after=["job"]),
        entry("long", "idle", max_runtime=0.2, startsecs=0.05, start_limit="2/1h", autorestart="on-failure"),
        entry("celery", "ages", ready="notify", stop_signals=[["TERM", 0.2], ["QUIT", 60]], env=UNTIL),
        extra=HOOK,
        files_option=FILES,
        companion_log_format="raw",
    )
    with server:
        # It is tried afresh, with 4 starts each time.
        alarm = "ALARM: often gave up after 4 starts within 3600s: exited with status 3"
        wait_until(lambda: server.log().count(alarm) >= 2, 20, "two alarms")
        assert len(starts(server, "often")) >= 8
        verdict = "often gave up after 4 starts within 3600s: exited with status 3; next try in 1s"
        assert server.log().count(f"Companion {verdict}") >= 2

        def start_limit() -> dict[str, int]:
            (often,) = server.ask("status", "often", details=True)["companions"]
            found: dict[str, int] = often["details"]["limits"]["start_limit"]
            return found

        assert start_limit()["limit"] == 4
        wait_until(lambda: 1 <= start_limit()["now"] <= 4, 10, "starts that count")

        # Exit code 75 is a success here, and the next one may start.
        assert server.companion("next")["description"] == "waiting for job"
        server.write("job.go", "75")
        server.wait_companion("next")
        assert server.companion("job")["description"] == "done, exited with status 75"

        # A job that runs for too long has failed, though it obeys its stop signal.
        long = server.wait_companion("long", "STOPPED")
        assert long["description"] == (
            "gave up after 2 starts within 3600s: it ran for longer than max_runtime, 0.2s"
        )
        assert long["last_exit_cause"] == "max_runtime"
        assert server.log().count("Stopping companion long (pid") == 2

        # The second signal comes in the time of the first stop, without SIGKILL.
        reply = server.ask("stop", "celery")
        assert reply["ok"]
        wait_until(lambda: len(signals(server, "celery")) == 2, 10, "two signals")
        assert [signum for _, signum, _ in signals(server, "celery")] == [signal.SIGTERM, signal.SIGQUIT]
        assert "SIGKILL in" in server.companion("celery")["description"]
        server.write("x", "")
        server.wait_companion("celery", "STOPPED")
        assert server.companion("celery")["kill_count"] == 0

        # Of a loop the log has the first failures, and the output one traceback.
        wait_until(lambda: server.companion("loops")["failures"] > 9, 20, "ten failures")
        text = server.log()
        assert 3 <= text.count("KeyError: 'price'), cause: crash; restarting in") <= 5
        assert text.count("in raises\n") == 1
        assert text.count("KeyError: 'price' (again; its traceback has been printed before)") > 5
        assert len(re.findall(r"Starting companion loops|Companion loops is RUNNING", text)) <= 6
        server.ask("restart", "loops")
        wait_until(
            lambda: server.log().count("in raises\n") == 2, 20, "a traceback after a restart by command"
        )


@pytest.mark.skipif(not LINUX, reason="needs the signal at the death of the parent")
def test_the_next_manager_sends_the_next_stop_signal() -> None:
    rungs = [["TERM", 0.5], ["QUIT", 60]]
    server = companion_server(
        entry("celery", "ages", ready="notify", stop_signals=rungs, env=UNTIL), files_option=FILES
    )
    with server:
        pid = server.wait_companion("celery")["pid"]
        os.kill(server.wait_manager(), signal.SIGKILL)
        wait_until(lambda: len(signals(server, "celery")) >= 2, 20, "two signals")
        assert [each[:2] for each in signals(server, "celery")] == [
            (pid, signal.SIGTERM),
            (pid, signal.SIGQUIT),
        ]
        server.write("x", "")
        server.wait_companion("celery", without=[pid])


# -- autorestart --


def test_autorestart_decides_which_exits_are_followed_by_a_start() -> None:
    kinds = {"keep": "always", "job": "on-failure", "once": "never"}
    server = companion_server(
        *(exits(name, autorestart=kind) for name, kind in kinds.items()), files_option=FILES
    )
    with server:
        failed = {name: end_with(server, name, 3) for name in kinds}
        again = {name: server.wait_companion(name, without=[failed[name]])["pid"] for name in ("keep", "job")}
        once = server.wait_companion("once", "STOPPED")
        assert (once["reason"], once["description"]) == ("exited", "exited with status 3")
        assert once["manual_stop"] is False

        for name in again:
            end_with(server, name, 0)
        server.wait_companion("keep", without=[again["keep"]])
        job = server.wait_companion("job", "STOPPED")
        assert (job["reason"], job["description"]) == ("exited", "done, exited with status 0")
        assert (job["exit_count"], job["restart_count"]) == (2, 1)

        # A signal is a failure too; and a command starts a companion that is done.
        assert server.ask("start", "job")["ok"]
        pid = server.wait_companion("job", without=[failed["job"], again["job"]])["pid"]
        os.kill(pid, signal.SIGKILL)
        server.wait_companion("job", without=[pid])

        # Neither SIGHUP nor a new manager starts what is not to be restarted.
        server.signal(signal.SIGHUP)
        server.wait_log("Companions reread")
        manager = server.wait_manager()
        os.kill(manager, signal.SIGKILL)
        server.wait_manager(without=manager)
        server.wait_companion("keep")
        once = server.companion("once")
        assert (once["state"], once["reason"]) == ("STOPPED", "exited")
        assert once["description"] == "exited with status 3"
        assert len(starts(server, "once")) == 1


# -- delays and retries --


def test_a_companion_gives_up_after_start_retries() -> None:
    keys = {"startsecs": 5, "restart_delay": 0.05, "start_retries": 3}
    server = companion_server(
        entry("job", "exit3", **keys),
        # It never reaches its target.
        entry("lost", "idle", **keys, cwd="/nowhere/at/all"),
        # It is RUNNING in between, so no start has failed, and it is restarted each time.
        entry("flaky", "returns", startsecs=0, restart_delay=0.05, start_retries=1),
        files_option=FILES,
    )
    with server:
        found = server.wait_companion("job", "STOPPED")
        assert found["reason"] == "gave up"
        assert found["description"] == "gave up after 3 failed starts: exited with status 3"
        assert found["failed_starts"] == 3
        lost = server.wait_companion("lost", "STOPPED")
        assert re.fullmatch(r"gave up after 3 failed starts: .*/nowhere/at/all.*", lost["description"])
        wait_until(lambda: len(starts(server, "flaky")) > 6, 20, "flaky starts")
        assert len(starts(server, "job")) == 3
        ends = [line for line in server.log().splitlines() if "exited with status 3" in line]
        assert ends[2].endswith(" exited with status 3, cause: crash")
        assert "Companion job gave up after 3 failed starts" in ends[3]
        assert server.get("/").status == 200

        # After a command it has as many retries again.
        assert server.ask("start", "job")["ok"]
        wait_until(lambda: len(starts(server, "job")) == 6, 10, "six starts")
        found = server.wait_companion("job", "STOPPED")
        assert (found["reason"], found["failed_starts"]) == ("gave up", 3)


def test_a_server_that_is_pointless_without_a_companion_stops_gracefully_with_status_1() -> None:
    server = companion_server(
        exits("vital", start_retries=2, startsecs=60, on_give_up="shutdown"),
        entry("queue", "drain", env={"UNTIL": "drained"}),
        files_option=FILES,
        graceful_timeout=1,
    )
    server.expected_code = 1
    with server:
        server.wait_companion("queue")
        request = Background(server, "/wait?answer")
        wait_until(lambda: server.log("wait.started"), 10, "a request at work")
        for count in (1, 2):
            wait_until(lambda count=count: len(starts(server, "vital")) == count, 10, "vital starts")
            server.write("vital.go", "1")
        wait_until(lambda: signals(server, "queue"), 10, "queue is asked to stop")
        asked = time.monotonic()
        server.write("answer", "")
        assert request.result().text == "waited"
        # It may take longer than graceful_timeout, which would be its limit if a worker could not boot.
        wait_until(lambda: time.monotonic() > asked + 1.2)
        server.write("drained", "")
        assert server.wait_exit() == 1
        assert len(pids_in(server, "queue.drained")) == 1
        assert len(starts(server, "vital")) == 2
        assert "The server stops: the companion vital has given up" in server.log()
        assert "Traceback" not in server.log()


# -- limits --


def lives(server: Server, name: str) -> list[tuple[float, float | None]]:
    """Each start, and when that process was asked to stop, if it was."""
    asked = {pid: moment for pid, _signal, moment in signals(server, name)}
    return [(moment, asked.get(pid)) for pid, moment in starts(server, name)]


def downs(server: Server, *names: str) -> list[tuple[float, float, str]]:
    """When each was down between two processes, in order."""
    found = []
    for name in names:
        for (_, end), (begin, _) in itertools.pairwise(lives(server, name)):
            assert end is not None, f"{name} was not asked to stop: {server.log()}"
            found.append((end, begin, name))
    return sorted(found)


def check_one_at_a_time(server: Server, *names: str) -> None:
    for (_, back, name), (gone, _, other) in itertools.pairwise(downs(server, *names)):
        assert back < gone, f"{other} went while {name} was away"
    found = server.companions()
    assert [found[name]["kill_count"] for name in names] == [0] * len(names)


@pytest.mark.skipif(not LINUX, reason="memory is known on Linux only")
def test_copies_that_grow_are_restarted_gracefully_one_at_a_time() -> None:
    server = companion_server(
        entry("rq", "grows", ready="notify", numprocs=2, max_memory="60M", env={"DRAIN": "0.3"}),
        entry("other", "drain", max_memory="60M"),
        files_option=FILES,
        extra="import gunicorn.companion.supervise.memory as memory\nmemory.MEMORY_INTERVAL = 0.5\n",
    )
    with server:
        names = ("rq:0", "rq:1")
        wait_until(lambda: all(len(starts(server, name)) == 2 for name in names), 30, lambda: server.log())
        for name in names:
            server.wait_companion(name)
            assert len(pids_in(server, f"{name}.drained")) == 1
            assert f"Restarting companion {name}: its " in server.log()
        assert re.search(r"its \d\d\.\d MB of private memory exceed 60 MB", server.log())
        check_one_at_a_time(server, *names)
        assert len(starts(server, "other")) == 1


AGING = {"target": "ages", "ready": "notify", "numprocs": 3, "env": {"DRAIN": "0.1"}}


def test_copies_that_have_lived_long_enough_are_restarted_gracefully_one_at_a_time() -> None:
    server = companion_server(
        entry("rq", **AGING, max_lifetime=1, max_lifetime_jitter=0.5),
        files_option=FILES,
    )
    with server:
        names = ("rq:0", "rq:1", "rq:2")
        wait_until(lambda: all(len(starts(server, name)) >= 3 for name in names), 40, lambda: server.log())
        check_one_at_a_time(server, *names)
        ends = {name: [end for _, end in lives(server, name) if end is not None] for name in names}
        # The lifetime counts from the fork, after the end before; signals may be noted late.
        ages = [later - end for each in ends.values() for end, later in itertools.pairwise(each)]
        assert min(ages) > 0.7, ages
        assert "it has lived for 1s" in server.log()

        # A longer lifetime holds at once for the running processes, without a restart.
        reconfigure(server, entry("rq", **AGING, max_lifetime=600))
        assert server.ask("reread")["updated"] == list(names)
        assert server.ask("reread")["unchanged"] == list(names)
