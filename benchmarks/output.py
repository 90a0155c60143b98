# SPDX-License-Identifier: MIT
"""The captured output of companions at scale: ``python -m benchmarks.output``.

``lines``: four companions write numbered lines while log keeper and manager are killed again and again
(SIGKILL), the output files are moved away and begun anew (USR1), and rotated by size. None may be missing or
torn.

``flood`` and ``stuck``: a companion writes as fast as it is read, at most 100 MB/s, into its own file, into a
pipe, and into a pipe that nobody reads. How long do commands and another companion's lines take meanwhile?

Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks import machine

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 60.0
COMPANIONS = 4
ROTATED = {"max_bytes": 20_000_000, "backups": 500}
# For commands, and for lines of other companions, in seconds.
ANSWER, DELAY = 0.1, 0.2

APPLICATION = r'''
import json, os, signal, time

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"here"]

def write(data):
    while data:
        data = data[os.write(1, data):]

def counts():
    """Writes numbered lines; asked to stop, it leaves the next number to its successor."""
    name, last = os.environ["GUNICORN_COMPANION_NAME"], int(os.environ["LAST"])
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    note = f"{name}.next"
    number = int(open(note).read()) if os.path.exists(note) else 0
    while number < last and not asked:
        block = range(number, min(number + 100, last))
        write(b"".join(b"%s %d %s\n" % (name.encode(), n, b"." * (n % 90)) for n in block))
        number = block.stop
    with open(note + ".new", "w") as file:
        file.write(str(number))
    os.rename(note + ".new", note)
    while not asked:
        time.sleep(0.2)

def floods():
    """Writes 100 MB/s if it can, and notes how much it wrote."""
    block = (b"x" * 99 + b"\n") * 1000
    began, written = time.monotonic(), 0
    with open("floods.written", "w") as note:
        while True:
            write(block)
            written += len(block)
            if written % (100 * len(block)) == 0:
                os.pwrite(note.fileno(), b"%020d" % written, 0)
            ahead = written / 100e6 - (time.monotonic() - began)
            if ahead > 0:
                time.sleep(ahead)
            elif ahead < -0.1:
                began -= ahead      # what it could not write in time is not made up for

def ticks():
    while True:
        print(f"tick {time.time()}", flush=True)
        time.sleep(0.02)
'''


class Server:
    """One that runs; its own output is the pipe *output*, unless that is None."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes], output: int) -> None:
        self.directory = directory
        self.process = process
        self.output = output

    @property
    def control(self) -> str:
        return str(self.directory / "control.sock")

    def ask(self, **request: Any) -> dict[str, Any]:
        """The reply to one request."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(self.control)
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as file:
                reply: dict[str, Any] = json.loads(file.readline())
        return reply

    def manager(self) -> int:
        return int(self.ask(cmd="pid")["pid"])

    def keeper(self) -> int:
        """The manager's child that is no companion."""
        own = {companion["pid"] for companion in self.ask(cmd="status")["companions"]}
        manager = self.manager()
        children = Path(f"/proc/{manager}/task/{manager}/children").read_text().split()
        others = {int(pid) for pid in children} - own
        if len(others) != 1:
            raise OSError("it is just being replaced")
        return others.pop()

    def pid_of(self, find: Callable[[], int], without: int | None = None) -> int:
        """What *find* returns, once it is another than *without*."""
        deadline = time.monotonic() + DEADLINE
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError):
                pid = find()
                if pid != without:
                    return pid
            if time.monotonic() > deadline:
                raise RuntimeError(f"no such process within {DEADLINE:g} s: {self.log()}")
            time.sleep(0.01)

    def log(self) -> str:
        return (self.directory / "error.log").read_text(errors="replace")


