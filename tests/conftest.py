# SPDX-License-Identifier: MIT
"""What every test gets: a check that it leaves no process behind, and short temporary directories."""

from __future__ import annotations

import compileall
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest


@pytest.fixture(scope="session", autouse=True)
def _prepared() -> None:
    # Orphans of a test become children of the test process, where the check below finds them.
    harness.become_subreaper()
    # Servers write no bytecode (an application that is rewritten within a second would be read from it), so
    # without this each start would compile the package anew.
    compileall.compile_dir(harness.ROOT / "gunicorn", quiet=2)


def _own_children() -> set[int]:
    """The children of this process, asked of the kernel: a walk through all processes costs milliseconds."""
    found: set[int] = set()
    try:
        for task in os.listdir("/proc/self/task"):
            found.update(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    except OSError:  # a thread has just ended, or this kernel does not tell
        return set(harness.children_of(os.getpid()))
    return found


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Fail a test that leaves a process running, and end what it left."""
    if not harness.LINUX:
        yield
        return
    before = _own_children()
    yield
    # What a server of a wider fixture has started meanwhile is that server's; what lost its parent is ours.
    left = [pid for pid in _own_children() - before if harness.is_alive(pid)]
    if left:
        # One that is about to be gone was not left behind.
        deadline = time.monotonic() + 1
        while left and time.monotonic() < deadline:
            time.sleep(0.01)
            left = [pid for pid in left if harness.is_alive(pid)]
    # multiprocessing's resource tracker serves the whole test process and ends with it.
    left = [pid for pid in left if "resource_tracker" not in harness.cmdline_of(pid)]
    if left:
        shown = "; ".join(f"{pid} {harness.cmdline_of(pid)}" for pid in left)
        harness.kill_all(left)
        harness.reap_zombies(frozenset(harness._owned_pids))
        pytest.fail(f"processes left behind: {shown}")


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A temporary directory with a path short enough for Unix sockets (107 bytes)."""
    path = harness.short_tmpdir()
    yield path
    shutil.rmtree(path, ignore_errors=True)
