# SPDX-License-Identifier: MIT
"""The file that says which process is the master."""

from __future__ import annotations

import os


class Pidfile:
    """A pid file at *fname*, or at the path that ``rename()`` moves it to.

    ``pid`` is what this instance has written; none before ``create()``.
    """

    def __init__(self, fname: str) -> None:
        self.fname = fname
        self.pid: int | None = None

    def create(self, pid: int) -> None:
        """Write *pid* into the file; readers see the old content or the new, never half of it.

        A file that names a process that is gone is replaced. RuntimeError if that
        process lives, or if the file cannot be written.
        """
        other = self.validate()
        if other is not None and other != pid:
            raise RuntimeError(
                f"the pid file {self.fname} belongs to process {other}, which is running; "
                "stop it first, or remove the file if that process is not a server"
            )
        self._write(pid)
        self.pid = pid

    def _write(self, pid: int) -> None:
        import tempfile  # a start without a pid file does without

        directory = os.path.dirname(self.fname) or os.curdir
        try:
            fd, draft = tempfile.mkstemp(prefix=".pid-", dir=directory)
        except OSError as exc:
            raise RuntimeError(f"the pid file {self.fname} cannot be written: {exc.strerror}") from exc
        try:
            with os.fdopen(fd, "wb") as stream:
                # mkstemp() makes it private; a pid is for everyone to read.
                os.fchmod(fd, 0o644)
                stream.write(b"%d\n" % pid)
            os.replace(draft, self.fname)
        except OSError as exc:
            os.unlink(draft)
            raise RuntimeError(f"the pid file {self.fname} cannot be written: {exc.strerror}") from exc

    def rename(self, path: str) -> None:
        """Move to *path*, which is written before the old file goes. RuntimeError as for ``create()``."""
        if self.pid is None:
            self.fname = path
            return
        moved = Pidfile(path)
        moved.create(self.pid)
        if os.path.abspath(path) != os.path.abspath(self.fname):
            self.unlink()
        self.fname = path

    def unlink(self) -> None:
        """Remove the file if it still names the process that this instance wrote into it."""
        try:
            if self.pid is not None and self._read() == self.pid:
                os.unlink(self.fname)
        except OSError:
            pass

    def validate(self) -> int | None:
        """The pid of the process that the file names, if there is such a process."""
        try:
            pid = self._read()
        except OSError:
            return None
        if pid is None or pid <= 0:
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            # Somebody else's, and so alive.
            return pid
        except OverflowError:
            return None
        return pid

    def _read(self) -> int | None:
        with open(self.fname, errors="replace") as stream:
            text = stream.read(64).strip()
        return int(text) if text.isdecimal() and text.isascii() else None
