# SPDX-License-Identifier: MIT
"""USR2: a new master on the same sockets, its promotion, and the way back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from e2e_apps import WEB
from harness import Server, is_alive, load, wait_until

BINDS = pytest.mark.parametrize("bind", ["tcp", "unix"])


def upgrade(server: Server) -> int:
    """Send USR2 and wait until the new master has workers; its pid."""
    server.signal(signal.SIGUSR2)
    pid = wait_until(server.new_master, 10, "a new master")
    assert pid is not None
    wait_until(lambda: served_by(server, pid), 10, "the new master serves")
    return pid


def served_by(server: Server, master: int) -> bool:
    return bool(server.get("/process").json()["ppid"] == master)


def pid_in(server: Server, name: str) -> Callable[[], int]:
    return lambda: int(server.log(name).strip() or 0)


@BINDS
def test_promotion(bind: str) -> None:
    text = "workers = 2\nworker_class = 'gthread'\nthreads = 2\npidfile = 'g.pid'\n"
    with Server(WEB, text, bind=bind) as server:
        old = server.pid
        assert pid_in(server, "g.pid")() == old
        with load(server) as problems:
            server.write("app.py", WEB.replace('VERSION = "one"', 'VERSION = "two"'))
            new = upgrade(server)
            assert pid_in(server, "g.pid")() == old
            wait_until(lambda: pid_in(server, "g.pid.2")() == new, 5, "the second pid file")
            assert server.stop() == 0
            server.adopt(new)
            wait_until(lambda: pid_in(server, "g.pid")() == new, 5, "the pid file renamed")
            assert not (server.dir / "g.pid.2").exists()
            wait_until(lambda: server.get("/process").json()["version"] == "two", 5, "new code")
            server.wait_workers(2)
        assert problems == []
        # What was promoted can be upgraded in its turn.
        newer = upgrade(server)
        assert server.stop() == 0
        server.adopt(newer)
        wait_until(lambda: pid_in(server, "g.pid")() == newer, 5, "renamed again")
        assert served_by(server, newer)


@BINDS
def test_rollback(bind: str) -> None:
    with Server(WEB, "workers = 1\npidfile = 'g.pid'\n", bind=bind) as server:
        with load(server) as problems:
            new = upgrade(server)
            workers = server.workers()
            server.signal(signal.SIGTERM, new)
            wait_until(lambda: not is_alive(new), 10, "the new master gone")
            wait_until(lambda: not (server.dir / "g.pid.2").exists(), 5, "its pid file gone")
            assert server.workers() == workers
            assert pid_in(server, "g.pid")() == server.pid
            wait_until(lambda: served_by(server, server.pid), 5, "the old one serves")
        assert problems == []
        # And it can be tried again.
        new = upgrade(server)
        server.signal(signal.SIGTERM, new)
        wait_until(lambda: not is_alive(new), 10, "the new master gone")


def test_a_second_usr2_while_one_is_under_way_is_refused() -> None:
    with Server(WEB, "workers = 1\n") as server:
        new = upgrade(server)
        server.signal(signal.SIGUSR2)
        server.signal(signal.SIGTTIN)
        server.wait_workers(2)
        assert server.new_master() == new
        masters = [pid for pid in server.children() if pid not in server.workers()]
        assert masters == [new]
        server.signal(signal.SIGTERM, new)
        wait_until(lambda: not is_alive(new), 10, "the new master gone")


def test_a_new_master_that_cannot_start_leaves_the_old_one() -> None:
    with Server(WEB, "workers = 1\npidfile = 'g.pid'\n") as server:
        server.write("gunicorn.conf.py", "workers = = 1")
        before = server.log()
        server.signal(signal.SIGUSR2)
        wait_until(lambda: "gunicorn.conf.py" in server.log()[len(before) :], 10, "the error")
        wait_until(lambda: len(server.children()) == 1, 5, "the new master gone")
        assert server.get("/").status == 200
        assert pid_in(server, "g.pid")() == server.pid
        server.write("gunicorn.conf.py", "workers = 1\npidfile = 'g.pid'\n")
        new = upgrade(server)
        assert server.stop() == 0
        server.adopt(new)
        wait_until(lambda: pid_in(server, "g.pid")() == new, 5, "promoted")


def test_the_new_master_goes_on_when_the_old_one_is_killed() -> None:
    with Server(WEB, "workers = 1\npidfile = 'g.pid'\n") as server:
        killed = upgrade(server)
        server.signal(signal.SIGKILL, killed)
        wait_until(lambda: not (server.dir / "g.pid.2").exists(), 5, "nothing left of a killed new master")
        new = upgrade(server)
        old = server.log("g.pid")
        # Of a process that lives: the file is not the new one's to take, until it names the old master again.
        server.write("g.pid", f"{os.getpid()}\n")
        server.signal(signal.SIGKILL)
        wait_until(lambda: "Cannot rename the pid file" in server.log(), 5, "a complaint")
        assert pid_in(server, "g.pid.2")() == new
        # Nobody has collected the old one: a zombie.
        server.write("g.pid", old)
        wait_until(lambda: pid_in(server, "g.pid")() == new, 5, "promoted")
        assert server.log().count("Cannot rename the pid file") == 1
        assert server.wait_exit() == -signal.SIGKILL
        server.adopt(new)
        wait_until(lambda: served_by(server, new), 5, "serving")
