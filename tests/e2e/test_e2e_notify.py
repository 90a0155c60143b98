# SPDX-License-Identifier: MIT
"""Type=notify: what a server tells its service manager, from its start to its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from e2e_apps import WEB
from e2e_companions import companion_server, entry
from e2e_notify import AS_WATCHED, ServiceManager
from harness import Server, is_alive, wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="systemd is Linux's")

# Loads once the file "go" is there.
LATE = (
    """
import os, time
while not os.path.exists(os.path.join(os.path.dirname(os.path.abspath(__file__)), "go")):
    time.sleep(0.02)
"""
    + WEB
)


@pytest.fixture
def systemd(short_dir: Path) -> Iterator[ServiceManager]:
    with ServiceManager(short_dir / "notify") as manager:
        yield manager


def served(systemd: ServiceManager, text: str, app: str = WEB, **options: object) -> Server:
    return Server(app, text, env={"NOTIFY_SOCKET": systemd.address}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_when_the_workers_have_booted(short_dir: Path, abstract: bool) -> None:
    address = f"@gunicorn-test-{os.getpid()}" if abstract else str(short_dir / "notify")
    with ServiceManager(address) as systemd, served(systemd, "workers = 2\n", LATE, ready="listen") as server:
        # It listens, and connections wait in the backlog without an answer.
        systemd.wait("STATUS", "Starting: 0 of 2 workers ready")
        time.sleep(0.3)
        assert not systemd.having("READY")
        server.write("go", "")
        told = systemd.wait("READY", "1")
        assert told.lines["STATUS"] == "Serving: 2 workers" and told.pid == server.pid
        assert server.get("/process").status == 200
        assert server.stop() == 0
        stopping = systemd.wait("STOPPING", "1")
        assert int(stopping.lines["EXTEND_TIMEOUT_USEC"]) > 5_000_000
        assert {told.pid for told in systemd.told} == {server.pid}


def test_a_reload_begins_and_ends(systemd: ServiceManager) -> None:
    with served(systemd, "workers = 1\n") as server:
        systemd.wait("READY")
        since, before = len(systemd.told), time.monotonic()
        server.write("gunicorn.conf.py", "workers = 2\n")
        server.signal(signal.SIGHUP)
        begun = systemd.wait("RELOADING", "1", since=since)
        assert before <= int(begun.lines["MONOTONIC_USEC"]) / 1e6 <= begun.at
        ended = systemd.wait("READY", "1", since=since)
        assert systemd.told.index(begun) < systemd.told.index(ended)
        assert ended.lines["STATUS"] == "Serving: 2 workers"
        server.wait_workers(2)


def test_a_reload_waits_for_the_new_workers(systemd: ServiceManager) -> None:
    with served(systemd, "workers = 1\n", LATE, files={"go": ""}) as server:
        systemd.wait("READY")
        since = len(systemd.told)
        (server.dir / "go").unlink()
        server.signal(signal.SIGHUP)
        systemd.wait("STATUS", "Reloading: 0 of 1 new worker ready", since=since)
        server.wait_workers(2)
        assert server.get("/process").status == 200
        assert not systemd.having("READY", since=since)
        server.write("go", "")
        systemd.wait("READY", since=since)


@pytest.mark.parametrize(
    "file, text, said",
    [
        ("gunicorn.conf.py", "workers = 'many'\n", "many"),
        ("app.py", "raise RuntimeError('no')", "RuntimeError: no"),
    ],
)
def test_a_refused_reload_ends_as_well(systemd: ServiceManager, file: str, text: str, said: str) -> None:
    with served(systemd, "workers = 1\n") as server:
        systemd.wait("READY")
        since = len(systemd.told)
        server.write(file, text)
        server.signal(signal.SIGHUP)
        status = systemd.wait("READY", since=since).lines["STATUS"]
        assert status.startswith("Serving: 1 worker; the last reload failed: ") and said in status
        assert server.get("/process").status == 200


def test_without_an_application_ready_is_not_sent(systemd: ServiceManager) -> None:
    with served(systemd, "workers = 1\n", "raise RuntimeError('no')", ready=None) as server:
        assert server.wait_exit() == 3
        assert not systemd.having("READY")
        systemd.wait_status(lambda status: status.startswith("Stopping: a worker failed to boot"))


def test_without_an_address_ready_is_not_sent(systemd: ServiceManager) -> None:
    with served(systemd, "", bind=None, args=["-b", "unix:/nowhere/at/all"], ready=None) as server:
        assert server.wait_exit() == 1
        told = systemd.wait("STOPPING")
        assert "/nowhere/at/all" in told.lines["STATUS"] and not systemd.having("READY")


def test_more_time_is_asked_for_while_companions_drain(systemd: ServiceManager) -> None:
    slow = entry("slow", "drain", env={"UNTIL": "done"})
    often = "import gunicorn.master.announce as announce\nannounce.EXTEND_EVERY = 0.5\n"
    with companion_server(slow, extra=often, env_option={"NOTIFY_SOCKET": systemd.address}) as server:
        systemd.wait("READY", "1")
        systemd.wait("STATUS", "Serving: 1 worker, 1 companion")
        server.wait_companion("slow")
        server.signal(signal.SIGTERM)
        systemd.wait("STATUS", "Stopping: waiting for companions")
        wait_until(lambda: len(systemd.having("EXTEND_TIMEOUT_USEC")) >= 2)
        server.write("done", "")
        assert server.wait_exit() == 0
        asked = systemd.having("EXTEND_TIMEOUT_USEC")
        assert len(asked) <= 3
        # Each request for more time comes before the time of the last one is over.
        assert asked[1].at - asked[0].at < int(asked[0].lines["EXTEND_TIMEOUT_USEC"]) / 2e6


def test_the_watchdog_is_fed_over_an_upgrade(systemd: ServiceManager) -> None:
    env = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "400000"}
    with Server(WEB, "workers = 1\n", env=env, prefix=AS_WATCHED) as server:
        old = server.pid
        systemd.wait("READY")
        wait_until(lambda: len(systemd.having("WATCHDOG")) >= 4, 5, "signs of life")
        server.signal(signal.SIGUSR2)
        new = wait_until(server.new_master, 10, "a new master")
        systemd.wait("STATUS", f"Serving: 1 worker; process {new} is to take over")
        wait_until(lambda: server.get("/process").json()["ppid"] == new, 10, "the new master serves")
        assert {told.pid for told in systemd.told} == {old}, "a successor says nothing"
        assert server.stop() == 0
        assert not systemd.having("STOPPING")
        last = systemd.wait("MAINPID", str(new))
        assert last.pid == old and [told for told in systemd.told if told.pid == old][-1] == last
        server.adopt(new)
        since = len(systemd.told)
        first = systemd.wait("MAINPID", str(new), since=systemd.told.index(last) + 1)
        assert first.pid == new and first.lines["READY"] == "1"
        wait_until(lambda: len(systemd.having("WATCHDOG", since=since)) >= 3, 5, "its signs of life")
        beats = [told.at for told in systemd.having("WATCHDOG")]
        assert max(later - earlier for earlier, later in pairwise(beats)) < 2.5
        assert server.stop() == 0
        assert systemd.wait("STOPPING").pid == new


def test_a_roll_back_changes_nothing_for_the_service(systemd: ServiceManager) -> None:
    with served(systemd, "workers = 1\n") as server:
        systemd.wait("READY")
        server.signal(signal.SIGUSR2)
        new = wait_until(server.new_master, 10, "a new master")
        wait_until(lambda: server.get("/process").json()["ppid"] == new, 10, "the new master serves")
        since = len(systemd.told)
        server.signal(signal.SIGTERM, new)
        wait_until(lambda: not is_alive(new), 10, "the new master gone")
        systemd.wait("STATUS", "Serving: 1 worker", since=since)
        assert not systemd.having("MAINPID") and not systemd.having("STOPPING")


def test_workers_inherit_the_notify_socket_and_companions_do_not(systemd: ServiceManager) -> None:
    env = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "60000000"}
    with companion_server(entry("report"), env_option=env) as server:
        server.wait_companion("report")
        seen = json.loads(wait_until(lambda: server.log("report.json"), 5, "the report"))["env"]
        assert not {"WATCHDOG_USEC", "WATCHDOG_PID"} & set(seen)
        assert seen.get("NOTIFY_SOCKET") != systemd.address, "the manager's, if any"
        # A worker may add a status of its own, where the unit allows it.
        assert server.get("/process").json()["env"]["NOTIFY_SOCKET"] == systemd.address


def test_a_service_manager_that_does_not_read_holds_nothing_up(short_dir: Path) -> None:
    path = str(short_dir / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.connect(path)
            filler.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    filler.send(b"X_FILLER=1")
        with Server(WEB, "workers = 1\n", env={"NOTIFY_SOCKET": path}) as server:
            assert server.get("/process").status == 200
            # Once it reads again it learns what it has missed.
            full.settimeout(5)
            heard = b""
            while b"READY=1" not in heard:
                heard = full.recv(4096)
