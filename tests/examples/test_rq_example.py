# SPDX-License-Identifier: MIT
"""The shop of examples/rq: unmodified RQ workers, scheduler and cron as companions on a real Redis."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from exampletree import example_server, order, wait_job
from harness import free_port, wait_until
from proctools import PROGRAMS_REQUIRED, program

UNICORN = "a brass unicorn"

if not PROGRAMS_REQUIRED:
    pytest.importorskip("flask")
    pytest.importorskip("rq")


@pytest.fixture
def redis_url(short_dir: Path) -> Iterator[str]:
    port = free_port()
    command = [
        program("redis-server"),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(short_dir),
        "--save",
        "",
    ]
    with open(short_dir / "redis.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def answers() -> bool:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")

    try:
        wait_until(answers, 10, "redis answering")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def environment(redis_url: str) -> dict[str, str | None]:
    return {"REDIS_URL": redis_url, "SHOP_PACKING_SECONDS": "0.3", "SHOP_STOCKTAKING_SECONDS": "1"}


def test_orders_now_later_and_periodic(environment: dict[str, str | None]) -> None:
    with example_server("rq", environment) as server:
        pids = {server.wait_companion(name)["pid"]: name for name in ("rq-1", "rq-2")}
        server.wait_companion("rq-scheduler")
        server.wait_companion("rq-cron")
        now = order(server, item=UNICORN)
        later = order(server, item=UNICORN, **{"in": 1})
        assert now["pid"] in server.workers()
        for answer in (now, later):
            done = wait_job(server, answer["id"], "finished")
            assert done["result"]["companion"] == pids[done["result"]["worker_pid"]]
            assert done["result"]["text"] == f"packed: {UNICORN}"

        def stock_taken() -> bool:
            jobs = server.get("/jobs.json").json()["jobs"]
            return any(one["what"] == "take_stock" and one["state"] == "finished" for one in jobs)

        wait_until(stock_taken, 10, "a periodic job finished")
        assert UNICORN in server.get("/").text


def test_a_stop_lets_the_work_horse_finish(environment: dict[str, str | None]) -> None:
    from redis import Redis
    from rq.job import Job

    environment = {**environment, "SHOP_PACKING_SECONDS": "1"}
    with example_server("rq", environment) as server:
        server.wait_companion("rq-1")
        # Its jobs would have the other worker log all the time. RQ stops by an exception from its signal
        # handler, and `logging` swallows one that is raised while a line is written.
        server.ask("stop", "rq-cron")
        server.wait_companion("rq-cron", "STOPPED")
        number = order(server, item=UNICORN)["id"]
        wait_job(server, number, "started")
        assert server.stop(timeout=30) == 0
    with Redis.from_url(str(environment["REDIS_URL"])) as connection:
        assert Job.fetch(number, connection=connection).is_finished
