# SPDX-License-Identifier: MIT
"""The cases of supervision: companions beside bare forks, supervisord and circus."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, servers
from benchmarks.peers import OURS, Environments, title
from benchmarks.results import Measured, Row, make_row
from benchmarks.stats import ITSELF, Target, rotations

GROUP = "companions"
FLEET = 1000
START_LIMIT = 120.0
IDLE_SECONDS = 10.0
# Kills in one run of ours and of the bare loop: a single one tells little. From the sixth failure in a row
# on, the manager lets more time pass before a start.
KILLS = 4
# A start of 1,000 is long enough for its noise to even out.
MOST_STARTS = 3

RESTART, START, STATUS, COMMAND, IDLE, MEMORY, COMPANION_MEMORY = (
    "restart",
    "start-1000",
    "status-1000",
    "status-command",
    "idle-1000",
    "manager-memory",
    "companion-memory",
)
TITLES = {
    RESTART: "death of a companion to the first byte of the next, restart_delay=0",
    START: "start of 1,000 companions, run files included",
    STATUS: "status of 1,000 companions over the control socket",
    COMMAND: "the status command with 1,000 companions, its own start included",
    IDLE: "an idle manager with 1,000 companions for 10 s",
    MEMORY: "private memory of an idle manager",
    COMPANION_MEMORY: "private memory of an idle companion, the mean of 1,000",
}
# These share one set of 1,000.
FLEET_CASES = (STATUS, COMMAND, IDLE, MEMORY, COMPANION_MEMORY)

US = title(OURS)
BARE = "a bare fork to first byte"
LOOP = "a bare loop of wait and fork"


class Reports:
    """Where companions say that they run: a named pipe."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "reports"
        os.mkfifo(self.path)
        # Open for writing as well: it has no end when the last writer goes.
        self.fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.fd, selectors.EVENT_READ)
        self.buffer = b""

    def read(
        self, count: int, limit: float, sender: subprocess.Popen[bytes] | None = None
    ) -> tuple[list[tuple[int, int]], int]:
        """*count* reports, as pid and what came with it, and when the last came (monotonic, ns).

        Raises RuntimeError when the time is over, or when *sender* has ended.
        """
        found: list[tuple[int, int]] = []
        end = time.monotonic() + limit
        while True:
            *lines, self.buffer = self.buffer.split(b"\n")
            found += [(int(n[0]), int(n[1])) for n in ([*line.split(), b"0"] for line in lines)]
            if len(found) >= count:
                return found, time.monotonic_ns()
            if self.selector.select(1.0):
                self.buffer += os.read(self.fd, 65536)
            elif time.monotonic() > end or (sender is not None and sender.poll() is not None):
                raise RuntimeError(f"{len(found)} of {count} processes have started")

    def close(self) -> None:
        self.selector.close()
        os.close(self.fd)


