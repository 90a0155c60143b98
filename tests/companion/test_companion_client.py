# SPDX-License-Identifier: MIT
"""What gunicorn-companion asks, prints and waits for, against a server whose companions a test moves."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from companiontools import python_env
from test_companion_control import Log

from gunicorn.companion.client import connection
from gunicorn.companion.control import ControlServer, error
from gunicorn.unix.poller import Poller

MIB = 1024 * 1024


class Fake:
    """A real control socket with companions that are only told of. ``on[...]`` answers a command.

    Everything but the queue belongs to the thread of its loop.
    """

    def __init__(self, path: Path, *names: str) -> None:
        self.path = path
        self.companions: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(names):
            self.companions[name] = {"state": "RUNNING", "pid": 100 + number, "description": "as it is"}
        self.on: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
        self.requests: list[dict[str, Any]] = []
        self.tells_events = True
        self.poller = Poller()
        self.control = ControlServer(str(path), 0o600, self.dispatch, self.poller, Log())
        self.control.open(0.0)
        self.todo: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.loop)
        self.thread.start()

    def loop(self) -> None:
        while True:
            self.poller.wait(0.005)
            while not self.todo.empty():
                job = self.todo.get()
                if job is None:
                    self.control.close()
                    return
                job()

    def close(self) -> None:
        self.todo.put(None)
        self.thread.join(10)

    def dispatch(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        command = request["cmd"]
        if command in self.on:
            return self.on[command](request)
        if command == "events" and self.tells_events:
            return {"ok": True, "subscribe": True}
        if command == "status":
            return self.status(request.get("name"))
        return error(f"unknown command {command}")

    def status(self, name: str | None) -> dict[str, Any]:
        found = self.named(name)
        if name is not None and not found:
            return error(f"no companion named {name}")
        plain = {"manual_stop": False, "autostart": True, "memory": None}
        told = [{"name": each, **plain, **self.companions[each]} for each in found]
        return {"ok": True, "server": {"pid": 1}, "companions": told}

    def named(self, name: str | None) -> list[str]:
        if name is None:
            return list(self.companions)
        group = name.removesuffix(":*")
        return [each for each in self.companions if each == name or each.rpartition(":")[0] == group]

    def count(self, command: str) -> int:
        return sum(request["cmd"] == command for request in self.requests)

    def now(self, name: str, state: str, **more: Any) -> None:
        """Change one and tell it; in the loop's thread."""
        before = self.companions[name]["state"]
        self.companions[name] = {**self.companions[name], "state": state, **more}
        self.control.broadcast({"event": "state", "name": name, "from": before, "to": state})

    def later(self, seconds: float, name: str, state: str, **more: Any) -> None:
        timer = threading.Timer(seconds, self.todo.put, [lambda: self.now(name, state, **more)])
        timer.daemon = True
        timer.start()


@pytest.fixture
def fake(short_dir) -> Iterator[Callable[..., Fake]]:
    started: list[Fake] = []

    def start(*names: str) -> Fake:
        started.append(Fake(short_dir / "c.sock", *names))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def ask(run, short_dir) -> Callable[..., tuple[int, str, str]]:
    """Runs the command with the fake's socket."""
    return lambda *words: run("-s", short_dir / "c.sock", *words)


# -- status ------------------------------------------------------------------------------


def test_copies_are_shown_by_their_set_and_each_once(fake, ask):
    fake("db", "rq:0", "rq:1")
    assert [line.split()[0] for line in ask("status", "rq")[1].splitlines()] == ["rq:0", "rq:1"]
    assert [line.split()[0] for line in ask("status", "rq:*", "db")[1].splitlines()] == ["rq:0", "rq:1", "db"]
    assert [line.split()[0] for line in ask("status", "rq:1", "rq")[1].splitlines()] == ["rq:1", "rq:0"]
    assert ask("status", "rq:2") == (1, "", "gunicorn-companion: no companion named rq:2\n")
    assert ask("status", "db", "all")[1].count("\n") == 3


