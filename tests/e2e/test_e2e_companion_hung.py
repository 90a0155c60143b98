# SPDX-License-Identifier: MIT
"""A manager that hangs is noticed and replaced. A slow one is kept, also after its arbiter was stopped."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from e2e_companions import companion_server, entry, overlaps, reconfigure, starts
from harness import Server, is_alive, wait_until

#: In the manager, and not in the master, the configuration file hangs while there is a file named "hang".
HANGS = """
import os, time
_here = os.path.dirname(os.path.abspath(__file__))
def _hang():
    try:
        with open(os.path.join(_here, "hang")) as file:
            master, seconds = file.read().split()
    except OSError:
        return
    if os.getpid() == int(master):
        return
    with open(os.path.join(_here, "hanging"), "a") as file:
        file.write(f"{os.getpid()}\\n")
    deadline = time.monotonic() + float(seconds)
    while time.monotonic() < deadline and os.path.exists(os.path.join(_here, "hang")):
        time.sleep(0.02)
_hang()
"""

#: The same for the hook that runs in the manager.
HOOK_HANGS = (
    HANGS.rpartition("_hang()")[0]
    + """
def companion_pre_fork(manager, companion):
    _hang()
"""
)


def hang(server: Server, seconds: float = 1000) -> None:
    server.write("hang", f"{server.pid} {seconds}")


def pings(interval: float = 60, warn: float = 0.5, kill: float = 1.5) -> str:
    """Text for the configuration file: when the manager is asked, and how long it has for an answer."""
    names = "handle.PING_INTERVAL, handle.PING_WARN, handle.PING_KILL"
    return f"import gunicorn.companion.server.handle as handle\n{names} = {interval}, {warn}, {kill}\n"


def two(extra: str, **settings: Any) -> Server:
    companions = (entry("a", "idle"), entry("drain", env={"DRAIN": "0.3"}), entry("off", "idle"))
    return companion_server(*companions, extra=extra, **settings)


def begin(server: Server) -> dict[str, int]:
    """The pids of the running companions; `off` was stopped by command."""
    running = {name: server.wait_companion(name)["pid"] for name in ("a", "drain", "off")}
    server.ask("stop", "off")
    server.wait_companion("off", "STOPPED")
    del running["off"]
    return running


def wait_replaced(server: Server, manager: int, before: dict[str, int]) -> None:
    """Wait until another manager has started each companion once."""
    wait_until(lambda: not is_alive(manager), 20, "the end of the manager that hangs")
    server.wait_manager(20, without=manager)
    for name, pid in before.items():
        server.wait_companion(name, timeout=20, without=[pid])
        assert not is_alive(pid)
    assert overlaps(server) == []
    assert all(len(starts(server, name)) == 2 for name in before)
    found = server.companion("off")
    assert (found["state"], found["manual_stop"]) == ("STOPPED", True)
    log = server.log()
    assert f"manager (pid {manager}) has not answered" in log
    # Once as a warning, and once more when it is killed.
    assert log.count(f"manager (pid {manager}) has not answered") == 2


def test_a_stopped_manager_is_replaced() -> None:
    with two(pings()) as server:
        before = begin(server)
        workers = server.wait_workers(1)
        manager = server.wait_manager()
        os.kill(manager, signal.SIGSTOP)
        wait_replaced(server, manager, before)
        assert server.workers() == workers
        assert server.get("/").status == 200


def test_a_manager_that_hangs_in_a_reload_is_replaced() -> None:
    with two(pings() + HANGS) as server:
        before = begin(server)
        manager = server.wait_manager()
        hang(server)
        server.signal(signal.SIGHUP)
        wait_replaced(server, manager, before)
        assert server.read_int("hanging") == manager
        (server.dir / "hang").unlink()
        # The next reload works.
        companions = (entry("a", "idle"), entry("new", "idle"))
        reconfigure(server, *companions, extra=pings() + HANGS)
        server.signal(signal.SIGHUP)
        server.wait_companion("new")


def test_a_manager_that_hangs_in_a_reread_is_replaced() -> None:
    with two(pings() + HANGS) as server:
        before = begin(server)
        manager = server.wait_manager()
        hang(server)
        with server.control(timeout=20) as control:
            control.send(b'{"cmd": "reread", "dry_run": true}\n')
            wait_replaced(server, manager, before)
            assert control.read_line() == b""


def test_a_manager_that_hangs_in_a_hook_is_found_by_the_regular_ping() -> None:
    with two(pings(interval=0.3) + HOOK_HANGS) as server:
        before = begin(server)
        manager = server.wait_manager()
        hang(server)
        with server.control(timeout=20) as control:
            control.send(b'{"cmd": "restart", "name": "a"}\n')
            assert server.read_int("hanging") == manager
            wait_until(lambda: not is_alive(manager), 20, "the end of the manager")
        # The next manager would hang too.
        (server.dir / "hang").unlink()
        server.wait_manager(20, without=manager)
        for name, pid in before.items():
            server.wait_companion(name, timeout=20, without=[pid])
        assert overlaps(server) == []


def test_a_slow_manager_is_waited_for() -> None:
    """The log tells that it does not answer, and that it answers again."""
    with two(pings(warn=0.3, kill=20) + HANGS) as server:
        before = begin(server)
        manager = server.wait_manager()
        hang(server, 1.5)
        with server.control(timeout=20) as control:
            reply = control.ask("reread")
        assert reply["ok"] and reply["unchanged"] == ["a", "drain", "off"]
        server.wait_log("The companion manager answers again")
        assert server.manager() == manager
        assert {name: server.companion(name)["pid"] for name in before} == before


def test_a_manager_that_was_stopped_for_a_moment_is_kept() -> None:
    with two(pings(warn=0.3, kill=20)) as server:
        begin(server)
        manager = server.wait_manager()
        os.kill(manager, signal.SIGSTOP)
        server.wait_log("has not answered")
        os.kill(manager, signal.SIGCONT)
        server.wait_log("The companion manager answers again")
        assert server.manager() == manager


def test_an_arbiter_that_was_stopped_kills_no_manager() -> None:
    with two(pings(interval=0.05, warn=0.4, kill=0.8)) as server:
        before = begin(server)
        manager = server.wait_manager()
        for _ in range(2):
            server.signal(signal.SIGSTOP)
            away = time.monotonic() + 1.2
            wait_until(lambda until=away: time.monotonic() > until, 5)
            server.signal(signal.SIGCONT)
            server.get("/")
        server.signal(signal.SIGHUP)
        server.wait_log("Companions reread")
        assert server.manager() == manager
        assert {name: server.companion(name)["pid"] for name in before} == before
        assert "has not answered" not in server.log()


@pytest.mark.parametrize("how", ["stopped", "rereading"])
def test_a_hung_manager_ends_when_its_arbiter_is_killed(how: str) -> None:
    """Its companions end too, so that the next server need not wait."""
    with two(pings() + HANGS, companion_run_dir="run/files") as server:
        before = begin(server)
        manager = server.wait_manager()
        if how == "stopped":
            os.kill(manager, signal.SIGSTOP)
        else:
            hang(server)
            with server.control() as control:
                control.send(b'{"cmd": "reread"}\n')
                server.read_int("hanging")
        server.kill()
        wait_until(lambda: not is_alive(manager), 20, "the end of the manager")
        wait_until(lambda: not any(map(is_alive, before.values())), 20, "the end of the companions")
        assert server.log("drain.drained").split() == [str(before["drain"])]
        server.checked = False


def test_a_stop_does_not_wait_for_a_hung_manager() -> None:
    """Its companions are stopped gracefully, like those of any dead manager."""
    with two(pings(kill=1), companion_manager_stop_timeout=60) as server:
        before = begin(server)
        os.kill(server.wait_manager(), signal.SIGSTOP)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 15
        assert not any(map(is_alive, before.values()))
        assert server.log("drain.drained").split() == [str(before["drain"])]
