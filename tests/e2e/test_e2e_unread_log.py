# SPDX-License-Identifier: MIT
"""A log that nobody reads: requests are answered as before, and the server ends when it is told to."""

from __future__ import annotations

import os
import signal
import time

import pytest
from harness import Server, conf, wait_until
from proctools import full_pipe

LONG = "/" + "x" * 1000


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent", "tornado"])
def test_a_log_that_nobody_reads_holds_up_no_request_and_no_stop(kind: str) -> None:
    if kind in ("gevent", "tornado"):
        pytest.importorskip(kind)
    reading, writing = os.pipe()
    settings = conf(worker_class=kind, workers=2, accesslog="-", loglevel="debug", graceful_timeout=3)
    server = Server(config=settings)
    server.popen_options.update(stdout=writing, stderr=writing)
    try:
        with server:
            os.close(writing)
            workers = {int(server.get(LONG).text) for _ in range(100)}
            # The pipe is full; a worker waits for its reader once.
            wait_until(lambda: workers.update([int(server.get(LONG).text)]) or len(workers) == 2)
            wait_until(lambda: _latency(server) < 0.2)
            slow = sum(_latency(server) >= 0.2 for _ in range(100))
            assert slow < 10
            assert server.stop(timeout=3) == 0
        log = b"".join(iter(lambda: os.read(reading, 65536), b"")).decode()
        whole = [line for line in log.splitlines() if LONG in line]
        assert len(whole) > 20
        assert all(line.endswith('"') for line in whole[:-1]), "a line is torn"
    finally:
        os.close(reading)


def _latency(server: Server) -> float:
    began = time.monotonic()
    server.get(LONG)
    return time.monotonic() - began


def test_the_lines_left_out_are_counted_and_said() -> None:
    reading, writing = os.pipe()
    server = Server(config=conf(worker_class="gthread", accesslog="-"))
    server.popen_options.update(stdout=writing, stderr=writing)
    try:
        with server:
            os.close(writing)
            for _ in range(200):
                server.get(LONG)
            log = b""
            while b"lines left out" not in log:
                server.get("/again")
                log += os.read(reading, 1 << 20)
        text = log.decode()
        kept = text.partition("[lines left out")[0].count(LONG)
        count = int(text.partition("nobody read them: ")[2].partition("]")[0])
        assert kept + count in (200, 201)
        assert "/again" in text.partition("]\n")[2]
    finally:
        os.close(reading)


HOOKS = """
def note(name):
    open(f"{name}-begun", "w").close()
    print("x" * 100_000)
    open(f"{name}-done", "w").close()

def child_exit(server, worker):
    note("child_exit")

def companion_exit(manager, companion):
    note("companion_exit")

def on_exit(server):
    note("on_exit")
"""


def test_hooks_that_print_what_nobody_reads_hold_up_no_stop() -> None:
    """Neither in the master nor in the companion manager."""
    reading, writing = full_pipe()
    server = Server(config=HOOKS + conf(companion_workers=[{"name": "job", "command": ["sleep", "60"]}]))
    server.popen_options.update(stdout=writing, stderr=writing)
    try:
        with server:
            os.close(writing)
            server.wait_companion("job", "RUNNING")
            os.kill(server.workers()[0], signal.SIGKILL)
            wait_until((server.dir / "child_exit-begun").exists)
            # The manager is killed ten seconds after its companions; the master has no limit.
            assert server.stop(timeout=8) == 0
            done = {path.name for path in server.dir.glob("*-done")}
            assert done == {"child_exit-done", "companion_exit-done", "on_exit-done"}
    finally:
        os.close(reading)


PRINTS = """
import sys

def app(environ, start_response):
    sys.stdout.write("not flushed")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.mark.parametrize(("kind", "sig"), [("sync", signal.SIGINT), ("gthread", signal.SIGTERM)])
def test_what_a_view_has_printed_holds_up_no_worker_at_its_end(kind: str, sig: int) -> None:
    reading, writing = full_pipe()
    threads = 2 if kind == "gthread" else 1
    settings = conf(worker_class=kind, threads=threads, graceful_timeout=60)
    server = Server(PRINTS, settings, ready="listen", env={"PYTHONUNBUFFERED": None})
    server.popen_options.update(stdout=writing, stderr=writing)
    try:
        with server:
            os.close(writing)
            assert server.get("/").status == 200
            assert server.stop(sig, timeout=20) == 0
    finally:
        os.close(reading)
