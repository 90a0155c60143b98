# SPDX-License-Identifier: MIT
"""The pid file of the master."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from gunicorn.unix import session, trust


class Pidfile:
    """A pid file at *fname*; ``rename()`` moves it.

    ``pid`` is what this instance has written; None before ``create()``.
    """

    def __init__(self, fname: str) -> None:
        self.fname = fname
        self.pid: int | None = None

    def create(self, pid: int) -> None:
        """Write *pid* into the file at once: no reader sees half of it.

        Raises RuntimeError if the file names a process that may be running, or cannot be written.
        """
        try:
            other = self._holder()
        except FileNotFoundError:
            other = None
        except OSError as exc:
            raise self._unusable(exc) from exc
        if other is not None and other != pid:
            raise RuntimeError(
                f"the pid file {self.fname} belongs to process {other}, which is running; "
                "stop it first, or remove the file if that process is not a server"
            )
        try:
            self._write(pid)
        except OSError as exc:
            raise self._unusable(exc) from exc
        self.pid = pid

    def _unusable(self, exc: OSError) -> RuntimeError:
        return RuntimeError(f"the pid file {self.fname} cannot be written: {exc.strerror}")

    def _write(self, pid: int) -> None:
        with self._place() as (path, directory):
            draft = os.path.join(os.path.dirname(path), f".pid-{os.urandom(8).hex()}")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(draft, flags, 0o600, dir_fd=directory)
            try:
                with os.fdopen(fd, "wb") as stream:
                    # Everyone may read it, whatever the umask is.
                    os.fchmod(fd, 0o644)
                    stream.write(b"%d\n" % pid)
                os.replace(draft, path, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError:
                os.unlink(draft, dir_fd=directory)
                raise

    @contextlib.contextmanager
    def _place(self) -> Iterator[tuple[str, int | None]]:
        """The path of the file, and the directory that it is relative to, which root reaches safely."""
        if os.geteuid() != 0:
            yield self.fname, None
            return
        with trust.place_of(self.fname, follow=False) as place:
            yield place.name, place.fd

    def rename(self, path: str) -> None:
        """Move to *path*: write the new file, then remove the old one. RuntimeError as in ``create()``."""
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
                with self._place() as (path, directory):
                    os.unlink(path, dir_fd=directory)
        except OSError:
            pass

    def remove_stale(self) -> None:
        """Remove the file if it names a process that is gone."""
        with contextlib.suppress(OSError):
            self.pid = self._read()
            if self.pid is not None and self._holder() is None:
                self.unlink()

    def validate(self) -> int | None:
        """The pid in the file, if there is such a process."""
        try:
            return self._holder()
        except OSError:
            return None

    def _holder(self) -> int | None:
        """Like `validate`, but raises OSError if the file cannot be read."""
        pid = self._read()
        if pid is None or pid <= 0:
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            # It is another user's, so it is alive.
            return pid
        except OverflowError:
            return None
        # A zombie takes signals until its parent reaps it.
        return pid if session.identity(pid) is not None else None

    def _read(self) -> int | None:
        # Opening a pipe blocks, and opening a device may change its state.
        if not stat.S_ISREG(os.stat(self.fname).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        fd = os.open(self.fname, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 64).strip()
        finally:
            os.close(fd)
        return int(text) if text.isdigit() else None


def successor_path(path: str) -> str:
    """The pid file of a new master until the owner of *path* is gone."""
    return f"{path}.2"
