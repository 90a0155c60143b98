# SPDX-License-Identifier: MIT
"""What is restarted and what ends when a companion, the manager or the arbiter dies."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from e2e_companions import (
    companion_server,
    entry,
    keeper_of,
    overlaps,
    pids,
    pids_in,
    reconfigure,
    signals,
    starts,
)
from harness import (
    children_of,
    is_alive,
    kill_all,
    load,
    wait_until,
)

# -- a companion dies --


def test_companions_start_beside_the_web_tier() -> None:
    with companion_server(entry("a", "idle"), entry("b", "report"), workers=2) as server:
        manager = server.wait_manager()
        server.wait_workers(2)
        a, b = server.wait_companion("a"), server.wait_companion("b")
        assert children_of(manager) == sorted([a["pid"], b["pid"], keeper_of(server)])
        assert re.fullmatch(rf"pid {a['pid']}, uptime 00:00:0\d", a["description"]), a["description"]
        reply = server.ask("status")
        info = reply["server"]
        assert info["pid"] == server.pid
        assert server.address in str(info["addresses"])
        assert "app:app" in str(info["application"])
        assert info["version"] and info["uptime"] >= 0
        narrowed = server.ask("status", "a")
        assert [found["name"] for found in narrowed["companions"]] == ["a"]


def test_a_missing_log_directory_fails_one_companion() -> None:
    server = companion_server(
        entry("a", "idle"), entry("b", "idle", stdout="logs/b.log", restart_delay=0.2), workers=1
    )
    with server:
        server.wait_companion("a")
        failed = server.wait_companion("b", "BACKOFF")
        assert "cannot open stdout" in failed["description"]
        assert server.get("/").status == 200
        # A reload refuses a configuration with this mistake.
        server.signal(signal.SIGHUP)
        server.wait_log("the old configuration stays: invalid companion configuration: companion 'b': stdout")
        (server.dir / "logs").mkdir()
        server.wait_companion("b")


def test_worker_recycling_leaves_companions_alone() -> None:
    server = companion_server(entry("a", "idle"), entry("b", "idle"), workers=2, max_requests=3)
    with server:
        server.wait_companion("a")
        server.wait_companion("b")
        before = pids(server)
        first = server.wait_workers(2)

        def are_recycled() -> bool:
            server.get("/")
            return not set(first) & set(server.workers())

        # One at a time, and requests are not dealt out evenly.
        wait_until(are_recycled, 20, lambda: f"{first} replaced: {server.workers()}")
        killed = server.workers()[0]
        os.kill(killed, signal.SIGKILL)
        server.wait_workers(2, without=[killed])
        server.signal(signal.SIGTTIN)
        server.wait_workers(3)
        assert pids(server) == before


# -- the manager dies --


def test_kill_9_of_the_manager() -> None:
    """A new one runs in 2 s: quick companions are back at once, others may drain, stopped ones stay so."""
    companions = [
        entry("quick", "idle"),
        entry("slow", "drain", env={"UNTIL": "done"}),
        entry("halted", "idle"),
    ]
    with companion_server(*companions) as server:
        manager = server.wait_manager()
        old = {name: server.wait_companion(name)["pid"] for name in ("quick", "slow", "halted")}
        assert server.ask("stop", "halted")["ok"]
        server.wait_companion("halted", "STOPPED")
        # The new manager must know of this reread, though it cannot read the file any more.
        reconfigure(server, *companions, entry("added", "idle"))
        assert server.ask("reread")["added"] == ["added"]
        added = server.wait_companion("added")["pid"]
        server.write("gunicorn.conf.py", "this is = = broken")
        with load(server) as problems:
            killed = time.time()
            os.kill(manager, signal.SIGKILL)
            server.wait_manager(2.0, without=manager)
            waiting = server.companion("slow")
            assert waiting["state"] == "STARTING" and waiting["pid"] in (None, 0)
            assert waiting["description"] == f"waiting for pid {old['slow']}"
            server.wait_companion("quick", timeout=3, without=[old["quick"]])
            server.wait_companion("added", timeout=3, without=[added])
            assert is_alive(old["slow"]), "the others have not waited for it"
            assert time.time() - killed < 3
            assert len(starts(server, "slow")) == 1
            done = time.time()
            server.write("done", "")
            server.wait_companion("slow", timeout=6, without=[old["slow"]])
        assert problems == []
        assert pids_in(server, "slow.drained") == [old["slow"]]
        got = [sig for pid, sig, _when in signals(server, "slow") if pid == old["slow"]]
        assert got == [signal.SIGTERM], "its signal once"
        assert starts(server, "slow")[1][1] - done < 1.5
        halted = server.companion("halted")
        assert (halted["state"], halted["description"]) == ("STOPPED", "stopped manually")
        assert len(starts(server, "halted")) == 1
        assert overlaps(server) == []


def test_kill_9_of_the_manager_and_a_companion_together() -> None:
    with companion_server(entry("a", "idle"), entry("b", "idle")) as server:
        manager = server.wait_manager()
        a, b = server.wait_companion("a")["pid"], server.wait_companion("b")["pid"]
        for pid in (manager, a):
            os.kill(pid, signal.SIGKILL)
        server.wait_manager(2.0, without=manager)
        server.wait_companion("a", without=[a])
        server.wait_companion("b", without=[b])
        assert overlaps(server) == []


def test_a_manager_that_dies_again_and_again_is_not_respawned_in_a_tight_loop() -> None:
    with companion_server(entry("a", "idle")) as server:
        seen = []
        for _ in range(3):
            manager = server.wait_manager(4.0, without=seen[-1] if seen else None)
            seen.append(manager)
            os.kill(manager, signal.SIGKILL)
            killed = time.monotonic()
            wait_until(lambda manager=manager: server.manager() not in (None, manager), 4, "respawned")
            elapsed = time.monotonic() - killed
            assert elapsed < 2.0
        server.wait_companion("a", timeout=10)
        assert server.get("/").status == 200
        assert overlaps(server) == []


def test_a_stop_right_after_the_manager_was_killed_leaves_nothing() -> None:
    """The arbiter then ends the processes that the run files name."""
    with companion_server(entry("stubborn_family", stop_timeout=1.5), entry("a", "idle")) as server:
        server.wait_companion("stubborn_family")
        wait_until(lambda: len(pids_in(server, "stubborn_family.child")) == 2)
        manager = server.wait_manager()
        os.kill(manager, signal.SIGKILL)
        server.signal(signal.SIGTERM)
        assert server.wait_exit(15) == 0
        server.assert_nothing_left()


@pytest.mark.parametrize("again", [True, False], ids=["beside another", "without a manager"])
def test_no_process_of_a_killed_manager_outlives_the_server(again: bool) -> None:
    """Nor does one without a run file, because it is no singleton."""
    with companion_server(entry("stubborn", singleton=False, stop_timeout=1)) as server:
        first = server.wait_companion("stubborn")["pid"]
        manager = server.wait_manager()
        os.kill(manager, signal.SIGKILL)
        if again:
            server.wait_manager(10, without=manager)
            server.wait_companion("stubborn", without=[first])
            assert is_alive(first)
        assert server.stop() == 0
        server.assert_nothing_left()


# -- the arbiter dies --


def test_kill_9_of_the_arbiter_takes_everything_with_it() -> None:
    with companion_server(entry("a", "idle"), entry("family"), workers=2, timeout=2) as server:
        server.wait_companion("a")
        server.wait_companion("family")
        wait_until(lambda: len(pids_in(server, "family.child")) == 2)
        tree = server.tree()
        server.kill()
        wait_until(lambda: not [pid for pid in tree if is_alive(pid)], 2.5, lambda: f"left {server.tree()}")
        assert not server.control_path().exists()


def test_a_new_server_after_kill_9_of_the_arbiter() -> None:
    """It has its port and control socket in 2 s, and starts each companion when its older process is gone."""
    companions = [entry("quick", "idle"), entry("slow", "drain", env={"UNTIL": "done"})]
    settings = {"companion_control_socket": "run/control.sock", "timeout": 2}
    with companion_server(*companions, **settings) as first:
        first.configured_control = first.dir / "run" / "control.sock"
        old = {name: first.wait_companion(name)["pid"] for name in ("quick", "slow")}
        killed = time.monotonic()
        first.kill()
        wait_until(lambda: not is_alive(old["quick"]), 2, "quick gone")
        while time.monotonic() < killed + 2:
            time.sleep(0.02)
        with first.again() as second:
            second.wait_manager(2)
            new = second.wait_companion("quick", timeout=2)
            assert new["pid"] != old["quick"]
            assert is_alive(old["slow"]), "quick has not waited for slow"
            waiting = second.companion("slow")
            assert waiting["state"] == "STARTING"
            assert str(old["slow"]) in waiting["description"]
            second.write("done", "")
            second.wait_companion("slow", timeout=8, without=[old["slow"]])
            assert pids_in(second, "slow.drained") == [old["slow"]]
            got = [sig for pid, sig, _ in signals(second, "slow") if pid == old["slow"]]
            assert got == [signal.SIGTERM]
            assert overlaps(second) == []
            assert second.stop() == 0
        wait_until(lambda: not first.tree(), 5, "nothing of the first left")
        assert not first.configured_control.exists()


def test_arbiter_and_manager_killed_together() -> None:
    """The next server ends a companion that has ignored its parent-death signal."""
    with companion_server(entry("a", "idle"), entry("stubborn", stop_timeout=1)) as first:
        first.wait_companion("a")
        stubborn = first.wait_companion("stubborn")["pid"]
        manager = first.wait_manager()
        a = first.companion("a")["pid"]
        # It stays until nobody is left whose last words it may have to keep.
        left = {stubborn, keeper_of(first)}
        os.kill(manager, signal.SIGSTOP)
        first.kill()
        os.kill(manager, signal.SIGKILL)
        wait_until(lambda: not is_alive(a), 3, "a gone by its parent-death signal")
        assert is_alive(stubborn)
        wait_until(lambda: not set(first.tree()) - left, 5, "the others gone")
        with first.again() as second:
            second.wait_companion("a")
            second.wait_companion("stubborn", timeout=6, without=[stubborn])
            wait_until(lambda: not [pid for pid in left if is_alive(pid)], 3, "its log keeper gone too")
            assert overlaps(second) == []
            assert second.stop(timeout=15) == 0


def test_a_child_that_master_code_forked_does_not_hide_the_arbiter_s_death() -> None:
    """Such a child must not keep the link to the manager open."""
    hook = """
import os, time
def on_reload(server):
    if os.fork() == 0:
        with open("bystander", "w") as f:
            f.write(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
"""
    with companion_server(entry("a", "idle"), extra=hook, timeout=2) as server:
        pid = server.wait_companion("a")["pid"]
        manager = server.wait_manager()
        server.signal(signal.SIGHUP)
        bystander = server.read_int("bystander")
        server.wait_manager()
        server.kill()
        wait_until(lambda: not is_alive(pid) and not is_alive(manager), 3, "manager and companion gone")
        assert is_alive(bystander)
        kill_all([bystander])


def test_servers_in_different_directories_do_not_meet() -> None:
    """Though their companions have the same names."""
    with companion_server(entry("a", "idle")) as one, companion_server(entry("a", "idle")) as two:
        first, second = one.wait_companion("a"), two.wait_companion("a")
        assert first["pid"] != second["pid"]
        os.kill(one.wait_manager(), signal.SIGKILL)
        one.wait_companion("a", without=[first["pid"]])
        assert two.companion("a")["pid"] == second["pid"]
