# SPDX-License-Identifier: MIT
"""Find a companion's program on PATH and execute it, without a shell."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping, Sequence
from typing import NoReturn

from gunicorn.unix import libc


class CannotRun(Exception):
    """The program cannot be executed; the text says what to look at."""


def execute(command: Sequence[str], environ: Mapping[str, str], keep: int) -> NoReturn:
    """Become *command*, with the descriptors below *keep* and no others. Raises CannotRun.

    Relative names of programs, and of directories in PATH, count from the working directory.
    """
    # An exec resets signals with a handler, and keeps ignored ones.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    close_at_exec(keep)
    name = command[0]
    found: tuple[str, OSError] | None = None
    for path in candidates(name, environ):
        try:
            os.execve(path, list(command), dict(environ))
        except OSError as exc:
            missing = exc.errno in (errno.ENOENT, errno.ENOTDIR)
            if missing and not os.path.lexists(path):
                continue
            # Like execvp(3): go on to the next directory of PATH if this file may not be executed.
            found = found or (path, exc)
            if exc.errno not in (errno.EACCES, errno.ENOENT, errno.ENOTDIR):
                break
        except ValueError as exc:
            raise CannotRun(f"cannot run {name!r}: {exc}") from None
    if found is not None:
        raise CannotRun(f"cannot run {name!r}: {_explain(*found)}")
    if "/" in name:
        raise CannotRun(f"cannot run {name!r}: no such file (working directory {_cwd()})")
    raise CannotRun(f"cannot run {name!r}: not found in PATH ({environ.get('PATH', os.defpath)})")


def candidates(name: str, environ: Mapping[str, str]) -> list[str]:
    """The paths to try: *name* itself if it has a slash, else one for each directory of PATH."""
    if "/" in name:
        return [name]
    # An empty directory in PATH stands for the working directory.
    directories = environ.get("PATH", os.defpath).split(os.pathsep)
    return [os.path.join(directory or os.curdir, name) for directory in directories]


def _explain(path: str, exc: OSError) -> str:
    if exc.errno == errno.ENOEXEC:
        return f"{path} is neither a program of this system nor a script with a '#!' line"
    if exc.errno == errno.ENOENT:
        interpreter = _interpreter(path)
        if interpreter is not None:
            return f"{path} needs the interpreter {interpreter}, which does not exist"
        if os.path.islink(path) and not os.path.exists(path):
            return f"{path} is a link to {os.readlink(path)}, which does not exist"
        return f"{path} needs a loader that does not exist (is it for another system?)"
    if exc.errno == errno.EACCES:
        if os.path.isdir(path):
            return f"{path} is a directory"
        if os.path.isfile(path) and not os.access(path, os.X_OK):
            return f"{path} is not executable for this user"
        interpreter = _interpreter(path)
        if interpreter is not None:
            return f"{path} needs the interpreter {interpreter}, which this user may not execute"
    return f"{path}: {exc.strerror}"


def _interpreter(path: str) -> str | None:
    """The interpreter in the first line of a script; None if it is no script."""
    try:
        with open(path, "rb") as file:
            line = file.readline(256)
    except OSError:
        return None
    if not line.startswith(b"#!"):
        return None
    # The kernel splits at blanks alone: a carriage return, from an editor of another system, is part of the
    # name, and must be shown.
    name = line[2:].rstrip(b"\n").strip(b" \t").replace(b"\t", b" ").split(b" ")[0]
    text = os.fsdecode(name)
    return text if text.isprintable() else ascii(text)


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "unknown"


def close_at_exec(lowest: int) -> None:
    """Have exec close every descriptor from *lowest* on."""
    if libc.close_at_exec(lowest):
        return
    for directory in ("/proc/self/fd", "/dev/fd"):
        try:
            numbers = [int(name) for name in os.listdir(directory)]
        except (OSError, ValueError):
            continue
        break
    else:
        numbers = list(range(lowest, min(os.sysconf("SC_OPEN_MAX"), 65536)))
    for number in numbers:
        if number >= lowest:
            try:
                os.set_inheritable(number, False)
            except OSError:
                pass  # that of the listing itself, which is closed
