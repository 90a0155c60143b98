# SPDX-License-Identifier: MIT
"""How much memory a companion shares with a preloaded application: ``python -m benchmarks.memory``.

The same target, which runs one full ``gc.collect()`` and then waits, is measured three ways: as a companion
with the frozen heap (the default), as one without (``--no-gc-freeze``), and as a process of its own that
loads the application for itself. The figure is private memory from ``/proc/<pid>/smaps_rollup``: what this
process alone costs. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 60.0

# Many small objects that the garbage collector tracks, as a real application's modules, models and routes
# are; each dictionary has a value of its own, so that nothing is shared or untracked.
APPLICATION = textwrap.dedent(
    """
    import gc, os, signal

    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, shelves = resident(), []
    while resident() - before < {size}:
        shelves.extend({{"number": n, "parts": [n], "label": f"item {{n}}"}} for n in range(1000))

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ready"]

    def target():
        gc.collect()
        open(f"probe.{{os.getpid()}}", "w").close()
        signal.pause()
    """
)


@dataclass(frozen=True)
class Figures:
    """Private memory of the target in bytes, by the way it was run, and the application's size."""

    application: int
    frozen: int
    unfrozen: int
    alone: int


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=main.__doc__)
    parser.add_argument("--megabytes", type=int, default=60, help="size of the application (default: 60)")
    options = parser.parse_args(argv)
    if not os.path.exists("/proc/self/smaps_rollup"):
        sys.exit("this needs /proc/<pid>/smaps_rollup: Linux 4.14 or later")
    print(table(measure(options.megabytes)))


def measure(megabytes: int = 60, python: str = sys.executable, tree: Path = ROOT) -> Figures:
    """Run the three with the interpreter *python* and the server of *tree*; read their private memory.

    Raises RuntimeError, with the output so far, if one does not get as far as its ``gc.collect()``.
    """
    size = megabytes * 1_000_000
    server = [
        *(python, "-m", "gunicorn", "--preload", "--bind", "127.0.0.1:0"),
        *("--companion-worker", "probe=stock:target", "stock:app"),
    ]
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        directory = Path(name)
        (directory / "stock.py").write_text(APPLICATION.format(size=size))
        return Figures(
            application=size,
            frozen=private_memory(server, directory, tree),
            unfrozen=private_memory([*server[:3], "--no-gc-freeze", *server[3:]], directory, tree),
            alone=private_memory([python, "-c", "import stock; stock.target()"], directory, tree),
        )


def private_memory(command: Sequence[str], directory: Path, tree: Path = ROOT) -> int:
    """Run *command* until its target has reported, and give the target's private memory in bytes."""
    for probe in directory.glob("probe.*"):
        probe.unlink()
    with running(command, directory, tree) as process:
        deadline = time.monotonic() + DEADLINE
        while not (found := list(directory.glob("probe.*"))):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} did not get to its target:\n{(directory / 'log').read_text()}")
            time.sleep(0.02)
        lines = Path(f"/proc/{found[0].suffix[1:]}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


@contextlib.contextmanager
def running(command: Sequence[str], directory: Path, tree: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, with its output in the directory's log; asked to end, and waited for, on leaving."""
    # A configuration of the caller's must not change what is measured.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GUNICORN_", "WEB_"))}
    env.update(PYTHONPATH=str(tree), XDG_RUNTIME_DIR=str(directory))
    env.pop("RUNTIME_DIRECTORY", None)
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=directory, env=env, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def table(figures: Figures) -> str:
    """The figures as text; ratios against the default."""
    rows = [
        ("companion, heap frozen (the default)", figures.frozen),
        ("companion, --no-gc-freeze", figures.unfrozen),
        ("a process of its own", figures.alone),
    ]
    lines = [
        f"Python {platform.python_version()}, a preloaded application of {figures.application / 1e6:.0f} MB,"
        " after one full gc.collect()",
        "",
        f"{'':<38}{'private':>10}{'ratio':>9}",
    ]
    lines += [f"{name:<38}{value / 1e6:>7.1f} MB{value / figures.frozen:>8.1f}x" for name, value in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
