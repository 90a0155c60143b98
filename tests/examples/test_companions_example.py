# SPDX-License-Identifier: MIT
"""The shop of examples/companions: web workers put jobs in, companions do them."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from exampletree import FORM, example_server, order, wait_job
from harness import Server, wait_until

pytest.importorskip("flask")

UNICORN = "a brass unicorn"


@pytest.fixture
def shop() -> Iterator[Server]:
    env = {"SHOP_PACKING_SECONDS": "0.3", "SHOP_STOCKTAKING_SECONDS": "0.5", "SHOP_DATABASE": None}
    with example_server("companions", env) as server:
        server.wait_companion("scheduler")
        yield server


def worker_pids(server: Server) -> dict[str, int]:
    return {name: server.wait_companion(name)["pid"] for name in ("worker-1", "worker-2")}


def test_an_order_is_packed_by_a_companion(shop: Server) -> None:
    pids = worker_pids(shop)
    answer = order(shop, item=UNICORN)
    assert answer["pid"] in shop.workers()
    done = wait_job(shop, answer["id"], "done")
    assert done["source_pid"] == answer["pid"]
    assert done["worker_pid"] == pids[done["worker"]]
    assert done["result"] == f"packed: {UNICORN}"

    page = shop.get("/").text
    assert str(done["worker_pid"]) in page
    assert done["result"] in page
    assert shop.post("/orders", "item=a+horse", headers=FORM).status == 400


def test_the_scheduler_puts_periodic_jobs_in(shop: Server) -> None:
    pid = shop.companion("scheduler")["pid"]

    def periodic() -> list[int]:
        jobs = shop.get("/jobs.json").json()["jobs"]
        return [one["source_pid"] for one in jobs if one["source"] == "scheduler" and one["state"] == "done"]

    wait_until(lambda: len(periodic()) >= 2, 10, "two periodic jobs done")
    assert set(periodic()) == {pid}


def test_a_killed_worker_loses_no_job() -> None:
    env = {"SHOP_PACKING_SECONDS": "1", "SHOP_STOCKTAKING_SECONDS": "3600", "SHOP_DATABASE": None}
    with example_server("companions", env) as server:
        pids = worker_pids(server)
        number = order(server, item=UNICORN)["id"]
        running = wait_job(server, number, "running")
        os.kill(running["worker_pid"], signal.SIGKILL)
        server.wait_companion(running["worker"], "BACKOFF")
        server.ask("start", running["worker"])  # no need to wait for restart_delay
        done = wait_job(server, number, "done", 20)
        assert done["attempts"] == 2
        assert done["worker_pid"] != pids[running["worker"]]


def test_a_stop_lets_the_job_at_hand_finish() -> None:
    env = {"SHOP_PACKING_SECONDS": "1", "SHOP_STOCKTAKING_SECONDS": "3600", "SHOP_DATABASE": None}
    with example_server("companions", env) as server:
        worker_pids(server)
        number = order(server, item=UNICORN)["id"]
        wait_job(server, number, "running")
        assert server.stop() == 0
        with closing(sqlite3.connect(server.dir / "var" / "shop.sqlite3")) as database:
            (state,) = database.execute("SELECT state FROM jobs WHERE id = ?", (number,)).fetchone()
        assert state == "done"
        assert ": drained" in server.log()
