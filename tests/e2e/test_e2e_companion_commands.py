# SPDX-License-Identifier: MIT
"""The commands of ``gunicorn-companion`` against a running server."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from e2e_companions import companion_server, entry, overlaps, pids, reconfigure
from e2e_users import reachable_for_all
from harness import Server, wait_until

from gunicorn import __version__

MIB = 1024 * 1024
# A machine may have much else to do.
PATIENCE = 60.0
COMMAND = [sys.executable, "-m", "gunicorn.companion.ctl"]

T = TypeVar("T")

WORK = '''
import os, signal, sys, time
from jobs import begin, mark, sleep_forever

def hears():
    """Notes its signals."""
    for sig in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(sig, lambda number, frame: mark("heard", number))
    begin()
    mark("ready")
    sleep_forever()

def quits():
    """Exits with 0 once the file `quit` is there."""
    begin()
    while not os.path.exists("quit"):
        time.sleep(0.02)

def breaks():
    begin()
    sys.exit(1)

def writes():
    """Writes to half of the memory that it shares."""
    import app
    for place in range(0, len(app.BLOCK) // 2, 4096):
        app.BLOCK[place] = 1
    begin()
    sleep_forever()
'''


def job(name: str, target: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "target": f"work:{target}", **keys}


def server_of(*companions: dict[str, Any], **settings: Any) -> Server:
    return companion_server(*companions, files_option={"work.py": WORK}, **settings)


def ctl(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    """Run gunicorn-companion, which finds the server's socket itself."""
    return subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=server.dir,
        env=server.env,
    )


def up(server: Server, name: str) -> dict[str, Any]:
    return server.wait_companion(name, timeout=PATIENCE)


def until(condition: Callable[[], T], text: str = "") -> T:
    return wait_until(condition, PATIENCE, text)


