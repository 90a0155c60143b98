# SPDX-License-Identifier: MIT
"""Give a companion its own stdin, stdout and stderr."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from gunicorn.unix.process import open_if_closed
from gunicorn.unix.trust import open_file


def redirect(number: int, path: str | None, pipe: int | None = None) -> None:
    """Have the descriptor *number* append to the file *path*.

    With *pipe* it writes to this, and the other end to the file; that the file can be opened is still found
    out here, where it counts. Without either it stays as it is. Raises OSError.
    """
    if path is not None:
        # Without O_NONBLOCK, opening a named pipe waits for a reader, and a stop would have to wait as well.
        fd = open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK)
        if pipe is None:
            os.set_blocking(fd, True)
            _move(fd, number)
        else:
            os.close(fd)
    if pipe is not None:
        _move(pipe, number)


def join_stderr() -> None:
    """Have stderr go where stdout goes."""
    open_if_closed(1)
    os.dup2(1, 2, inheritable=True)


def replace_standard_streams() -> None:
    """Have stdin from /dev/null, and line-buffered streams on the descriptors 1 and 2.

    The manager does it at its start: its children share the streams, unless a hook has replaced them since.
    """
    if [sys.stdin, sys.stdout, sys.stderr] == _CURRENT:
        return
    _move(os.open(os.devnull, os.O_RDWR), 0)
    open_if_closed(1)
    open_if_closed(2)
    _REPLACED.append(sys.stdin)
    sys.stdin = sys.__stdin__ = _text(0, "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _line_buffered(sys.stdout, 1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _line_buffered(sys.stderr, 2)  # type: ignore[misc]
    _CURRENT[:] = sys.stdin, sys.stdout, sys.stderr


# The streams as `replace_standard_streams` has left them.
_CURRENT: list[Any] = []

# Kept, because a stream that is freed may close the descriptor below it.
_REPLACED: list[Any] = []


def _move(fd: int, number: int) -> None:
    if fd == number:
        os.set_inheritable(fd, True)
    else:
        os.dup2(fd, number, inheritable=True)
        os.close(fd)


def _line_buffered(stream: Any, number: int) -> io.TextIOWrapper:
    if isinstance(stream, io.TextIOWrapper):
        with contextlib.suppress(OSError, ValueError):
            if stream.fileno() == number:
                stream.reconfigure(line_buffering=True)
                return stream
    _REPLACED.append(stream)
    return _text(number, "w")


def _text(number: int, mode: str) -> io.TextIOWrapper:
    file = open(number, mode, buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    assert isinstance(file, io.TextIOWrapper)
    return file
