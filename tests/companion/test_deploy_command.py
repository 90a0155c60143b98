# SPDX-License-Identifier: MIT
"""``gunicorn-companion`` reload, upgrade and shutdown against a socket whose answers the test gives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from test_companion_client import Fake

from gunicorn.companion.client import deploy
from gunicorn.companion.control import error


class Whole:
    """A server that tells what has come of a reload or an upgrade."""

    def __init__(self, server: Fake, master: int = os.getpid()) -> None:
        self.server = server
        self.about: dict[str, Any] = {"pid": master, "reload": None, "upgrade": None}
        server.on["pid"] = lambda request: {"ok": True, "pid": os.getpid(), "server_pid": master}
        server.on["status"] = lambda request: {**server.status(request.get("name")), "server": self.about}

    def answers(self, command: str, reply: dict[str, Any], result: dict[str, Any] | None = None) -> None:
        """What it answers to *command*, and tells from then on."""

        def answer(request: dict[str, Any]) -> dict[str, Any]:
            if result is not None:
                self.about[command] = result
            return reply

        self.server.on[command] = answer


@pytest.fixture
def whole(short_dir) -> Iterator[Callable[..., Whole]]:
    started: list[Fake] = []

    def start(*names: str, **options: Any) -> Whole:
        started.append(Fake(short_dir / "c.sock", *names))
        return Whole(started[-1], **options)

    yield start
    for each in started:
        each.close()


@pytest.fixture
def ask(run, short_dir) -> Callable[..., tuple[int, str, str]]:
    """Runs the command with the fake's socket."""
    return lambda *words: run("-s", short_dir / "c.sock", *words)


RELOADS = {"ok": True, "message": "the server reloads", "number": 3}
TAKES_OVER = {"ok": True, "message": "process 4711 is to take over", "number": 2, "pid": 4711}


def applied(**more: Any) -> dict[str, Any]:
    return {"number": 3, "result": "applied", "reason": None, "companions": None, **more}


def test_a_reload_waits_for_those_that_it_has_changed(whole, ask):
    server = whole("one", "two", "new", "by-hand")
    server.server.companions["one"].update(state="BACKOFF")
    server.server.companions["by-hand"].update(state="STOPPED", autostart=False)
    changed = {"added": ["new", "by-hand"], "restarted": ["two"], "removed": ["gone"], "updated": ["one"]}
    server.answers("reload", RELOADS, applied(companions=changed))
    assert ask("reload") == (0, "the server reloads\n", "")
    lines = ["the server reloads", "all web workers are new", "two: restarted", "new: added", "gone: removed"]
    code, out, err = ask("reload", "--wait")
    assert (code, err, out.splitlines()) == (0, "", [*lines, "done"])
    code, out, err = ask("--json", "reload", "--wait")
    assert (code, err, json.loads(out)) == (0, "", {"ok": True, "reload": server.about["reload"]})
    # It was this reload, or a later one that has replaced it.
    server.about["reload"]["number"] = 2
    server.answers("reload", RELOADS)
    # What it waits for is told once.
    server.about["web_held_by"] = "migrate"
    assert ask("reload", "--wait", "--timeout", "0.5") == (
        2,
        "the server reloads\nweb workers wait for migrate\n",
        "gunicorn-companion: not done in time; the server goes on with it: see its log, and status\n",
    )


def test_a_reload_that_replaces_the_manager_waits_for_all(whole, ask):
    server = whole("one", "two")
    server.server.companions["two"].update(state="BACKOFF", description="exited with status 1")
    server.answers("reload", RELOADS, applied())
    assert ask("reload", "--wait") == (
        3,
        "the server reloads\nall web workers are new\none: restarted\n",
        "gunicorn-companion: two: BACKOFF, exited with status 1\n"
        "gunicorn-companion: done, but not all companions run\n",
    )


def test_a_reload_tells_what_has_given_up_before(whole, ask):
    server = whole("one", "two")
    why = "gave up after 1 failed start: exited with status 3"
    server.server.companions["two"].update(state="STOPPED", reason="gave up", description=why)
    server.answers("reload", RELOADS, applied(companions={"unchanged": ["one", "two"]}))
    assert ask("reload", "--wait") == (
        3,
        "the server reloads\nall web workers are new\n",
        f"gunicorn-companion: two: STOPPED, {why}; `start two` tries it again\n"
        "gunicorn-companion: done, but not all companions run\n",
    )


