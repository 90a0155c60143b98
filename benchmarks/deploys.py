# SPDX-License-Identifier: MIT
"""The cases of a deploy: start, reload and stop a server with an application of 80 MB, and its programs."""

from __future__ import annotations

import compileall
import contextlib
import fnmatch
import shutil
import signal
import socket
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine, memory, servers, startup, supervision
from benchmarks.peers import OURS, Environments, title
from benchmarks.results import Measured, Row, make_row
from benchmarks.servers import Setup
from benchmarks.stats import Target, rotations

GROUP = startup.GROUP
APPLICATION, EACH = "start-application", "start-application-each"
ANSWER, PROGRAMS = "start-together", "start-programs"
RELOAD, RELOAD_PROGRAMS, STOP = "reload-together", "reload-programs", "stop-together"
TITLES = {
    APPLICATION: "start to first answer, 4 workers, an application of 80 MB preloaded",
    EACH: "the same, the application loaded by each worker",
    ANSWER: "start to first answer, 4 workers preloaded and 10 programs of the same application",
    PROGRAMS: "start to the last of the 10 programs running",
    RELOAD: "SIGHUP to the first answer of a new worker",
    RELOAD_PROGRAMS: "SIGHUP, or supervisorctl restart, to the last of the 10 programs running again",
    STOP: "SIGTERM to the end of the server and of the 10 programs",
}
# These share the same starts.
TOGETHER = (ANSWER, PROGRAMS, RELOAD, RELOAD_PROGRAMS, STOP)
WORKERS, COUNT, MEGABYTES, MODULES = 4, 10, 80, 300
# A start of programs that load the application one by one takes seconds.
MOST_RUNS = 3
LIMIT = 60.0
# What is under way after a start or a reload comes to its end, such as the end of old workers.
SETTLE = 2.0

# What makes a real application slow to import, beside the objects of `stock`: many modules.
MODULE = textwrap.dedent(
    '''
    """One of many."""

    from dataclasses import dataclass

    @dataclass
    class Record{n}:
        """As a model has it."""

        number: int
        label: str = ""
        price: float = 0.0

    '''
) + "".join(f"def view_{i}(request, pk=None):\n    return {{'pk': pk, 'view': {i}}}\n\n" for i in range(30))
SHOP = textwrap.dedent(
    f"""
    import importlib, os, time

    import webapps

    for n in range({MODULES}):
        importlib.import_module(f"parts.part{{n}}")
    import stock

    def app(environ, start_response):
        body = b"%d\\n" % os.getpid()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    def target():
        webapps.report(time.monotonic_ns())
    """
)


def make_application(directory: Path) -> None:
    """Write the application, compiled as an installed one is."""
    parts = directory / "parts"
    parts.mkdir()
    for n in range(MODULES):
        (parts / f"part{n}.py").write_text(MODULE.replace("{n}", str(n)))
    (directory / "stock.py").write_text(memory.APPLICATION.format(size=MEGABYTES * 1_000_000))
    (directory / "shop.py").write_text(SHOP)
    if not compileall.compile_dir(directory, quiet=1):
        raise RuntimeError("the application cannot be compiled")


@dataclass(frozen=True)
class Way:
    """How a contestant runs the application."""

    peer: str
    preload: bool = True
    #: As companions, or below supervisord.
    programs: int = 0

    @property
    def label(self) -> str:
        name = title(self.peer)
        if self.programs and self.peer != OURS:
            name += " and supervisord"
        return name if self.preload or not self.programs else f"{name}, without preload_app"


