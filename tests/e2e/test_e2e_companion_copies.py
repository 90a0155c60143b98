# SPDX-License-Identifier: MIT
"""Copies that differ: each with its own port, log and variables; and commands for groups."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

import pytest
from e2e_companions import companion_server, entry, overlaps, reconfigure
from harness import LINUX, Control, Server, wait_until
from test_e2e_companion_commands import ctl

pytestmark = pytest.mark.skipif(not LINUX, reason="looks at processes by /proc")

# Like daphne or uvicorn: it serves on the socket that it is given, and says on which.
LIVE = """
import os, signal, socket, sys, time

def end(*_):
    if os.environ["GUNICORN_COMPANION_INDEX"] == os.environ["SLOW"]:
        time.sleep(0.3)
    sys.exit(0)

signal.signal(signal.SIGTERM, end)
listener = socket.socket(fileno=3)
print("serving on", listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        words = [os.environ["NAME"], sys.argv[1], os.environ["GUNICORN_COMPANION_INDEX"], os.environ["FROM"]]
        connection.sendall(" ".join([*words, str(os.getpid())]).encode())
"""


def free_range(count: int) -> int:
    """The first of *count* free ports in a row, below those that `free_port` gives to other tests."""
    for first in range(10_000 + os.getpid() * 10 % 9_000, 20_000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for number, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + number))
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
        return first
    raise AssertionError("no free ports")


def ask(port: int) -> list[str]:
    with socket.create_connection(("127.0.0.1", port), 15) as connection:
        data = b""
        while chunk := connection.recv(1000):
            data += chunk
    return data.decode().split()


def is_refused(port: int) -> bool:
    try:
        ask(port)
    except ConnectionRefusedError:
        return True
    return False


def live(first: int, **keys: Any) -> dict[str, Any]:
    return {
        "name": "live",
        "command": [sys.executable, "live.py", "--%(index)d%%"],
        "numprocs": 4,
        "index_start": first,
        "bind": "127.0.0.1:%(index)d",
        "env": {"NAME": "%(name)s", "SLOW": str(first)},
        "env_file": "%(group)s.env",
        "stdout": "%(group)s-%(index)d.log",
        "group": ["sockets", "all-day"],
        **keys,
    }


def names(first: int, count: int) -> list[str]:
    return [f"live:{port}" for port in range(first, first + count)]


def wait_live(server: Server, first: int, count: int) -> list[int]:
    """The pids of all copies, once each serves its port."""
    pids = []
    for port in range(first, first + count):
        found = server.wait_companion(f"live:{port}")
        assert ask(port) == [f"live:{port}", f"--{port}%", str(port), "file", str(found["pid"])]
        pids.append(found["pid"])
    return pids


def test_a_set_with_a_port_and_a_log_for_each_copy() -> None:
    first = free_range(7)
    files = {"live.py": LIVE, "live.env": "FROM=file\nNAME=file\n"}
    server = companion_server(
        live(first),
        entry("tick", "idle", group="all-day"),
        entry("rest", "idle", bind=f"127.0.0.1:{first + 6}"),
        files_option=files,
    )
    server.notes_starts = False
    with server:
        server.wait_manager()
        pids = wait_live(server, first, 4)
        for port in range(first, first + 4):
            log = f"live-{port}.log"
            wait_until(lambda log=log, port=port: server.log(log) == f"serving on {port}\n", 10, log)  # type: ignore[misc]
        # Scaled to six and back: only the two come and go.
        assert server.ask("scale", "live", numprocs=6)["added"] == names(first, 6)[4:]
        assert wait_live(server, first, 6)[:4] == pids
        assert server.ask("scale", "live", numprocs=4)["removed"] == names(first, 6)[4:]
        wait_until(lambda: is_refused(first + 4) and is_refused(first + 5), 15, "the last two are gone")
        assert wait_live(server, first, 4) == pids
        assert f":{first + 6} is already used by 'rest'" in ctl(server, "scale", "live", "7").stderr
        check_groups(server, first)
        # To one address for all, and back.
        reconfigure(server, live(first, bind=f"127.0.0.1:{first}"), entry("tick", "idle", group="night"))
        assert server.ask("reread")["restarted"] == names(first, 4)
        wait_until(lambda: is_refused(first + 1), 15, "the other ports are closed")
        for name in names(first, 4):
            server.wait_companion(name)
        assert ask(first)[0] in names(first, 4)
        assert server.companion("tick")["groups"] == ["night"]
        reconfigure(server, live(first))
        server.ask("reread")
        wait_live(server, first, 4)
        assert overlaps(server) == []
        # Nobody has tried an address that another copy still had.
        assert "failed to start" not in server.log()


def check_groups(server: Server, first: int) -> None:
    """Every command takes a group."""
    copies = names(first, 4)
    shown = [line.split()[0] for line in ctl(server, "status", "@all-day").stdout.splitlines()]
    assert shown == [*copies, "tick"]
    assert server.companion(copies[0])["groups"] == ["sockets", "all-day"]
    assert len(ctl(server, "pid", "@sockets").stdout.split()) == 4
    assert "\ngroups       sockets, all-day\n" in ctl(server, "status", copies[0]).stdout
    assert "tick" not in ctl(server, "history", "@sockets").stdout
    assert "serving on" in ctl(server, "logs", "@sockets").stdout
    assert ctl(server, "dump", "@all-day").stdout.startswith("tick (pid")
    events = Control(server.control_path(), 20)
    events.ask("events", names=["@all-day"])
    ctl(server, "restart", "rest")
    assert ctl(server, "stop", "@all-day").stdout.count("stopped") == 5
    assert server.companion("rest")["state"] == "RUNNING"
    assert {events.read_reply()["name"] for _ in range(5)} <= {*copies, "tick"}
    ctl(server, "start", "@all-day")
    ctl(server, "wait", "@all-day")
    before = wait_live(server, first, 4)
    ctl(server, "restart", "--rolling", "@sockets")
    assert not set(before) & set(wait_live(server, first, 4))
    assert ctl(server, "signal", "@sockets", "CONT").returncode == 0
    wrong = ctl(server, "stop", "@socket")
    assert "no group @socket: did you mean @sockets?" in wrong.stderr
    # As supervisord writes it.
    assert "no companion named sockets:*: the group is @sockets" in ctl(server, "stop", "sockets:*").stderr
    assert "cannot be scaled" in ctl(server, "scale", "@sockets", "2").stderr
    assert json.loads(ctl(server, "--json", "status", "@all-day").stdout)["companions"][4]["name"] == "tick"