class Supervisor:
    """One that runs, with *count* processes below it that have reported."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes], reports: Reports) -> None:
        self.directory = directory
        self.process = process
        self.reports = reports
        self.pids: list[int] = []
        # When the last of its processes has reported, and what came with the reports.
        self.started = 0
        self.moments: list[int] = []

    def kill_one(self) -> tuple[float, float]:
        """Kill its process; seconds until the next has reported, from the death and from the moment told."""
        before = time.monotonic_ns()
        os.kill(self.pids[0], signal.SIGKILL)
        [(pid, moment)], now = self.reports.read(1, 30)
        self.pids = [pid]
        return (now - before) / 1e9, (now - moment) / 1e9 if moment else 0.0


@contextlib.contextmanager
def supervising(
    prepare: Callable[[Path, int], Sequence[str]], count: int, ask: int = signal.SIGTERM
) -> Iterator[Supervisor]:
    """What the command of *prepare* starts, once all its processes have reported; ended on leaving."""
    directory = Path(tempfile.mkdtemp(prefix="bm-", dir=runtime_base()))
    try:
        reports = Reports(directory)
        command = prepare(directory, count)
        env = {**servers.environment(directory), "BENCHMARK_FIFO": str(reports.path)}
        process = machine.start_process(command, directory, env)
        try:
            supervisor = Supervisor(directory, process, reports)
            try:
                found, supervisor.started = reports.read(count, START_LIMIT, process)
            except RuntimeError as exc:
                log = (directory / "log").read_text(errors="replace")
                raise RuntimeError(f"{exc}; {servers.last_line(log)}") from None
            supervisor.pids = [pid for pid, _ in found]
            supervisor.moments = [moment for _, moment in found]
            yield supervisor
        finally:
            machine.end_process(process, 30.0, ask)
            reports.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def runtime_base() -> str:
    """In memory, as sockets and run files are by default; a short path, for the sockets."""
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm"):
        if base and len(base) < 60 and os.access(base, os.W_OK | os.X_OK):
            return base
    return "/tmp"


# -- the supervisors ---------------------------------------------------------


class Lineup:
    """How each is started, from *environments*."""

    def __init__(self, environments: Environments) -> None:
        self.environments = environments

    def ours(self, directory: Path, count: int) -> list[str]:
        companion = "{'name': f'c{n:04}', 'target': 'webapps:report'}"
        return self._gunicorn(directory, f"[{companion} for n in range({count})]")

    def bare(self, directory: Path, count: int) -> list[str]:
        """A companion that forks: a copy of the manager, and as large, as that one has as many companions."""
        env = f"{{'BENCHMARK_COUNT': '{count}'}}"
        bare = f"{{'name': 'bare', 'target': 'webapps:fork_bare', 'env': {env}}}"
        idle = "{'name': f'c{n:04}', 'target': 'webapps:report', 'autostart': False}"
        return self._gunicorn(directory, f"[{bare}, *({idle} for n in range(1, {count}))]")

    def _gunicorn(self, directory: Path, companions: str) -> list[str]:
        (directory / "gunicorn.conf.py").write_text(
            "wsgi_app = 'webapps:hello'\n"
            "bind = '127.0.0.1:0'\n"
            "preload_app = True\n"
            f"companion_control_socket = {str(directory / 'control')!r}\n"
            f"companion_run_dir = {str(directory / 'run')!r}\n"
            "companion_restart_delay = 0\n"
            # Each kill would double it otherwise.
            "companion_restart_delay_max = None\n"
            f"companion_workers = {companions}\n"
        )
        return [str(self.environments.bin(OURS) / "gunicorn")]

    def supervisord(self, directory: Path, count: int) -> list[str]:
        config = write_supervisord(directory, str(program(directory)), count)
        return [str(self.environments.bin("supervisor") / "supervisord"), "-c", config]

    def circus(self, directory: Path, count: int) -> list[str]:
        (directory / "circus.ini").write_text(
            f"[circus]\nendpoint = ipc://{directory}/endpoint\npubsub_endpoint = ipc://{directory}/pubsub\n"
            f"[watcher:c]\ncmd = {program(directory)}\nnumprocesses = {count}\ncopy_env = True\n"
            "warmup_delay = 0\n"
        )
        return [str(self.environments.bin("circus") / "circusd"), str(directory / "circus.ini")]


def write_supervisord(directory: Path, command: str, count: int) -> str:
    """Write the configuration of *count* programs, with a control socket; return its path."""
    path = directory / "supervisord.conf"
    path.write_text(
        "[supervisord]\nnodaemon=true\n"
        f"logfile={directory}/supervisord.log\npidfile={directory}/pid\nchildlogdir={directory}\n"
        f"minfds={count * 4 + 1024}\n"
        f"[unix_http_server]\nfile={directory}/control\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
        f"[supervisorctl]\nserverurl=unix://{directory}/control\n"
        f"[program:c]\ncommand={command}\nnumprocs={count}\n"
        "process_name=%(program_name)s%(process_num)04d\nautorestart=true\nstartsecs=0\n"
        "redirect_stderr=true\nstdout_logfile=NONE\n"
    )
    return str(path)


def program(directory: Path) -> Path:
    """What supervisors of programs run: the cheapest that reports, with no interpreter to start."""
    path = directory / "program"
    path.write_text('#!/bin/sh\necho $$ > "$BENCHMARK_FIFO"\nexec sleep 1000000\n')
    path.chmod(0o700)
    return path


# -- the cases ---------------------------------------------------------------


def chosen(patterns: Sequence[str]) -> list[str]:
    return [n for n in TITLES if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]


def run_restart(environments: Environments, runs: int) -> Row:
    """Each run kills each supervisor's process, and takes the time until the next has reported."""
    lineup, ways = Lineup(environments), {US: "ours", LOOP: "bare", BARE: "bare"}
    environments.bin(OURS)
    for label in environments.available(["supervisor", "circus"]):
        ways[title(label)] = {"supervisor": "supervisord"}.get(label, label)
    measured = {label: Measured() for label in ways}
    for order in rotations(list(dict.fromkeys(ways.values())), runs):
        for way in order:
            with supervising(getattr(lineup, way), 1) as supervisor:
                # The first start is not long ago; two starts of a companion are never less than 50 ms apart.
                time.sleep(1.1)
                kills = [_kill(supervisor) for _ in range(KILLS if way in ("ours", "bare") else 1)]
            from_death = statistics.median(death for death, _ in kills) * 1000
            from_fork = statistics.median(fork for _, fork in kills) * 1000
            for label in (label for label, its_way in ways.items() if its_way == way):
                measured[label].values.append(from_fork if label == BARE else from_death)
    note = "supervisord and circus run a shell script, which is up sooner than an interpreter would be"
    # What a person can feel.
    targets = {ITSELF: Target("<=", 10)}
    return make_row(GROUP, RESTART, TITLES[RESTART], "ms", measured, targets, note)


