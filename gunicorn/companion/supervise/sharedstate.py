# SPDX-License-Identifier: MIT
"""State that outlives a manager, in memory shared with the master and its successor.

The manager writes it at once, so that nothing is lost with the manager, and nothing waits for a master that
is busy. No disk is needed, and nothing is left behind.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import struct
import time
from collections.abc import Mapping
from typing import Any

from gunicorn.companion.runfile import unnamed_file

# In front of each state: its number, its length, and a checksum of the number and the text.
_HEAD = struct.Struct("=QQI")
# Attempts to take a lock that another process tests at that moment.
_TRIES = 100
# A state is written into one of two places in turn, so a killed writer leaves the previous state intact.
_ROOM = 16 * 1024 * 1024
_PLACES = (0, _ROOM)


class SharedState:
    """A JSON object in a file without a name. One process writes; any number may read meanwhile."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._number = 0

    @classmethod
    def create(cls) -> SharedState:
        """Raises OSError."""
        return cls(unnamed_file("gunicorn-companions"))

    def copy(self) -> SharedState:
        """The same memory, by a descriptor of its own. Raises OSError."""
        return SharedState(os.dup(self.fd))

    def read(self) -> dict[str, Any]:
        """Return the latest state; empty before the first `write`."""
        found = [self._read(place) for place in _PLACES]
        number, state = max(found, key=lambda each: each[0])
        self._number = max(self._number, number)
        return state

    def _read(self, place: int) -> tuple[int, dict[str, Any]]:
        with contextlib.suppress(OSError, ValueError, RecursionError, struct.error):
            number, length, checksum = _HEAD.unpack(os.pread(self.fd, _HEAD.size, place))
            text = os.pread(self.fd, min(length, _ROOM), place + _HEAD.size)
            if _checksum(number, text) == checksum:
                state = json.loads(text)
                if isinstance(state, dict):
                    return number, state
        return 0, {}

    def write(self, state: Mapping[str, Any]) -> None:
        """Raises OSError."""
        number = self._number + 1
        text = json.dumps(state, separators=(",", ":")).encode()
        data = _HEAD.pack(number, len(text), _checksum(number, text)) + text
        if len(data) > _ROOM:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if os.pwrite(self.fd, data, _PLACES[number % 2]) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._number = number

    def version(self) -> bytes:
        """Return bytes that change with each `write`; empty before the first."""
        with contextlib.suppress(OSError):
            return b"".join(os.pread(self.fd, _HEAD.size, place) for place in _PLACES).strip(b"\0")
        return b""

    # -- rights: locks on single bytes, which the kernel takes away with the process ----

    def hold(self, what: str) -> None:
        """Show to others that this process has *what*: for as long as it lives, or until `let_go`."""
        # `is_held` takes the lock for a moment. If all attempts fail, the run files still protect *what*.
        for _ in range(_TRIES):
            with contextlib.suppress(OSError):
                fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte_of(what))
                return
            time.sleep(0)

    def let_go(self, what: str) -> None:
        with contextlib.suppress(OSError):
            fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, _byte_of(what))

    def is_held(self, what: str) -> bool:
        """Whether another process holds *what*; this one must not."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte_of(what))
        except OSError as exc:
            return exc.errno in (errno.EAGAIN, errno.EACCES)
        self.let_go(what)
        return False

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Rights:
    """Locks for the companions and addresses of the managers of two masters.

    Each manager holds its locks in the files of both masters, so that either sees the other's.
    """

    def __init__(self, *files: SharedState | None) -> None:
        self.files = [each for each in files if each is not None]
        self._held: set[str] = set()

    def hold(self, what: str) -> None:
        self._held.add(what)
        for each in self.files:
            each.hold(what)

    def let_go(self, what: str) -> None:
        self._held.discard(what)
        for each in self.files:
            each.let_go(what)

    def is_elsewhere(self, what: str) -> bool:
        """Whether the other manager has *what*."""
        return what not in self._held and any(each.is_held(what) for each in self.files)

    def forget(self, file: SharedState) -> None:
        """Drop the file of the other master, which is gone."""
        self.files = [each for each in self.files if each is not file]


def _byte_of(what: str) -> int:
    """The offset of the lock for *what*: far behind all written data, and unique."""
    return int.from_bytes(hashlib.sha256(what.encode()).digest()[:7], "big") | 1 << 56


def _checksum(number: int, text: bytes) -> int:
    return binascii.crc32(text, number & 0xFFFFFFFF)
