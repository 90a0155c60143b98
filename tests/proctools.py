# SPDX-License-Identifier: MIT
"""Looking at real processes through ``/proc``, ending them, and waiting for conditions with a deadline."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import TypeVar

import pytest

# Whether a program that a test uses must be there; otherwise the test is skipped without it.
PROGRAMS_REQUIRED = os.environ.get("REQUIRE_PROGRAMS") == "1"
LINUX = sys.platform.startswith("linux")
KERNEL_LISTS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    timeout: float = 10.0,
    message: str | Callable[[], str] = "",
    *,
    interval: float | None = None,
) -> T:
    """The first true value of *condition*, polled until *timeout* seconds have passed; else AssertionError.

    OSError (a refused connection, a file not there yet) counts as "not yet". Without *interval* it is 20 ms,
    and up to 40 ms in a long wait: looking takes processor time from the server that is waited for.
    """
    began = time.monotonic()
    deadline = began + timeout
    error: OSError | None = None
    while True:
        try:
            value = condition()
            error = None
            if value:
                return value
        except OSError as exc:
            error = exc
        now = time.monotonic()
        if now >= deadline:
            text = message() if callable(message) else message
            raise AssertionError(
                f"not within {timeout} s: {text or condition}" + (f" ({error!r})" if error else "")
            )
        time.sleep(min(max(0.02, (now - began) / 10), 0.04) if interval is None else interval)


def program(name: str) -> str:
    """Return the path of the program *name*; without it, skip the test, with REQUIRE_PROGRAMS=1 fail it."""
    found = shutil.which(name)
    if found is not None:
        return found
    if PROGRAMS_REQUIRED:
        pytest.fail(f"{name} is not installed, and REQUIRE_PROGRAMS=1 is set")
    pytest.skip(f"{name} is not installed")


@dataclass(frozen=True)
class Proc:
    """One line of ``/proc/<pid>/stat``."""

    pid: int
    state: str
    ppid: int
    pgrp: int
    session: int
    start: int

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"


def read_proc(pid: int) -> Proc | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read()
    except OSError:
        return None
    rest = data[data.rindex(b")") + 2 :].decode().split()
    return Proc(pid, rest[0], int(rest[1]), int(rest[2]), int(rest[3]), int(rest[19]))


def all_procs() -> dict[int, Proc]:
    procs = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (proc := read_proc(int(name))) is not None:
            procs[proc.pid] = proc
    return procs


def is_alive(pid: int) -> bool:
    """True while *pid* runs (a zombie does not)."""
    proc = read_proc(pid)
    return proc is not None and proc.alive


def child_pids(pid: int) -> set[int]:
    """The children of *pid*, zombies among them, asked of the kernel.

    A walk through all processes takes milliseconds, and tests poll. The kernel may skip a child while its
    neighbour in the list is reaped, so read the list until two reads agree.
    """
    if not KERNEL_LISTS_CHILDREN:
        return {proc.pid for proc in all_procs().values() if proc.ppid == pid}
    last: set[int] | None = None
    while True:
        found: set[int] = set()
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with (
                    contextlib.suppress(FileNotFoundError, ProcessLookupError),
                    open(f"/proc/{pid}/task/{task}/children", "rb") as file,
                ):
                    found.update(map(int, file.read().split()))
        except FileNotFoundError:
            return set()
        if found == last:
            return found
        last = found


def child_procs(pid: int) -> list[Proc]:
    """The living children of *pid*, oldest first."""
    found = [proc for child in child_pids(pid) if (proc := read_proc(child)) and proc.alive]
    return sorted(found, key=lambda proc: (proc.start, proc.pid))


def children_of(pid: int) -> list[int]:
    return [proc.pid for proc in child_procs(pid)]


def descendants_of(pid: int) -> list[int]:
    """All living processes below *pid*, parents first."""
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children_of(queue.pop(0))
        queue.extend(below)
        found.extend(below)
    return found


def session_of(session: int) -> list[int]:
    """The living members of a session below this process."""
    mine = [proc for pid in descendants_of(os.getpid()) if (proc := read_proc(pid))]
    return sorted(proc.pid for proc in mine if proc.session == session and proc.alive)


def environ_of(pid: int) -> dict[str, str]:
    """The environment that *pid* was executed with."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            data = file.read()
    except OSError:
        return {}
    pairs = (item.split(b"=", 1) for item in data.split(b"\0") if b"=" in item)
    return {os.fsdecode(name): os.fsdecode(value) for name, value in pairs}


def cmdline_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def status_field(pid: int, field: str) -> str:
    """One field of ``/proc/<pid>/status``, e.g. ``voluntary_ctxt_switches``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    raise KeyError(field)


def descriptors(pid: int) -> dict[int, str]:
    """What each open descriptor of *pid* points to: a path, ``socket:[inode]``, ``pipe:[inode]``.

    Left out are the library that libffi (3.5 and later) keeps open after an import of ctypes, and the file
    for stacks, which workers and companions hold on purpose.
    """
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    meant = ("/libffi.so", "/memfd:gunicorn-stacks")
    return {number: target for number, target in found.items() if not any(each in target for each in meant)}


def kill_quietly(pid: int, sig: int = SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, sig)


_LIBC = ctypes.CDLL(None, use_errno=True) if LINUX else None


def die_with_parent() -> None:
    """In a child before its exec: have the kernel send it SIGKILL when the test process dies."""
    if _LIBC is not None:
        _LIBC.prctl(1, SIGKILL, 0, 0, 0)


def become_subreaper() -> None:
    """Let orphans of what this process started become its own children (``PR_SET_CHILD_SUBREAPER``)."""
    if _LIBC is not None:
        _LIBC.prctl(36, 1, 0, 0, 0)


def reap_zombies(keep: frozenset[int] = frozenset()) -> None:
    """Wait for the dead children of this process that no ``Popen`` in *keep* will ask for."""
    for pid in child_pids(os.getpid()) - keep:
        if not is_alive(pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def kill_all(pids: Sequence[int], timeout: float = 5.0) -> None:
    """SIGKILL to all of *pids* and whatever is below them, until none is left."""
    deadline = time.monotonic() + timeout
    todo = set(pids)
    while todo and time.monotonic() < deadline:
        for pid in list(todo):
            todo.update(descendants_of(pid))
        for pid in todo:
            kill_quietly(pid)
        time.sleep(0.01)
        todo = {pid for pid in todo if is_alive(pid)}


def full_pipe() -> tuple[int, int]:
    """Both ends of a pipe that takes no byte more until somebody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, b"x" * 4096):
            pass
    os.set_blocking(writing, True)
    return reading, writing
