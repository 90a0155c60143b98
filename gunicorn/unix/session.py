# SPDX-License-Identifier: MIT
"""Find the processes of a session, describe and signal them.

A companion's unit is its *session*: job workers put their children into process
groups of their own, but leave the session alone. Linux tells by /proc; elsewhere
``ps`` lists the processes and getsid(2) places them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Collection, Mapping
from typing import NamedTuple

from gunicorn.unix import spare

HAVE_PROC = os.path.exists("/proc/self/stat")


class Stat(NamedTuple):
    """Fields of /proc/<pid>/stat, proc(5)."""

    state: str
    ppid: int
    session: int
    threads: int
    start: str
    # The processor time of the process and of its children that have ended, in seconds.
    cpu: float

    @property
    def runs(self) -> bool:
        """Whether it is not just a zombie."""
        return self.state not in "ZX" or self.threads > 1


def read_stat(pid: int) -> Stat | None:
    """The status of *pid*; None if there is no such process, or no /proc.

    Raises OSError if no descriptor is left.
    """
    try:
        text = spare.ONE.call(lambda: _stat_text(pid))
    except OSError as exc:
        if exc.errno in spare.EXHAUSTED:
            raise
        return None
    values = _fields(text)
    return Stat(
        values[0].decode(),
        int(values[1]),
        int(values[3]),
        int(values[17]),
        values[19].decode(),
        _cpu_seconds(values),
    )


def _fields(text: bytes) -> list[bytes]:
    """The fields of /proc/<pid>/stat from the third, the state, on.

    The command in parentheses, the second, may hold spaces and parentheses of its own.
    """
    return text[text.rindex(b")") + 2 :].split(None, 20)


def cpu_seconds(pid: int) -> float | None:
    """The processor time of *pid* and of its children that have ended, in seconds; None: not known."""
    try:
        text = spare.ONE.call(lambda: _stat_text(pid))
    except OSError:
        return None
    return _cpu_seconds(_fields(text))


def _cpu_seconds(values: list[bytes]) -> float:
    return round(sum(map(int, values[11:15])) / os.sysconf("SC_CLK_TCK"), 2)


def command_name(pid: int) -> str:
    """The name of the program that *pid* runs, as in ``ps``; empty if it is unknown."""
    if not HAVE_PROC:
        return os.path.basename(_ps(pid, "comm"))
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def names_of(pids: Collection[int]) -> str:
    """``12 sh, 13 node``: the processes *pids* for a log."""
    return ", ".join(f"{pid} {command_name(pid)}".rstrip() for pid in pids)


def _stat_text(pid: int) -> bytes:
    # Not with open(): creating a file object takes longer than the read, and this runs for each process of
    # the machine.
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def other_threads(pid: int) -> list[str]:
    """The /proc directories of the other threads of *pid*, if its main thread has ended."""
    with contextlib.suppress(OSError):
        info = read_stat(pid)
        if info is not None and info.state in "ZX":
            directory = f"/proc/{pid}/task"
            return [f"{directory}/{name}" for name in os.listdir(directory) if name != str(pid)]
    return []


@functools.cache
def boot_id() -> str:
    """An id of this boot of the machine: pids and start times repeat after the next one."""
    try:
        # Bytes: a codec is a module, and the user may have no right to load it.
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read().strip().decode()
    except OSError:
        return ""


def identity(pid: int) -> str | None:
    """A string that no other process with this pid ever has; None if there is no live process.

    A zombie is not alive, unless it has other threads that run. Raises OSError if no descriptor is left.
    """
    if HAVE_PROC:
        info = read_stat(pid)
        return f"{boot_id()}/{info.start}" if info is not None and info.runs else None
    return _ps(pid, "lstart") if _ps(pid, "stat")[:1] not in ("", "Z") else None


def own_identity() -> str:
    """The `identity` of this process; in fewer steps, because each companion asks. Raises OSError."""
    if not HAVE_PROC:
        return identity(os.getpid()) or ""
    text = _stat_text(os.getpid())
    return f"{boot_id()}/{text[text.rindex(b')') + 2 :].split(None, 20)[19].decode()}"


def is_alive(pid: int, who: str) -> bool:
    """Whether the process with this pid and `identity` *who* still runs."""
    try:
        return identity(pid) == who
    except OSError:
        # Waiting for a stranger is better than taking a living process for dead.
        return exists(pid)


def exists(pid: int) -> bool:
    """Whether there is a process *pid*, even a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def members(sessions: Collection[int]) -> dict[int, list[int]]:
    """The live processes of each of *sessions* that has any. Raises OSError if no descriptor is left."""
    found: dict[int, list[int]] = {}
    if not sessions:
        return found
    for pid, session in _all_sessions():
        if session in sessions and _runs(pid):
            found.setdefault(session, []).append(pid)
    return found


