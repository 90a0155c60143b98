# SPDX-License-Identifier: MIT
"""The cases of memory: an idle worker beside Gunicorn's, and the companion that ``memory`` measures."""

from __future__ import annotations

import contextlib
import fnmatch
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, memory, servers, startup
from benchmarks.peers import OURS, Environments, title
from benchmarks.results import Measured, Row, make_row
from benchmarks.stats import Target, rotations

GROUP = "memory"
SYNC, GTHREAD, COMPANION, TOGETHER = "worker-sync", "worker-gthread", "companion", "together"
TITLES = {
    SYNC: "private memory of an idle sync worker, an application of 60 MB preloaded",
    GTHREAD: "private memory of an idle gthread worker with 8 threads, an application of 60 MB preloaded",
    COMPANION: "private memory of a companion after one gc.collect(), an application of 60 MB preloaded",
    TOGETHER: "memory of 4 workers and 10 programs together, all with an application of 80 MB",
}
MEGABYTES, MEGABYTES_TOGETHER = 60, 80
WORKERS, PROGRAMS = 4, 10
# An idle worker is one that has answered, and then has had nothing to do for so long.
SETTLE = 1.5


def chosen(patterns: Sequence[str]) -> list[str]:
    return [n for n in TITLES if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]


def run(name: str, environments: Environments, runs: int) -> Row:
    if name == COMPANION:
        return run_companion(environments)
    return run_together(environments) if name == TOGETHER else run_worker(name, environments, runs)


def run_worker(name: str, environments: Environments, runs: int) -> Row:
    """Memory hardly differs from run to run, so a few are enough."""
    labels = [OURS, *environments.available(["gunicorn27", "gunicorn23"])]
    measured = {title(label): Measured() for label in labels}
    options = ["-k", "gthread", "--threads", str(servers.THREADS)] if name == GTHREAD else ["-k", "sync"]
    for order in rotations(labels, min(runs, 2)):
        for label in order:
            measured[title(label)].values.append(idle_worker(environments, label, options) / 1e6)
    targets = {title(label): Target("<=", 1) for label in labels[1:]}
    return make_row(GROUP, name, TITLES[name], "MB", measured, targets)


def idle_worker(environments: Environments, label: str, options: Sequence[str]) -> int:
    """The bytes that the one worker alone costs."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        directory = Path(name)
        (directory / "stock.py").write_text(memory.APPLICATION.format(size=MEGABYTES * 1_000_000))
        port = servers.free_port()
        command = [str(environments.bin(label) / "gunicorn"), "--preload", "--bind", f"127.0.0.1:{port}"]
        env = {**servers.environment(directory), "PYTHONPATH": str(directory)}
        process = machine.start_process([*command, *options, "stock:app"], directory, env)
        try:
            servers.wait_for_port(process, port, directory)
            machine.wait_until(lambda: startup.answers(port), servers.BOOT_LIMIT, "an answer")
            # It stays idle, its last connection closed.
            time.sleep(SETTLE)
            workers = machine.descendants(process.pid)[1:]
            if len(workers) != 1:
                raise RuntimeError(f"{label} has {len(workers)} processes below it, not one worker")
            return machine.private_bytes(workers[0])
        finally:
            machine.end_process(process)


def run_companion(environments: Environments) -> Row:
    found = memory.measure(MEGABYTES, str(environments.bin(OURS) / "python"), environments.tree)
    measured = {
        "heap frozen, the default": Measured([found.frozen / 1e6]),
        "with --no-gc-freeze": Measured([found.unfrozen / 1e6]),
        "a process of its own": Measured([found.alone / 1e6]),
    }
    return make_row(GROUP, COMPANION, TITLES[COMPANION], "MB", measured)


def run_together(environments: Environments) -> Row:
    """The same programs as companions, and below supervisord beside Gunicorn. Once: it hardly differs."""
    measured = {"with companions": Measured([together(environments, OURS) / 1e6])}
    targets: dict[str, Target] = {}
    if environments.available(["gunicorn27", "supervisor"]) == ["gunicorn27", "supervisor"]:
        label = f"{title('gunicorn27')} and supervisord"
        measured[label] = Measured([together(environments, "gunicorn27") / 1e6])
        targets[label] = Target("<=", 1 / 3)
    return make_row(GROUP, TOGETHER, TITLES[TOGETHER], "MB", measured, targets)


def together(environments: Environments, label: str) -> int:
    """The bytes that the web server and all its programs have together, each after a ``gc.collect()``."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        (directory / "stock.py").write_text(memory.APPLICATION.format(size=MEGABYTES_TOGETHER * 1_000_000))
        port = servers.free_port()
        env = {**servers.environment(directory), "PYTHONPATH": str(directory)}
        command = [str(environments.bin(label) / "gunicorn"), "--preload", "--bind", f"127.0.0.1:{port}"]
        command += ["--workers", str(WORKERS)]
        started = []
        if label == OURS:
            command += [f"--companion-worker=program-{n}=stock:target" for n in range(PROGRAMS)]
        else:
            python = environments.bin(label) / "python"
            (directory / "supervisord.conf").write_text(
                f"[supervisord]\nnodaemon = true\nlogfile = {directory}/supervisord.log\n"
                f"pidfile = {directory}/supervisord.pid\n[program:program]\n"
                f"command = {python} -c 'import stock; stock.target()'\n"
                f"numprocs = {PROGRAMS}\nprocess_name = program-%(process_num)d\n"
            )
            supervisord = environments.bin("supervisor") / "supervisord"
            started.append(
                machine.start_process(
                    [str(supervisord), "-c", str(directory / "supervisord.conf")], directory, env
                )
            )
        started.append(machine.start_process([*command, "stock:app"], directory, env))
        for process in started:
            stack.callback(machine.end_process, process)
        servers.wait_for_port(started[-1], port, directory)
        machine.wait_until(lambda: startup.answers(port), servers.BOOT_LIMIT, "an answer")
        machine.wait_until(
            lambda: len(list(directory.glob("probe.*"))) == PROGRAMS,
            servers.BOOT_LIMIT,
            "all programs run",
        )
        time.sleep(SETTLE)
        return machine.proportional_bytes(
            pid for process in started for pid in machine.descendants(process.pid)
        )
