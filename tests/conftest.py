# SPDX-License-Identifier: MIT
"""What every test gets: a check that it leaves no process behind, and short temporary directories."""

from __future__ import annotations

import compileall
import os
import shutil
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


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Fail a test that leaves a process running, and end what it left."""
    if not harness.LINUX:
        yield
        return
    before = set(harness.descendants_of(os.getpid()))
    yield
    left = [pid for pid in harness.descendants_of(os.getpid()) if pid not in before]
    # What a server of a wider fixture has started meanwhile is that server's.
    left = [pid for pid in left if not harness.ancestors_of(pid) & before]
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