def _runs(pid: int) -> bool:
    """Whether *pid* is not just a zombie; without /proc the caller knows that."""
    if not HAVE_PROC:
        return True
    info = read_stat(pid)
    return info is not None and info.runs


def _all_sessions() -> list[tuple[int, int]]:
    result = []
    if HAVE_PROC:
        # One system call each; `members` excludes zombies later.
        for name in _list_proc():
            if name.isdigit():
                pid = int(name)
                try:
                    result.append((pid, os.getsid(pid)))
                except OSError:
                    continue
        return result
    for line in _ps(None, "pid", "stat").splitlines():
        number, _, state = line.strip().partition(" ")
        if not state.strip().startswith("Z"):
            with contextlib.suppress(OSError):
                result.append((int(number), os.getsid(int(number))))
    return result


def _list_proc() -> list[str]:
    return spare.ONE.call(lambda: os.listdir("/proc"))


def _ps(pid: int | None, *columns: str) -> str:
    import subprocess

    which = ["-A"] if pid is None else ["-p", str(pid)]
    # One option for each: after the "=" the rest of an option is the header of its column (POSIX).
    shown = [f"-o{column}=" for column in columns]
    done = subprocess.run(["ps", *which, *shown], stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip()


def session_of(pid: int) -> int | None:
    """The session of *pid*; None if it is gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return None


def all_pids() -> list[int]:
    """Every process; empty without /proc."""
    return [int(name) for name in _list_proc() if name.isdigit()] if HAVE_PROC else []


def families(sessions: Collection[int], more: Mapping[int, int]) -> dict[int, list[int]]:
    """Return the live processes of each of *sessions*, and their descendants in other sessions.

    *more*: the session of each process that has lost its parent. Without /proc: `members`.
    """
    if not HAVE_PROC:
        return members(sessions)
    stats = {pid: info for pid in all_pids() if (info := read_stat(pid)) is not None}
    owners: dict[int, int] = {pid: owner for pid, owner in more.items() if owner in sessions}
    owners.update((pid, info.session) for pid, info in stats.items() if info.session in sessions)
    found: dict[int, list[int]] = {}
    for pid, info in stats.items():
        path = []
        each = pid
        while each in stats and each not in owners:
            path.append(each)
            each = stats[each].ppid
        owner = owners.get(each, 0)
        # Look each one up once, however many descendants it has.
        owners.update(dict.fromkeys(path, owner))
        if owner and info.runs:
            found.setdefault(owner, []).append(pid)
    return found


def children_of(parent: int) -> list[int]:
    """The children of *parent*, zombies included; empty without /proc."""
    return [pid for pid in all_pids() if (info := read_stat(pid)) is not None and info.ppid == parent]


class OwnChildren:
    """The kernel's list of the children of this process (Linux), zombies included.

    It has the children that the main thread has forked and all adopted ones. proc(5) warns that the list may
    miss some, because an entry is skipped if an earlier one leaves during the read. From our own list an
    entry leaves only by our own wait(2), so a read between two waits is exact.
    """

    def __init__(self) -> None:
        try:
            self.fd = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # There is no /proc, it is of another pid namespace, or the kernel was built without the list.
            self.fd = -1

    def read(self) -> set[int] | None:
        """The children; None if they are unknown."""
        if self.fd < 0:
            return None
        text = b""
        try:
            while piece := os.pread(self.fd, 65536, len(text)):
                text += piece
        except OSError:
            return None
        return set(map(int, text.split()))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def owner(pid: int) -> int | None:
    """The real user id of a process; None if it is gone. Raises OSError if no descriptor is left."""
    if not HAVE_PROC:
        text = _ps(pid, "ruid")
        return int(text) if text.isdigit() else None

    def read_lines() -> list[bytes]:
        with open(f"/proc/{pid}/status", "rb") as file:
            return file.readlines()

    try:
        lines = spare.ONE.call(read_lines)
    except OSError as exc:
        if exc.errno in spare.EXHAUSTED:
            raise
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(b"Uid:")), None)


def send(pid: int, signum: int) -> bool:
    """Send one signal; False if the process is gone or belongs to another user."""
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def ask_to_stop(pid: int, signum: int, as_group: bool = False) -> None:
    """Send the stop signal, then SIGCONT: a stopped process handles no other signal."""
    for each in (signum, signal.SIGCONT):
        # The group of a session leader has its number. Right after the fork there is only the process.
        if not (as_group and _send_to_group(pid, each)):
            send(pid, each)


def ask_group_to_stop(group: int, signum: int) -> None:
    """Send the same to the rest of a process group whose leader is gone.

    The kernel does not reuse the number while the group exists.
    """
    if group > 0 and _send_to_group(group, signum):
        _send_to_group(group, signal.SIGCONT)


def _send_to_group(group: int, signum: int) -> bool:
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True
