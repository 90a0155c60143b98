# SPDX-License-Identifier: MIT
"""The ``gunicorn-companion`` command against a running server."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from e2e_companions import companion_server, entry
from harness import Server


def ctl(server: Server, *args: str, timeout: float = 20.0, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gunicorn.companion.ctl", *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=server.dir,
        env={**server.env, **env},
    )


def test_status_finds_the_only_server() -> None:
    """It finds the one live socket by itself; columns for people, JSON on request, exit codes for scripts."""
    with companion_server(entry("a", "idle"), entry("longer-name", "idle")) as server:
        server.wait_companion("a")
        server.wait_companion("longer-name")
        result = ctl(server, "status")
        assert result.returncode == 0, result
        lines = result.stdout.splitlines()
        assert [line.split()[:2] for line in lines] == [["a", "RUNNING"], ["longer-name", "RUNNING"]]
        assert len({line.index("RUNNING") for line in lines}) == 1, "aligned"
        assert f"pid {server.companion('a')['pid']}, uptime 00:00:0" in lines[0]
        found = json.loads(ctl(server, "--json", "status").stdout)
        assert found["ok"] and found["server"]["pid"] == server.pid
        assert ctl(server, "status", "a").stdout.split()[0] == "a"
        server.ask("stop", "a")
        server.wait_companion("a", "STOPPED")
        # A companion that was stopped by command is as it should be.
        assert ctl(server, "status").returncode == 0


def test_start_stop_restart_wait_until_it_is_done() -> None:
    companions = [entry("drain", env={"DRAIN": "0.4"}), entry("a", "idle", startsecs=0.3)]
    with companion_server(*companions) as server:
        server.wait_companion("drain")
        first = server.wait_companion("a")["pid"]
        started = time.monotonic()
        assert ctl(server, "stop", "drain").returncode == 0
        assert time.monotonic() - started > 0.4
        assert server.companion("drain")["state"] == "STOPPED"
        assert ctl(server, "start", "drain").returncode == 0
        assert server.companion("drain")["state"] == "RUNNING"
        assert ctl(server, "restart", "a").returncode == 0
        found = server.companion("a")
        assert found["state"] == "RUNNING" and found["pid"] != first
        started = time.monotonic()
        assert ctl(server, "--no-wait", "stop", "drain").returncode == 0
        assert server.companion("drain")["state"] == "STOPPING"
        server.wait_companion("drain", "STOPPED")
        assert ctl(server, "start", "all").returncode == 0
        assert ctl(server, "stop", "all").returncode == 0
        assert {found["state"] for found in server.companions().values()} == {"STOPPED"}
        assert ctl(server, "start", "a", "drain").returncode == 0
        assert {found["state"] for found in server.companions().values()} == {"RUNNING"}


def test_the_socket_can_be_named() -> None:
    server = companion_server(entry("a", "idle"), companion_control_socket="run/c.sock")
    server.configured_control = server.dir / "run" / "c.sock"
    with server:
        server.wait_companion("a")
        assert ctl(server, "-s", str(server.configured_control), "status").returncode == 0
        assert ctl(server, "status", GUNICORN_COMPANION_SOCKET="run/c.sock").returncode == 0


def test_several_servers_are_listed() -> None:
    one = companion_server(entry("a", "idle"))
    two = companion_server(entry("b", "idle"), env_option={"XDG_RUNTIME_DIR": str(one.run_dir)})
    with one, two:
        one.wait_companion("a")
        two.wait_companion("b")
        result = ctl(one, "status")
        assert result.returncode == 2
        text = result.stdout + result.stderr
        assert str(one.pid) in text and str(two.pid) in text and "-s" in text
        assert one.address in text and two.address in text
        assert ctl(one, "-s", str(two.control_path()), "status").stdout.split()[0] == "b"
        # A dead server is no candidate.
        two.stop()
        assert ctl(one, "status").returncode == 0
