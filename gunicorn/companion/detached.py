# SPDX-License-Identifier: MIT
"""Find processes that have left their companion's session, and their companion.

A daemon calls setsid(2) and loses its parent, so neither its session nor the process tree shows its origin.
But it keeps an inherited mark: a variable in the environment of its program, or, in a fork of a Python
target, a mapping of a memory file with the same text as its name. Only Linux shows both, in /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from gunicorn.unix import session, spare

VARIABLE = "COMPANION_MARK"
_ENTRY = VARIABLE.encode() + b"="
# memfd_create(2): /proc/<pid>/maps shows it as "/memfd:<name> (deleted)".
_FILE = b"companion-mark-"
_SHOWN = b"/memfd:" + _FILE

# Whether a process with that mark is meant.
Names = Callable[["Mark"], bool]

# Seconds to wait for processes to be gone after SIGKILL, before anything starts.
END_OF_LEFT = 1.0
# Seconds to wait until a process has executed its program.
EXECUTION = 0.25


class Mark(NamedTuple):
    """Whose a process is: a companion of *manager*, which runs those of a directory. Names are digests."""

    run_dir: str
    name: str
    manager: int
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


@functools.lru_cache(maxsize=4096)
def digest(text: str) -> str:
    return hashlib.blake2s(os.fsencode(text), digest_size=8).hexdigest()


@functools.lru_cache(maxsize=1)
def _start_of(pid: int) -> str:
    info = session.read_stat(pid)
    return "" if info is None else info.start


def _load_mmap() -> Callable[..., int | None] | None:
    if not sys.platform.startswith("linux") or not hasattr(os, "memfd_create"):
        return None
    try:
        function = ctypes.CDLL(None).mmap
    except (OSError, AttributeError):
        return None
    size, number = ctypes.c_size_t, ctypes.c_int
    function.argtypes = (ctypes.c_void_p, size, number, number, number, ctypes.c_long)
    function.restype = ctypes.c_void_p
    return function


# Loaded before any fork, like prctl(2).
_MMAP = _load_mmap()
_PROT_NONE, _MAP_SHARED = 0, 1


def leave(mark: str) -> None:
    """Have *mark* in what this process maps: its forks inherit it. No memory is behind it."""
    if _MMAP is None or not mark:
        return
    # If the kernel does not allow it, there is still the environment of an executed program.
    with contextlib.suppress(OSError):
        fd = os.memfd_create(f"companion-mark-{mark}", os.MFD_CLOEXEC)
        _MMAP(None, 4096, _PROT_NONE, _MAP_SHARED, fd, 0)
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


class Adopted:
    """Those children of this manager that it has not forked: what lost its parent below it."""

    def __init__(self, children: session.OwnChildren, run_dir: str | None) -> None:
        self.children = children
        self.run_dir = run_dir
        self._marks: dict[int, Mark | None] = {}

    def of(self, names: Collection[str], forked: Collection[int]) -> dict[str, list[int]]:
        """The adopted that companions of *names* have left or put into the background; *forked*: our own."""
        found = self.children.read()
        adopted = set() if found is None else found - set(forked)
        self._marks = {pid: mark for pid, mark in self._marks.items() if pid in adopted}
        result: dict[str, list[int]] = {}
        if not adopted:
            return result
        me, by_digest = os.getpid(), {digest(name): name for name in names}
        for pid in sorted(adopted):
            mark = self._mark(pid)
            if mark is not None and mark.manager == me and mark.name in by_digest and _runs(pid):
                result.setdefault(by_digest[mark.name], []).append(pid)
        return result

    def _mark(self, pid: int) -> Mark | None:
        if pid not in self._marks:
            try:
                self._marks[pid] = read(pid)
            except OSError:
                return None
        return self._marks[pid]


def _runs(pid: int) -> bool:
    info = session.read_stat(pid)
    return info is not None and info.runs


def left(run_dir: str | None) -> dict[int, Mark]:
    """What dead managers of *run_dir* have left, by pid, the sessions that are still to end included."""
    if run_dir is None:
        return {}
    ours = digest(run_dir)
    return of_dead_managers(lambda mark: mark.run_dir == ours)


def may_hold_sockets(run_dir: str | None) -> dict[int, str]:
    """Return leftovers of dead managers, by pid with the digest of its companion's name.

    Also those of companions that may run beside an older process, of any server, because no later manager
    stops them.
    """
    places = {digest(run_dir or ""), digest("")}
    return {pid: mark.name for pid, mark in of_dead_managers(lambda mark: mark.run_dir in places).items()}


def of_dead_managers(is_wanted: Names) -> dict[int, Mark]:
    """The processes, by pid, that run with a mark that *is_wanted* and whose manager is dead."""
    found: dict[int, Mark] = {}
    alive: dict[tuple[int, str], bool] = {}
    for pid in session.all_pids():
        mark = read(pid)
        if mark is None or not is_wanted(mark):
            continue
        manager = (mark.manager, mark.started)
        if manager not in alive:
            alive[manager] = mark.supervised
        if not alive[manager] and _runs(pid):
            found[pid] = mark
    return found


def end_left(
    look: Callable[[], Mapping[int, Mark]],
    tell: Callable[[Collection[int]], None],
    names: Names = lambda mark: True,
) -> None:
    """SIGKILL to what *look* finds of companions *names*, and a moment for that to be gone.

    *tell* is told before.
    """
    deadline = time.monotonic() + END_OF_LEFT
    told: set[int] = set()
    with contextlib.suppress(OSError):
        while pids := [pid for pid, mark in look().items() if names(mark)]:
            if fresh := [pid for pid in pids if pid not in told]:
                tell(fresh)
                told.update(fresh)
            for pid in pids:
                session.send(pid, signal.SIGKILL)
            if time.monotonic() >= deadline:
                return
            time.sleep(0.005)
