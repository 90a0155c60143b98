# SPDX-License-Identifier: MIT
"""The heartbeat file of a worker: unnamed; the master reads its modification time."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
import time
from typing import Any

PLATFORM = sys.platform
# Modes that no new file has.
_LEAVING, _ENDED, _DUE = 0o400, 0o200, 0o100
# In bytes; of a longer report the end is kept.
_REPORT_SIZE = 8192
_LONGEST_REASON = 1000
IS_CYGWIN = PLATFORM.startswith("cygwin")


class WorkerTmp:
    """Made in the master before it forks. The worker calls ``notify()``, the master ``last_update()``.

    Both use the monotonic clock, so that a step of the wall clock ends no worker. Creating the file counts
    as the first heartbeat: a worker that hangs while it starts is noticed too.
    """

    def __init__(self, cfg: Any) -> None:
        # Not in the file, where each write would count as a heartbeat. It takes memory once it is written to.
        self._report = mmap.mmap(-1, _REPORT_SIZE)
        self._fd = _unnamed_file(cfg.worker_tmp_dir)
        self.name = f"worker heartbeat {self._fd}"
        try:
            if os.geteuid() == 0 and (cfg.uid, cfg.gid) != (os.geteuid(), os.getegid()):
                # Only its owner may set a file's times.
                os.fchown(self._fd, cfg.uid, cfg.gid)
            self.notify()
        except BaseException:
            self.close()
            raise

    def notify(self) -> None:
        """Send a heartbeat."""
        now = time.monotonic_ns()
        os.utime(self.fileno(), ns=(now, now))

    def ask_for_replacement(self) -> None:
        """Report that this worker is due to be replaced; it serves until the master tells it to end."""
        os.fchmod(self.fileno(), _DUE)

    @property
    def due(self) -> bool:
        """Whether the worker has asked for its replacement."""
        return stat.S_IMODE(os.fstat(self.fileno()).st_mode) == _DUE

    def leave(self) -> None:
        """Report, by the mode of the file, that this worker takes no more work and will end."""
        os.fchmod(self.fileno(), _LEAVING)

    @property
    def leaving(self) -> bool:
        """Whether the worker has reported that it leaves."""
        return stat.S_IMODE(os.fstat(self.fileno()).st_mode) == _LEAVING

    def end(self) -> None:
        """Report that this worker ends in order, and has not just vanished."""
        if not self.leaving:
            os.fchmod(self.fileno(), _ENDED)

    @property
    def ended(self) -> bool:
        """Whether the worker has reported its end."""
        return stat.S_IMODE(os.fstat(self.fileno()).st_mode) in (_LEAVING, _ENDED)

    def report(self, reason: str, trace: str = "") -> None:
        """Leave for the master, which decides what to log, why this worker fails."""
        first, rest = (text.encode("utf-8", "backslashreplace") for text in (reason, trace))
        first = first[:_LONGEST_REASON]
        room = _REPORT_SIZE - len(first) - 1
        self._report[: len(first) + 1] = first + b"\n"
        rest = rest[-room:]
        self._report[len(first) + 1 : len(first) + 1 + len(rest)] = rest

    @property
    def ending(self) -> bool:
        """Whether the worker has reported why it fails, or that it ends."""
        return self._report[0] != 0 or self.ended

    @property
    def reported(self) -> tuple[str, str] | None:
        """What the worker has reported, as reason and trace; None if it has not."""
        text = self._report[:].rstrip(b"\0").decode("utf-8", "replace")
        reason, _, trace = text.partition("\n")
        return (reason, trace) if reason else None

    def last_update(self) -> float:
        """The time of the last heartbeat, in seconds of the monotonic clock."""
        return os.fstat(self.fileno()).st_mtime_ns / 1e9

    def fileno(self) -> int:
        """The descriptor. Raises ValueError once it is closed."""
        if self._fd < 0:
            raise ValueError("the heartbeat file is closed")
        return self._fd

    def close(self) -> None:
        """Close this process's descriptor, once."""
        self._report.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _unnamed_file(directory: str | None) -> int:
    # In memory unless `worker_tmp_dir` is set: on a busy disk an update can take seconds, and the master
    # would take the worker for dead.
    if directory is None and hasattr(os, "memfd_create"):
        try:
            return os.memfd_create("gunicorn-heartbeat", os.MFD_CLOEXEC)
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise  # a file would also take a descriptor
            # Not allowed in this sandbox.
    import tempfile

    fd, path = tempfile.mkstemp(prefix="wgunicorn-", dir=directory)
    if not IS_CYGWIN:
        os.unlink(path)
    return fd
