# SPDX-License-Identifier: MIT
"""`probe` and `liveness` with real processes: each kind ready, failing, flapping, hanging."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from e2e_companions import companion_server
from harness import LINUX, Server, cmdline_of, descendants_of, is_alive, wait_until
from test_e2e_companion_commands import ctl

pytestmark = pytest.mark.skipif(not LINUX, reason="leftovers are known on Linux only")


class Health(ThreadingHTTPServer):
    """Answers each path with its status, ``modes`` or 503; 0: not at all; several: in turn."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.modes: dict[str, list[int]] = defaultdict(lambda: [503])
        self.asked: dict[str, int] = defaultdict(int)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    server: Health

    def do_GET(self) -> None:
        name = self.path.strip("/")
        modes = self.server.modes[name]
        status = modes[self.server.asked[name] % len(modes)]
        self.server.asked[name] += 1
        if not status:
            # Until the client goes.
            self.connection.recv(1)
            return
        self.send_response(status)
        self.send_header("Location", "/good")
        self.end_headers()
        self.wfile.write(f"this is {name}, password=hush".encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def health() -> Iterator[Health]:
    server = Health()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


#: One that does nothing at all.
IDLE: dict[str, Any] = {"command": ["sleep", "1000"], "start_timeout": 60}
OFTEN: dict[str, Any] = {"every": 0.2, "failures": 2, "timeout": 2}


def sh(text: str) -> list[str]:
    return ["sh", "-c", text]


def descriptions(server: Server) -> dict[str, str]:
    return {name: f"{found['state']} {found['description']}" for name, found in server.companions().items()}


def test_each_kind_becomes_ready_and_fails(health: Health) -> None:
    health.modes["slow"] = health.modes["hang"] = [0]
    health.modes["flap"] = [503, 200]
    health.modes["moved"] = [302]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    unix = socket.socket(socket.AF_UNIX)
    until_told = "while ! test -e told; do sleep 0.05; done; echo ready at 7; exec sleep 1000"
    http = {"http": health.url("http"), **OFTEN}
    server = companion_server(
        {"name": "http", "target": "jobs:idle", "probe": http, "liveness": http},
        {"name": "next", **IDLE, "after": ["http"]},
        {"name": "moved", **IDLE, "probe": {"http": health.url("moved")}},
        {"name": "slow", **IDLE, "start_timeout": 1, "probe": {"http": health.url("slow"), "timeout": 0.3}},
        {"name": "hang", **IDLE, "liveness": {"http": health.url("hang"), **OFTEN, "timeout": 0.3}},
        {"name": "flap", **IDLE, "liveness": {"http": health.url("flap"), **OFTEN}},
        {"name": "tcp", **IDLE, "probe": {"tcp": f"localhost:{port}", **OFTEN}},
        {"name": "unix", **IDLE, "probe": {"tcp": "unix:unix.sock", **OFTEN}},
        {
            "name": "cmd",
            **IDLE,
            "probe": {"command": sh("echo looked; test -e $WHAT"), **OFTEN},
            "env": {"WHAT": "told"},
        },
        {"name": "beat", **IDLE, "probe": {"file": "beat", **OFTEN}, "liveness": {"file": "beat", **OFTEN}},
        {
            "name": "log",
            "command": sh(until_told),
            "probe": {"log": r"ready at \d"},
            "liveness": {"log": "x", **OFTEN},
        },
        {
            # Its line comes right after more than the log keeper keeps, or holds for a usual client.
            "name": "flood",
            "command": sh("yes much in many lines | head -c 3000000; echo ready at 1; exec sleep 1000"),
            "probe": {"log": r"ready at \d"},
            "stdout": "/dev/null",
        },
        files_option={"beat": "of an earlier life"},
        companion_restart_delay=60,
    )
    with server, contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        stack.callback(unix.close)
        reasons = {
            "http": "not ready: answered 503, wanted 200",
            "next": "waiting for http",
            "moved": "not ready: answered 302, wanted 200",
            "tcp": "not ready: connection refused",
            "unix": "not ready: no such file or directory",
            "cmd": "not ready: exited with status 1",
            "beat": "not ready: it is older than the process",
            "log": "not ready: no such line",
            "slow": "BACKOFF not ready within 1s: no answer within 0.3s",
            "hang": "liveness failed 2 times in a row: no answer within 0.3s",
            "flood": "RUNNING",
        }
        wait_until(
            lambda: all(reason in descriptions(server)[name] for name, reason in reasons.items()),
            20,
            lambda: f"{reasons} in {descriptions(server)}",
        )
        states = {name: found["state"] for name, found in server.companions().items()}
        assert {name for name, state in states.items() if state == "RUNNING"} == {"flap", "flood"}
        page = ctl(server, "status", "http")
        assert "this is http, password=***" in page.stdout
        # Now all of them come.
        health.modes["http"] = health.modes["moved"] = [200]
        listener.listen()
        unix.bind(str(server.dir / "unix.sock"))
        unix.listen()
        stack.callback((server.dir / "unix.sock").unlink)
        beating = threading.Event()
        stack.callback(beating.set)
        thread = threading.Thread(target=_beat, args=(server.dir / "beat", beating))
        thread.start()
        (server.dir / "told").touch()
        names = {"http", "next", "moved", "tcp", "unix", "cmd", "beat"}
        wait_until(
            lambda: all(descriptions(server)[name].startswith("RUNNING") for name in names),
            20,
            lambda: str(descriptions(server)),
        )
        # The log has told of each flap, but nobody was killed for it.
        wait_until(lambda: health.asked["flap"] > 6, 20, "some flaps")
        assert server.companion("flap")["restart_count"] == 0
        assert "Companion flap: liveness succeeds again" in server.log()
        history = ctl(server, "history", "flap").stdout
        assert "liveness fails" in history and "liveness succeeds" in history
        # The log became ready, and then was silent.
        reason = "liveness failed 2 times in a row: no such line"
        wait_until(lambda: reason in descriptions(server)["log"], 20, lambda: descriptions(server)["log"])
        # And now they go.
        health.modes["http"] = [500]
        beating.set()
        thread.join()
        ends = {"http": "answered 500, wanted 200", "beat": "it was not touched"}
        wait_until(
            lambda: all(
                f"BACKOFF liveness failed 2 times in a row: {reason}" in descriptions(server)[name]
                for name, reason in ends.items()
            ),
            20,
            lambda: str(descriptions(server)),
        )
        assert {server.companion(name)["last_exit_cause"] for name in ends} == {"liveness"}
        # A Python target writes its stacks.
        wait_until(lambda: "in sleep_forever" in server.log(), 20, server.log)
        assert server.log().count("Companion http: liveness fails (1 of 2)") == 1


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(0.05):
        path.touch()


#: What each command of a check leaves behind: a child in its group, one in a session of its own, a daemon.
LEAVES = "trap '' TERM; sleep 9871 & setsid sleep 9872 & (setsid sleep 9873 &); "
BEHIND = ("sleep 9871", "sleep 9872", "sleep 9873", "sleep 9874")


def left_behind(pids: list[int]) -> list[int]:
    return [pid for pid in pids if cmdline_of(pid).startswith(BEHIND) and is_alive(pid)]


def wait_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(map(is_alive, pids)), 20, lambda: f"{pids} gone")