@contextlib.contextmanager
def running(companions: Sequence[dict[str, Any]], **settings: Any) -> Iterator[Server]:
    """A server with these companions, without an access log; ended on leaving."""
    with tempfile.TemporaryDirectory(prefix="output-") as name:
        directory = Path(name)
        values = {
            "bind": "127.0.0.1:0",
            "errorlog": "error.log",
            "companion_control_socket": "control.sock",
            "companion_workers": list(companions),
            **settings,
        }
        text = "".join(f"{key} = {value!r}\n" for key, value in values.items())
        (directory / "gunicorn.conf.py").write_text(text)
        (directory / "outputapp.py").write_text(APPLICATION)
        env = {**machine.clean_environment(), "PYTHONPATH": f"{ROOT}:{directory}", "XDG_RUNTIME_DIR": name}
        reading, writing = os.pipe()
        with open(reading, "rb", buffering=0) as output:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "gunicorn", "outputapp:app"],
                    cwd=directory,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=writing,
                    stderr=writing,
                )
            finally:
                os.close(writing)
            server = Server(directory, process, output.fileno())
            try:
                server.pid_of(server.keeper)
                yield server
            finally:
                machine.end_process(process, 30)


# -- lines ------------------------------------------------------------------------------------------------


class Numbers:
    """Which numbers of each companion were seen, in which files and how often."""

    def __init__(self, names: Sequence[str], last: int) -> None:
        self.seen = {name: bytearray(last) for name in names}
        self.torn: list[bytes] = []
        self.twice = 0
        self.total = 0

    def add(self, line: bytes) -> None:
        found = re.fullmatch(rb"([a-z]+:\d) (\d+) (\.*)", line)
        if not found or len(found[3]) != int(found[2]) % 90:
            self.torn.append(line)
            return
        seen, number = self.seen[found[1].decode()], int(found[2])
        self.total += 1
        self.twice += seen[number]
        seen[number] = 1

    def missing(self) -> int:
        return sum(seen.count(0) for seen in self.seen.values())


def lines(count: int, rounds: int) -> bool:
    """Two companions write into rotated files, two into the server's output: a pipe."""
    last = count // COMPANIONS
    job = {"target": "outputapp:counts", "numprocs": 2, "env": {"LAST": str(last)}, "restart_delay": 0.1}
    companions = [
        {"name": "file", "stdout": {"file": "out-%(index)s", **ROTATED}, **job},
        {"name": "pipe", **job},
    ]
    names = [f"{name}:{index}" for name in ("file", "pipe") for index in (0, 1)]
    in_pipe, in_files = Numbers(names[2:], last), Numbers(names[:2], last)
    kills = {"keeper": 0, "manager": 0}
    began = time.monotonic()
    with running(companions, companion_log_format="%(message)s") as server:
        reader = threading.Thread(target=_read_lines, args=(server.output, in_pipe.add))
        reader.start()
        files = server.directory.glob
        for round_ in range(rounds):
            # A kill each time that another part has been read.
            _wait_for(in_pipe, round_ * 0.9 * count / 2 / rounds)
            victim = "manager" if round_ % 5 == 4 else "keeper"
            find = server.manager if victim == "manager" else server.keeper
            pid = server.pid_of(find)
            os.kill(pid, signal.SIGKILL)
            kills[victim] += 1
            if round_ % 2:
                for path in (server.directory / "out-0", server.directory / "out-1"):
                    with contextlib.suppress(FileNotFoundError):
                        path.rename(f"{path}.moved{round_}")
                os.kill(server.process.pid, signal.SIGUSR1)
            server.pid_of(find, without=pid)
        finished = [server.directory / f"{name}.next" for name in names]
        machine.wait_until(
            lambda: all(path.exists() and int(path.read_text()) == last for path in finished),
            max(DEADLINE, count / 10_000),
            "all lines",
        )
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(DEADLINE)
        reader.join(DEADLINE)
        took = time.monotonic() - began
        paths = list(files("out-*"))
        for path in paths:
            with open(path, "rb") as file:
                _each_line(file, in_files.add)
    print(
        f"{count:,} lines of {COMPANIONS} companions in {took:.0f} s; killed: keeper {kills['keeper']}, "
        f"manager {kills['manager']}; USR1 {rounds // 2}; {len(paths)} files"
    )
    good = True
    for where, numbers in (("files of their own", in_files), ("the server's output, a pipe", in_pipe)):
        lost, torn = numbers.missing(), len(numbers.torn)
        print(f"  {where}: {numbers.total:,} lines, missing {lost}, torn {torn}, again {numbers.twice}")
        for line in numbers.torn[:5]:
            print(f"    {line[:150]!r}")
        good = good and not lost and not torn
    return good and not in_files.twice


