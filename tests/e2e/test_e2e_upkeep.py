# SPDX-License-Identifier: MIT
"""Workers that are due are replaced one after the other, and there are more of them under load."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import Any

import pytest
from e2e_companions import companion_server, config_text, entry
from harness import Background, Server, conf, load, wait_until

#: Keeps 8 MB of each request for /leak; with the file "greedy", some from the start.
LEAKS = """
import os, threading, time

kept = [os.urandom(40 * 2**20)] if os.path.exists("greedy") else []

def app(environ, start_response):
    if environ["PATH_INFO"] == "/leak":
        kept.append(os.urandom(8 * 2**20))
    if environ["PATH_INFO"] == "/until":
        with open("until", "a") as file:
            file.write(f"{os.getpid()}\\n")
        while not os.path.exists(environ["QUERY_STRING"]):
            time.sleep(0.01)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

#: Looks at the memory more often, and notes in `events` when workers begin and cease to serve.
NOTES = """
import gunicorn.memory
gunicorn.memory.INTERVAL = 0.2

def _note(line):
    with open("events", "a") as file:
        file.write(line + "\\n")

def post_worker_init(worker):
    _note(f"+ {worker.pid}")

def worker_exit(server, worker):
    _note(f"- {worker.pid}")
"""

LIMITS = {"workers": 2, "graceful_timeout": 5, "max_memory": "36M"}


def ends(server: Server) -> dict[str, int]:
    found: dict[str, int] = server.ask("web")["web"]["totals"]["ends"]
    return found


def serving_at_least(server: Server, workers: int) -> int:
    """How many have ended, none of them before there were *workers* others."""
    present, gone = set[str](), 0
    for line in server.log("events").splitlines():
        sign, pid = line.split()
        if sign == "+":
            present.add(pid)
        else:
            present.remove(pid)
            gone += 1
            assert len(present) >= workers, line
    return gone


OTHERS = ["gthread", "gevent", "gevent_pywsgi", "tornado"]


@pytest.mark.parametrize("kind", ["sync", *(pytest.param(kind, marks=pytest.mark.matrix) for kind in OTHERS)])
def test_replaced_before_it_ends(kind: str) -> None:
    settings: dict[str, Any] = {**LIMITS, "worker_class": kind, "threads": 1 if kind == "sync" else 4}
    with companion_server(entry("a", "idle"), extra=NOTES, app_option=LEAKS, **settings) as server:
        old = server.wait_workers(2)
        with load(server) as problems:
            server.get("/leak")
            with load(server, "/leak", 0.1) as leaking:
                wait_until(lambda: not {*old} & {*server.workers()}, 20, server.log)
            assert leaking == []
            assert "MB of private memory exceed 36 MB" in server.log()
            wait_until(lambda: ends(server)["memory"] >= 2, 10, server.log)
            server.write(
                "gunicorn.conf.py",
                config_text(
                    entry("a", "idle"), extra=NOTES, **{**settings, "max_memory": None}, max_lifetime=0.7
                ),
            )
            server.signal(signal.SIGHUP)
            wait_until(lambda: ends(server)["lifetime"] >= 2, 20, server.log)
        assert problems == []
        assert serving_at_least(server, 2) >= 4
        found = ends(server)
        assert all(found[cause] == 0 for cause in ("crash", "killed", "exit", "boot", "timeout")), found


@pytest.mark.matrix
@pytest.mark.parametrize("kind", ["sync", *OTHERS])
def test_replaced_after_its_requests(kind: str) -> None:
    settings = {"workers": 2, "max_requests": 15, "worker_class": kind, "threads": 1 if kind == "sync" else 4}
    with Server(LEAKS, conf(**settings) + NOTES) as server:
        server.wait_workers(2)
        with load(server) as problems, load(server) as more_problems:
            wait_until(lambda: server.log("events").count("-") >= 4, 30, server.log)
        assert problems == more_problems == []
        assert serving_at_least(server, 2) >= 4


@pytest.mark.matrix
def test_workers_that_need_more_memory_are_left_alone_longer_each_time() -> None:
    with Server(LEAKS, conf(**{**LIMITS, "workers": 1}) + NOTES, files={"greedy": ""}) as server:
        server.wait_log("5 times in a row", 60)
        told = server.log().count("is to be replaced")
        # The next one is left alone for 6.4 s.
        server.wait_log("6 times in a row", 60)
        assert server.log().count("is to be replaced") == told + 1
        assert server.get("/").status == 200


@pytest.mark.parametrize("kind", ["sync", pytest.param("gthread", marks=pytest.mark.matrix)])
def test_more_workers_under_load(kind: str) -> None:
    """A burst of slow requests brings more, up to the most; afterwards idle ones go again, and no request."""
    quick = "import gunicorn.master.care as care\ncare.CALM = care.NEXT_ONE = 0.5\n"
    config = conf(workers=1, workers_max=4, worker_class=kind, threads=2, timeout=60) + quick
    if kind == "sync":
        config = config.replace("threads = 2", "threads = 1")
    with Server(LEAKS, config) as server, ExitStack() as stack:
        server.wait_workers(1)
        held = []
        for _ in range(4 if kind == "sync" else 8):
            held.append(Background(server, "/until?done"))
            if kind == "gthread":
                # A worker takes all that come at once.
                wait_until(lambda: len(server.log("until").splitlines()) == len(held), 20, server.log)
        wait_until(lambda: len(server.log("until").splitlines()) == len(held), 20, server.log)
        server.wait_workers(4)
        with load(server) as problems:
            # One more by signal is no more altogether.
            server.signal(signal.SIGTTIN)
            server.write("done", "")
            assert [each.result().status for each in held] == [200] * len(held)
            server.signal(signal.SIGTTOU)
            # On a busy machine the one that answers may look busy, and have another one beside it.
            wait_until(lambda: len(server.workers()) <= 2, 30, server.log)
            old = server.workers()
            server.signal(signal.SIGHUP)
            wait_until(lambda: not {*old} & {*server.workers()}, 20, server.log)
        assert problems == []
        assert "workers are busy: there will be 4" in server.log()
        stack.close()