def test_one_that_waits_for_its_turn_is_told(fake, ask):
    server = fake("rq:0")
    server.companions["rq:0"].update(description="pid 100, uptime 00:00:01", rolling=True)
    assert ask("status") == (
        0,
        "rq:0   RUNNING    pid 100, uptime 00:00:01, to be restarted in its turn\n",
        "",
    )


def told(pss: float, private: float, saved: float) -> dict[str, int]:
    sizes = {"rss": 10 * pss, "pss": pss, "private": private, "saved": saved}
    return {key: int(size * MIB) for key, size in sizes.items()}


LEASE = {
    "name": "shop",
    "store": "redis://queue/0",
    "store_up": True,
    "held": False,
    "token": None,
    "holder": "web-2 (pid 4711)",
    "expires_in": 9.4,
    "ttl": 15,
    "unheld_for": None,
    "trouble": None,
    "companions": ["rq", "db"],
}


@pytest.mark.parametrize(
    ("lease", "code"),
    [
        ({}, 0),
        # Nobody holds it: for a moment, or for long.
        ({"holder": None, "unheld_for": 30}, 0),
        ({"holder": None, "unheld_for": 30.1}, 3),
        ({"holder": None, "unheld_for": 31, "store_up": False, "trouble": "refused"}, 3),
    ],
)
def test_one_that_stands_by_is_well_while_somebody_holds_its_lease(fake, ask, lease, code):
    server = fake("rq")
    lease = {**LEASE, **lease}
    server.companions["rq"].update(
        state="STARTING", pid=None, standby=True, lease=lease, description="standby: held by web-2"
    )
    assert ask("status")[0] == code
    server.on["lease"] = lambda request: {"ok": True, "leases": [lease]}
    found, out, _ = ask("lease")
    assert found == code
    head, row = out.splitlines()
    assert head.split() == ["LEASE", "HOLDER", "TOKEN", "ENDS", "IN", "COMPANIONS", "STORE"]
    holder = lease["holder"] or "-"
    assert row.startswith("shop") and holder in row and "rq, db" in row and "redis://queue/0" in row
    assert ("refused" in row) is not lease["store_up"]


def test_a_start_is_over_when_somebody_else_holds_the_lease(fake, ask):
    server = fake("rq")
    asking = {**LEASE, "holder": None}
    stands_by = {"pid": None, "standby": True, "description": "standby: held by web-2"}

    def start(request):
        server.now("rq", "STARTING", **stands_by, lease=asking)
        server.later(0.05, "rq", "STARTING", lease=LEASE)
        return {"ok": True, "message": "rq is starting"}

    server.on["start"] = start
    assert ask("start", "rq") == (0, "rq: standby: held by web-2\n", "")
    assert ask("wait", "rq") == (0, "rq: standby: held by web-2\n", "")


def test_a_lease_is_given_away(fake, ask):
    server = fake("rq")
    server.on["lease"] = lambda request: (
        {"ok": True, "message": "lease shop is given away"} if request["release"] == "shop" else error("no")
    )
    assert ask("lease", "release", "shop") == (0, "lease shop is given away\n", "")
    assert ask("lease", "release", "other")[0] == 1
    assert "which lease?" in ask("lease", "release")[2]