def _wait_for(numbers: Numbers, count: float) -> None:
    machine.wait_until(lambda: numbers.total >= count, DEADLINE, "more lines")


def _read_lines(fd: int, add: Callable[[bytes], None]) -> None:
    with open(os.dup(fd), "rb") as file:
        _each_line(file, add)


def _each_line(file: IO[bytes], add: Callable[[bytes], None]) -> None:
    for line in file:
        add(line.rstrip(b"\n"))


# -- a flood ------------------------------------------------------------------------------------------------


def flood(seconds: float, where: str) -> bool:
    """One companion floods *where* (file, pipe or stuck); another's lines are followed, and commands sent."""
    keys: dict[str, Any] = {}
    if where == "file":
        keys = {"stdout": {"file": "floods.out", "max_bytes": "50M", "backups": 2}}
    companions = [
        {"name": "floods", "target": "outputapp:floods", **keys},
        {"name": "ticks", "target": "outputapp:ticks"},
    ]
    answers: list[float] = []
    delays: list[float] = []
    with running(companions) as server:
        if where != "stuck":
            threading.Thread(target=_discard, args=(os.dup(server.output),), daemon=True).start()
        machine.wait_until((server.directory / "floods.written").exists, DEADLINE, "the flood")
        follower = threading.Thread(target=_follow, args=(server.control, delays, seconds))
        before, began = _written(server), time.monotonic()
        follower.start()
        while time.monotonic() - began < seconds:
            asked = time.monotonic()
            server.ask(cmd="status")
            answers.append(time.monotonic() - asked)
            time.sleep(0.05)
        rate = (_written(server) - before) / (time.monotonic() - began)
        follower.join(DEADLINE)
    print(f"{where}: {rate / 1e6:.0f} MB/s for {seconds:g} s")
    return judge("answers of status", answers, ANSWER) & judge("lines of another companion", delays, DELAY)


def _written(server: Server) -> int:
    return int((server.directory / "floods.written").read_text() or 0)


def _discard(fd: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 1 << 20):
            pass
    os.close(fd)


def _follow(path: str, delays: list[float], seconds: float) -> None:
    """Note how late each line of ``ticks`` comes to one who follows it."""
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.settimeout(DEADLINE)
        sock.sendall(
            json.dumps({"cmd": "logs", "names": ["ticks"], "follow": True, "lines": 0}).encode() + b"\n"
        )
        with sock.makefile("rb") as file:
            while time.monotonic() < end:
                found = re.search(rb"tick ([\d.]+)", file.readline())
                if found:
                    delays.append(time.time() - float(found[1]))


def judge(what: str, times: list[float], limit: float) -> bool:
    if not times:
        print(f"  {what}: none")
        return False
    times.sort()
    parts = (times[len(times) // 2], times[int(len(times) * 0.99)], times[-1])
    median, most, longest = (f"{value * 1000:.1f}" for value in parts)
    print(f"  {what}: median {median} ms, p99 {most} ms, longest {longest} ms; wanted: {limit * 1000:g} ms")
    return parts[1] < limit


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print what was found; 1 if a line is missing, or something took too long."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.output", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help="lines, flood, stuck (default: all)")
    parser.add_argument("--lines", type=int, default=10_000_000, help="how many (default: 10 million)")
    parser.add_argument("--kills", type=int, default=50, help="how many, of keeper and manager (default: 50)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a flood (default: 10)")
    options = parser.parse_args(argv)
    parts: dict[str, list[Callable[[], bool]]] = {
        "lines": [lambda: lines(options.lines, options.kills)],
        "flood": [lambda: flood(options.seconds, "file"), lambda: flood(options.seconds, "pipe")],
        "stuck": [lambda: flood(options.seconds, "stuck")],
    }
    for what in options.what:
        if what not in parts:
            parser.error(f"{what!r} is none of {', '.join(parts)}")
    results = [run() for what in options.what or parts for run in parts[what]]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
