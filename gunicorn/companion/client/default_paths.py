# SPDX-License-Identifier: MIT
"""Name the default paths of control sockets and run files, and find sockets there."""

from __future__ import annotations

import glob
import os
import pwd
import re
from collections.abc import Mapping

SOCKET_PATTERN = "companion-*.sock"


def socket_name(master_pid: object) -> str:
    return f"companion-{master_pid}.sock"


def master_of(path: str) -> int | None:
    """The pid of the master in a name made by `socket_name`; None for another name."""
    match = re.fullmatch(r"companion-([1-9][0-9]*)\.sock", os.path.basename(path))
    return int(match[1]) if match is not None else None


def default_directories(environ: Mapping[str, str], uid: int) -> list[str]:
    """The candidates for user *uid*, in the order of precedence.

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
    if uid == 0 and home is not None and _is_another_users(home):
        # sudo may keep $HOME and $XDG_RUNTIME_DIR of the user who called it.
        homes.append(home_directory({}, uid))
    found += [os.path.join(each, ".gunicorn") for each in homes if each is not None]
    return found


def _is_another_users(directory: str) -> bool:
    try:
        return os.stat(directory).st_uid != 0
    except OSError:
        return False


def runtime_directory(environ: Mapping[str, str]) -> str | None:
    """$RUNTIME_DIRECTORY; the first one if systemd's RuntimeDirectory= names several."""
    path = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return path if os.path.isabs(path) else None


def home_directory(environ: Mapping[str, str], uid: int) -> str | None:
    """The home of *uid*: our own $HOME if that is our user, else the one in the user database."""
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