def _kill(supervisor: Supervisor) -> tuple[float, float]:
    time.sleep(0.1)
    return supervisor.kill_one()


def run_start(environments: Environments, runs: int, count: int = FLEET) -> Row:
    """From the manager's own fork, and from the first bare one, to the last process's report."""
    lineup = Lineup(environments)
    measured = {US: Measured(), "1,000 bare forks": Measured()}
    for order in rotations(list(measured), min(runs, MOST_STARTS)):
        for label in order:
            with supervising(lineup.ours if label == US else lineup.bare, count) as supervisor:
                parent = parent_of(supervisor.pids[0])
                cpu = machine.cpu_seconds(machine.descendants(parent))
                first = started_at(parent) if label == US else min(supervisor.moments)
                measured[label].values.append((supervisor.started - first) / 1e6)
                measured[label].cpu.append(cpu / count * 1e6)
    targets = {ITSELF: Target("<=", 5000)}
    return make_row(GROUP, START, TITLES[START], "ms", measured, targets)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def started_at(pid: int) -> float:
    """When *pid* was forked, on the clock of time.monotonic_ns()."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    asleep = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return ticks / machine.TICK * 1e9 - asleep


def control(supervisor: Supervisor, request: dict[str, Any]) -> dict[str, Any]:
    """One command to our manager over a connection of its own."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(supervisor.directory / "control"))
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile("rb") as file:
            reply: dict[str, Any] = json.loads(file.readline())
    if not reply.get("ok"):
        raise RuntimeError(f"{request} was answered by {reply}")
    return reply


def run_fleet(environments: Environments, names: Sequence[str], runs: int, count: int = FLEET) -> list[Row]:
    """The cases that look at 1,000 processes that run."""
    lineup, rows = Lineup(environments), []
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(supervising(lineup.ours, count))
        peer = None
        if {COMMAND, IDLE} & {*names} and environments.available(["supervisor"]):
            peer = stack.enter_context(supervising(lineup.supervisord, count))
        wait_until_running(ours)
        if STATUS in names:
            rows.append(_status(ours, runs, count))
        if COMMAND in names:
            rows.append(_command(environments, ours, peer, runs, count))
        if IDLE in names:
            rows.append(_idle(ours, peer))
        if MEMORY in names:
            rows.append(_memory(lineup, ours))
        if COMPANION_MEMORY in names:
            rows.append(_companion_memory(ours))
    return rows


def wait_until_running(ours: Supervisor) -> None:
    def all_run() -> bool:
        shown = control(ours, {"cmd": "status"})["companions"]
        return all(companion["state"] == "RUNNING" for companion in shown)

    machine.wait_until(all_run, 30, "RUNNING throughout")


