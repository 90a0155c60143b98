# SPDX-License-Identifier: MIT
"""The cases of memory: an idle worker beside Gunicorn's, and the companion that ``memory`` measures."""

from __future__ import annotations

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
SYNC, GTHREAD, COMPANION = "worker-sync", "worker-gthread", "companion"
TITLES = {
    SYNC: "private memory of an idle sync worker, an application of 60 MB preloaded",
    GTHREAD: "private memory of an idle gthread worker with 8 threads, an application of 60 MB preloaded",
    COMPANION: "private memory of a companion after one gc.collect(), an application of 60 MB preloaded",
}
MEGABYTES = 60
# An idle worker is one that has answered, and then has had nothing to do for so long.
SETTLE = 1.5


def chosen(patterns: Sequence[str]) -> list[str]:
    return [n for n in TITLES if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]


def run(name: str, environments: Environments, runs: int) -> Row:
    return run_companion(environments) if name == COMPANION else run_worker(name, environments, runs)


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
