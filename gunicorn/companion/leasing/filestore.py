# SPDX-License-Identifier: MIT
"""Leases as files in a directory: ``file:///mnt/shared/leases``, for servers on one host or an NFSv4 mount.

A file is changed under its lock alone. The hosts' clocks need not agree: a lease is free when its file has
not changed for the ttl, by the clock of the server that looks at it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from gunicorn.companion.leasing.store import LONGEST_NOTE, Answer, StoreError, sleep, split_url
from gunicorn.unix import boottime

# Each file has two records: one is written while the other one stays, for the case that the writer is killed.
# A note of non-ASCII characters may take six times its bytes.
_RECORD = 8 * LONGEST_NOTE

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


class Seen(NamedTuple):
    """A record, and when this server first saw it."""

    record: Record
    since: float


def check(url: str) -> None:
    """Raise ValueError with what to change."""
    parts = split_url(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query:
        raise ValueError(
            f"{url!r} names no directory: write file:///PATH, with three slashes and an absolute path"
        )


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
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            found = self._look(name, fd)
        except OSError as exc:
            raise self._error(exc) from None
        finally:
            os.close(fd)
        return not found.record.owner or _left(found) <= 0

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, quote(name, safe="@ ") + ".lease")

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[int]:
        try:
            os.makedirs(self.directory, exist_ok=True)
            # Servers of one group may share them.
            fd = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
            try:
                self._lock(name, fd)
                yield fd
            finally:
                os.close(fd)
        except OSError as exc:
            raise self._error(exc) from None

    def _lock(self, name: str, fd: int) -> None:
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StoreError(
                        f"{self._path(name)} is locked by another process for {self.timeout:.2g} s"
                    ) from None
                time.sleep(_TRY)

    def _look(self, name: str, fd: int) -> Seen:
        record = _read(fd)
        seen = self._seen.get(name)
        if seen is None or seen.record != record:
            seen = self._seen[name] = Seen(record, boottime.now())
        return seen

    def _write(self, name: str, fd: int, record: Record, *, durable: bool) -> None:
        """*durable*: also if the host crashes; a renewal that is lost then does no harm."""
        record = record._replace(changes=record.changes + 1)
        body = json.dumps(record).encode()
        data = b"%08x %s\n" % (zlib.crc32(body), body)
        if len(data) > _RECORD:
            raise StoreError(f"the note of lease {name} is longer than {LONGEST_NOTE} bytes")
        if os.pwrite(fd, data, record.changes % 2 * _RECORD) != len(data):
            raise StoreError(f"{self._path(name)}: no space left")
        if durable:
            os.fsync(fd)
        self._seen[name] = Seen(record, boottime.now())

    def _error(self, exc: OSError) -> StoreError:
        return StoreError(f"{exc.filename or self.directory}: {exc.strerror}")


def _left(seen: Seen) -> float:
    return seen.since + seen.record.ttl - boottime.now()


def _read(fd: int) -> Record:
    """Return the newest whole record of a file."""
    records = [_parse(os.pread(fd, _RECORD, place)) for place in (0, _RECORD)]
    return max(records, key=lambda record: record.changes)


def _parse(data: bytes) -> Record:
    """Return a record; an empty one if it is not whole."""
    line = data.partition(b"\n")[0]
    checksum, _, body = line.partition(b" ")
    found: Any = None
    with contextlib.suppress(ValueError):
        if int(checksum, 16) == zlib.crc32(body):
            found = json.loads(body)
    return Record() if found is None else Record(*found)
