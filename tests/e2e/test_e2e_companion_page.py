# SPDX-License-Identifier: MIT
"""``status NAME``: all about one companion, from a real server."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

from e2e_companions import companion_server, entry
from harness import Server, wait_until
from test_e2e_companion_commands import ctl

PROGRAM = ["sh", "-c", "echo token=hunter2; sleep 60 & wait"]


def test_the_page_of_a_companion() -> None:
    program = {"name": "sh", "command": PROGRAM, "max_memory": "100M", "max_lifetime": 600, "startsecs": 0}
    with companion_server(entry("a", "idle"), program) as server:
        first = wait_until(lambda: server.companion("sh")["pid"], 10, "a process") or 0
        os.kill(first, signal.SIGKILL)
        second = wait_until(lambda: {server.companion("sh")["pid"]} - {first, None}, 10, "the next").pop()
        wait_until(lambda: server.companion("sh")["state"] == "RUNNING", 10, "RUNNING")
        # Both of its processes: the shell is its sleeper's parent.
        wait_until(lambda: len(details_of(server)["processes"]) == 2, 10, "two processes")
        wait_until(lambda: "token" in ctl(server, "logs", "sh").stdout, 10, "its output")
        result = ctl(server, "status", "sh")
        assert result.returncode == 0, result
        head, facts, output = result.stdout.split("\n\n")
        assert head.startswith(f"sh   RUNNING    pid {second}, uptime 00:00:0")
        assert "1 restart, last: killed by SIGKILL " in head
        assert re.search(r"^runs +sh -c 'echo token=\*\*\*; sleep 60 & wait'$", facts, re.MULTILINE)
        assert re.search(rf"^processes +{second} sh .*\n +\d+ sleep ", facts, re.MULTILINE)
        assert re.search(r"^limits +max_memory 100\.0 MiB, now \d\.\d MiB \(\d%\)$", facts, re.MULTILINE), (
            facts
        )
        assert re.search(r"^ +max_lifetime 600\.0 s, now \d+\.\d s \(\d%\)$", facts, re.MULTILINE)
        assert re.search(r"^starts +2 in the last hour$", facts, re.MULTILINE)
        assert re.search(rf"^ends .* pid {first} after 00:00:0\d: killed by SIGKILL", facts, re.MULTILINE)
        assert output.splitlines()[0] == "output"
        assert output.splitlines()[-1] == "token=hunter2"
        details = details_of(server)
        assert (details["limits"]["max_memory"]["limit"], details["addresses"]) == (100 * 2**20, [])
        assert [end["cause"] for end in details["ends"]] == ["killed"]
        assert details["descriptors"]["open"] >= 6


def test_of_several_there_is_a_table_and_of_a_stopped_one_what_there_is() -> None:
    with companion_server(entry("a", "idle", numprocs=2), entry("b", "idle", autostart=False)) as server:
        server.wait_companion("a:0")
        server.wait_companion("a:1")
        assert [line.split()[:2] for line in ctl(server, "status", "a").stdout.splitlines()] == [
            ["a:0", "RUNNING"],
            ["a:1", "RUNNING"],
        ]
        result = ctl(server, "status", "b")
        assert result.returncode == 0
        assert result.stdout.startswith("b   STOPPED    not started\n\nruns         jobs:idle\nstarts  ")


def details_of(server: Server) -> dict[str, Any]:
    found = json.loads(ctl(server, "status", "sh", "--json").stdout)["companions"][0]["details"]
    assert isinstance(found, dict)
    return found