def _status(ours: Supervisor, runs: int, count: int) -> Row:
    """The reply is read to its end, and looked at only after the clock has stopped."""
    found = Measured()
    manager = manager_pid(ours)
    for _ in range(runs):
        times = []
        before = machine.cpu_seconds([manager])
        for _ in range(10):
            reply, taken = timed_status(ours)
            if len(json.loads(reply)["companions"]) != count:
                raise RuntimeError("status does not show every companion")
            times.append(taken)
        found.values.append(statistics.median(times) * 1000)
        found.cpu.append((machine.cpu_seconds([manager]) - before) / len(times) * 1e6)
    targets = {ITSELF: Target("<=", 50)}
    return make_row(GROUP, STATUS, TITLES[STATUS], "ms", {US: found}, targets)


def timed_status(ours: Supervisor) -> tuple[bytes, float]:
    before = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(ours.directory / "control"))
        sock.sendall(b'{"cmd": "status"}\n')
        blocks: list[bytes] = []
        while not blocks or not blocks[-1].endswith(b"\n"):
            blocks.append(sock.recv(1 << 20))
            if not blocks[-1]:
                raise RuntimeError("the manager hung up")
    return b"".join(blocks), time.perf_counter() - before


def _command(
    environments: Environments, ours: Supervisor, peer: Supervisor | None, runs: int, count: int
) -> Row:
    command = environments.bin(OURS) / "gunicorn-companion"
    commands = {US: [str(command), "-s", str(ours.directory / "control"), "status"]}
    targets = {}
    if peer is not None:
        ctl = environments.bin("supervisor") / "supervisorctl"
        commands["supervisorctl"] = [str(ctl), "-c", str(peer.directory / "supervisord.conf"), "status"]
        targets["supervisorctl"] = Target("<=", 1)
    measured = {label: Measured() for label in commands}
    for order in rotations(list(commands), runs):
        for label in order:
            before = time.perf_counter()
            done = subprocess.run(commands[label], capture_output=True, text=True, timeout=60)
            measured[label].values.append((time.perf_counter() - before) * 1000)
            if done.stdout.count("RUNNING") != count:
                raise RuntimeError(f"{label} does not show every process: {done.stderr[-200:]}")
    return make_row(GROUP, COMMAND, TITLES[COMMAND], "ms", measured, targets)


def _idle(ours: Supervisor, peer: Supervisor | None) -> Row:
    """Both at once: they share nothing but the core."""
    watched = {US: manager_pid(ours)}
    if peer is not None:
        watched[title("supervisor")] = peer.process.pid
    # What is under way after the last question has come to its end.
    time.sleep(1.0)
    before = {label: machine.switches(pid) for label, pid in watched.items()}
    time.sleep(IDLE_SECONDS)
    measured = {
        label: Measured([float(machine.switches(pid) - before[label])]) for label, pid in watched.items()
    }
    return make_row(GROUP, IDLE, TITLES[IDLE], "wake-ups", measured, {ITSELF: Target("<=", 0)})


def manager_pid(supervisor: Supervisor) -> int:
    return int(control(supervisor, {"cmd": "status", "name": "c0000"})["server"]["manager_pid"])


def _memory(lineup: Lineup, ours: Supervisor) -> Row:
    """With one companion there is no bookkeeping to speak of; the rest of 1,000 is that."""
    with supervising(lineup.ours, 1) as alone:
        wait_until_running(alone)
        one = machine.private_bytes(manager_pid(alone)) / 1e6
    many = machine.private_bytes(manager_pid(ours)) / 1e6
    measured = {"one companion": Measured([one]), "1,000 companions": Measured([many])}
    note = f"{(many - one) * 1000 / (len(ours.pids) - 1):.1f} KB for each further companion"
    return make_row(GROUP, MEMORY, TITLES[MEMORY], "MB", measured, {ITSELF: Target("<=", 2)}, note)


def _companion_memory(ours: Supervisor) -> Row:
    mean = statistics.fmean(map(machine.private_bytes, ours.pids)) / 1e6
    return make_row(GROUP, COMPANION_MEMORY, TITLES[COMPANION_MEMORY], "MB", {US: Measured([mean])})
