# SPDX-License-Identifier: MIT
"""What every test gets: a check that it leaves no process behind, and short temporary directories."""

from __future__ import annotations

import compileall
import gc
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import proctools
import pytest

# Rewriting the asserts of all tests takes each process ten seconds, so keep the bytecode; but only until they
# are collected, because a test may import, write and import a module within one second.
_writes_no_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, False
# What collecting makes stays until the end: looking through it for garbage is a fifth of the work.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _prepared() -> None:
    sys.dont_write_bytecode = _writes_no_bytecode
    # Orphans of a test become children of the test process, where the check below finds them.
    harness.become_subreaper()
    # Servers write no bytecode (an application that is rewritten within a second would be read from it), so
    # without this each start would compile the package anew.
    compileall.compile_dir(harness.ROOT / "gunicorn", quiet=2)
    # A shell ignores these for what it runs in the background, and a server would inherit that.
    for sig, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(sig) is signal.SIG_IGN:
            signal.signal(sig, default)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Fail a test that leaves a process running, and end what it left."""
    if not harness.LINUX:
        yield
        return
    before = proctools.child_pids(os.getpid())
    yield
    # Children of a server of a wider fixture are not ours; orphans are.
    left = [pid for pid in proctools.child_pids(os.getpid()) - before if harness.is_alive(pid)]
    if left:
        # A process that is just ending was not left behind.
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


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    """Fail a test that leaves a thread running: later ones fork."""
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    deadline = time.monotonic() + 2
    for thread in left:
        thread.join(max(0, deadline - time.monotonic()))
    names = [thread.name for thread in left if thread.is_alive()]
    assert not names, f"threads left behind: {', '.join(names)}"


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A temporary directory with a path short enough for Unix sockets (107 bytes)."""
    path = harness.short_tmpdir()
    yield path
    shutil.rmtree(path, ignore_errors=True)
