# SPDX-License-Identifier: MIT
"""The file-like objects of an environ: ``wsgi.errors`` and ``wsgi.file_wrapper``."""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any

_PLAIN_FILES = (io.BufferedReader, io.BufferedRandom, io.FileIO)


class FileWrapper:
    """``wsgi.file_wrapper``: the content of *filelike*, which the system sends itself where it can."""

    def __init__(self, filelike: Any, blksize: int = 8192) -> None:
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        while data := self.filelike.read(self.blksize):
            yield data


class WSGIErrorsWrapper(io.RawIOBase):
    """``wsgi.errors``: write text unchanged to the outputs of the error log.

    One object serves all requests of a worker. It looks the streams up when it writes, so that it follows a
    reopened log, and it cannot be closed.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self._to_stderr = not getattr(cfg, "errorlog", None)

    def _streams(self) -> list[Any]:
        streams = [
            handler.stream
            for handler in logging.getLogger("gunicorn.error").handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is not None
        ]
        return [sys.stderr] if self._to_stderr or not streams else streams

    def write(self, data: Any) -> int:
        for stream in self._streams():
            try:
                stream.write(data)
            except UnicodeError:
                # The log's encoding may be ASCII: escape other characters.
                encoding = getattr(stream, "encoding", None) or "ascii"
                stream.write(data.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
        return len(data)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Do nothing: other applications write here."""


def file_span(filelike: Any) -> tuple[int, int] | None:
    """Return the offset and the number of bytes left of a regular file; None for anything else.

    Accept only the exact types that open() and tempfile make. The descriptor of a wrapper or a subclass may
    have other content than its read() (gzip, decryption, ranges).
    """
    if type(filelike).__module__ == "tempfile":
        filelike = getattr(filelike, "file", filelike)
    raw = getattr(filelike, "raw", filelike)
    if type(filelike) not in _PLAIN_FILES or type(raw) is not io.FileIO:
        return None
    try:
        fd = filelike.fileno()
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not (status.st_blocks or _ends_at(fd, status.st_size)):
            return None
        # Not lseek(): the descriptor of a buffered reader is ahead.
        offset = filelike.tell()
    except (OSError, ValueError):
        return None
    return offset, max(0, status.st_size - offset)


def _ends_at(fd: int, size: int) -> bool:
    """Whether a file without blocks on a disk has *size* bytes, as its status says.

    Files in /proc and /sys have not: their status says 0 or the size of a page.
    """
    return len(os.pread(fd, 2, max(0, size - 1))) == min(size, 1)
