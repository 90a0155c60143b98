# SPDX-License-Identifier: MIT
"""The records of running companions, which outlive the manager.

One file a companion, in the run directory. The *lock* on it is the right to start the companion: the manager
takes it before the fork and holds it until the session is empty, so two supervisors on one directory never
start the same companion. The *record* in it says who runs: the child writes it itself, before its target
runs, since a manager can die between fork() and its next line; until then the child holds the inherited lock
too, so that the moment in which it lives without a record is covered. A record whose supervisor is dead
belongs to an orphan, and the manager that finds it ends that session.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

from gunicorn.unix import session, spare, trust
from gunicorn.unix.kernel import KERNEL, Kernel

SUFFIX = ".run"
MAX_RECORD = 64 * 1024
# A placeholder, so that the record or the reason of a failed start finds room on a disk that has become
# full.
_BLANK = b" " * 2048
# Seconds between two checks of a session whose leader is gone while the others may finish.
DRAIN_INTERVAL = 0.25
# Fields that records did not have from the beginning.
_LATER_FIELDS = {"stop_as_group": False, "group_signalled": False}


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
    # It is meant for the whole process group; and has been sent to it, which the kernel does not do.
    stop_as_group: bool = False
    group_signalled: bool = False
    # Why the start failed, where it did.
    error: str | None = None

    def to_bytes(self) -> bytes:
        return json.dumps(vars(self)).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Record | None:
        """Parse a record; None for an empty or incomplete file."""
        if not data:
            return None
        try:
            values = json.loads(data)
            # What a server of an earlier version wrote, which is upgraded now, has no such fields.
            values = {**_LATER_FIELDS, **values}
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
        )

    def is_supervised(self, kernel: Kernel = KERNEL) -> bool:
        """Whether the supervisor that started it lives."""
        return kernel.is_alive(self.supervisor, self.supervisor_started)

    def runs(self, kernel: Kernel = KERNEL) -> bool:
        """Whether the recorded process itself lives."""
        return kernel.is_alive(self.pid, self.started)


class RunFile:
    """An open, locked run file. Every holder may read and write the record."""

    def __init__(self, fd: int, path: str | None) -> None:
        self.fd = fd
        self.path = path
        # Where there is no room to write: the file that the lock is on, while this one has the record.
        self.locked: RunFile | None = None

    @classmethod
    def claim(cls, directory: str | None, name: str) -> RunFile | None:
        """Take the right to start *name*; None while somebody else has it. Raises OSError.

        Without a directory the file is one without a name: the record then serves
        only to report a failed start, and a manager's successor finds nothing.
        """
        if directory is None:
            fd = unnamed_file(name)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(fd, None)
        path = run_path(directory, name)
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
                _refuse_another_s(fd)
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

    def error_of(self, pid: int) -> str | None:
        """Why the start of *pid* failed, if it did."""
        record = self.read()
        return record.error if record is not None and record.pid == pid else None

    def write(self, record: Record) -> None:
        """Write *record*, padded, so that the reason of a failed start has room too. Raises OSError."""
        data = record.to_bytes().ljust(len(_BLANK))
        os.pwrite(self.fd, data, 0)
        os.ftruncate(self.fd, len(data))

    def clear(self) -> bool:
        """Forget the record and keep the lock; False where there is no room for the next record."""
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
        """Whether it is where others look for it: somebody may have removed it, or its directory."""
        return self.path is None or _is_same_file(self.fd, self.path)

    def release(self) -> None:
        """Clear the record, remove the file, let the lock go."""
        if self.path is not None and self.in_place:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        # A descendant may hold this description; an unlock is for all who share it.
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        self.close()
        if self.locked is not None:
            self.locked.release()

    def close(self) -> None:
        """Close this process's descriptor; in a child the lock stays with the parent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def run_path(directory: str, name: str) -> str:
    return os.path.join(directory, name + SUFFIX)


def unnamed_file(name: str) -> int:
    """A file in memory, else a temporary one. Raises OSError. *name* is what /proc shows."""
    if hasattr(os, "memfd_create"):
        # Where the file system is read-only, nothing else is left. Old kernels and sandboxes refuse it.
        with contextlib.suppress(OSError):
            return os.memfd_create(name, os.MFD_CLOEXEC)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)


