# SPDX-License-Identifier: MIT
"""The default paths of control sockets and run files."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import re
import stat
from collections.abc import Mapping

# gunicorn.unix.trust is imported where root needs it: the command, which must start quickly, does not.

SOCKET_PATTERN = "companion-*.sock"


def socket_name(master_pid: int) -> str:
    return f"companion-{master_pid}.sock"


def master_of(path: str) -> int | None:
    """The pid of the master in the name that `socket_name` gives; None for another name."""
    match = re.fullmatch(r"companion-([1-9][0-9]*)\.sock", os.path.basename(path))
    return int(match[1]) if match is not None else None


def default_directories(environ: Mapping[str, str], uid: int) -> list[str]:
    """The candidates for user *uid*, the first that applies first.

    Never the working directory or /tmp: others can write there.
    """
    found = []
    runtime = runtime_directory(environ)
    if runtime is not None:
        found.append(runtime)
    xdg = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(xdg):
        found.append(os.path.join(xdg, "gunicorn"))
    home = home_directory(environ, uid)
    homes = [home]
    if uid == 0 and home is not None and _is_another_s(home):
        # sudo may leave $HOME, and $XDG_RUNTIME_DIR, at those of the user who called it.
        homes.append(home_directory({}, uid))
    found += [os.path.join(each, ".gunicorn") for each in homes if each is not None]
    return found


def _is_another_s(directory: str) -> bool:
    try:
        return os.stat(directory).st_uid != 0
    except OSError:
        return False


def runtime_directory(environ: Mapping[str, str]) -> str | None:
    """$RUNTIME_DIRECTORY; the first, where systemd's RuntimeDirectory= names several."""
    path = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return path if os.path.isabs(path) else None


def home_directory(environ: Mapping[str, str], uid: int) -> str | None:
    """The home of *uid*: $HOME where that is who we are, else what the system has on record."""
    home: str | None = None
    if uid == os.getuid():
        home = environ.get("HOME")
    if not home:
        try:
            home = pwd.getpwuid(uid).pw_dir
        except KeyError:
            return None
    return home if os.path.isabs(home) else None


def candidate_sockets(environ: Mapping[str, str], uid: int) -> list[str]:
    """Every socket file in the default directories and in /run/*/, each once."""
    directories = [*default_directories(environ, uid), "/run/*"]
    found: dict[str, None] = {}
    for directory in directories:
        pattern = directory if directory == "/run/*" else glob.escape(directory)
        for path in sorted(glob.glob(os.path.join(pattern, SOCKET_PATTERN))):
            found[os.path.realpath(path)] = None
    return list(found)


class Unusable(Exception):
    """Why a directory will not do."""


def prepare_directory(path: str, uid: int, gid: int) -> None:
    """Make *path* (its last component) if it is missing, mode 0700, for user *uid*. Raises Unusable.

    Called before the manager changes its user, while it can still create directories for that user.
    """
    from gunicorn.unix import trust

    try:
        # A root that has logged in has an $XDG_RUNTIME_DIR that nobody else may enter. (For ourselves ask
        # the system rather than the permission bits, because of access lists.)
        closed = _closed_ancestor(path, uid, gid) if uid != os.geteuid() else None
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
    if not _may(info, uid, gid, os.W_OK | os.X_OK):
        raise Unusable(f"{path} is not writable for user {uid}")
    check_owned_by_root(path, uid)


def check_owned_by_root(path: str, uid: int) -> None:
    """Raise Unusable if companions of root would have their records in a directory of somebody else's."""
    from gunicorn.unix import trust

    if uid == 0 and os.geteuid() == 0 and not trust.is_owned_by_root(path):
        raise Unusable(f"{path} is not root's, or others may change what it leads to")


def hand_over_run_files(directory: str, suffix: str, uid: int, gid: int) -> None:
    """Give the run files that a server left as root to user *uid*, which is to read and lock them."""
    if os.geteuid() != 0 or uid == 0:
        return
    from gunicorn.unix import trust

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


def _closed_ancestor(path: str, uid: int, gid: int) -> str | None:
    """The first directory on the way to *path* that user *uid* may not pass."""
    parts = os.path.dirname(os.path.realpath(path)).split(os.sep)
    for end in range(1, len(parts) + 1):
        directory = os.sep.join(parts[:end]) or os.sep
        if not _may(os.stat(directory), uid, gid, os.X_OK):
            return directory
    return None


def _may(info: os.stat_result, uid: int, gid: int, want: int) -> bool:
    """Whether user *uid* has the permission bits *want* (of os.W_OK, os.X_OK)."""
    if uid == 0:
        return True
    if info.st_uid == uid:
        bits = info.st_mode >> 6
    elif info.st_gid in (gid, *os.getgroups()):
        bits = info.st_mode >> 3
    else:
        bits = info.st_mode
    return bits & want == want


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
    for directory in default_directories(environ, uid):
        there = directory if os.path.isdir(directory) else os.path.dirname(directory)
        try:
            if _closed_ancestor(there, uid, gid) is None and _may(
                os.stat(there), uid, gid, os.W_OK | os.X_OK
            ):
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
    from gunicorn.unix import trust

    try:
        fd = trust.open_directory(path)
        try:
            if os.path.dirname(os.path.realpath(path)) != "/" and os.fstat(fd).st_uid == 0:
                os.fchown(fd, uid, gid)
        finally:
            os.close(fd)
    except OSError as exc:
        raise Unusable(f"{path}: {exc.strerror}") from None
