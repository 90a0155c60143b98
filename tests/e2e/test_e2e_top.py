# SPDX-License-Identifier: MIT
"""``gunicorn-companion top`` in a terminal, at a real server from its start to its end."""

from __future__ import annotations

import sys

from e2e_companions import companion_server
from harness import Background, load, wait_until
from terminaltools import terminal

MORE = """
import time

def prices():
    print("asking for prices", flush=True)
    time.sleep(0.5)
    raise KeyError("price")

def clock():
    count = 0
    while True:
        count += 1
        print("tick", count, flush=True)
        time.sleep(0.1)
"""


def test_an_operator_at_a_real_server() -> None:
    companions = [
        {"name": "clock", "target": "more:clock", "numprocs": 2},
        {"name": "prices", "target": "more:prices", "restart_delay": 60},
    ]
    with companion_server(
        *companions, files_option={"more.py": MORE}, workers=2, worker_class="gthread", threads=4
    ) as server:
        server.notes_starts = False
        first = server.wait_companion("clock:0")["pid"]
        command = [sys.executable, "-m", "gunicorn.companion.ctl", "top", "--interval", "0.5"]
        with terminal(command, 80, 24, **{**server.env, "TERM": "xterm-256color"}) as screen:
            # What is wrong, why, and what it said last.
            screen.wait("! prices  BACKOFF", "2 of 2 workers", "KeyError: 'price'", "asking for prices")
            screen.wait_selected("! prices")
            with load(server):
                wait_until(lambda: "0.0 req/s" not in screen.text and "█" in screen.text, 10, "load")

            screen.press("down")
            screen.wait_selected("  clock:0")
            screen.wait("tick", "runs more:clock")
            last = screen.lines[22]
            wait_until(lambda: "tick" in screen.lines[22] and screen.lines[22] != last, 5, "new lines")
            screen.press("r")
            screen.wait("Restart clock:0?")
            screen.press("y")
            server.wait_companion("clock:0", without=[first])
            screen.wait("clock:0 RUNNING")
            screen.press("+")
            screen.wait("clock:2 added", "clock:2")
            screen.press("d")
            screen.wait("stacks of clock:0", "more.py", "in clock")
            screen.press("escape")
            screen.wait_gone("stacks of")

            waiting = Background(server, "/wait?done")
            screen.press("tab")
            screen.wait("GET /wait", "web worker")
            server.write("done", "")
            waiting.result()
            screen.press("+")
            screen.wait("3 of 3 workers")
            screen.press("k")
            screen.wait("Kill web worker")
            workers = set(server.workers())
            screen.press("y")
            wait_until(lambda: workers - set(server.workers()), 10, "a worker killed")
            screen.wait("3 of 3 workers")

            server.stop()
            screen.wait("No answer since")
            screen.press("q")
            assert screen.wait_end() == 0
            screen.assert_as_before()
