# SPDX-License-Identifier: MIT
"""Detach a process, change its user, set its title; and describe exit statuses."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, cast

from gunicorn.unix.signals import blocked_signals, signal_name

REDIRECT_TO = getattr(os, "devnull", "/dev/null")


def open_standard_streams() -> None:
    """Open ``/dev/null`` on closed standard descriptors, with a stream in Python.

    Otherwise the next file to be opened, a log or a listener, becomes the standard output of all children.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if open_if_closed(fd) and getattr(sys, name) is None:
            mode = "w" if fd else "r"
            stream = open(fd, mode, errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def open_if_closed(fd: int) -> bool:
    """Open ``/dev/null`` on *fd* if it is closed, for this process and its children; True if it was."""
    try:
        os.fstat(fd)
        return False
    except OSError:
        pass
    null = os.open(REDIRECT_TO, os.O_RDWR)
    if null != fd:
        os.dup2(null, fd)
        os.close(null)
    os.set_inheritable(fd, True)
    return True


def daemonize(enable_stdio_inheritance: bool = False) -> None:
    """Detach from the terminal: a new session, not led by this process, and stdio on ``/dev/null``.

    With *enable_stdio_inheritance* standard output and error stay, unless they are a terminal. A master that
    another one has started for an upgrade is detached already, and stays a child of that master.
    """
    if "GUNICORN_PID" in os.environ or "GUNICORN_FD" in os.environ:
        return
    # Flush buffers, so that parent and child do not both write them.
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os._exit(0)
    os.setsid()
    # The leader of a session gets a controlling terminal when it opens one; its child does not.
    if os.fork():
        os._exit(0)
    os.umask(0o22)
    _redirect_stdio(enable_stdio_inheritance)


def _redirect_stdio(inherit: bool) -> None:
    null = os.open(REDIRECT_TO, os.O_RDWR)
    try:
        for fd in (0, 1, 2):
            if fd and inherit and not _is_terminal(fd):
                continue
            os.dup2(null, fd, inheritable=True)
    finally:
        if null > 2:
            os.close(null)


def _is_terminal(fd: int) -> bool:
    """True for a terminal, and for a closed descriptor: both are replaced."""
    try:
        os.fstat(fd)
    except OSError:
        return True
    return os.isatty(fd)


def get_username(uid: int) -> str:
    """The login name of *uid*; KeyError if it has none."""
    return pwd.getpwuid(uid).pw_name


def set_owner_process(uid: int, gid: int, initgroups: bool = False) -> None:
    """Become *uid* and *gid*; the group first, because the new user has no right to change it.

    With *initgroups* the supplementary groups become those of the user and *gid*. 0 changes nothing.
    """
    if gid:
        username = None
        if initgroups and uid:
            with contextlib.suppress(KeyError):
                username = get_username(uid)
        if username is not None:
            os.initgroups(username, gid)
        # initgroups() sets only the supplementary list.
        if gid != os.getgid():
            os.setgid(gid)
    if uid and uid != os.getuid():
        os.setuid(uid)


def failure_as(uid: int, gid: int, initgroups: bool, attempt: Callable[[], object]) -> str:
    """Call *attempt* in a child process of that user; return the error that it raised as text, or ""."""
    reading, writing = os.pipe()
    # Signals stay blocked in the child: their handlers are this process's.
    with blocked_signals():
        pid = os.fork()
        if pid == 0:
            text = "the check ended early"
            try:
                set_owner_process(uid, gid, initgroups)
                attempt()
                text = ""
            except BaseException as exc:
                text = str(exc) or type(exc).__name__
            finally:
                os.write(writing, text.encode("utf-8", "backslashreplace")[:4096])
                os._exit(0)
    os.close(writing)
    try:
        with open(reading, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except BaseException:
        # A signal stops the server, and the child may hang.
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def exit_code(status: int) -> int | None:
    """The exit code in a wait status; None if a signal ended the process."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def term_signal(status: int) -> int | None:
    """The signal in a wait status; None if the process exited."""
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


def describe_status(status: int) -> str:
    """A wait status in words: ``exited with status 1``, ``killed by SIGKILL``."""
    signum = term_signal(status)
    if signum is not None:
        return f"killed by {signal_name(signum)}"
    return f"exited with status {os.WEXITSTATUS(status)}"


def describe_end(status: int) -> str:
    """A wait status as a predicate: ``exited with status 1``, ``was killed by SIGKILL``."""
    text = describe_status(status)
    return text if os.WIFEXITED(status) else f"was {text}"


def leave(code: int) -> NoReturn:
    """End a forked process: flush the streams, but run no exit handlers of the parent."""
    try:
        for stream in (sys.stdout, sys.stderr):
            # It may be closed or None.
            with contextlib.suppress(Exception):
                stream.flush()
    finally:
        os._exit(code)


def set_process_title(title: str) -> None:
    """Show ``gunicorn: TITLE`` in process listings, if setproctitle is installed."""
    setproctitle = _setproctitle()
    if setproctitle is not None:
        setproctitle(f"gunicorn: {title}")


@functools.cache
def _setproctitle() -> Callable[[str], None] | None:
    """The function, if it is installed. Cached in the master: Python does not remember failed imports."""
    try:
        from setproctitle import setproctitle
    except ImportError:
        return None
    return cast("Callable[[str], None]", setproctitle)
