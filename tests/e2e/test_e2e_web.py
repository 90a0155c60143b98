# SPDX-License-Identifier: MIT
"""``gunicorn-companion web``: real workers shown, added, removed, replaced and killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from typing import Any

import pytest
from e2e_companions import companion_server, entry
from harness import Server, wait_until
from test_e2e_companion_commands import ctl


def web(server: Server) -> dict[str, Any]:
    reply = server.ask("web")
    assert reply["ok"], reply
    found = reply["web"]
    assert isinstance(found, dict)
    return found


def serving(server: Server) -> list[int]:
    return [worker["pid"] for worker in web(server)["workers"] if worker["state"] in ("idle", "busy")]


def said(result: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return result.returncode, result.stdout, result.stderr


def test_workers_are_added_removed_and_replaced() -> None:
    with companion_server(entry("a", "idle"), workers=2) as server:
        companion = server.wait_companion("a")["pid"]
        assert said(ctl(server, "web", "add", "2")) == (0, "4 workers serve\n", "")
        assert said(ctl(server, "web", "remove")) == (0, "3 workers serve\n", "")
        result = ctl(server, "web")
        assert result.returncode == 0
        assert [line.split()[1] for line in result.stdout.splitlines()[:4]] == [
            "STATE",
            "idle",
            "idle",
            "idle",
        ]
        assert re.search(r"^workers +3 of 3 serve; class sync$", result.stdout, re.MULTILINE), result.stdout
        assert f"backlog      0 of 2048 at {server.url}" in result.stdout
        error = "gunicorn-companion: the server wants 3 workers, and one has to stay\n"
        assert said(ctl(server, "web", "remove", "3")) == (1, "", error)
        error = "gunicorn-companion: by command there are at most 1024 workers\n"
        assert said(ctl(server, "web", "add", "10000")) == (1, "", error)
        old = serving(server)
        assert said(ctl(server, "web", "reload")) == (0, "3 workers serve\n", "")
        assert len(serving(server)) == 3 and not set(old) & set(serving(server))
        # Nothing else was touched.
        assert server.companion("a")["pid"] == companion
        error = f"gunicorn-companion: process {companion} is not a worker of this server\n"
        assert said(ctl(server, "web", "kill", str(companion))) == (1, "", error)
        ends = web(server)["totals"]["ends"]
        assert {cause: count for cause, count in ends.items() if count} == {"command": 1, "reload": 3}
        # A reload has the last word.
        server.signal(signal.SIGHUP)
        wait_until(lambda: web(server)["wanted"] == 2 == len(serving(server)), 10, "two workers again")


@pytest.mark.parametrize("hang", ["busy", "stopped"])
def test_a_worker_that_hangs_is_shown_and_killed(hang: str) -> None:
    """The request that holds it is shown, and the others of the server go on."""
    with companion_server(entry("a", "idle"), workers=2, worker_class="gthread", threads=2) as server:
        wait_until(lambda: len(serving(server)) == 2, 10, "two workers")
        lost: list[Exception | None] = []

        def ask() -> None:
            try:
                server.get("/wait?never")
            except Exception as exc:
                lost.append(exc)
            else:
                lost.append(None)

        thread = threading.Thread(target=ask)
        thread.start()
        pid = int(wait_until(lambda: server.log("wait.started"), 10, "the request"))
        # A request is shown once its worker has looked, after two milliseconds.
        held = wait_until(lambda: [w for w in web(server)["workers"] if w["oldest"]], 10, "what holds it")
        if hang == "stopped":
            os.kill(pid, signal.SIGSTOP)
            held = [w for w in web(server)["workers"] if w["oldest"]]
        assert [(w["pid"], w["state"], w["oldest"]["path"]) for w in held] == [(pid, "busy", "/wait")]
        assert re.search(rf"^ *{pid}  busy .* GET /wait$", ctl(server, "web").stdout, re.MULTILINE)
        assert said(ctl(server, "web", "kill", str(pid))) == (0, f"{pid}: killed\n", "")
        thread.join(10)
        assert lost != [None]
        wait_until(lambda: len(set(serving(server)) - {pid}) == 2, 10, "a worker in its place")
        assert web(server)["totals"]["ends"]["command"] == 1
        assert server.get("/").status == 200
        error = f"gunicorn-companion: process {pid} is not a worker of this server\n"
        assert said(ctl(server, "web", "kill", str(pid))) == (1, "", error)


def test_new_workers_that_do_not_start_are_told_and_the_old_ones_serve() -> None:
    with companion_server(entry("a", "idle"), workers=1) as server:
        wait_until(lambda: len(serving(server)) == 1, 10, "a worker")
        source = (server.dir / "app.py").read_text()
        server.write("app.py", "raise RuntimeError('broken on purpose')")
        code, out, err = said(ctl(server, "web", "reload"))
        assert (code, out) == (1, "")
        assert "RuntimeError: broken on purpose; 1 of 1 workers serve" in err
        assert server.get("/").status == 200
        (old,) = serving(server)
        server.write("app.py", source)
        assert said(ctl(server, "web", "reload")) == (0, "1 worker serves\n", "")
        assert old not in serving(server)


def test_a_master_that_hangs_is_told() -> None:
    with companion_server(entry("a", "idle"), workers=1) as server:
        wait_until(lambda: len(serving(server)) == 1, 10, "a worker")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            code, _, err = said(ctl(server, "web", "add", "--timeout", "0.5"))
            assert code == 2 and "no answer from" in err and "in time" in err
            wait_until(lambda: web(server)["master"]["beat_age"] >= 5, 10, "a silence")
            result = ctl(server, "web")
            assert result.returncode == 3
            assert f"master       process {server.pid} hangs: no sign of life for " in result.stdout
        finally:
            os.kill(server.pid, signal.SIGCONT)
        # What was asked for is done when it can be.
        wait_until(lambda: len(serving(server)) == 2, 10, "another worker")
        assert json.loads(ctl(server, "web", "--json").stdout)["web"]["wanted"] == 2


def test_a_server_that_stops_takes_no_commands() -> None:
    drains = entry("a", "drain", env={"UNTIL": "done"})
    with companion_server(drains, workers=1) as server:
        server.wait_companion("a")
        server.signal(signal.SIGTERM)
        wait_until(lambda: not web(server)["workers"], 10, "the end of the worker")
        error = "gunicorn-companion: the server is stopping\n"
        assert said(ctl(server, "web", "add")) == (1, "", error)
        result = ctl(server, "web")
        assert result.returncode == 3 and "workers      0 of 1 serve" in result.stdout
        server.write("done", "")
        assert server.wait_exit(10) == 0
