# SPDX-License-Identifier: MIT
"""The scheduler of examples/fleet moves when its server is stopped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from harness import ROOT, free_port, wait_until
from proctools import PROGRAMS_REQUIRED, die_with_parent
from storeservers import ForgetfulRedis

from gunicorn.companion.leasing import store

if not PROGRAMS_REQUIRED:
    pytest.importorskip("redis")


def test_the_scheduler_moves(short_dir: Path) -> None:
    shutil.copytree(ROOT / "examples" / "fleet", short_dir / "fleet")
    (short_dir / "redis").mkdir()
    with ForgetfulRedis(short_dir / "redis") as redis:
        url = redis.url()
        make_free(url, "fleet-scheduler")
        port = free_port()
        with open(short_dir / "log", "wb") as log:
            fleet = subprocess.Popen(
                [sys.executable, "fleet.py"],
                cwd=short_dir / "fleet",
                env={**os.environ, "PORT": str(port), "REDIS_URL": url, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        try:
            see_it_move(port, short_dir / "log")
        finally:
            fleet.terminate()
            assert fleet.wait(20) == 0


def make_free(url: str, lease: str) -> None:
    """Have a Redis that has just started know that the lease is free."""
    shared = store.connect(url, 10)
    wait_until(lambda: shared.acquire(lease, "test", 0.001).mine, 20, "a lease")
    shared.release(lease, "test", shared.acquire(lease, "test", 0.001).token, None)
    shared.close()


def see_it_move(port: int, log: Path) -> None:
    def page(number: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port + number - 1}/", timeout=5) as reply:
            text: str = reply.read().decode()
        return text

    def chore(number: int) -> tuple[int, int] | None:
        """The server and the token of the latest chore, as the page of server *number* shows it."""
        found = re.search(r"  web-(\d)  pid \d+  token (\d+)", page(number))
        return None if found is None else (int(found[1]), int(found[2]))

    first = wait_until(lambda: chore(1), 20, log.read_text)
    assert first is not None
    pid = re.search(rf"web-{first[0]}: .* pid (\d+)", log.read_text())
    assert pid is not None
    os.kill(int(pid[1]), signal.SIGTERM)
    other = first[0] % 3 + 1
    wait_until(lambda: (chore(other) or first)[0] != first[0], 20, log.read_text)
    last = chore(other)
    assert last is not None and last[1] > first[1]
