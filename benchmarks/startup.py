# SPDX-License-Identifier: MIT
"""The cases of starting: a command that only says its version, and a server up to its first answer."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import machine, servers
from benchmarks.peers import Environments, title
from benchmarks.results import Measured, Row, make_row
from benchmarks.servers import Setup
from benchmarks.stats import Target, rotations

GROUP = "startup"
VERSION, ANSWER = "version", "first-answer"
TITLES = {
    VERSION: "gunicorn --version",
    ANSWER: "from the start of the command to the first answer, one sync worker",
}
# Starts that make one run; its figure is their median.
STARTS = 3

# Milliseconds on the clock, and microseconds of CPU time.
Times = tuple[float, float]


def chosen(patterns: Sequence[str]) -> list[str]:
    return [n for n in TITLES if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]


def run(name: str, environments: Environments, runs: int) -> Row:
    """Ours and Gunicorn's in turn. The first start of each, which reads from the disk, does not count."""
    measure: Callable[[Environments, str], Times] = time_version if name == VERSION else time_answer
    labels = ["ours", *environments.available(["gunicorn27", "gunicorn23"])]
    measured = {title(label): Measured() for label in labels}
    for label in labels:
        measure(environments, label)
    for order in rotations(labels, runs):
        for label in order:
            taken = sorted(measure(environments, label) for _ in range(STARTS))[STARTS // 2]
            measured[title(label)].values.append(taken[0])
            measured[title(label)].cpu.append(taken[1])
    targets = {title("gunicorn27"): Target("<=", 1), title("gunicorn23"): Target("<=", 1)}
    return make_row(GROUP, name, TITLES[name], "ms", measured, targets)


def time_version(environments: Environments, label: str) -> Times:
    command = [str(environments.bin(label) / "gunicorn"), "--version"]
    with machine.on_server_core():
        before = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=machine.clean_environment())
        _, status, usage = os.wait4(process.pid, 0)
        taken = time.perf_counter() - before
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} --version exits with {process.returncode}")
    return taken * 1000, (usage.ru_utime + usage.ru_stime) * 1e6


def time_answer(environments: Environments, label: str) -> Times:
    """The CPU time is that of all its processes until the answer."""
    directory = Path(tempfile.mkdtemp(prefix="benchmarks-"))
    try:
        port = servers.free_port()
        command = servers.command(environments, label, port, Setup(worker="sync"), directory)
        before = time.perf_counter()
        process = machine.start_process(command, directory, servers.environment(directory))
        try:
            while not answers(port):
                if process.poll() is not None or time.perf_counter() - before > servers.BOOT_LIMIT:
                    log = (directory / "log").read_text(errors="replace")
                    raise RuntimeError("the server did not start: " + servers.last_line(log))
                time.sleep(0.001)
            taken = time.perf_counter() - before
            cpu = machine.cpu_seconds(machine.descendants(process.pid))
        finally:
            machine.end_process(process, ask=signal.SIGTERM)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return taken * 1000, cpu * 1e6


def answers(port: int) -> bool:
    """Whether a request is answered; waits for a worker once there is a listener."""
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), 30) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        with sock.makefile("rb") as file:
            return file.readline().startswith(b"HTTP/1.1 200")
    return False