class Events:
    """``gunicorn-companion events``, followed by a test."""

    def __init__(self, server: Server) -> None:
        self.program = subprocess.Popen(
            [*COMMAND, "events"],
            cwd=server.dir,
            env=server.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.program.stdout is not None
        self.out = self.program.stdout
        self.seen: list[dict[str, Any]] = []
        self._rest = b""
        # Events from before the subscription are not sent, so cause some until one arrives.
        until(lambda: (server.ask("restart", "canary"), self.take(0.2), self.seen)[2], "an event")
        self.seen.clear()

    def take(self, timeout: float = 0.0) -> None:
        while select.select([self.out], [], [], timeout)[0]:
            data = os.read(self.out.fileno(), 65536)
            if not data:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.seen += [json.loads(line) for line in lines]

    def of(self, name: str) -> list[tuple[str, str]]:
        self.take()
        changes = [event for event in self.seen if event["event"] == "state" and event["name"] == name]
        return [(event["from"], event["to"]) for event in changes]


@contextlib.contextmanager
def following(server: Server) -> Iterator[Events]:
    events = Events(server)
    try:
        yield events
    finally:
        events.program.kill()
        events.program.communicate(timeout=10)


def test_start_stop_restart_wait_until_it_is_done() -> None:
    companions = [entry("drain", env={"UNTIL": "done"}), entry("a", "idle", startsecs=0.3)]
    with companion_server(*companions) as server:
        server.wait_companion("drain")
        first = server.wait_companion("a")["pid"]
        stop = subprocess.Popen([*COMMAND, "stop", "drain"], cwd=server.dir, env=server.env)
        server.wait_companion("drain", "STOPPING", PATIENCE)
        assert stop.poll() is None
        done = server.write("done", "")
        assert stop.wait(PATIENCE) == 0
        assert server.companion("drain")["state"] == "STOPPED"
        done.unlink()
        assert ctl(server, "start", "drain").returncode == 0
        assert server.companion("drain")["state"] == "RUNNING"
        assert ctl(server, "restart", "a").returncode == 0
        found = server.companion("a")
        assert found["state"] == "RUNNING" and found["pid"] != first
        assert ctl(server, "--no-wait", "stop", "drain").returncode == 0
        assert server.companion("drain")["state"] == "STOPPING"
        server.write("done", "")
        server.wait_companion("drain", "STOPPED")
        assert ctl(server, "start", "all").returncode == 0
        assert ctl(server, "stop", "all").returncode == 0
        assert {found["state"] for found in server.companions().values()} == {"STOPPED"}
        assert ctl(server, "start", "a", "drain").returncode == 0
        assert {found["state"] for found in server.companions().values()} == {"RUNNING"}


def test_a_name_means_one_copy_or_all_copies() -> None:
    with server_of(entry("db", "idle"), entry("rq", "idle", numprocs=3)) as server:
        for name in ("db", "rq:0", "rq:1", "rq:2"):
            up(server, name)
        before = pids(server)
        for names, shown in (
            (["rq"], "rq:0 rq:1 rq:2"),
            (["rq:*"], "rq:0 rq:1 rq:2"),
            (["rq:1", "db"], "rq:1 db"),
            ([], "db rq:0 rq:1 rq:2"),
        ):
            result = ctl(server, "status", *names)
            assert (result.returncode, [line.split()[0] for line in result.stdout.splitlines()]) == (
                0, shown.split(),
            )  # fmt: skip
        assert ctl(server, "stop", "rq:1").stdout == "rq:1: stopped\n"
        assert {name for name, pid in pids(server).items() if pid is None} == {"rq:1"}
        assert ctl(server, "start", "rq").returncode == 0
        # The others run on.
        after = pids(server)
        assert all(after[name] == before[name] for name in ("db", "rq:0", "rq:2"))
        result = ctl(server, "restart", "rq:*")
        assert (result.returncode, sorted(result.stdout.splitlines())) == (
            0, [f"rq:{n}: restarted" for n in range(3)],
        )  # fmt: skip
        assert all(pids(server)[f"rq:{n}"] not in after.values() for n in range(3))
        assert pids(server)["db"] == before["db"]
        assert ctl(server, "stop", "rq").returncode == 0
        assert {companion["state"] for name, companion in server.companions().items() if name != "db"} == {
            "STOPPED"
        }
        for name in ("rq:3", "r", "db:0", "rq:", "x*"):
            refused = ctl(server, "stop", name)
            assert (refused.returncode, refused.stdout) == (1, "") and name in refused.stderr
        assert overlaps(server) == []


def test_scale_moves_only_the_difference() -> None:
    def copies() -> list[str]:
        return sorted(server.companions())

    with server_of(entry("one", "idle"), entry("rq", "idle", numprocs=2)) as server:
        up(server, "rq:1")
        before = pids(server)
        result = ctl(server, "scale", "rq", "4")
        assert (result.returncode, result.stdout) == (0, "rq:2: added\nrq:3: added\n"), result
        assert copies() == ["one", "rq:0", "rq:1", "rq:2", "rq:3"]
        four = pids(server)
        assert {**four, **before} == four
        # The number holds until the configured one changes.
        assert ctl(server, "reread").stdout == "nothing changed\n"
        result = ctl(server, "scale", "rq", "1")
        assert result.returncode == 0
        assert sorted(result.stdout.splitlines()) == [f"rq:{n}: removed" for n in (1, 2, 3)]
        until(lambda: copies() == ["one", "rq:0"])
        assert pids(server) == {"one": before["one"], "rq:0": before["rq:0"]}
        reconfigure(server, entry("one", "idle"), entry("rq", "idle", numprocs=3))
        assert ctl(server, "reread").stdout == "rq:1: added\nrq:2: added\n"
        assert pids(server)["rq:0"] == before["rq:0"]
        assert ctl(server, "scale", "rq", "3").stdout == "nothing changed\n"
        for words in (["one", "2"], ["nobody", "2"], ["rq:0", "2"]):
            refused = ctl(server, "scale", *words)
            assert (refused.returncode, refused.stdout) == (1, ""), refused
        for number in ("-1", "two", "1.5", ""):
            assert ctl(server, "scale", "rq", number).returncode == 2
        assert overlaps(server) == []


def test_a_rolling_restart_never_has_two_of_four_down() -> None:
    copies = [f"rq:{n}" for n in range(4)]
    with server_of(entry("canary", "idle"), entry("rq", "idle", numprocs=4, startsecs=0.3)) as server:
        for name in copies:
            up(server, name)
        before = pids(server)
        with following(server) as events:
            result = ctl(server, "restart", "--rolling", "rq")
            assert result.returncode == 0, result
            assert sorted(result.stdout.splitlines()) == [f"{name}: restarted" for name in copies]
            until(lambda: (events.take(), events.of("rq:3")[-1:] == [("STARTING", "RUNNING")])[1])
            down: set[str] = set()
            most = 0
            for event in events.seen:
                if event["event"] == "state" and event["name"] in copies:
                    (down.discard if event["to"] == "RUNNING" else down.add)(event["name"])
                    most = max(most, len(down))
            assert most == 1 and not down
            for name in copies:
                assert events.of(name) == [
                    ("RUNNING", "STOPPING"), ("STOPPING", "STARTING"), ("STARTING", "RUNNING"),
                ]  # fmt: skip
        after = pids(server)
        assert not {after[name] for name in copies} & {before[name] for name in copies}
        assert overlaps(server) == []


def test_a_rolling_restart_stands_still_where_a_copy_does_not_come_up() -> None:
    with server_of(entry("rq", "idle", numprocs=3, startsecs=1.5, restart_delay=60)) as server:
        for number in range(3):
            up(server, f"rq:{number}")
        before = pids(server)
        server.write("jobs.py", "1/0")
        result = ctl(server, "restart", "--rolling", "rq")
        assert result.returncode == 1
        assert re.search(r"rq:\d: BACKOFF, cannot import jobs:idle: .*retrying in", result.stderr)
        assert "not restarted yet: " in result.stderr
        after = pids(server)
        assert sum(after[name] == before[name] for name in before) == 2


def test_events_tell_every_change() -> None:
    failing = entry("a", "exit3", autostart=False, startsecs=60, restart_delay=60)
    with server_of(entry("canary", "idle"), failing) as server:
        up(server, "canary")
        with following(server) as events:
            server.ask("start", "a")
            until(lambda: len(events.of("a")) >= 2)
            server.ask("stop", "a")
            until(lambda: len(events.of("a")) >= 3)
            assert events.of("a") == [
                ("STOPPED", "STARTING"), ("STARTING", "BACKOFF"), ("BACKOFF", "STOPPED"),
            ]  # fmt: skip
            of_a = [event for event in events.seen if event["name"] == "a"]
            assert [event["event"] for event in of_a] == ["state", "start", "exit", "state", "state"]
            last = of_a[3]
            assert abs(last["time"] - time.time()) < 60
            assert last["description"] == "exited with status 3, retrying in 60s"
            # It ends with the server.
            server.stop()
            _, err = events.program.communicate(timeout=20)
            assert events.program.returncode == 2
            assert b"the server closed the connection" in err


def test_wait_and_its_exit_codes() -> None:
    quick = {"startsecs": 60, "restart_delay": 0.1}
    with server_of(
        job("slow", "hears", startsecs=1.0),
        entry("behind", "idle", after=["slow"]),
        job("broken", "breaks", autostart=False, start_retries=2, **quick),
        job("once", "quits", autorestart="on-failure"),
        entry("off", "idle", autostart=False),
    ) as server:
        # In the order that `after` makes; the second is RUNNING only when the first one is.
        assert ctl(server, "wait", "behind").stdout == "behind: RUNNING\n"
        assert server.companion("slow")["state"] == "RUNNING"
        result = ctl(server, "--no-wait", "start", "broken")
        assert result.returncode == 0
        result = ctl(server, "wait", "slow", "broken")
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("gunicorn-companion: broken: STOPPED, gave up after ")
        result = ctl(server, "wait", "off", "--timeout", "10")
        assert (result.returncode, result.stderr) == (1, "gunicorn-companion: off: STOPPED, not started\n")
        result = ctl(server, "wait", "once", "--state", "STOPPED", "--timeout", "0.5")
        assert result.returncode == 1 and "once: RUNNING, pid " in result.stderr
        server.write("quit", "")
        assert ctl(server, "wait", "once", "--state", "STOPPED").returncode == 0
        assert ctl(server, "wait", "nobody").returncode == 1
        assert ctl(server, "wait").returncode == 2
        assert ctl(server, "wait", "slow", "--state", "ASLEEP").returncode == 2
        # A job that is done is as it should be; a companion that gave up is not.
        assert ctl(server, "status", "once", "off", "slow").returncode == 0
        assert ctl(server, "status", "broken").returncode == 3
        assert server.companion("once")["reason"] == "exited"
        assert ctl(server, "-s", "/nowhere.sock", "wait", "slow", "--timeout", "0.2").returncode == 2


def test_signal() -> None:
    with server_of(job("rq", "hears", numprocs=2), entry("off", "idle", autostart=False)) as server:
        for number in range(2):
            up(server, f"rq:{number}")
            until(lambda number=number: server.log(f"rq:{number}.ready"))
        pid = server.companion("rq:1")["pid"]
        result = ctl(server, "signal", "rq:1", "USR1")
        assert (result.returncode, result.stdout) == (0, f"rq:1 (pid {pid}) gets SIGUSR1\n")
        until(lambda: server.log("rq:1.heard") == "10\n")
        assert ctl(server, "signal", "rq", "SIGHUP").returncode == 0
        until(lambda: server.log("rq:0.heard") == "1\n" and server.log("rq:1.heard") == "10\n1\n")
        assert pids(server)["rq:1"] == pid
        for words in (["off", "HUP"], ["nobody", "HUP"], ["rq", "NOPE"], ["rq", "99"]):
            refused = ctl(server, "signal", *words)
            assert (refused.returncode, refused.stdout) == (1, ""), refused
            assert refused.stderr.startswith("gunicorn-companion: ") and "Traceback" not in refused.stderr
        assert ctl(server, "signal", "rq").returncode == 2
        # A number is a signal too; a companion that it kills is restarted.
        assert ctl(server, "signal", "rq:1", "9").returncode == 0
        server.wait_companion("rq:1", timeout=PATIENCE, without=[pid])


def test_a_dry_run_tells_what_reread_then_does() -> None:
    with server_of(entry("same", "idle"), entry("goes", "idle"), entry("other", "idle")) as server:
        for name in ("same", "goes", "other"):
            up(server, name)
        before = pids(server)
        changed = [
            entry("same", "idle", stop_timeout=7),
            entry("other", "idle", env={"A": "1"}),
            entry("comes", "idle"),
        ]
        reconfigure(server, *changed)
        wanted = "comes: would be added\ngoes: would be removed\nother: would be restarted\n"
        result = ctl(server, "reread", "--dry-run")
        assert (result.returncode, result.stdout) == (0, f"{wanted}same: would be updated\n")
        reply = json.loads(ctl(server, "--json", "reread", "--dry-run").stdout)
        assert reply["ok"] and reply["dry_run"] and reply["restarted"] == ["other"]
        assert pids(server) == before
        # Without --dry-run the same changes are made.
        result = ctl(server, "reread")
        assert (result.returncode, result.stdout) == (0, f"{wanted}same: updated\n".replace("would be ", ""))
        until(lambda: sorted(server.companions()) == ["comes", "other", "same"])
        up(server, "comes")
        assert ctl(server, "reread", "--dry-run").stdout == "nothing would change\n"
        server.write("gunicorn.conf.py", "companion_workers = [{'name': 'a', 'target': 'jobs:idle', 'x': 1}]")
        result = ctl(server, "reread", "--dry-run")
        assert (result.returncode, result.stdout) == (1, "") and "unknown key x" in result.stderr
        assert pids(server)["same"] == before["same"]


def test_keys_that_shape_supervision_apply_without_a_restart() -> None:
    changes: dict[str, dict[str, Any]] = {
        "a": {"autorestart": "never"},
        "b": {"restart_delay": 9, "restart_delay_max": 90, "start_retries": 4, "on_give_up": "shutdown"},
        "c": {"stop_timeout": 9, "reload_timeout": 9, "stop_signal": "SIGINT", "start_timeout": 9},
        "d": {"max_memory": "900M", "max_lifetime": 9000, "max_lifetime_jitter": 90, "startsecs": 0},
        "e": {"after": ["b"]},
    }
    with server_of(*(entry(name, "idle") for name in changes)) as server:
        for name in changes:
            up(server, name)
        before = pids(server)
        reconfigure(server, *(entry(name, "idle", **keys) for name, keys in changes.items()))
        updated = "".join(f"{name}: updated\n" for name in changes)
        would_be = updated.replace("updated", "would be updated")
        assert ctl(server, "reread", "--dry-run").stdout == would_be
        assert ctl(server, "reread").stdout == updated
        assert pids(server) == before
        # The new value holds for the running process.
        os.kill(before["a"] or 0, 9)
        assert server.wait_companion("a", "STOPPED", PATIENCE)["reason"] == "exited"
        assert ctl(server, "status", "a").returncode == 3


def test_pid_and_version() -> None:
    with server_of(entry("rq", "idle", numprocs=2), entry("off", "idle", autostart=False)) as server:
        first, second = (up(server, name)["pid"] for name in ("rq:0", "rq:1"))
        assert ctl(server, "pid").stdout == f"{server.manager()}\n"
        assert ctl(server, "pid", "rq").stdout == f"{first}\n{second}\n"
        result = ctl(server, "pid", "rq:1", "off")
        assert (result.returncode, result.stdout) == (1, f"{second}\n")
        assert result.stderr == "gunicorn-companion: off has no process: STOPPED, not started\n"
        assert json.loads(ctl(server, "--json", "pid").stdout)["server_pid"] == server.pid
        assert ctl(server, "version").stdout == f"{__version__}\n"


# -- memory ----------------------------------------------------------------------------------

HEAVY = """
import os
SIZE = 24 * 1024 * 1024
BLOCK = bytearray(os.urandom(4096) * (SIZE // 4096))
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def rollup(pid: int) -> dict[str, int]:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        found = re.findall(r"^(\w+):\s+(\d+) kB$", file.read(), re.MULTILINE)
    return {name: int(size) * 1024 for name, size in found}


def figures_of(told: dict[str, int]) -> dict[str, int]:
    return {
        "pss": told["Pss"],
        "private": told["Private_Clean"] + told["Private_Dirty"],
        "saved": told["Anonymous"] - told["Pss_Anon"],
    }


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="the kernel does not tell")
@pytest.mark.parametrize(
    "user",
    [None, pytest.param("nobody", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root"))],
)
def test_memory_figures_are_those_of_the_kernel(user: str | None) -> None:
    settings: dict[str, Any] = {"preload_app": True, "workers": 1}
    if user is not None:
        nobody = pwd.getpwnam(user)
        settings.update(user=user, group=nobody.pw_gid, prefix_option=reachable_for_all())
    server = server_of(
        entry("idle", numprocs=2), job("writes", "writes"), entry("family"), app_option=HEAVY, **settings
    )
    if user is not None:
        os.chown(server.dir, nobody.pw_uid, nobody.pw_gid)
        runtime = server.dir / "rt"
        runtime.mkdir()
        os.chown(runtime, nobody.pw_uid, nobody.pw_gid)
        server.env["RUNTIME_DIRECTORY"] = str(runtime)
    names = ["idle:0", "idle:1", "writes", "family"]
    with server:
        for name in names:
            up(server, name)
        children = until(lambda: len(found := server.log("family.child").split()) == 2 and found)
        processes = {name: [int(pid)] for name, pid in pids(server).items() if pid is not None}
        processes["family"] += [int(pid) for pid in children]

        def agrees() -> dict[str, Any] | None:
            """Processes that are still settling change their memory between two looks."""
            reply: dict[str, Any] = json.loads(ctl(server, "--json", "status").stdout)
            sums = dict.fromkeys(("pss", "private", "saved"), 0)
            for companion in reply["companions"]:
                for key in sums:
                    told = sum(figures_of(rollup(pid))[key] for pid in processes[companion["name"]])
                    sums[key] += told
                    if companion["memory"][key] != pytest.approx(told, rel=0.02):
                        return None
            for key, size in sums.items():
                if reply["memory"][key] != pytest.approx(size, rel=0.02):
                    return None
            assert reply["memory"]["separate"] == reply["memory"]["pss"] + reply["memory"]["saved"]
            manager = server.manager()
            assert manager is not None
            told = figures_of(rollup(manager))["pss"]
            return reply if reply["memory"]["manager"]["pss"] == pytest.approx(told, rel=0.02) else None

        reply = until(agrees, "figures as the kernel tells them")
        assert reply is not None
        memory = {companion["name"]: companion["memory"] for companion in reply["companions"]}
        # All share the block except the half that `writes` has written to.
        assert memory["idle:0"]["saved"] > 18 * MIB > 12 * MIB > memory["idle:0"]["private"]
        assert 12 * MIB < memory["writes"]["private"] < 24 * MIB
        assert memory["family"]["saved"] > 54 * MIB
        assert reply["memory"]["separate"] > 6 * 24 * MIB > 2 * reply["memory"]["pss"]

        result = ctl(server, "status", "-v")
        assert result.returncode == 0
        header, *lines, empty, total, manager_line = result.stdout.splitlines()
        assert header.split() == ["NAME", "STATE", "PSS", "PRIVATE", "SAVED", "DESCRIPTION"]
        assert empty == "" and [line.split()[0] for line in lines] == names
        sizes = [float(size) for size in re.findall(r"([\d.]+) MiB", total)]
        expected = [reply["memory"][key] / MIB for key in ("pss", "private", "separate", "saved")]
        assert sizes == pytest.approx(expected, rel=0.02)
        assert re.fullmatch(
            r"These 4 companions take \S+ MiB together, \S+ MiB of it private\. "
            r"As separate processes they would take \S+ MiB: copy-on-write saves \S+ MiB\.",
            total,
        )
        assert re.fullmatch(r"Their manager takes [\d.]+ MiB\.", manager_line)
        # Memory is measured on request only.
        assert "memory" not in server.ask("status")
