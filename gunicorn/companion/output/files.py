# SPDX-License-Identifier: MIT
"""Files of companions' output, rotated by size."""

from __future__ import annotations

import _thread
import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator

from gunicorn.companion.checks import OutputFile
from gunicorn.companion.output.lines import STAMP_FORMAT, make_format
from gunicorn.companion.output.ring import Note
from gunicorn.companion.output.sinks import Channel
from gunicorn.unix import trust

# Seconds until a file that cannot be opened is tried again.
_RETRY = 1.0


class FileSink:
    """Appends lines to a regular file. With rotation ``FILE.1`` is the newest of the older ones.

    A file with `max_bytes` is never longer than that, unless a single line is. Other programs may move the
    file away; `reopen` begins a new one.
    """

    stuck_at = float("inf")

    def __init__(self, options: OutputFile, wake: int, fd: int = -1) -> None:
        self.name = options.file
        self.use(options)
        self.fd = fd
        self.error: OSError | None = None
        self._wake = wake
        self._retry_at = 0.0
        # How much of the present text is in a file.
        self._written = 0
        # Files that threads compress, by inode; and those that are done.
        self._compressing: set[int] = set()
        self._compressed: list[int] = []

    def use(self, options: OutputFile) -> None:
        """Go on with other options for the same file."""
        self.options = options
        self.format = make_format(STAMP_FORMAT if options.stamp else "raw")

    def is_stuck(self, now: float) -> bool:
        return False

    @property
    def idle(self) -> bool:
        return not self._compressing

    def ready(self, channel: Channel) -> None:
        """Write what waits."""
        while channel.waiting:
            text = b"".join(map(self.format, channel.take()))
            self._settle(channel, text, 0)

    def resume(self, channel: Channel) -> None:
        """Write what waits, but for that which an earlier keeper has written and could not note."""
        note = channel.ring.note(channel.kind)
        if note is None or not channel.waiting:
            self.ready(channel)
            return
        text = b"".join(map(self.format, channel.take(1 << 30)))
        done = note.done + self._already_written(note, text[note.done :])
        self._settle(channel, text, done)

    def _already_written(self, note: Note, text: bytes) -> int:
        """How many bytes of *text* the write of *note* has brought to the file, which may have been moved."""
        for path in self._files_with(note.inode):
            with contextlib.suppress(OSError), open(trust_to_read(path), "rb") as file:
                if os.fstat(file.fileno()).st_ino == note.inode:
                    file.seek(note.size)
                    there = file.read(len(text))
                    # Somebody else may write to it too.
                    if not text.startswith(there):
                        return 0
                    # The rest goes to the present file, where a line must be whole.
                    return len(there) if path == self.name else there.rfind(b"\n") + 1
        return 0

    def _files_with(self, inode: int) -> Iterator[str]:
        """Paths where the file with this inode may be now: first the usual ones."""
        yield self.name
        yield f"{self.name}.1"
        with (
            contextlib.suppress(OSError),
            os.scandir(os.path.dirname(os.path.realpath(self.name))) as entries,
        ):
            yield from [entry.path for entry in entries if entry.inode() == inode]

    def _settle(self, channel: Channel, text: bytes, done: int) -> None:
        self._written = done
        try:
            self._append(channel, text)
        except OSError as exc:
            self.error = exc
            channel.failed(text.count(b"\n", 0, self._written))
        else:
            self.error = None
            channel.written()

    def _append(self, channel: Channel, text: bytes) -> None:
        while (done := self._written) < len(text):
            if self.fd < 0:
                self._open()
            info = os.fstat(self.fd)
            end = self._end_of_fitting(text, done, info.st_size)
            if end == done:
                self._rotate(info)
                continue
            channel.ring.set_note(channel.kind, Note(info.st_ino, info.st_size, done))
            self._write(memoryview(text)[done:end], info.st_size)

    def _end_of_fitting(self, text: bytes, start: int, size: int) -> int:
        """Up to where *text* fits into the file, which has *size* bytes: whole lines."""
        room = None if self.options.max_bytes is None else self.options.max_bytes - size
        if room is None or len(text) - start <= room:
            return len(text)
        end = text.rfind(b"\n", start, start + max(0, room)) + 1
        if end or size:
            return end or start
        # A line that no file has room for.
        return text.find(b"\n", start) + 1 or len(text)

    def _write(self, text: memoryview, size: int) -> None:
        written = 0
        try:
            while written < len(text):
                written += os.write(self.fd, text[written:])
        except OSError:
            # Leave no part of a line.
            whole = bytes(text[:written]).rfind(b"\n") + 1
            if whole < written:
                with contextlib.suppress(OSError):
                    os.ftruncate(self.fd, size + whole)
            written = whole
            raise
        finally:
            self._written += written

    # -- the file ------------------------------------------------------------

    def _open(self) -> None:
        now = time.monotonic()
        if now < self._retry_at and self.error is not None:
            raise self.error
        self._retry_at = now + _RETRY
        fd = open_output(self.name)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no regular file any more")
        self.fd = fd

    def reopen(self) -> None:
        self._retry_at = 0.0
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _rotate(self, info: os.stat_result) -> None:
        with _directory_of(self.name) as (name, directory), contextlib.suppress(FileNotFoundError):
            # Another program may have moved it away, or another server that ends just now.
            if os.stat(name, dir_fd=directory).st_ino == info.st_ino:
                self._move(name, directory)
        self.reopen()

    def _move(self, name: str, directory: int | None) -> None:
        for number in range(self.options.backups, 0, -1):
            for suffix in ("", ".gz"):
                with contextlib.suppress(FileNotFoundError):
                    if number == self.options.backups:
                        os.unlink(f"{name}.{number}{suffix}", dir_fd=directory)
                    else:
                        _rename(f"{name}.{number}{suffix}", f"{name}.{number + 1}{suffix}", directory)
        if not self.options.backups:
            os.unlink(name, dir_fd=directory)
            return
        _rename(name, f"{name}.1", directory)
        if self.options.compress:
            self._compress(f"{name}.1", directory)

    # -- compression, in a thread ----------------------------------------------

    def _compress(self, name: str, directory: int | None) -> None:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        source = os.open(name, os.O_RDONLY | flags, dir_fd=directory)
        info = os.fstat(source)
        part = f"{name.removesuffix('.1')}.{info.st_ino}.gz-part"
        # A keeper that was killed while it compressed may have left one.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=directory)
        target = os.open(
            part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, info.st_mode & 0o777, dir_fd=directory
        )
        self._compressing.add(info.st_ino)
        _thread.start_new_thread(self._compress_now, (source, target, info.st_ino))

    def _compress_now(self, source: int, target: int, inode: int) -> None:
        import gzip

        try:
            with open(source, "rb") as plain, open(target, "wb") as file, gzip.open(file, "wb") as packed:
                while data := plain.read(1 << 20):
                    packed.write(data)
            self._compressed.append(inode)
        except OSError:
            # The file stays as it is; the part is removed where the end is settled.
            self._compressed.append(-inode)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"\0")

    def step(self) -> None:
        """Put compressed files in the place of the others, under the number that each has by now."""
        while self._compressed:
            inode = self._compressed.pop(0)
            self._compressing.discard(abs(inode))
            try:
                with _directory_of(self.name) as (name, directory):
                    self._replace(name, directory, inode)
            except OSError as exc:
                self.error = exc

    def _replace(self, name: str, directory: int | None, inode: int) -> None:
        part = f"{name}.{abs(inode)}.gz-part"
        for number in range(1, self.options.backups + 1):
            with contextlib.suppress(FileNotFoundError):
                if os.stat(f"{name}.{number}", dir_fd=directory).st_ino == inode:
                    _rename(part, f"{name}.{number}.gz", directory)
                    os.unlink(f"{name}.{number}", dir_fd=directory)
                    return
        os.unlink(part, dir_fd=directory)


def open_output(path: str) -> int:
    """Open *path* for appending. Raises OSError."""
    # Not to wait for the reader of a named pipe.
    fd = trust.open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    return fd


def trust_to_read(path: str) -> int:
    return trust.open_file(path, os.O_RDONLY | os.O_NONBLOCK)


def _rename(old: str, new: str, directory: int | None) -> None:
    os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)


@contextlib.contextmanager
def _directory_of(path: str) -> Iterator[tuple[str, int | None]]:
    """A name, and the directory that it counts from; as root, open, so that nobody replaces it meanwhile."""
    if os.geteuid() != 0:
        yield os.path.realpath(path), None
        return
    with trust.place_of(path) as place:
        yield place.name, place.fd