def test_a_copy_whose_turn_never_comes_is_not_taken_for_a_new_one(whole, ask):
    server = whole("rq:0", "rq:1", "rq:2")
    for copy in ("rq:1", "rq:2"):
        server.server.companions[copy].update(rolling=True, started_at=1.0)
    server.answers("reload", RELOADS, applied(companions={"restarted": ["rq:0", "rq:1", "rq:2"]}))
    server.server.later(0.2, "rq:1", "RUNNING", rolling=False, started_at=time.time() + 60)
    server.server.later(0.4, "rq:2", "RUNNING", rolling=False)
    code, out, err = ask("reload", "--wait")
    assert (code, out.splitlines()[2:]) == (3, ["rq:0: restarted", "rq:1: restarted"])
    assert "rq:2: goes on as before: RUNNING, as it is" in err


def test_a_reload_that_is_refused(whole, ask):
    server = whole("one")
    result = applied(result="refused", reason="ImportError: no")
    server.answers("reload", RELOADS, result)
    refused = "reload refused: ImportError: no"
    assert ask("reload", "--wait") == (1, "the server reloads\n", f"gunicorn-companion: {refused}\n")
    code, out, _ = ask("--json", "reload", "--wait")
    assert code == 1 and json.loads(out) == {"ok": False, "error": refused, "reload": result}


def test_a_reload_whose_configuration_the_manager_cannot_read(whole, ask):
    server = whole("one")
    server.answers("reload", RELOADS, applied(companions=error("no such file")))
    assert ask("reload", "--wait") == (
        3,
        "the server reloads\nall web workers are new\n",
        "gunicorn-companion: companions keep their configuration: no such file\n",
    )


@pytest.mark.parametrize(
    ("reload", "upgrade", "text"),
    [
        (("applied", 2), ("rolled back", 1), ""),
        (("applied", 1), ("rolled back", 2), "upgrade rolled back at 1970-01-01"),
        (("refused", 2), ("rolled back", 1), "reload refused at 1970-01-01"),
        (("refused", 1), ("done", 2), ""),
        (None, ("pending", 2), ""),
        (None, None, ""),
    ],
)
def test_the_status_tells_what_was_refused_last(whole, ask, reload, upgrade, text):
    server = whole("one")
    for name, last in (("reload", reload), ("upgrade", upgrade)):
        result = {} if last is None else {"result": last[0], "at": 86400.0 / 2 + last[1], "reason": "no"}
        server.about[name] = result or None
    out = ask("status")[1].splitlines()
    assert len(out) == (3 if text else 1) and out[-1].startswith(text or "one")


@pytest.mark.parametrize("command", ["reload", "upgrade", "shutdown"])
def test_what_the_master_refuses_at_once(whole, ask, command):
    server = whole("one")
    server.answers(command, error("an upgrade is under way"))
    for words in ([], ["--wait"]):
        assert ask(command, *words) == (1, "", "gunicorn-companion: an upgrade is under way\n")
    code, out, _ = ask("--json", command, "--wait")
    assert code == 1 and json.loads(out) == error("an upgrade is under way")


def test_an_upgrade_is_told_as_it_goes(whole, ask):
    server = whole("one", master=4711)
    stage = {"number": 2, "result": "pending", "reason": None, "pid": 4711, "stage": "handing over"}
    server.answers("upgrade", TAKES_OVER, stage)

    def status(request: dict[str, Any]) -> dict[str, Any]:
        if server.server.count("status") > 2:
            server.about["upgrade"] = {**stage, "result": "done", "stage": None}
        return {**server.server.status(None), "server": server.about}

    server.server.on["status"] = status
    assert ask("upgrade", "--wait", "--timeout", "600") == (
        0,
        "process 4711 is to take over\n"
        "process 4711 serves; waiting for the old web workers and companions to end\n"
        "process 4711 has taken over\n"
        "one: RUNNING\n"
        "done\n",
        "",
    )
    assert {"cmd": "upgrade", "timeout": 600.0} in server.server.requests
    server.answers("upgrade", TAKES_OVER, {**stage, "result": "rolled back", "reason": "no", "stage": None})
    server.server.on["status"] = lambda request: {**server.server.status(None), "server": server.about}
    code, _, err = ask("upgrade", "--wait")
    assert (code, err) == (1, "gunicorn-companion: upgrade rolled back: no\n")


