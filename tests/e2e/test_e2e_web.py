# SPDX-License-Identifier: MIT
"""``gunicorn-companion web``: real workers shown, added, removed, replaced and killed."""

from __future__ import annotations

import os
import signal
from typing import Any

from e2e_companions import companion_server, entry
from harness import Server, wait_until


def web(server: Server, **more: Any) -> dict[str, Any]:
    reply = server.ask("web", **more)
    assert reply["ok"], reply
    found = reply.get("web", reply)
    assert isinstance(found, dict)
    return found


def serving(server: Server) -> list[int]:
    return [worker["pid"] for worker in web(server)["workers"] if worker["state"] in ("idle", "busy")]


def test_changes_by_the_control_socket() -> None:
    with companion_server(entry("a", "idle"), workers=2) as server:
        wait_until(lambda: len(serving(server)) == 2, 10, "two workers")
        assert web(server, do="add", count=2)["message"] == "there will be 4 workers"
        wait_until(lambda: len(serving(server)) == 4, 10, "four workers")
        assert web(server, do="remove", count=3)["message"] == "there will be 1 worker"
        wait_until(lambda: len(web(server)["workers"]) == 1, 10, "one worker")
        refused = server.ask("web", do="remove")
        assert refused == {"ok": False, "error": "the server wants 1 worker, and one has to stay"}
        (old,) = serving(server)
        assert web(server, do="reload")["message"] == "1 worker will be replaced"
        (pid,) = wait_until(lambda: set(serving(server)) - {old}, 10, "a new worker")
        refused = server.ask("web", do="kill", pid=os.getpid())
        assert refused["error"] == f"process {os.getpid()} is not a worker of this server"
        # It can do nothing any more, not even end.
        os.kill(pid, signal.SIGSTOP)
        assert web(server, do="kill", pid=pid)["message"] == f"worker {pid} will be killed"
        wait_until(lambda: set(serving(server)) - {old, pid}, 10, "a worker in its place")
        wait_until(lambda: web(server)["totals"]["ends"]["command"] == 4, 10, "the ends")
        ends = web(server)["totals"]["ends"]
        assert {cause: count for cause, count in ends.items() if count} == {"command": 4, "reload": 1}