def test_memory_in_columns_and_in_a_sentence(fake, ask):
    server = fake("db", "rq:0", "rq:1")
    for name, memory in (("db", told(30, 28.5, 100)), ("rq:0", told(8.25, 1, 120)), ("rq:1", None)):
        server.companions[name]["memory"] = memory
    server.companions["rq:1"].update(state="STOPPED", pid=None, manual_stop=True)
    server.on["status"] = lambda request: {
        **server.status(request.get("name")), "memory": {"manager": told(5, 1, 20)},
    }  # fmt: skip
    code, out, err = ask("status", "-v")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "NAME   STATE           PSS    PRIVATE       SAVED   DESCRIPTION",
        "db     RUNNING    30.0 MiB   28.5 MiB   100.0 MiB   as it is",
        "rq:0   RUNNING     8.2 MiB    1.0 MiB   120.0 MiB   as it is",
        "rq:1   STOPPED           -          -           -   as it is",
        "",
        "These 2 companions take 38.2 MiB together, 29.5 MiB of it private. "
        "As separate processes they would take 258.2 MiB: copy-on-write saves 220.0 MiB.",
        "Their manager takes 5.0 MiB.",
    ]
    assert server.requests[-1] == {"cmd": "status", "memory": True}
    sentences = ask("status", "-v", "db")[1].splitlines()[-2:]
    assert sentences == [
        "This companion takes 30.0 MiB, 28.5 MiB of it private. "
        "As separate processes it would take 130.0 MiB: copy-on-write saves 100.0 MiB.",
        "Their manager takes 5.0 MiB.",
    ]
    # Several replies are one; named twice is counted once.
    _, out, _ = ask("--json", "status", "rq:0", "rq", "db")
    reply = json.loads(out)
    assert [companion["name"] for companion in reply["companions"]] == ["rq:0", "rq:1", "db"]
    assert reply["memory"]["separate"] == int(258.25 * MIB)
    assert reply["memory"]["manager"]["pss"] == 5 * MIB


def test_memory_that_is_not_told(fake, ask):
    server = fake("db")
    assert ask("status", "-v")[1].endswith("\nThis system does not report what they share.\n")
    server.companions["db"].update(state="STOPPED", pid=None)
    code, out, _ = ask("status", "-v")
    assert code == 3 and out.endswith("\nNone of them is running.\n")
    server.companions.clear()
    assert ask("status", "-v") == (0, "no companions are configured\n", "")


# -- start, stop, restart ------------------------------------------------------------------


