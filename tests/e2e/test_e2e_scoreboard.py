# SPDX-License-Identifier: MIT
"""The scoreboard of a real master: slots over reloads, ends by cause, and counts over an upgrade."""

from __future__ import annotations

import os
import signal
from typing import Any

from e2e_companions import companion_server, entry, reconfigure
from harness import QUICK_RELOADS, Server, wait_until

#: For the configuration file: a board with few slots.
FEW_SLOTS = """
import gunicorn.scoreboard
gunicorn.scoreboard.Scoreboard.create.__func__.__defaults__ = (2,)
"""
#: A class of another library: it has a loop of its own and knows of heartbeats only.
FOREIGN = """
import time
from gunicorn.workers.base import Worker

class Sleeper(Worker):
    def run(self):
        while self.alive:
            self.notify()
            time.sleep(0.1)
"""


def web(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.ask("web")["web"]
    return found


def ends(server: Server) -> dict[str, int]:
    return {cause: count for cause, count in web(server)["totals"]["ends"].items() if count}


def test_slots_are_taken_back_and_ends_have_their_causes() -> None:
    quick = {"extra": QUICK_RELOADS, "workers": 1, "worker_class": "gthread", "threads": 2}
    with companion_server(entry("idle"), **quick) as server:
        server.wait_companion("idle")
        for done in range(1, 21):
            server.signal(signal.SIGHUP)
            wait_until(lambda done=done: ends(server).get("reload") == done)
        (worker,) = web(server)["workers"]
        assert worker["age"] == 21
        os.kill(worker["pid"], signal.SIGKILL)
        wait_until(lambda: ends(server) == {"reload": 20, "killed": 1})
        server.signal(signal.SIGTTIN)
        wait_until(lambda: [each["state"] for each in web(server)["workers"]] == ["idle", "idle"])
        server.signal(signal.SIGTTOU)
        wait_until(lambda: ends(server) == {"reload": 20, "killed": 1, "command": 1})
        assert web(server)["wanted"] == len(web(server)["workers"]) == 1


def test_workers_without_a_slot_serve_as_well() -> None:
    with companion_server(entry("idle"), extra=FEW_SLOTS, workers=4) as server:
        server.wait_companion("idle")
        server.wait_workers(4)
        assert len(web(server)["workers"]) == 2
        os.kill(web(server)["workers"][0]["pid"], signal.SIGKILL)
        wait_until(lambda: ends(server) == {"killed": 1} and len(web(server)["workers"]) == 2)
        assert all(server.get("/").status == 200 for _ in range(8))


def test_counts_go_on_over_an_upgrade() -> None:
    with companion_server(entry("idle"), workers=1, worker_class="gthread", threads=2) as server:
        server.wait_companion("idle")
        for _ in range(10):
            assert server.get("/").status == 200
        wait_until(lambda: web(server)["totals"]["requests"] >= 10)
        for upgrade in range(1, 3):
            before = web(server)["totals"]["requests"]
            new = server.upgrade()
            wait_until(lambda: web(new)["totals"]["requests"] >= before)  # noqa: B023
            server.signal(signal.SIGTERM)
            assert server.wait_exit() == 0
            server.adopt(new.pid)
            server.wait_companion("idle")
            assert server.get("/").status == 200
            wait_until(lambda: web(server)["totals"]["requests"] > before)  # noqa: B023
            totals = web(server)["totals"]
            assert totals["requests"] < before + 5 and totals["ends"]["command"] == upgrade


def test_a_first_companion_by_reload_and_a_class_of_another_library() -> None:
    files = {"foreign.py": FOREIGN}
    with companion_server(files_option=files, workers=1) as server:
        (old,) = server.wait_workers(1)
        reconfigure(server, entry("idle"), workers=1, worker_class="foreign.Sleeper")
        server.signal(signal.SIGHUP)
        server.wait_companion("idle")
        wait_until(lambda: [worker["state"] for worker in web(server)["workers"]] == ["idle"])
        found = web(server)
        (worker,) = found["workers"]
        assert found["class"] == "foreign.Sleeper" and worker["pid"] != old
        assert (worker["requests"], worker["oldest"]) == (0, None)