def _is_same_file(fd: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _refuse_another_s(fd: int) -> None:
    """Keep root from living by a file that somebody else has made, where everybody may make some."""
    if os.geteuid() == 0:
        info = os.fstat(fd)
        if info.st_uid != 0 or info.st_nlink > 1:
            raise PermissionError(errno.EPERM, "another user has made it")


def _is_believable(record: Record, info: os.stat_result, directory: str) -> bool:
    """Whether the author of a record, in the file *info*, could signal the processes that it names.

    Root could be made to signal others. A run directory may be one where everybody makes files.
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
        fd = os.open(run_path(directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Shared: two who only look are not in each other's way.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def peek(directory: str | None, name: str) -> Record | None:
    """The record of *name* as it is, whoever holds the lock; None where there is none."""
    if directory is None:
        return None
    # The directory is the companions' user's. A master that is root waits on no pipe and
    # follows no link that he may have put there.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

    def read() -> tuple[bytes, os.stat_result]:
        fd = os.open(run_path(directory, name), flags)
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


class Orphan:
    """The end of a recorded session whose supervisor is dead.

    ``step`` is called at intervals until it returns True. A process that had its parent-death signal is only
    waited for; others get their stop signal once. When the leader is gone, or at the deadline, the rest of
    the session gets SIGKILL. With `stop_as_group` the others get the stop signal like the leader, and have
    until the deadline. With *uid* only that user's processes are touched: the records lie in a directory of
    the companions' user, who must not be able to make a privileged master kill for him.
    """

    def __init__(
        self,
        record: Record,
        now: float,
        run: RunFile | None = None,
        timeout: float | None = None,
        uid: int | None = None,
        kernel: Kernel = KERNEL,
    ) -> None:
        self.record = record
        self.kernel = kernel
        self.uid = uid
        self.deadline = now + (record.stop_timeout if timeout is None else timeout)
        # The time of the next check for others than the leader, while those may finish.
        self._look_at = now
        self._run = run
        self._begun = False
        with contextlib.suppress(OSError):
            self._begin()

    def _begin(self) -> None:
        """Ask it to end. Raises OSError where no descriptor is left to look with."""
        record, run = self.record, self._run
        if record.runs(self.kernel):
            if not self._may_touch(record.pid):
                self._begun = True
                return
            # A stopped process handles its parent-death signal only once it continues.
            self.kernel.ask_to_stop(record.pid, signal.SIGCONT if record.signalled else record.stop_signal)
        elif self._is_strangers():
            self._begun = True
            return
        self._begun = True
        if record.stop_as_group and not record.group_signalled:
            self._ask_the_others()
        if run is not None and not (record.signalled and record.group_signalled is record.stop_as_group):
            # A next manager, should this one die too, must not send it again.
            run.write(replace(record, signalled=True, group_signalled=record.stop_as_group))

    def _ask_the_others(self) -> None:
        """Send the stop signal to the process group except its leader, which gets its own."""
        leader = self.record.pid
        for pid in self.kernel.members({self.record.session}).get(self.record.session, ()):
            with contextlib.suppress(OSError):
                if pid != leader and self.kernel.group_of(pid) == leader and self._may_touch(pid):
                    self.kernel.ask_to_stop(pid, self.record.stop_signal)

    def _is_strangers(self) -> bool:
        """Whether somebody else has the leader's number now.

        The kernel does not give out the number of a session that still has members; or it never was a
        companion's.
        """
        return not self.record.runs(self.kernel) and self.kernel.identity(self.record.pid) is not None

    def drains(self, now: float) -> bool:
        """Whether it may finish its work, so that there is nothing to do but wait."""
        try:
            if now >= self.deadline or not self._may_touch(self.record.pid):
                return False
        except OSError:
            return False
        return self.record.runs(self.kernel) or now < self._look_at

    def step(self, now: float, members: Mapping[int, list[int]] | None = None) -> bool:
        """Do what is due; True when the session is empty. *members*: `session.members`, if at hand."""
        try:
            return self._step(now, members)
        except OSError:
            # No descriptor is left to look with: it is not known to be gone.
            return False

    def _step(self, now: float, members: Mapping[int, list[int]] | None) -> bool:
        if not self._begun:
            self._begin()
        if self.record.runs(self.kernel) and self._may_touch(self.record.pid):
            if now >= self.deadline:
                self.kill(members)
            return False
        if self._is_strangers():
            return True
        if self.record.stop_as_group and now < self.deadline:
            if now >= self._look_at or members is not None:
                self._look_at = now + DRAIN_INTERVAL
                return not self._members(members)
            return False
        return not self.kill(members)

    def _members(self, members: Mapping[int, list[int]] | None) -> list[int]:
        if members is None:
            members = self.kernel.members({self.record.session})
        return [pid for pid in members.get(self.record.session, []) if self._may_touch(pid)]

    def kill(self, members: Mapping[int, list[int]] | None = None) -> bool:
        """SIGKILL to every member; False where there is none."""
        pids = self._members(members)
        for pid in pids:
            self.kernel.send(pid, signal.SIGKILL)
        return bool(pids)

    def _may_touch(self, pid: int) -> bool:
        return self.uid is None or self.kernel.owner(pid) == self.uid


def orphans(
    directory: str | None, now: float, known: Iterable[str] = (), kernel: Kernel = KERNEL
) -> dict[str, Orphan]:
    """An `Orphan` for each recorded session of *directory* whose supervisor is dead, but for names *known*.

    Those are made when the companion is to start, because making one sends the stop signal.
    """
    skipped = frozenset(known)
    return {
        name: Orphan(record, now, kernel=kernel)
        for name, record in records(directory).items()
        if name not in skipped and not record.is_supervised(kernel)
    }


def remove_dead(directory: str) -> None:
    """Remove what a manager that was killed has left of companions that have come to their end."""
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
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    try:
        # A process that locks it just then sees that it is gone, and makes another.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(file, dir_fd=directory)
    finally:
        os.close(fd)
