# SPDX-License-Identifier: MIT
"""Schedules with real processes: runs, overlap, retries, commands, and managers that come and go."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import pytest
from e2e_apps import JOBS
from e2e_companions import companion_server, entry, overlaps, reconfigure, starts
from harness import Server, wait_until

TARGETS = (
    JOBS
    + '''
def quick():
    begin()

def waits():
    """Ends when the test has made a file, which it takes away."""
    begin()
    path = os.path.join(HERE, f"{name()}.go")
    while not os.path.exists(path):
        time.sleep(0.02)
    os.unlink(path)

def fails():
    begin()
    raise KeyError("price")
'''
)
FILES = {"jobs.py": TARGETS}


def schedule_of(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = server.companion(name)["schedule"]
    return found


def runs_of(server: Server, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.ask("status", name, details=True)["companions"][0]["details"][
        "runs_of_schedule"
    ]
    return found


def wait_runs(server: Server, name: str, count: int, key: str = "count") -> None:
    wait_until(lambda: schedule_of(server, name)[key] >= count, 20, lambda: str(server.companion(name)))


def command(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    """Run gunicorn-companion, which finds the server's socket itself."""
    line = [sys.executable, "-m", "gunicorn.companion.ctl", "-s", str(server.control_path()), *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


def reasons(server: Server, name: str) -> list[str]:
    return [run["why"] for run in runs_of(server, name)]


def test_runs_overlap_retries_and_commands() -> None:
    server = companion_server(
        entry("tick", "quick", schedule="every 1s", startsecs=5),
        entry("skip", "waits", schedule="every 1s"),
        entry("queue", "waits", schedule="every 1s", schedule_overlap="queue"),
        entry("anew", "waits", schedule="every 1s", schedule_overlap="restart"),
        entry("bad", "fails", schedule="every 1s", schedule_retries=1, restart_delay=0.05),
        entry("long", "waits", schedule="every 1s", max_runtime=0.3),
        entry("yearly", "waits", schedule="0 0 1 1 *", schedule_timezone="Asia/Tokyo"),
        entry("off", "quick", schedule="every 1s", autostart=False),
        files_option=FILES,
    )
    with server:
        server.wait_manager()
        first = server.companion("yearly")
        assert (first["state"], first["pid"]) == ("STOPPED", None)
        assert first["description"].endswith("-01-01 00:00 Asia/Tokyo"), first
        assert server.companion("off")["description"] == "its schedule waits for the first 'start'"

        # The one before still runs: its next time is skipped, or one run waits, or it begins anew.
        wait_runs(server, "skip", 1, "skipped")
        wait_runs(server, "queue", 1)
        assert (len(starts(server, "skip")), len(starts(server, "queue"))) == (1, 1)
        server.write("skip.go", "")
        server.write("queue.go", "")
        wait_runs(server, "skip", 2)
        wait_runs(server, "queue", 2)
        wait_runs(server, "anew", 2)
        assert {run["how"] for run in runs_of(server, "anew")} <= {"cut short: its next run is due", None}
        assert runs_of(server, "queue")[0]["good"] is True

        # A failed run is tried again as often as allowed, and is a failure for `status`.
        wait_runs(server, "bad", 3)
        whys = reasons(server, "bad")
        assert ("schedule", "retry") in itertools.pairwise(whys)
        assert ("retry", "retry") not in itertools.pairwise(whys)
        assert runs_of(server, "bad")[0]["how"] == "exited with status 1 (KeyError: 'price')"
        wait_runs(server, "long", 1, "failed")
        assert runs_of(server, "long")[0]["how"].startswith("it ran for longer than max_runtime")
        # Between two runs; before a retry it is in BACKOFF.
        failed = "last run failed: exited with status 1 (KeyError: 'price')"

        def tells() -> bool:
            done = command(server, "status", "bad")
            return failed in done.stdout and done.returncode == 3

        wait_until(tells, 20, "its last run failed")
        page = command(server, "status", "yearly").stdout
        assert re.search(r" next \d{4}-01-01 00:00:00 Asia/Tokyo\n +0 runs", page), page
        page = command(server, "status", "bad").stdout
        assert re.search(r"schedule +every 1s\n +next ", page), page
        assert re.search(r"took \d\.\d s, by retry   failed: exited with status 1 \(KeyError", page)
        history = [each["event"] for each in server.ask("history")["history"]]
        assert {"skipped", "run failed"} <= {*history}

        # By command: now; and a stop is one of its schedule, too.
        started = command(server, "start", "yearly", "off")
        assert started.returncode == 0, started
        server.write("yearly.go", "")
        wait_until(lambda: schedule_of(server, "yearly")["last"], 10, "the run by command has ended")
        assert reasons(server, "yearly") == ["command"]
        wait_runs(server, "off", 2)
        assert {*reasons(server, "off")} == {"command", "schedule"}
        assert command(server, "stop", "tick").returncode == 0
        assert server.companion("tick")["description"].startswith(
            "stopped manually, and its schedule with it"
        )
        assert command(server, "status", "tick").returncode == 0
        stopped = schedule_of(server, "tick")
        manager = server.wait_manager()

        # A manager that is killed neither repeats nor loses a run, nor what it knew of the others.
        os.kill(manager, signal.SIGKILL)
        server.wait_manager(without=manager)
        before = len(starts(server, "off"))
        wait_until(lambda: len(starts(server, "off")) > before, 20, "it goes on")
        assert schedule_of(server, "tick")["count"] == stopped["count"] == len(starts(server, "tick"))
        assert "stopped manually" in server.companion("tick")["description"]
        assert reasons(server, "yearly") == ["command"]
        times = [at for _, at in starts(server, "off")]
        assert len(times) <= times[-1] - times[0] + 2
        assert runs_of(server, "skip")[0]["why"] == "schedule"

        # A stop between two runs ends the schedule; the next one changes nothing.
        assert "already" not in server.ask("stop", "yearly")
        assert server.ask("stop", "yearly")["already"] == ["yearly"]
        assert re.search(r"0 0 1 1 \*   Asia/Tokyo\n", command(server, "status", "yearly").stdout)

        # What is not named itself is not run now: its schedule counts again.
        assert server.ask("restart", "y*")["at_its_time"] == ["yearly"]
        resumed = command(server, "start", "--later", "tick")
        assert (resumed.returncode, resumed.stdout) == (0, "tick: at its next time\n")
        wait_runs(server, "tick", stopped["count"] + 1)
        assert {*reasons(server, "tick")} == {"schedule"}
        assert reasons(server, "yearly") == ["command"]
        assert overlaps(server) == []


def remember(server: Server, name: str, schedule: str, ago: float) -> None:
    """Have an earlier server have dealt with the times of *schedule* up to *ago* seconds before now."""
    memory = {
        "spec": [schedule, None],
        "through": time.time() - ago,
        "owed": False,
        "runs": [],
        **dict.fromkeys(("count", "failed", "failed_in_a_row", "skipped", "missed"), 0),
        "last_success": None,
        "id": f"{server.dir}",
    }
    server.write(f"memory/{name}.schedule", json.dumps(memory) + "\n")


def test_servers_and_masters_that_come_and_go() -> None:
    hourly = {"schedule": "every 3600s"}
    companions = [
        entry("just", "quick", **hourly),
        entry("missed", "quick", **hourly),
        entry("caught", "waits", **hourly, schedule_catch_up=True),
        entry("calm", "quick", **hourly),
    ]
    server = companion_server(*companions, files_option=FILES, pidfile="g.pid", companion_run_dir="memory")
    (server.dir / "memory").mkdir()
    for name, ago in (("just", 3605), ("missed", 5000), ("caught", 9000), ("calm", 1800)):
        remember(server, name, "every 3600s", ago)
    with server:
        server.wait_manager()
        # Times that passed while no server ran: one a moment ago, and others that are missed.
        wait_runs(server, "just", 1)
        wait_runs(server, "missed", 1, "missed")
        wait_runs(server, "caught", 1)
        assert reasons(server, "caught") == ["catch-up"]
        assert 1700 < (schedule_of(server, "calm")["next"] or 0) - time.time() <= 1800

        # A reload changes what is to come and nothing that runs.
        pid = server.companion("caught")["pid"]
        server.write("jobs.py", TARGETS)
        other = {"caught": {"env": {"A": "1"}}, "calm": {"schedule": "every 1s"}}
        changed = [{**each, **other.get(each["name"], {})} for each in companions]
        reconfigure(server, *changed, pidfile="g.pid", companion_run_dir="memory")
        assert server.ask("reread")["updated"] == ["calm", "caught"]
        wait_runs(server, "calm", 2)
        assert server.companion("caught")["pid"] == pid

        # Of two masters only the old one keeps the schedules, until it stops.
        new = server.upgrade()
        wait_until(lambda: new.companion("calm")["schedule"]["kept_elsewhere"], 20, "the old one keeps it")
        assert "another manager keeps its schedule" in new.companion("just")["description"]
        before = len(starts(server, "calm"))
        wait_until(lambda: len(starts(server, "calm")) > before, 20, "the old master goes on")
        assert server.stop() == 0
        server.adopt(new.pid)
        wait_until(lambda: not schedule_of(server, "calm")["kept_elsewhere"], 20, "the new one keeps it")
        before = len(starts(server, "calm"))
        wait_until(lambda: len(starts(server, "calm")) > before, 20, "the new master goes on")
        # What the upgrade has cut short is made up for; what was done is not done again.
        wait_runs(server, "caught", 2)
        assert runs_of(server, "caught")[0]["how"] == "cut short: another master takes over"
        assert reasons(server, "caught") == ["catch-up", "catch-up"]
        times = [at for _, at in starts(server, "calm")]
        assert len(times) <= times[-1] - times[0] + 2
        assert (len(starts(server, "just")), len(starts(server, "missed"))) == (1, 0)

        # A removed one is stopped in the middle of its run.
        reconfigure(server, changed[0], pidfile="g.pid", companion_run_dir="memory")
        assert server.ask("reread")["removed"] == ["calm", "caught", "missed"]
        wait_until(lambda: [*server.companions()] == ["just"], 20, "they are gone")
        assert sorted(path.name for path in (server.dir / "memory").glob("*.schedule")) == ["just.schedule"]
        assert overlaps(server) == []


def keeping_leases_in(directory: str) -> dict[str, Any]:
    """Settings of servers that share leases."""
    return {
        "companion_lease_store": f"file://{directory}",
        "companion_lease_ttl": 4,
        "companion_lease_margin": 0.5,
    }


def test_of_two_servers_one_makes_each_run() -> None:
    hourly: dict[str, Any] = {"schedule": "every 3600s", "lease": True}
    companions = [
        entry("once", "quick", **hourly),
        entry("cut", "waits", **hourly),
        entry("redone", "waits", **hourly, schedule_catch_up=True),
        entry("tick", "quick", schedule="every 1s", lease=True),
    ]
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(tempfile.TemporaryDirectory())
        settings = keeping_leases_in(store)
        servers = []
        for _ in range(2):
            server = companion_server(*companions, files_option=FILES, companion_run_dir="memory", **settings)
            for name in ("once", "cut", "redone"):
                remember(server, name, "every 3600s", 3599)
            servers.append(stack.enter_context(server))
        for server in servers:
            server.wait_manager()

        def all_starts(name: str) -> list[float]:
            return [at for server in servers for _, at in starts(server, name)]

        for name in ("once", "cut", "redone"):
            wait_until(lambda name=name: all_starts(name), 20, f"a run of {name}")  # type: ignore[misc]
        # Both have asked for the next one: each knows that this one is dealt with, or stands by for it.
        for server in servers:
            # As long as it runs or stands by there is no next one.
            wait_until(lambda s=server: (schedule_of(s, "once")["next"] or 0) > time.time() + 3000, 20)  # type: ignore[misc]
            wait_until(lambda s=server: s.companion("once")["state"] == "STOPPED", 20)  # type: ignore[misc]
        assert [len(all_starts(name)) for name in ("once", "cut", "redone")] == [1, 1, 1]
        wait_until(lambda: len(all_starts("tick")) >= 3, 20, "more runs")
        times = all_starts("tick")
        assert len(times) <= max(times) - min(times) + 2

        # The server that makes a run is gone, and its machine with it.
        maker, other = servers if starts(servers[0], "redone") else servers[::-1]
        if not starts(maker, "cut"):
            # Each run may have been made by another one.
            assert starts(other, "cut")
        manager = maker.wait_manager()
        maker.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(manager, signal.SIGKILL)
        wait_until(lambda: starts(other, "redone"), 20, "the other one makes the run again")
        before = len(starts(other, "tick"))
        wait_until(lambda: len(starts(other, "tick")) > before, 20, "it goes on")
        assert [len(all_starts(name)) for name in ("once", "cut", "redone")] == [1, 1, 2]
        assert overlaps(other) == []


@pytest.mark.matrix
@pytest.mark.timeout(400)
def test_no_time_has_two_runs_whatever_is_killed() -> None:
    """Three servers, whose managers are killed at random moments; each run notes when it begins."""
    chance = random.Random(int(os.environ.get("SCHEDULE_SEED", "1")))
    rounds = int(os.environ.get("SCHEDULE_ROUNDS", "40"))
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(tempfile.TemporaryDirectory())
        settings = keeping_leases_in(store)
        companions = [
            entry("tick", "quick", schedule="every 2s", lease=True),
            entry("alone", "quick", schedule="every 2s"),
        ]
        servers = [
            stack.enter_context(
                companion_server(*companions, files_option=FILES, companion_run_dir="memory", **settings)
            )
            for _ in range(3)
        ]
        begun = time.time()
        for _ in range(rounds):
            server = chance.choice(servers)
            manager = server.wait_manager(30)
            time.sleep(chance.uniform(0, 2))
            os.kill(manager, signal.SIGKILL)
        for server in servers:
            server.wait_manager(30)
        wait_until(lambda: starts(servers[0], "alone")[-1][1] > time.time() - 1, 20, "it still runs")
        took = time.time() - begun
        fleet = sorted(at for server in servers for _, at in starts(server, "tick"))
        print(f"{took:.0f} s, {len(fleet)} runs of the fleet, {[len(starts(s, 'alone')) for s in servers]}")
        assert took / 2 * 0.5 <= len(fleet) <= took / 2 + 2
        assert all(later - earlier > 0.5 for earlier, later in itertools.pairwise(fleet))
        for server in servers:
            assert took / 2 * 0.7 <= len(starts(server, "alone")) <= took / 2 + 2
        assert all(overlaps(server) == [] for server in servers)
