# SPDX-License-Identifier: MIT
"""Leases as files in a directory: ``file:///mnt/shared/leases``, for servers on one host or an NFSv4 mount.

A file is changed under its lock alone. The hosts' clocks need not agree: a lease is free when its file has
not changed for the ttl, by the clock of the server that looks at it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import stat
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote

from gunicorn.companion.leasing.store import (
    LARGEST_TOKEN,
    LONGEST_NOTE,
    Answer,
    LeaseError,
    StoreError,
    sleep,
    split_url,
)
from gunicorn.unix import boottime, trust

# Each file has two records: one is written while the other one stays, for the case that the writer is killed.
# A note of non-ASCII characters may take six times its bytes.
_RECORD = 8 * LONGEST_NOTE

# NAME_MAX of Linux.
_LONGEST_FILE_NAME = 255

# Seconds between two looks at files of others, and between two tries for a lock.
_LOOK = 0.5
_TRY = 0.02


class Record(NamedTuple):
    """What is in the file. ``changes`` counts all writes."""

    changes: int = 0
    owner: str = ""
    token: int = 0
    ttl: float = 0.0
    note: str = ""

    def is_sound(self) -> bool:
        """Whether each value has its type: others may write the file."""
        return (
            all(type(number) is int and 0 <= number <= LARGEST_TOKEN for number in (self.changes, self.token))
            and isinstance(self.owner, str)
            and type(self.ttl) in (int, float)
            and 0 <= self.ttl < math.inf
            and isinstance(self.note, str)
        )


class Seen(NamedTuple):
    """A record, and when this server first saw it."""

    record: Record
    since: float


def check(url: str) -> None:
    """Raise ValueError with what to change."""
    parts = split_url(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path or parts.query:
        raise ValueError(
            f"{url!r} names no directory: write file:///PATH, with three slashes and an absolute path"
        )


def check_name(name: str) -> None:
    """Raise ValueError with what to change."""
    if len(_file_name(name)) > _LONGEST_FILE_NAME:
        raise ValueError(f"{name!r} is too long for the name of a file: give the lease a shorter name")


def _file_name(name: str) -> str:
    """Of ASCII alone."""
    return quote(name, safe="@ ") + ".lease"


def connect(url: str, timeout: float) -> FileStore:
    check(url)
    return FileStore(unquote(split_url(url).path), timeout)


class FileStore:
    """A directory of leases. *timeout*: seconds to wait for the lock of a file."""

    def __init__(self, directory: str, timeout: float) -> None:
        self.directory = directory
        self.timeout = timeout
        self._seen: dict[str, Seen] = {}

    def acquire(self, name: str, owner: str, ttl: float) -> Answer:
        with self._locked(name) as file:
            found = self._look(name, file)
            record, left = found.record, _left(found)
            if record.owner not in ("", owner) and left > 0:
                return Answer(False, record.owner, record.token, left, record.note)
            if not os.fstat(file).st_size:
                # The room for both records, on a disk that becomes full.
                record = self._write(name, file, record, durable=False)
            token = record.token if record.owner == owner else record.token + 1
            self._write(name, file, record._replace(owner=owner, token=token, ttl=ttl), durable=True)
            return Answer(True, owner, token, ttl, record.note)

    def renew(self, name: str, owner: str, token: int, ttl: float, note: str | None) -> bool:
        with self._locked(name) as file:
            record = self._look(name, file).record
            if (record.owner, record.token) != (owner, token):
                return False
            note = record.note if note is None else note
            self._write(name, file, record._replace(ttl=ttl, note=note), durable=note != record.note)
            return True

    def release(self, name: str, owner: str, token: int, note: str | None) -> None:
        with self._locked(name) as file:
            record = self._look(name, file).record
            if (record.owner, record.token) == (owner, token):
                note = record.note if note is None else note
                self._write(name, file, record._replace(owner="", note=note), durable=note != record.note)

    def wait(self, names: Sequence[str], seconds: float, wake: int) -> None:
        end = boottime.now() + seconds
        while not any(self._may_be_free(name) for name in names):
            left = end - boottime.now()
            if left <= 0:
                return
            pause = min(left, _LOOK)
            before = boottime.now()
            sleep(pause, wake)
            if boottime.now() < before + pause:
                return

    def close(self) -> None:
        pass

    # -- files -----------------------------------------------------------------

    def _may_be_free(self, name: str) -> bool:
        """Look without the lock: `acquire` decides."""
        try:
            fd = self._open(name, os.O_RDONLY)
        except OSError:
            return True
        try:
            found = self._look(name, fd)
        except OSError:
            return True
        finally:
            os.close(fd)
        return not found.record.owner or _left(found) <= 0

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, _file_name(name))

    def _open(self, name: str, flags: int) -> int:
        """Somebody else may own the directory: follow no link, and wait for no pipe."""
        # Servers of one group may share the files.
        fd = trust.open_file(self._path(name), flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o660)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is not a file", self._path(name))
        return fd

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[int]:
        try:
            trust.make_directories(self.directory)
            fd = self._open(name, os.O_RDWR | os.O_CREAT)
            try:
                self._lock(name, fd)
                yield fd
            finally:
                os.close(fd)
        except OSError as exc:
            raise self._error(name, exc) from None

    def _lock(self, name: str, fd: int) -> None:
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LeaseError(
                        f"{self._path(name)} is locked by another process for {self.timeout:.2g} s"
                    ) from None
                time.sleep(_TRY)

    def _look(self, name: str, fd: int) -> Seen:
        record = _read(fd)
        seen = self._seen.get(name)
        if seen is not None and not record.changes:
            # Somebody has removed or emptied the file: what it said still counts.
            return seen
        if seen is None or seen.record != record:
            seen = self._seen[name] = Seen(record, boottime.now())
        return seen

    def _write(self, name: str, fd: int, record: Record, *, durable: bool) -> Record:
        """Return what is written. *durable*: also if the host crashes; a lost renewal does no harm."""
        record = record._replace(changes=record.changes + 1)
        body = json.dumps(record).encode()
        data = b"%08x %s\n" % (zlib.crc32(body), body)
        if len(data) > _RECORD:
            raise LeaseError(f"the note of lease {name} is longer than {LONGEST_NOTE} bytes")
        if os.pwrite(fd, data, record.changes % 2 * _RECORD) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(fd)
        self._seen[name] = Seen(record, boottime.now())
        return record

    def _error(self, name: str, exc: OSError) -> StoreError:
        why = "it is a symbolic link" if exc.errno == errno.ELOOP else exc.strerror
        # Where the directory can be used, it is this file that is wrong.
        kind = LeaseError if os.access(self.directory, os.W_OK | os.X_OK) else StoreError
        # A name within an open directory is no help.
        path = exc.filename if os.path.isabs(exc.filename or "") else self._path(name)
        return kind(f"{path}: {why}")


def _left(seen: Seen) -> float:
    return seen.since + seen.record.ttl - boottime.now()


def _read(fd: int) -> Record:
    """Return the newest whole record of a file."""
    records = [_parse(os.pread(fd, _RECORD, place)) for place in (0, _RECORD)]
    return max(records, key=lambda record: record.changes)


def _parse(data: bytes) -> Record:
    """Return a record; an empty one if it is not whole, or none of ours."""
    line = data.partition(b"\n")[0]
    checksum, _, body = line.partition(b" ")
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        if int(checksum, 16) == zlib.crc32(body):
            record = Record(*json.loads(body))
            if record.is_sound():
                return record
    return Record()