def test_a_new_master_that_dies_while_the_old_one_stops_has_a_successor(whole, ask):
    server = whole("one", master=4711)
    stage = {"number": 2, "result": "pending", "reason": None, "pid": 4711, "stage": "handing over"}
    server.answers("upgrade", TAKES_OVER, stage)

    def status(request: dict[str, Any]) -> dict[str, Any]:
        looks = server.server.count("status")
        if looks > 2:
            server.about["upgrade"] = {**stage, "pid": 4712}
        if looks > 3:
            server.about = {**server.about, "pid": 4712, "upgrade": {**stage, "pid": 4712, "result": "done"}}
        return {**server.server.status(None), "server": server.about}

    server.server.on["status"] = status
    code, out, err = ask("upgrade", "--wait")
    assert (code, err) == (0, "")
    assert out.splitlines()[2:4] == ["process 4712 is to take over", "process 4712 has taken over"]


def test_a_manager_that_is_killed_while_companions_settle_has_a_successor(whole, ask):
    server = whole("one")
    server.answers("reload", RELOADS, applied(companions={"restarted": ["one"]}))
    server.server.companions["one"]["state"] = "STARTING"
    told = server.server.on["status"]

    def status(request: dict[str, Any]) -> dict[str, Any]:
        if server.server.count("status") == 3:
            for client in list(server.server.control.clients.values()):
                client.sock.shutdown(socket.SHUT_RDWR)
        if server.server.count("status") > 4:
            server.server.companions["one"].update(state="RUNNING", started_at=time.time())
        return told(request)

    server.server.on["status"] = status
    assert ask("reload", "--wait")[::2] == (0, "")


@pytest.mark.parametrize("lives", [False, True])
def test_a_server_that_is_gone_or_silent(whole, ask, monkeypatch, lives):
    monkeypatch.setattr(deploy, "LOST", 0.2)
    gone = subprocess.Popen(["true"])
    gone.wait()
    master = os.getpid() if lives else gone.pid
    server = whole("one", master=master)
    server.answers("reload", RELOADS)
    # Another one answers at this path.
    server.about["pid"] = 1
    silent = f"process {master} has no control socket any more: has it companions? See its log for the result"
    text = silent if lives else "the server is gone: see its log"
    assert ask("reload", "--wait")[0::2] == (2, f"gunicorn-companion: {text}\n")


def test_a_shutdown_waits_for_the_master(whole, ask):
    master = subprocess.Popen(["sleep", "60"])
    server = whole("one", master=master.pid)
    server.answers("shutdown", {"ok": True, "message": "the server stops", "pid": master.pid})
    assert ask("shutdown") == (0, "the server stops\n", "")
    assert ask("shutdown", "--now")[0] == 0
    asked = [request for request in server.server.requests if request["cmd"] == "shutdown"]
    assert [request["now"] for request in asked] == [False, True]
    late = f"gunicorn-companion: not done in time: process {master.pid} still runs\n"
    assert ask("shutdown", "--wait", "--timeout", "0.2") == (2, "the server stops\n", late)

    def end(request: dict[str, Any]) -> dict[str, Any]:
        server.server.todo.put(None)
        master.kill()
        return {"ok": True, "message": "the server stops", "pid": master.pid}

    server.server.on["shutdown"] = end
    code, out, err = ask("shutdown", "--wait", "--timeout", "30")
    master.wait()
    assert (code, out, err) == (0, f"the server stops\nprocess {master.pid} has ended\n", "")


@pytest.mark.parametrize(
    ("command", "signal"), [("reload", "SIGHUP"), ("upgrade", "SIGUSR2"), ("shutdown", "SIGTERM")]
)
def test_a_server_without_companions_gets_signals(run, short_dir, command, signal, monkeypatch):
    monkeypatch.setattr("gunicorn.companion.client.connection.DEFAULT_TIMEOUT", 0.0)
    code, out, err = run("-s", short_dir / "none.sock", command)
    assert (code, out) == (2, "")
    assert f"a server without companions has no control socket: send {signal} to its master" in err
