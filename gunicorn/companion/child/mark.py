# SPDX-License-Identifier: MIT
"""Mark the processes of a companion, and read such marks.

A daemon calls setsid(2) and loses its parent, so neither its session nor the process tree shows its origin.
But it keeps an inherited mark: a variable in the environment of its program, or, in a fork of a Python
target, a mapping of a memory file with the same text as its name. Only Linux shows both, in /proc.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from typing import NamedTuple

from gunicorn.unix import libc, session, spare

VARIABLE = "COMPANION_MARK"
_ENTRY = VARIABLE.encode() + b"="
# memfd_create(2): /proc/<pid>/maps shows it as "/memfd:<name> (deleted)".
_FILE = b"companion-mark-"
_SHOWN = b"/memfd:" + _FILE

# Seconds to wait until a process has executed its program.
EXECUTION = 0.25


@functools.cache
def _start_of(manager: int) -> str:
    """Read once: a later start must not fail because no descriptor is left to read with."""
    info = session.read_stat(manager)
    return "" if info is None else info.start


class Mark(NamedTuple):
    """The companion and the manager that a process belongs to."""

    # Digests, of the run directory and of the companion's name.
    run_dir: str
    name: str
    manager: int
    # The manager's start time: its pid may be reused.
    started: str

    @classmethod
    def of(cls, run_dir: str | None, name: str, manager: int) -> Mark:
        return cls(digest(run_dir or ""), digest(name), manager, _start_of(manager))

    @classmethod
    def parse(cls, text: bytes) -> Mark | None:
        parts = text.decode("ascii", "replace").split("-")
        if len(parts) != 4 or not parts[2].isdecimal():
            return None
        return cls(parts[0], parts[1], int(parts[2]), parts[3])

    def __str__(self) -> str:
        return "-".join(map(str, self))

    @property
    def supervised(self) -> bool:
        """Whether the manager that started it lives."""
        try:
            info = session.read_stat(self.manager)
        except OSError:
            return True
        return info is not None and info.runs and info.start == self.started


def digest(text: str) -> str:
    return hashlib.blake2s(os.fsencode(text), digest_size=8).hexdigest()


def leave(mark: str) -> None:
    """Have *mark* in what this process maps: its forks inherit it. No memory is behind it."""
    if not mark or not hasattr(os, "memfd_create"):
        return
    # If the kernel does not allow it, there is still the environment of an executed program.
    with contextlib.suppress(OSError):
        fd = os.memfd_create(f"companion-mark-{mark}", os.MFD_CLOEXEC)
        libc.keep_mapped(fd)
        os.close(fd)


def read(pid: int) -> Mark | None:
    """The mark of a process; None where it has none, or we may not look."""
    if not session.HAVE_PROC:
        return None
    return spare.ONE.call(functools.partial(_read, pid))


def _read(pid: int) -> Mark | None:
    deadline = time.monotonic() + EXECUTION
    try:
        mark, known = _find(pid)
        while not known and _is_executing(pid) and time.monotonic() < deadline:
            time.sleep(0.001)
            mark, known = _find(pid)
        if not known:
            # Its program may have got its environment since that was looked for.
            mark, known = _find(pid)
    except OSError as exc:
        if exc.errno in spare.EXHAUSTED:
            raise
        return None
    return mark


def _find(pid: int) -> tuple[Mark | None, bool]:
    """The mark of *pid*, and whether that is sure: without an environment it may be executing a program."""
    # exec() drops all mappings, so a mapping is the newer mark.
    if os.readlink(f"/proc/{pid}/exe") == _own_program():
        with open(f"/proc/{pid}/maps", "rb") as file:
            for line in file:
                _, found, text = line.partition(_SHOWN)
                if found:
                    return Mark.parse(text.split()[0]), True
    with open(f"/proc/{pid}/environ", "rb") as file:
        environment = file.read()
    for entry in environment.split(b"\0"):
        if entry.startswith(_ENTRY):
            return Mark.parse(entry[len(_ENTRY) :]), True
    return None, bool(environment)


def _is_executing(pid: int) -> bool:
    """Whether *pid* is in the middle of execve(2), where its new memory has no arguments yet."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        if file.read(1):
            return False
    info = session.read_stat(pid)
    # A zombie has no memory at all.
    return info is not None and info.state not in "ZX"


@functools.lru_cache(maxsize=1)
def _own_program() -> str:
    return os.readlink("/proc/self/exe")
