# SPDX-License-Identifier: MIT
"""Starting each server on the applications in ``apps``, one worker process, on the server's core."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.peers import Environments

APPS = Path(__file__).resolve().parent / "apps"
BOOT_LIMIT = 30.0
THREADS = 8
YARDSTICKS = {"bare accept loop": "bare_accept.py", "bare epoll loop": "bare_epoll.py"}


@dataclass(frozen=True)
class Setup:
    """How a server is to run, in words that each of them has an option for."""

    app: str = "webapps:hello"
    worker: str = "gthread"
    access_log: bool = False
    threads: int = THREADS
    #: More than one have all cores, which they share with the load.
    workers: int = 1
    tls: bool = False
    # Options for ours and Gunicorn alone.
    extra: tuple[str, ...] = ()


@dataclass
class Server:
    """One that runs."""

    label: str
    port: int
    process: subprocess.Popen[bytes]
    directory: Path

    def cpu_seconds(self) -> float:
        """What it and all that is below it have used so far."""
        return machine.cpu_seconds(machine.descendants(self.process.pid))

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def command(environments: Environments, label: str, port: int, setup: Setup, directory: Path) -> list[str]:
    """The command line of *label*. Raises NotAvailable."""
    if label in YARDSTICKS:
        return [sys.executable, str(APPS / YARDSTICKS[label]), str(port)]
    bin_directory = environments.bin(label)
    app, address, threads = setup.app, f"127.0.0.1:{port}", str(setup.threads)
    cert, key = str(directory / "cert.pem"), str(directory / "key.pem")
    if label == "waitress":
        return [str(bin_directory / "waitress-serve"), f"--threads={threads}", f"--listen={address}", app]
    if label == "uwsgi":
        line = [str(bin_directory / "uwsgi"), "--master", "--need-app", "--module", app]
        line += ["--https-socket", f"{address},{cert},{key}"] if setup.tls else ["--http-socket", address]
        line += ["--processes", str(setup.workers), "--threads", threads]
        line += ["--logto", str(directory / "access.log")] if setup.access_log else ["--disable-logging"]
        # It closes after each answer, and unless told to does not say so.
        return [*line, "--buffer-size", "16384", "--die-on-term", "--add-header", "Connection: close"]
    if label == "granian":
        line = [str(bin_directory / "granian"), "--interface", "wsgi", "--host", "127.0.0.1"]
        line += [
            "--port",
            str(port),
            "--workers",
            str(setup.workers),
            "--blocking-threads",
            threads,
            "--no-ws",
        ]
        if setup.tls:
            line += ["--ssl-certificate", cert, "--ssl-keyfile", key]
        # Its access log goes where its other output goes.
        level = "info" if setup.access_log else "warning"
        return [*line, "--access-log" if setup.access_log else "--no-access-log", "--log-level", level, app]
    line = [str(bin_directory / "gunicorn"), "--bind", address, "--workers", str(setup.workers)]
    line += ["--worker-class", setup.worker]
    if setup.worker == "gthread":
        line += ["--threads", threads]
    if setup.tls:
        line += ["--certfile", cert, "--keyfile", key]
    if setup.access_log:
        line += ["--access-logfile", str(directory / "access.log")]
    return [*line, *setup.extra, app]


@contextlib.contextmanager
def running(environments: Environments, label: str, setup: Setup) -> Iterator[Server]:
    """The server, once it listens; ended on leaving. Raises NotAvailable, RuntimeError."""
    directory = Path(tempfile.mkdtemp(prefix="benchmarks-"))
    try:
        port = free_port()
        line = command(environments, label, port, setup, directory)
        if setup.app == "webapps:send_file":
            (directory / "file").write_bytes(b"0123456789abcdef" * (10 * (1 << 20) // 16))
        if setup.tls:
            make_certificate(directory)
        process = machine.start_process(line, directory, environment(directory), pinned=setup.workers == 1)
        try:
            wait_for_port(process, port, directory)
            yield Server(label, port, process, directory)
        finally:
            machine.end_process(process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def make_certificate(directory: Path) -> None:
    """A self-signed one for a day. Raises RuntimeError without the command ``openssl``."""
    names = "-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")
    kind = "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"
    line = ["openssl", "req", "-x509", *kind, "-days", "1", "-subj", "/CN=localhost", *names]
    try:
        subprocess.run(line, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        raise RuntimeError(f"no certificate could be made: {exc}") from None


def environment(directory: Path) -> dict[str, str]:
    env = machine.clean_environment()
    env["PYTHONPATH"] = str(APPS)
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env["BENCHMARK_FILE"] = str(directory / "file")
    # Not beside the control sockets of servers that people use.
    env["XDG_RUNTIME_DIR"] = str(directory)
    return env


def wait_for_port(process: subprocess.Popen[bytes], port: int, directory: Path) -> None:
    """Until the port takes a connection; a pre-fork server's may do so before a worker serves it."""
    end = time.monotonic() + BOOT_LIMIT
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > end:
            output = (directory / "log").read_text(errors="replace").strip()
            raise RuntimeError("the server did not start: " + last_line(output))
        time.sleep(0.01)


def last_line(text: str) -> str:
    """The last that is not only an arrow or a bracket."""
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalpha, line))]
    return lines[-1][:300] if lines else "it said nothing"


def labels(environments: Environments, wanted: Sequence[str]) -> list[str]:
    """*wanted* without those that cannot be had; yardsticks always can."""
    there = environments.available(label for label in wanted if label not in YARDSTICKS)
    return [label for label in wanted if label in YARDSTICKS or label in there]
