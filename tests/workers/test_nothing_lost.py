# SPDX-License-Identifier: MIT
"""Under load, while workers and masters come and go: nothing that was accepted is lost.

A few rounds each; ``NOTHING_LOST_ROUNDS`` in the environment asks for more.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import pytest
from harness import Server, wait_until
from load import Load, under_load, upgrade
from workertools import APP, ASGI_TOO, conf

ROUNDS = int(os.environ.get("NOTHING_LOST_ROUNDS", "0"))
WORKERS = pytest.mark.parametrize("worker", ["sync", "gthread"])
ALL = pytest.mark.parametrize("worker", ["sync", "gthread", "gevent", "gevent_pywsgi", "tornado", ASGI_TOO])


@ALL
def test_reloading(worker: str) -> None:
    with Server(APP, conf(worker, workers=2)) as server, under_load(server):
        for _ in range(ROUNDS or 3):
            old = server.workers()
            server.signal(signal.SIGHUP)
            server.wait_workers(2, 20, without=old)


@ALL
def test_upgrading(worker: str) -> None:
    with Server(APP, conf(worker, workers=2, pidfile="g.pid")) as server, under_load(server) as load:
        for _ in range(ROUNDS or 2):
            upgrade(server, load)


@ALL
def test_workers_that_come_and_go(worker: str) -> None:
    """After `max_requests`, by a signal, and because more or fewer are wanted."""
    config = conf(worker, workers=2, max_requests=60, max_requests_jitter=20)
    with Server(APP, config) as server, under_load(server) as load:
        for sig in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTOU, signal.SIGTTIN):
            with contextlib.suppress(ProcessLookupError):  # it has retired meanwhile
                os.kill(random.choice(wait_until(server.workers)), signal.SIGTERM)
            server.signal(sig)
            # Not until there are so many workers: some are always about to be replaced.
            pids = len(load.pids)
            wait_until(lambda pids=pids: len(load.pids) > pids, 20, "a new worker serves")  # type: ignore[misc]
        wait_until(lambda: len(load.pids) > 6, 40)


@WORKERS
def test_stopping_under_load_cuts_no_answer(worker: str) -> None:
    """Connections that come after the listener is closed are refused; no other fails.

    One that comes in the very moment of the close is reset by the kernel, and had no answer begun.
    """
    with Server(APP, conf(worker, workers=2)) as server, Load(server) as load:
        wait_until(lambda: load.answers > 50)
        assert load.problems == []
        assert server.stop() == 0
        time.sleep(0.1)
    late = ("Refused", "new connection: ConnectionResetError")
    assert [problem for problem in load.problems if not any(text in problem for text in late)] == []
