# SPDX-License-Identifier: MIT
"""A companion without which the server is not to run: on_give_up = "shutdown"."""

from __future__ import annotations

import time

from e2e_companions import companion_server, entry, starts
from harness import is_alive

HOPELESS = {"startsecs": 5, "start_retries": 2, "restart_delay": 0.05}


def test_the_server_stops_gracefully_with_exit_status_1() -> None:
    server = companion_server(
        entry("vital", "exit3", on_give_up="shutdown", **HOPELESS),
        entry("drain", env={"DRAIN": "2"}),
        # What a failed worker allows companions would not be enough.
        graceful_timeout=1,
        ready_option=None,
    )
    server.expected_code = 1
    with server:
        started = time.monotonic()
        assert server.wait_exit() == 1
        assert time.monotonic() - started > 1.5
        assert len(server.log("drain.drained").split()) == 1
        assert len(starts(server, "vital")) in (2, 3)
        log = server.log()
        assert "The server stops: the companion vital has given up" in log
        assert "Traceback" not in log


def test_another_one_gives_up_for_itself() -> None:
    with companion_server(entry("job", "exit3", **HOPELESS), entry("a", "idle")) as server:
        found = server.wait_companion("job", "STOPPED")
        assert found["description"]
        assert is_alive(server.wait_companion("a")["pid"])
        assert server.get("/").status == 200
