# SPDX-License-Identifier: MIT
"""What ``probe`` and ``liveness`` cost: ``python -m benchmarks.probes``.

Ten companions are checked so often that there are 50 checks a second, with one kind after the other. How
much of a processor does the manager take, how much the prober with its commands, and how long do commands of
the control socket wait meanwhile? ``hang`` is a check by ``http`` that is never answered; ``regex`` one that
hangs the prober itself.

Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.output import DEADLINE, judge, running

COMPANIONS = 10
# Of one processor, for the manager; and for commands, in seconds.
MANAGER, ANSWER = 0.02, 0.1
KINDS = ("none", "tcp", "http", "file", "log", "command", "hang", "regex")


class Answers(threading.Thread):
    """A server that answers each connection at once, and closes it; or never does, on its second port."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.sock, self.silent = socket.create_server(("127.0.0.1", 0)), socket.socket()
        self.silent.bind(("127.0.0.1", 0))
        self.silent.listen(1000)
        self.port, self.silent_port = self.sock.getsockname()[1], self.silent.getsockname()[1]

    def run(self) -> None:
        while True:
            connection, _ = self.sock.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(0.5)
                if connection.recv(4096):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")


def check_of(kind: str, answers: Answers) -> dict[str, Any]:
    checks: dict[str, dict[str, Any]] = {
        "tcp": {"tcp": f"127.0.0.1:{answers.port}"},
        "http": {"http": f"http://127.0.0.1:{answers.port}/health"},
        "file": {"file": "/dev/null"},
        "log": {"log": "^tick"},
        "command": {"command": ["true"]},
        "hang": {"http": f"http://127.0.0.1:{answers.silent_port}/"},
        # Exponential in the length of the line.
        "regex": {"log": "^(([a-z. 0-9])+)+!$"},
    }
    return checks[kind]


def measure(kind: str, rate: float, seconds: float, answers: Answers) -> bool:
    """Print what *kind* costs; whether it is within the limits."""
    companions = []
    for index in range(COMPANIONS):
        companion: dict[str, Any] = {"name": f"c{index}", "target": "outputapp:ticks"}
        if kind != "none":
            # Nobody is killed: it is about the checks.
            limits = {"every": COMPANIONS / rate, "failures": 10**9, "timeout": 0.5}
            companion["liveness"] = {**check_of(kind, answers), **limits}
        companions.append(companion)
    delays: list[float] = []
    with running(companions, errorlog="error.log") as server:
        threading.Thread(target=_discard, args=(server.output,), daemon=True).start()
        manager = server.manager()
        machine.wait_until(lambda: kind == "none" or prober_of(manager), DEADLINE, "the prober")
        time.sleep(2)
        others = [pid for pid in [prober_of(manager)] if pid]
        before, checker = machine.cpu_seconds([manager]), _with_children(others)
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            server.ask(cmd="pid")
            delays.append(time.monotonic() - now)
            time.sleep(0.5)
        took = time.monotonic() - began
        spent = (machine.cpu_seconds([manager]) - before) / took
        checks = (_with_children(others) - checker) / took
    print(f"{kind}: manager {spent:.2%} of a processor, prober and commands {checks:.2%}")
    good = judge("answers of pid", delays, ANSWER)
    return good and spent < MANAGER


def prober_of(manager: int) -> int | None:
    children = Path(f"/proc/{manager}/task/{manager}/children").read_text().split()
    for pid in children:
        with contextlib.suppress(OSError):
            if b"prober" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    return None


def _with_children(pids: Sequence[int]) -> float:
    """The processor seconds of *pids* and of their children that have ended."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / machine.TICK
    return total


def _discard(fd: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 1 << 20):
            pass


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print what was found; 1 if something was beyond its limit."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.probes", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join(KINDS)} (default: all)")
    parser.add_argument("--rate", type=float, default=50.0, help="checks a second (default: 50)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each kind (default: 10)")
    options = parser.parse_args(argv)
    for what in options.what:
        if what not in KINDS:
            parser.error(f"{what!r} is none of {', '.join(KINDS)}")
    answers = Answers()
    answers.start()
    results = [measure(what, options.rate, options.seconds, answers) for what in options.what or KINDS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
