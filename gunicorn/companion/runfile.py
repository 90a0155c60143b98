# SPDX-License-Identifier: MIT
"""The records of running companions, which outlive the manager.

Each companion has one file in the run directory. The *lock* on it is the right to start the companion: the
manager takes it before the fork and holds it until the session is empty, so two managers on one directory
never start the same companion. The *record* in it names the process. The child writes it itself, because the
manager can die between fork() and its next line; until it has done so, it holds the inherited lock as well.
A record whose supervisor is dead belongs to an orphan; the manager that finds it ends that session.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from gunicorn.unix import session, spare, trust
from gunicorn.unix.kernel import KERNEL, Kernel

SUFFIX = ".run"
MAX_RECORD = 64 * 1024
# Keeps room for the record, and for the reason of a failed start, on a disk that becomes full.
_BLANK = b" " * 2048
# Seconds between two checks of a session whose leader is gone while the others may finish.
DRAIN_INTERVAL = 0.25
# Somebody else may own the directory: follow no link, and wait for no pipe.
_TO_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# Fields that an earlier version did not write, whose records are read during an upgrade.
_LATER_FIELDS: dict[str, Any] = {
    "stop_as_group": False,
    "group_signalled": False,
    "exception": None,
    "later_signals": (),
}


@dataclass(frozen=True)
class Record:
    """The process of a companion. ``started`` and ``supervisor_started`` are `session.identity` strings."""

    name: str
    pid: int
    started: str
    session: int
    supervisor: int
    supervisor_started: str
    stop_signal: int
    stop_timeout: float
    # The stop signal has been sent, or the kernel sends it when the supervisor dies.
    signalled: bool = False
    # It is meant for the whole process group; and has been sent to all of it. The kernel signals the leader
    # alone.
    stop_as_group: bool = False
    group_signalled: bool = False
    # Why the start failed, where it did; or the exception that has ended the target.
    error: str | None = None
    exception: str | None = None
    # The stop signals after the first one, each with the seconds that it leaves before SIGKILL.
    later_signals: Sequence[Sequence[float]] = ()

    def to_bytes(self) -> bytes:
        return json.dumps(vars(self)).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Record | None:
        """Parse a record; None for an empty or incomplete file."""
        if not data:
            return None
        try:
            values = {**_LATER_FIELDS, **json.loads(data)}
            values["later_signals"] = tuple(map(tuple, values["later_signals"]))
            record = cls(**{f.name: values[f.name] for f in fields(cls)})
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return record if record._is_sound() else None

    def _is_sound(self) -> bool:
        """Whether each value has its type: these numbers are used to signal processes."""
        numbers = (self.pid, self.session, self.supervisor, self.stop_signal)
        texts = (self.name, self.started, self.supervisor_started)
        return (
            all(type(number) is int and number > 0 for number in numbers)
            and all(isinstance(text, str) for text in texts)
            and type(self.stop_timeout) in (int, float)
            and self.stop_timeout >= 0
            and all(type(flag) is bool for flag in (self.signalled, self.stop_as_group, self.group_signalled))
            and all(map(_is_sound_signal, self.later_signals))
        )

    def is_supervised(self, kernel: Kernel = KERNEL) -> bool:
        """Whether the supervisor that started it lives."""
        return kernel.is_alive(self.supervisor, self.supervisor_started)

    def runs(self, kernel: Kernel = KERNEL) -> bool:
        """Whether the recorded process itself lives."""
        return kernel.is_alive(self.pid, self.started)


def _is_sound_signal(pair: Sequence[Any]) -> bool:
    """Whether *pair* is a signal with seconds."""
    return len(pair) == 2 and type(pair[0]) is int and pair[0] > 0 and type(pair[1]) in (int, float)


class RunFile:
    """An open, locked run file. Every holder may read and write the record."""

    def __init__(self, fd: int, path: str | None) -> None:
        self.fd = fd
        self.path = path
        # If the disk is full: the locked file in the directory, while this one, in memory, has the record.
        self.locked: RunFile | None = None

    @classmethod
    def claim(cls, directory: str | None, name: str, suffix: str = SUFFIX) -> RunFile | None:
        """Take the right to start *name*; None while somebody else has it. Raises OSError.

        Without a directory the file has no name: its record reports a failed start, but no later manager
        finds it. A file with another *suffix* stands for another right.
        """
        if directory is None:
            fd = unnamed_file(name)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(fd, None)
        path = run_path(directory, name, suffix)
        for attempt in itertools.count():
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                if attempt:
                    raise
                # A server that has just ended took the empty directory away.
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory, 0o700)
                continue
            try:
                _refuse_foreign_file(fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return None
            except BaseException:
                os.close(fd)
                raise
            # Its last holder may have removed it between our open and our lock.
            if _is_same_file(fd, path):
                return cls(fd, path)
            os.close(fd)
        raise AssertionError("unreachable")

    def read(self) -> Record | None:
        return Record.from_bytes(os.pread(self.fd, MAX_RECORD, 0))

    def report_of(self, pid: int) -> tuple[str | None, str | None]:
        """Return why the start of *pid* failed, and the exception that ended it; each may be None."""
        record = self.read()
        if record is None or record.pid != pid:
            return None, None
        return record.error, record.exception

    def write(self, record: Record) -> None:
        """Write *record*, padded, so that the reason of a failed start has room too. Raises OSError."""
        data = record.to_bytes().ljust(len(_BLANK))
        os.pwrite(self.fd, data, 0)
        os.ftruncate(self.fd, len(data))

    def clear(self) -> bool:
        """Clear the record and keep the lock; False if there is no room for the next record."""
        with contextlib.suppress(OSError):
            if os.pwrite(self.fd, _BLANK, 0) == len(_BLANK):
                os.ftruncate(self.fd, len(_BLANK))
                return True
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
        return False

    def copy_to(self, other: RunFile) -> None:
        """Copy the record there. Raises OSError."""
        if not other.clear():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if (record := self.read()) is not None:
            other.write(record)

    def descriptors(self) -> list[int]:
        return [self.fd] if self.locked is None else [self.fd, self.locked.fd]

    @property
    def in_place(self) -> bool:
        """Whether it is still in the directory: somebody may have removed it."""
        return self.path is None or _is_same_file(self.fd, self.path)

    def release(self) -> None:
        """Clear the record, remove the file, let the lock go."""
        if self.path is not None and self.in_place:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        # A descendant may still have the file open; an unlock counts for it too.
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        self.close()
        if self.locked is not None:
            self.locked.release()

    def close(self) -> None:
        """Close this process's descriptor; in a child the lock stays with the parent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def run_path(directory: str, name: str, suffix: str = SUFFIX) -> str:
    return os.path.join(directory, name + suffix)


