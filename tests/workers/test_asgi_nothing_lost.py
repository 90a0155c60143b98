# SPDX-License-Identifier: MIT
"""Under load, while asgi workers and masters come and go: no client loses anything.

Clients have new and kept connections, streams and WebSockets. ``NOTHING_LOST_ROUNDS`` in the environment
changes how often it happens.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from asgitools import APP, Listeners, conf
from harness import Server, wait_until
from load import Load, under_load, upgrade

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.timeout(900),
    pytest.mark.parametrize("loop", ["uvloop", "asyncio"]),
]

ROUNDS = int(os.environ.get("NOTHING_LOST_ROUNDS", "0"))


@contextmanager
def busy(loop: str, **settings: object) -> Iterator[tuple[Server, Load]]:
    """A server on *loop* whose clients must all get what they ask for."""
    config = conf(asgi_loop=loop, workers=2, graceful_timeout=20, **settings)
    with Server(APP, config) as server:
        with Listeners(server) as listeners, under_load(server) as load:
            yield server, load
            wait_until(lambda: listeners.ends["stream"] and listeners.ends["websocket"], 30)
        assert listeners.problems == []
        wrong = [
            text for text in ("was killed", "CRITICAL", "Traceback", "unfinished") if text in server.log()
        ]
        assert not wrong
        print(f"{load.answers} answers of {len(load.pids)} workers, {dict(listeners.ends)}")


def test_reloads(loop: str) -> None:
    with busy(loop) as (server, _):
        for _ in range(ROUNDS or 50):
            old = server.workers()
            server.signal(signal.SIGHUP)
            server.wait_workers(2, without=old, timeout=60)


def test_upgrades(loop: str) -> None:
    with busy(loop, pidfile="g.pid") as (server, load):
        for _ in range(ROUNDS or 10):
            upgrade(server, load)


def test_recycling(loop: str) -> None:
    with busy(loop, max_requests=100) as (_, load):
        wait_until(lambda: len(load.pids) >= (ROUNDS or 30), 600)


def test_more_and_fewer_workers(loop: str) -> None:
    with busy(loop) as (server, _):
        for _ in range(ROUNDS or 5):
            for count, signum in (
                (3, signal.SIGTTIN),
                (4, signal.SIGTTIN),
                (3, signal.SIGTTOU),
                (2, signal.SIGTTOU),
            ):
                server.signal(signum)
                server.wait_workers(count, timeout=60)
