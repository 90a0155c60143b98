# SPDX-License-Identifier: MIT
"""What each signal to the master does to a running web tier."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
from e2e_apps import WEB
from e2e_users import reachable_for_all
from harness import Background, Server, conf, is_alive, wait_until

WORKERS = pytest.mark.parametrize("worker", ["sync", "gthread"])


def config(worker: str, **more: object) -> str:
    return conf(worker_class=worker, threads=2 if worker == "gthread" else 1, **more)


@WORKERS
def test_term_lets_a_request_finish(worker: str) -> None:
    with Server(WEB, config(worker, workers=2, graceful_timeout=10)) as server:
        request = Background(server, "/wait?go")
        wait_until(lambda: server.log("wait.started"))
        server.signal(signal.SIGTERM)
        if worker == "gthread":
            # New connections are refused soon, while the request goes on. (A busy sync worker cannot close
            # its listener while connections wait in the backlog.)
            wait_until(lambda: not can_connect(server), 5, "listener closed")
        wait_until(lambda: len(server.workers()) == 1, 5, "the idle one gone")
        assert is_alive(server.pid)
        server.write("go", "")
        assert request.result().text == "waited"
        assert server.wait_exit(5) == 0


def can_connect(server: Server) -> bool:
    with contextlib.suppress(OSError), server.connect(1.0):
        return True
    return False


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGQUIT], ids=lambda sig: sig.name)
def test_int_and_quit_do_not_wait_for_requests(sig: signal.Signals) -> None:
    with Server(WEB, config("sync", graceful_timeout=30)) as server:
        request = Background(server, "/slow?30")
        wait_until(lambda: server.log("slow.started"))
        started = time.monotonic()
        assert server.stop(sig) == 0
        assert time.monotonic() - started < 5
        with pytest.raises(AssertionError):
            request.result()


@WORKERS
def test_hup_replaces_the_workers_and_applies_what_changed(worker: str) -> None:
    with Server(WEB, config(worker, workers=2, graceful_timeout=10)) as server:
        old = server.wait_workers(2)
        request = Background(server, "/wait?go")
        wait_until(lambda: server.log("wait.started"))
        busy = int(server.log("wait.started"))
        server.write("gunicorn.conf.py", config(worker, workers=3, raw_env=["NEW=1"], graceful_timeout=10))
        server.write("app.py", WEB.replace('VERSION = "one"', 'VERSION = "two"'))
        server.signal(signal.SIGHUP)

        def fresh() -> bool:
            found = server.get("/process").json()
            return found["version"] == "two" and found["env"].get("NEW") == "1" and found["pid"] not in old

        wait_until(fresh, 10, "new code and new environment")
        assert is_alive(busy), "a worker with a request finishes it"
        server.write("go", "")
        assert request.result().text == "waited"
        workers = server.wait_workers(3, without=old)
        assert server.pid not in workers


@WORKERS
def test_usr1_reopens_the_logs_in_master_and_workers(worker: str) -> None:
    text = config(worker, workers=2, errorlog="error.log", accesslog="access.log", loglevel="debug")
    with Server(WEB, text) as server:
        pids = server.wait_workers(2)
        server.get("/echo?before")
        server.wait_log("before", name="access.log")
        for name in ("error.log", "access.log"):
            os.rename(server.dir / name, server.dir / f"{name}.1")
        server.signal(signal.SIGUSR1)
        wait_until(lambda: (server.dir / "access.log").exists() and (server.dir / "error.log").exists())

        def all_in_the_new() -> bool:
            # Both workers must have reopened it; each answers some of these requests.
            before = server.log("access.log.1")
            for _ in range(10):
                server.get("/echo?after")
                server.get("/boom")
            return server.log("access.log.1") == before

        wait_until(all_in_the_new, 5, "no more lines in the old access log")
        server.wait_log("after", name="access.log")
        server.wait_log("boom on purpose", name="error.log")
        assert server.workers() == pids, "USR1 ends no worker"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
def test_usr1_after_a_change_of_user_gives_nothing_of_root_s_away() -> None:
    """The error log is in root's directory, the access log in one of the user, who may be an attacker."""
    text = "user = group = 65534\nworkers = 1\nerrorlog = 'error.log'\naccesslog = 'theirs/access.log'"
    server = Server(WEB, text, prefix=reachable_for_all(), files={"secret": ""})
    theirs, secret = server.dir / "theirs", server.dir / "secret"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    with server:
        server.get("/echo?before")
        server.wait_log("before", name="theirs/access.log")
        for path in (server.dir / "error.log", theirs / "access.log"):
            assert path.stat().st_uid == 65534
            path.rename(f"{path}.1")
        (theirs / "access.log").symlink_to(secret)
        os.lchown(theirs / "access.log", 65534, 65534)
        server.signal(signal.SIGUSR1)
        server.wait_log("access.log cannot be reopened: root does not use it", name="error.log")
        wait_until(lambda: server.get("/boom") and "boom on purpose" in server.log("error.log"))
        assert (server.dir / "error.log").stat().st_uid == 65534
        server.get("/echo?after")
        server.wait_log("after", name="theirs/access.log.1")
        assert (secret.read_text(), secret.stat().st_uid) == ("", 0)


@WORKERS
def test_a_worker_that_is_told_to_end_while_it_boots_goes_quietly(worker: str) -> None:
    hook = """
import os, signal
def post_worker_init(worker):
    with open("ages", "a") as f:
        f.write(f"{worker.age}\\n")
    if worker.age == 2:
        os.kill(os.getpid(), signal.SIGTERM)
"""
    with Server(WEB, config(worker) + hook) as server:
        server.signal(signal.SIGTTIN)
        server.wait_log("3", name="ages")
        server.wait_workers(2)
        assert server.get("/").status == 200
        assert "Traceback" not in server.log() and "[ERROR]" not in server.log()


@WORKERS
def test_a_log_rotation_while_a_worker_boots_does_not_end_it(worker: str) -> None:
    """A USR1 between any two steps in which the worker changes its handlers."""
    hook = """
import os, signal
real = signal.signal
def and_then_usr1(signum, handler):
    before = real(signum, handler)
    os.kill(os.getpid(), signal.SIGUSR1)
    return before
def post_fork(server, worker):
    signal.signal = and_then_usr1
def post_worker_init(worker):
    signal.signal = real
"""
    with Server(WEB, config(worker) + hook, ready=None) as server:
        wait_until(lambda: server.get("/").status == 200)
        assert "SIGUSR1" not in server.log()


def test_the_server_survives_every_signal_to_a_worker() -> None:
    """TERM, QUIT, KILL, SEGV to a worker: the master replaces it and serves on."""
    with Server(WEB, "workers = 2") as server:
        for sig in (
            signal.SIGTERM,
            signal.SIGQUIT,
            signal.SIGINT,
            signal.SIGKILL,
            signal.SIGSEGV,
            signal.SIGABRT,
        ):
            victim = server.wait_workers(2)[0]
            os.kill(victim, sig)
            wait_until(lambda victim=victim: victim not in server.workers(), 5, f"gone by {sig.name}")
            server.wait_workers(2)
            assert server.get("/").status == 200