class Deployment:
    """One that starts, with its *application*; times are in milliseconds."""

    def __init__(self, environments: Environments, way: Way, application: Path, directory: Path) -> None:
        self.environments = environments
        self.way = way
        self.directory = directory
        self.port = servers.free_port()
        self.reports = supervision.Reports(directory)
        self.env = {
            **servers.environment(directory),
            "PYTHONPATH": f"{application}:{servers.APPS}",
            "BENCHMARK_FIFO": str(self.reports.path),
        }
        # The command that reloads programs below supervisord.
        self.control: subprocess.Popen[bytes] | None = None
        commands = self._commands()
        self._began = time.monotonic_ns()
        self.processes = [
            machine.start_process(command, directory, self.env, pinned=False) for command in commands
        ]

    def _commands(self) -> list[list[str]]:
        """The server's is the first."""
        way, extra = self.way, []
        if way.peer == OURS and way.programs:
            extra.append("--companion-reload=all")
            extra += [f"--companion-worker=program-{n}=shop:target" for n in range(way.programs)]
        if way.preload:
            extra.append("--preload")
        setup = Setup(app="shop:app", workers=WORKERS, extra=tuple(extra))
        server = servers.command(self.environments, way.peer, self.port, setup, self.directory)
        if way.peer == "uwsgi" and not way.preload:
            server.append("--lazy-apps")
        if way.peer == OURS or not way.programs:
            return [server]
        program = f"{self.environments.bin(way.peer) / 'python'} -c 'import shop; shop.target()'"
        config = supervision.write_supervisord(self.directory, program, way.programs)
        return [server, [str(self.environments.bin("supervisor") / "supervisord"), "-c", config]]

    def first_answer(self, old: frozenset[int] = frozenset()) -> float:
        """Until a worker answers that is none of *old*."""
        end = time.monotonic() + LIMIT
        while self._answer() in {None, *old}:
            if time.monotonic() > end or any(process.poll() is not None for process in self.processes):
                log = (self.directory / "log").read_text(errors="replace")
                raise RuntimeError("no answer: " + servers.last_line(log))
            time.sleep(0.001)
        return (time.monotonic_ns() - self._began) / 1e6

    def _answer(self) -> int | None:
        """The pid of the worker that answers; waits for it once there is a listener."""
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", self.port), 30) as sock,
        ):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            with sock.makefile("rb") as file:
                head, _, body = file.read().partition(b"\r\n\r\n")
            return int(body) if head.startswith(b"HTTP/1.1 200") else None
        return None

    def last_program(self) -> float:
        """Until the last program has told that it runs."""
        found, _ = self.reports.read(self.way.programs, LIMIT)
        return (max(moment for _, moment in found) - self._began) / 1e6

    def reload(self) -> frozenset[int]:
        """Begin to reload all; the pids of before."""
        old = frozenset(pid for process in self.processes for pid in machine.descendants(process.pid))
        self._began = time.monotonic_ns()
        self.processes[0].send_signal(signal.SIGHUP)
        if len(self.processes) > 1:
            ctl = self.environments.bin("supervisor") / "supervisorctl"
            command = [str(ctl), "-c", str(self.directory / "supervisord.conf"), "restart", "all"]
            self.control = machine.start_process(command, self.directory, self.env, pinned=False)
        return old

    def stop(self) -> float:
        before = time.monotonic_ns()
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        # Popen.wait() with a limit looks every 50 ms.
        while any(process.poll() is None for process in self.processes):
            if time.monotonic_ns() - before > LIMIT * 1e9:
                raise RuntimeError(f"it has not stopped after {LIMIT:g} s")
            time.sleep(0.001)
        return (time.monotonic_ns() - before) / 1e6

    def close(self) -> None:
        for process in [*self.processes, *([] if self.control is None else [self.control])]:
            machine.end_process(process)
        self.reports.close()


@contextlib.contextmanager
def starting(environments: Environments, way: Way, application: Path) -> Iterator[Deployment]:
    directory = Path(tempfile.mkdtemp(prefix="bm-", dir=supervision.runtime_base()))
    try:
        with contextlib.closing(Deployment(environments, way, application, directory)) as deployment:
            yield deployment
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# -- the cases -----------------------------------------------------------------------------------------------


def chosen(patterns: Sequence[str]) -> list[str]:
    return [n for n in TITLES if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]


@contextlib.contextmanager
def application() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        make_application(Path(name))
        yield Path(name)


def run_application(name: str, environments: Environments, runs: int) -> Row:
    """No programs: what is compared is the server alone."""
    peers = ["gunicorn27", "uwsgi"] if name == APPLICATION else ["gunicorn27", "uwsgi", "granian"]
    ways = by_label(
        Way(label, preload=name == APPLICATION) for label in (OURS, *environments.available(peers))
    )
    measured = {label: Measured() for label in ways}
    with application() as directory:
        for order in rotations(list(ways), runs):
            for label in order:
                with starting(environments, ways[label], directory) as deployment:
                    measured[label].values.append(deployment.first_answer())
    targets = {label: Target("<=", 1) for label in ways if label != title(OURS)}
    return make_row(GROUP, name, TITLES[name], "ms", measured, targets)


def run_together(environments: Environments, names: Sequence[str], runs: int) -> list[Row]:
    """One start, reload and stop of each contestant in a run."""
    peers = [OURS]
    if environments.available(["gunicorn27", "supervisor"]) == ["gunicorn27", "supervisor"]:
        peers.append("gunicorn27")
    ways = by_label(Way(peer, preload, COUNT) for preload in (True, False) for peer in peers)
    measured = {name: {label: Measured() for label in ways} for name in TOGETHER}
    with application() as directory:
        for order in rotations(list(ways), min(runs, MOST_RUNS)):
            for label in order:
                for name, value in one_deploy(environments, ways[label], directory).items():
                    measured[name][label].values.append(value)
    targets = {label: Target("<=", 1) for label, way in ways.items() if way.peer != OURS and way.preload}
    return [
        # Which worker answers is chance here for half a second, because the old ones serve on.
        make_row(GROUP, name, TITLES[name], "ms", measured[name], {} if name == RELOAD else targets)
        for name in names
    ]


def by_label(ways: Iterable[Way]) -> dict[str, Way]:
    return {way.label: way for way in ways}


def one_deploy(environments: Environments, way: Way, application: Path) -> dict[str, float]:
    with starting(environments, way, application) as deployment:
        found = {ANSWER: deployment.first_answer(), PROGRAMS: deployment.last_program()}
        time.sleep(SETTLE)
        old = deployment.reload()
        found |= {RELOAD: deployment.first_answer(old), RELOAD_PROGRAMS: deployment.last_program()}
        time.sleep(SETTLE)
        return found | {STOP: deployment.stop()}