def prober_of(server: Server, without: int | None = None) -> int:
    def found() -> int | None:
        pids = [pid for pid in descendants_of(server.wait_manager()) if "prober" in cmdline_of(pid)]
        return pids[0] if pids and pids[0] != without else None

    pid: int = wait_until(found, 20, "the prober")
    return pid


def frozen_leftovers(server: Server, stay: bool = False) -> list[int]:
    """What commands have left at a moment; *stay*: the prober does nothing from then on."""
    prober = prober_of(server)

    def found() -> list[int]:
        os.kill(prober, signal.SIGSTOP)
        pids = left_behind(descendants_of(prober))
        kinds = {cmdline_of(pid) for pid in pids}
        if not stay or kinds != set(BEHIND):
            os.kill(prober, signal.SIGCONT)
        return pids if kinds == set(BEHIND) else []

    pids: list[int] = wait_until(found, 20, "a command with all its leftovers")
    return pids


def run_commands(size: int) -> None:
    """Commands that leave processes, hang, and write *size* bytes; then prober and manager are killed."""
    output = f"head -c {size} /dev/zero; echo and more; pwd; echo $GUNICORN_COMPANION_PID"
    server = companion_server(
        {"name": "ends", **IDLE, "liveness": {"command": sh(LEAVES + "exit 0"), **OFTEN}},
        {
            "name": "hangs",
            **IDLE,
            "liveness": {"command": sh(LEAVES + "sleep 9874"), "timeout": 0.4, "every": 0.4},
        },
        {
            "name": "writes",
            **IDLE,
            "cwd": "/tmp",
            "liveness": {"command": sh(output), "every": 0.4, "timeout": 60},
        },
        {"name": "slow", "command": sh(f"echo {'a' * 60}!; exec sleep 1000"), "probe": {"log": "(a+)+$"}},
        {"name": "lacks", **IDLE, "liveness": {"command": ["no-such-program"], "every": 0.4, "failures": 99}},
        companion_restart_delay=0.2,
    )

    def looked(name: str) -> dict[str, Any]:
        found: dict[str, Any] = server.companion(name)["probes"]["liveness"]
        return found

    with server:
        wait_until(lambda: looked("writes")["output"], 60, lambda: str(looked("writes")))
        assert looked("writes")["good"]
        pid = server.companion("writes")["pid"]
        assert looked("writes")["output"].split("and more")[1].split() == ["/tmp", str(pid)]
        reason = "not ready: its regular expression takes too long for a line of the output"
        wait_until(lambda: reason in descriptions(server)["slow"], 20, lambda: str(descriptions(server)))
        wait_until(
            lambda: "not found in PATH" in (looked("lacks")["output"] or ""), 20, "the missing program"
        )
        wait_until(lambda: server.companion("hangs")["restart_count"], 20, "the end of one whose check hangs")
        reason = "liveness failed 3 times in a row: no answer within 0.4s"
        assert server.companion("hangs")["last_exit_reason"] == reason
        assert server.companion("ends")["restart_count"] == 0
        # They belong to nobody's session, and none of them is stopped with a companion.
        assert "left behind" not in server.log()
        # What the commands left a moment ago is gone, while others leave more.
        wait_gone(frozen_leftovers(server))
        for victims in (["prober"], ["manager"], ["manager", "prober"]):
            before = frozen_leftovers(server, stay=len(victims) > 1)
            pids = {"manager": server.wait_manager(), "prober": prober_of(server)}
            for victim in victims:
                os.kill(pids[victim], signal.SIGKILL)
            wait_gone(before)
            prober_of(server, without=pids["prober"])
            wait_until(lambda: looked("ends")["good"], 20, lambda: server.log())
        assert "The prober of companions" in server.log()
        descendants = descendants_of(server.pid)
        assert server.stop() == 0
        assert not left_behind(descendants)


def test_nothing_is_left_of_commands() -> None:
    run_commands(20_000_000)


@pytest.mark.matrix
def test_commands_that_write_a_gigabyte() -> None:
    run_commands(1_000_000_000)


#: In the configuration file: looking at a file never returns, and a prober that hangs is ended soon.
HANGING = """
import time
import gunicorn.companion.probing.prober as prober
prober.STUCK = prober.LONGEST_WAIT = 1
prober.Prober._look_at_file = lambda *args: time.sleep(1000)
"""


@pytest.mark.matrix
def test_a_prober_that_hangs_is_replaced() -> None:
    server = companion_server({"name": "hangs", **IDLE, "probe": {"file": "x"}}, extra=HANGING)
    with server:
        for _ in range(2):
            prober = prober_of(server)
            assert server.companion("hangs")["state"] == "STARTING"
            prober_of(server, without=prober)
        assert "probably in a file system, and was ended; starting another one" in server.log()
        assert server.stop() == 0
    assert "left behind" not in server.log()
