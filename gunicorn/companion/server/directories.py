# SPDX-License-Identifier: MIT
"""Check and make the directories of control sockets and run files, before the change of user."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping

from gunicorn.companion.client.default_paths import default_directories, runtime_directory
from gunicorn.unix import trust
from gunicorn.unix.access import User


class Unusable(Exception):
    """Why a directory will not do."""


def prepare_directory(path: str, uid: int, gid: int) -> None:
    """Make *path* (its last component) if it is missing, mode 0700, for user *uid*. Raises Unusable.

    Called before the manager changes its user, while it can still create directories for that user.
    """
    try:
        # A root that has logged in has an $XDG_RUNTIME_DIR that nobody else may enter.
        closed = _closed_ancestor(path, User(uid, gid)) if uid != os.geteuid() else None
        if closed is not None:
            raise Unusable(f"{path}: user {uid} may not enter {closed}")
        if not os.path.lexists(path):
            check_owned_by_root(path, uid)
        trust.make_directory(path, (uid, gid))
        info = os.stat(path)
    except OSError as exc:
        raise Unusable(f"{path}: {exc.strerror}") from None
    if not stat.S_ISDIR(info.st_mode):
        raise Unusable(f"{path} is no directory")
    if info.st_mode & 0o002 and not info.st_mode & stat.S_ISVTX:
        raise Unusable(f"{path} may be written by everybody")
    if not User(uid, gid).may(path, os.W_OK | os.X_OK):
        raise Unusable(f"{path} is not writable for user {uid}")
    check_owned_by_root(path, uid)


def check_owned_by_root(path: str, uid: int) -> None:
    """Raise Unusable if companions of root would have their records in a directory of somebody else's."""
    if uid == 0 and os.geteuid() == 0 and not trust.is_owned_by_root(path):
        raise Unusable(f"{path} is not root's, or others may change what it leads to")


def hand_over_run_files(directory: str, suffix: str, uid: int, gid: int) -> None:
    """Give the run files that a server left as root to user *uid*, which is to read and lock them."""
    if os.geteuid() != 0 or uid == 0:
        return
    try:
        fd = trust.open_directory(directory)
    except OSError:
        return  # the manager reports paths that it cannot open
    try:
        for name in os.listdir(fd):
            if name.endswith(suffix):
                with contextlib.suppress(OSError):
                    _give_run_file(name, fd, uid, gid)
    finally:
        os.close(fd)


def _give_run_file(name: str, directory: int, uid: int, gid: int) -> None:
    # The directory may be that user's, who can put anything there under any name: a link to a file of
    # root's, a second name for one, a pipe that keeps us waiting.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        return
    fd = os.open(name, flags, dir_fd=directory)
    try:
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode) and info.st_uid == 0 and info.st_nlink == 1:
            os.fchown(fd, uid, gid)
    finally:
        os.close(fd)


def _closed_ancestor(path: str, user: User) -> str | None:
    """The first directory on the way to *path* that *user* may not enter."""
    return user.first_closed(os.path.dirname(os.path.realpath(path)))


def usable_default_directory(environ: Mapping[str, str], uid: int, gid: int) -> str:
    """The first default directory that user *uid* can use, made if need be. Raises Unusable."""
    problems = []
    for directory in default_directories(environ, uid):
        try:
            if directory == runtime_directory(environ):
                _hand_over_runtime_directory(directory, uid, gid)
            prepare_directory(directory, uid, gid)
            return directory
        except Unusable as exc:
            problems.append(str(exc))
    raise Unusable("; ".join(problems) or "there is no home directory")


def likely_default_directory(environ: Mapping[str, str], uid: int, gid: int) -> str | None:
    """The same as far as it can be told without making anything; None where there seems to be none."""
    user = User(uid, gid)
    for directory in default_directories(environ, uid):
        there = directory if os.path.isdir(directory) else os.path.dirname(directory)
        try:
            if _closed_ancestor(there, user) is None and user.may(there, os.W_OK | os.X_OK):
                return directory
        except OSError:
            continue
    return None


def _hand_over_runtime_directory(path: str, uid: int, gid: int) -> None:
    """systemd makes $RUNTIME_DIRECTORY for this unit alone, and gives it to the unit's user.

    Where that is root and the server changes its user itself, the server does the
    giving. Nothing directly below / is anybody's alone.
    """
    if os.geteuid() != 0 or uid == 0:
        return
    try:
        fd = trust.open_directory(path)
        try:
            if os.path.dirname(os.path.realpath(path)) != "/" and os.fstat(fd).st_uid == 0:
                os.fchown(fd, uid, gid)
        finally:
            os.close(fd)
    except OSError as exc:
        raise Unusable(f"{path}: {exc.strerror}") from None