def unnamed_file(name: str) -> int:
    """Open a file in memory, else a temporary one. Raises OSError. /proc shows it as *name*."""
    if hasattr(os, "memfd_create"):
        # It works on a read-only file system too. Old kernels and sandboxes refuse it.
        with contextlib.suppress(OSError):
            return os.memfd_create(name, os.MFD_CLOEXEC)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)


def note_exception(path: str | None, exception: str) -> None:
    """Have the record of this process say what ends it.

    Without the lock, and by the name of the file: a companion keeps nothing of its manager open. Raises
    OSError.
    """
    if path is None:
        return
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        run = RunFile(fd, path)
        record = run.read()
        if record is not None and record.pid == os.getpid():
            run.write(replace(record, exception=exception))
    finally:
        os.close(fd)


def _is_same_file(fd: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _refuse_foreign_file(fd: int) -> None:
    """Keep root from trusting a file that another user has made. Raises PermissionError."""
    if os.geteuid() == 0:
        info = os.fstat(fd)
        if info.st_uid != 0 or info.st_nlink > 1:
            raise PermissionError(errno.EPERM, "another user has made it")


def _is_believable(record: Record, info: os.stat_result, directory: str) -> bool:
    """Whether the author of a record, in the file *info*, could signal the processes that it names.

    Otherwise a user could have root kill processes for him.
    """
    if os.geteuid() != 0:
        return True
    try:
        if info.st_uid in (0, os.stat(directory).st_uid):
            return info.st_nlink <= 1
        return session.owner(record.pid) == info.st_uid and os.getsid(record.pid) == record.session
    except OSError:
        return False


def is_held(directory: str | None, name: str) -> bool:
    """Whether somebody has the right to start *name*, this process included."""
    if directory is None:
        return False
    try:
        fd = os.open(run_path(directory, name), _TO_READ)
    except OSError:
        return False
    try:
        # Shared, so that two that only look do not block each other.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def peek(directory: str | None, name: str) -> Record | None:
    """The record of *name*, whoever holds the lock; None if there is none."""
    if directory is None:
        return None

    def read() -> tuple[bytes, os.stat_result]:
        fd = os.open(run_path(directory, name), _TO_READ)
        try:
            return os.read(fd, MAX_RECORD), os.fstat(fd)
        finally:
            os.close(fd)

    try:
        data, info = spare.ONE.call(read)
    except OSError:
        return None
    record = Record.from_bytes(data)
    return record if record is not None and _is_believable(record, info, directory) else None


def names(directory: str | None) -> list[str]:
    """The names that have a run file in *directory*."""
    if directory is None:
        return []
    try:
        found = spare.ONE.call(lambda: os.listdir(directory))
    except OSError:
        return []
    return [name[: -len(SUFFIX)] for name in found if name.endswith(SUFFIX)]


def records(directory: str | None) -> dict[str, Record]:
    """All records of a run directory by companion name."""
    found = {name: peek(directory, name) for name in names(directory)}
    return {name: record for name, record in found.items() if record is not None}


def remove_dead(directory: str) -> None:
    """Remove the files that a killed manager has left of companions that have ended."""
    try:
        fd = trust.open_directory(directory)
    except OSError:
        return
    try:
        for name in names(directory):
            record = peek(directory, name)
            if record is None or not (record.is_supervised() or record.runs()):
                with contextlib.suppress(OSError):
                    _remove_unless_held(fd, name + SUFFIX)
    finally:
        os.close(fd)


def _remove_unless_held(directory: int, file: str) -> None:
    fd = os.open(file, _TO_READ, dir_fd=directory)
    try:
        # A manager that locks it just afterwards sees that it is gone, and makes another.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(file, dir_fd=directory)
    finally:
        os.close(fd)