def steered(server: Fake, begin: Callable[[str], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Answers a command as the manager does, and begins what it is about."""

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        names = server.named(request["name"])
        if not names:
            return error(f"no companion named {request['name']}")
        for name in names:
            begin(name)
        reply = {"ok": True, "message": "; ".join(f"{name} is on its way" for name in names)}
        return reply if request["name"] in names else {**reply, "names": names}

    return answer


def test_a_command_on_a_set_waits_for_each_copy(fake, ask):
    server = fake("db", "rq:0", "rq:1")

    def begin(name: str) -> None:
        server.now(name, "STOPPING")
        server.later(0.1 if name == "rq:0" else 0.3, name, "STOPPED")

    server.on["stop"] = steered(server, begin)
    code, out, err = ask("stop", "rq")
    assert (code, out, err) == (0, "rq:0: stopped\nrq:1: stopped\n", "")
    assert server.companions["db"]["state"] == "RUNNING"
    # What the server told made it look, and not the clock.
    assert server.count("status") <= 6


def test_a_restart_in_turn_is_waited_for(fake, ask):
    server = fake("rq:0", "rq:1", "rq:2")

    def begin(name: str) -> None:
        number = int(name[-1])
        server.companions[name]["rolling"] = True
        server.later(0.1 + number * 0.2, name, "STARTING", rolling=False)
        server.later(0.2 + number * 0.2, name, "RUNNING")

    server.on["restart"] = steered(server, begin)
    code, out, err = ask("restart", "--rolling", "rq")
    assert (code, err) == (0, "")
    assert out == "rq:0: restarted\nrq:1: restarted\nrq:2: restarted\n"
    assert server.requests[0] == {"cmd": "restart", "rolling": True, "name": "rq"}
    assert all(each["state"] == "RUNNING" and not each["rolling"] for each in server.companions.values())


def test_a_restart_in_turn_that_stands_still_is_told(fake, ask):
    server = fake("rq:0", "rq:1", "rq:2")

    def begin(name: str) -> None:
        server.companions[name]["rolling"] = name != "rq:0"
        if name == "rq:0":
            server.now(name, "STOPPING")
            server.later(0.1, name, "BACKOFF", description="exited with status 3, retrying in 5s")

    server.on["restart"] = steered(server, begin)
    code, out, err = ask("restart", "--rolling", "rq")
    assert (code, out) == (1, "")
    assert err == (
        "gunicorn-companion: rq:0: BACKOFF, exited with status 3, retrying in 5s\n"
        "gunicorn-companion: not restarted yet: rq:1, rq:2\n"
    )


def test_it_need_not_wait_for_a_set(fake, ask):
    server = fake("rq:0", "rq:1")
    server.on["restart"] = steered(server, lambda name: server.now(name, "STOPPING"))
    assert ask("restart", "rq:*", "--no-wait") == (0, "rq:0 is on its way; rq:1 is on its way\n", "")


def test_a_server_without_events_is_looked_at_more_often(fake, ask):
    server = fake("rq")
    server.tells_events = False
    server.on["stop"] = steered(
        server, lambda name: (server.now(name, "STOPPING"), server.later(0.35, name, "STOPPED"))
    )
    begun = time.monotonic()
    assert ask("stop", "rq") == (0, "rq: stopped\n", "")
    assert time.monotonic() - begun < 5
    assert 3 <= server.count("status") <= 12


# -- signal, scale --------------------------------------------------------------------------


def test_signal(fake, ask):
    server = fake("db", "rq:0", "rq:1")
    server.on["signal"] = lambda request: (
        error("db: not running")
        if request["name"] == "db"
        else {"ok": True, "message": f"{request['name']} gets {request['signal']}", "names": []}
    )
    assert ask("signal", "rq:1", "HUP") == (0, "rq:1 gets HUP\n", "")
    assert server.requests[-1] == {"cmd": "signal", "signal": "HUP", "name": "rq:1"}
    assert ask("signal", "db", "9") == (1, "", "gunicorn-companion: db: not running\n")
    code, out, err = ask("signal", "all", "USR1")
    assert (code, out) == (1, "rq:0 gets USR1\nrq:1 gets USR1\n")
    assert err == "gunicorn-companion: db: not running\n"
    code, out, _ = ask("--json", "signal", "rq", "HUP")
    assert (code, json.loads(out)["ok"]) == (0, True)


def test_scale(fake, ask):
    server = fake("rq:0", "rq:1", "rq:2")

    def scale(request: dict[str, Any]) -> dict[str, Any]:
        if request["name"] != "rq":
            return error("db is no set of copies")
        number = request["numprocs"]
        names = {f"rq:{n}" for n in range(number)}
        added, removed = sorted(names - server.companions.keys()), sorted(server.companions.keys() - names)
        for name in added:
            server.companions[name] = {"state": "STARTING", "pid": 7, "description": ""}
            server.later(0.1, name, "RUNNING")
        for name in removed:
            server.now(name, "STOPPING")
            server.todo.put(lambda name=name: server.companions.pop(name))
        return {"ok": True, "added": added, "removed": removed}

    server.on["scale"] = scale
    assert ask("scale", "rq", "4") == (0, "rq:3: added\n", "")
    assert server.requests[0] == {"cmd": "scale", "name": "rq", "numprocs": 4}
    code, out, err = ask("scale", "rq", "1")
    assert (code, sorted(out.splitlines()), err) == (
        0,
        ["rq:1: removed", "rq:2: removed", "rq:3: removed"],
        "",
    )
    assert ask("scale", "rq", "1") == (0, "nothing changed\n", "")
    assert ask("scale", "rq", "2", "--no-wait") == (0, "rq:1: added\n", "")
    code, out, _ = ask("scale", "rq", "2", "--json")
    assert (code, json.loads(out)) == (0, {"ok": True, "added": [], "removed": []})
    assert ask("scale", "db", "2") == (1, "", "gunicorn-companion: db is no set of copies\n")


# -- wait ------------------------------------------------------------------------------------


def test_wait_for_what_is_so_already(fake, ask):
    server = fake("db", "rq:0", "rq:1")
    assert ask("wait", "rq", "db") == (0, "rq:0: RUNNING\nrq:1: RUNNING\ndb: RUNNING\n", "")
    assert ask("wait", "all")[0] == 0
    code, out, _ = ask("--json", "wait", "db")
    assert (code, [each["name"] for each in json.loads(out)["companions"]]) == (0, ["db"])
    server.companions.clear()
    assert ask("wait", "all") == (0, "", "")


def test_wait_until_all_are_in_the_state(fake, ask):
    server = fake("db", "rq")
    server.companions["db"]["state"] = "STARTING"
    server.companions["rq"]["state"] = "BACKOFF"
    server.later(0.1, "rq", "STARTING")
    server.later(0.2, "db", "RUNNING")
    server.later(0.4, "rq", "RUNNING")
    begun = time.monotonic()
    assert ask("wait", "db", "rq")[0] == 0
    assert 0.3 < time.monotonic() - begun < 5
    server.later(0.1, "rq", "BACKOFF")
    assert ask("wait", "rq", "--state", "backoff") == (0, "rq: BACKOFF\n", "")


def test_wait_for_long_costs_the_server_little(fake, ask):
    server = fake("rq")
    server.companions["rq"]["state"] = "STARTING"
    server.later(2.2, "rq", "RUNNING")
    assert ask("wait", "rq")[0] == 0
    assert server.count("status") <= 5


def test_wait_for_what_cannot_come_any_more(fake, ask):
    server = fake("db", "rq")
    server.companions["rq"]["state"] = "STARTING"
    gone = {"description": "gave up after 3 failed starts: exited with status 1", "reason": "gave up"}
    server.later(0.2, "rq", "STOPPED", **gone)
    code, out, err = ask("wait", "db", "rq")
    assert (code, out) == (1, "")
    assert err == f"gunicorn-companion: rq: STOPPED, {gone['description']}\n"
    assert ask("wait", "rqq") == (1, "", "gunicorn-companion: no companion named rqq\n")
    assert ask("wait", "rqq", "--state", "STOPPED")[0] == 1


def test_wait_until_one_is_gone(fake, ask):
    server = fake("rq")
    server.later(0.2, "rq", "STOPPING")
    threading.Timer(0.4, server.todo.put, [server.companions.clear]).start()
    assert ask("wait", "rq", "--state", "STOPPED")[0] == 0


def test_wait_not_longer_than_the_timeout(fake, ask):
    server = fake("db", "rq")
    server.companions["rq"].update(state="STARTING", description="waiting for db")
    begun = time.monotonic()
    code, out, err = ask("wait", "db", "rq", "--timeout", "0.3")
    assert 0.25 < time.monotonic() - begun < 5
    assert (code, out, err) == (1, "", "gunicorn-companion: rq: STARTING, waiting for db\n")
    # Both places of the option are one.
    assert ask("--timeout", "0", "wait", "rq")[0] == 1
    # And the time to find a server counts.
    server.path.rename(server.path.with_name("d.sock"))
    code, _, err = ask("wait", "rq", "--timeout", "0.2")
    assert code == 2 and "is the server running" in err


# -- reread, pid, version --------------------------------------------------------------------


def test_reread_without_doing_it(fake, ask):
    server = fake()
    difference = {"added": ["a"], "removed": ["b"], "restarted": [], "updated": ["c"], "unchanged": ["d"]}
    server.on["reread"] = lambda request: {"ok": True, **difference, **request}
    assert ask("reread", "--dry-run") == (
        0, "a: would be added\nb: would be removed\nc: would be updated\n", ""
    )  # fmt: skip
    assert server.requests == [{"cmd": "reread", "dry_run": True}]
    assert ask("reread") == (0, "a: added\nb: removed\nc: updated\n", "")
    assert server.requests[1:] == [{"cmd": "reread"}]
    difference.update(added=[], removed=[], updated=[])
    assert ask("reread", "--dry-run") == (0, "nothing would change\n", "")
    server.on["reread"] = lambda request: {**error("target: missing"), "kept_old_config": True}
    assert ask("reread", "--dry-run")[0] == 1


def test_pids(fake, ask):
    server = fake("db", "rq:0", "rq:1")
    server.on["pid"] = lambda request: {"ok": True, "pid": 4711, "server_pid": 4710}
    assert ask("pid") == (0, "4711\n", "")
    assert json.loads(ask("--json", "pid")[1])["server_pid"] == 4710
    assert ask("pid", "rq") == (0, "101\n102\n", "")
    assert ask("pid", "all") == (0, "100\n101\n102\n", "")
    server.companions["rq:1"].update(state="BACKOFF", pid=None)
    # Not 0: the output is meant for kill.
    assert ask("pid", "rq") == (1, "101\n", "gunicorn-companion: rq:1 has no process: BACKOFF, as it is\n")
    assert json.loads(ask("--json", "pid", "rq")[1]) == {"rq:0": 101, "rq:1": None}
    assert ask("pid", "x") == (1, "", "gunicorn-companion: no companion named x\n")


def test_the_servers_version(fake, ask):
    fake().on["version"] = lambda request: {"ok": True, "version": "1.2.3"}
    assert ask("version") == (0, "1.2.3\n", "")


# -- events ----------------------------------------------------------------------------------


@pytest.fixture
def follow(short_dir) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Runs ``gunicorn-companion events`` as a program."""
    programs: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "gunicorn.companion.ctl", "-s", str(short_dir / "c.sock"), "events"]
        programs.append(
            subprocess.Popen(
                command, env=python_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return programs[-1]

    yield start
    for program in programs:
        program.kill()
        program.communicate(timeout=10)


def test_events_are_lines_as_they_come(fake, follow):
    server = fake("rq")
    program = follow()
    assert program.stdout is not None
    stop = threading.Event()

    def change() -> None:
        while not stop.wait(0.05):
            server.todo.put(lambda: server.now("rq", "BACKOFF"))

    changing = threading.Thread(target=change)
    changing.start()
    try:
        lines = [json.loads(program.stdout.readline()) for _ in range(3)]
    finally:
        stop.set()
        changing.join(5)
    assert [line["to"] for line in lines] == ["BACKOFF"] * 3
    program.send_signal(signal.SIGINT)
    assert program.wait(10) == 130
    assert program.stderr is not None and program.stderr.read() == ""


def test_events_end_with_the_server(fake, follow):
    server = fake("rq")
    program = follow()
    deadline = time.monotonic() + 20
    while not server.count("events"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.close()
    _, err = program.communicate(timeout=10)
    assert (program.returncode, "the server closed the connection" in err) == (2, True)


def test_events_are_refused_by_a_server_that_knows_none(fake, ask):
    fake().tells_events = False
    assert ask("events") == (1, "", "gunicorn-companion: unknown command events\n")


# -- how it waits ------------------------------------------------------------------------------


def test_changes_wake_and_the_interval_bounds(fake):
    server = fake("rq")
    with connection.Changes(str(server.path)) as changes:
        begun = time.monotonic()
        server.later(0.15, "rq", "BACKOFF")
        changes.wait(None)
        assert 0.1 < time.monotonic() - begun < 0.9
        # A deadline ends it sooner; one that has passed at once.
        begun = time.monotonic()
        changes.wait(begun + 0.1)
        assert 0.09 < time.monotonic() - begun < 0.9
        changes.wait(begun)
        # However much happens.
        for _ in range(500):
            server.later(0, "rq", "RUNNING")
        begun = time.monotonic()
        for _ in range(3):
            changes.wait(None)
        assert time.monotonic() - begun > 0.09
        # A server that goes is looked for as one that tells nothing.
        server.close()
        for _ in range(3):
            changes.wait(time.monotonic() + 0.2)


def test_changes_of_a_server_that_is_not_there(short_dir):
    with connection.Changes(str(short_dir / "none")) as changes:
        begun = time.monotonic()
        changes.wait(None)
        assert time.monotonic() - begun >= 0.09
