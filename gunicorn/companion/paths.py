# SPDX-License-Identifier: MIT
"""Where control sockets and run files are when nobody says where."""

from __future__ import annotations

import glob
import os
import pwd
from collections.abc import Mapping

SOCKET_PATTERN = "companion-*.sock"


def socket_name(master_pid: int) -> str:
    return f"companion-{master_pid}.sock"


def default_directories(environ: Mapping[str, str], uid: int) -> list[str]:
    """The candidates for user *uid*, the first that applies first.

    Never the working directory or /tmp: others can write there.
    """
    found = []
    # systemd gives a colon-separated list where RuntimeDirectory= names several.
    runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if os.path.isabs(runtime):
        found.append(runtime)
    xdg = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(xdg):
        found.append(os.path.join(xdg, "gunicorn"))
    home = home_directory(environ, uid)
    if home is not None:
        found.append(os.path.join(home, ".gunicorn"))
    return found


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
    directories = [*default_directories(environ, uid), "/run/*", "/run/*/gunicorn"]
    found: dict[str, None] = {}
    for directory in directories:
        pattern = directory if directory.startswith("/run/*") else glob.escape(directory)
        for path in sorted(glob.glob(os.path.join(pattern, SOCKET_PATTERN))):
            found[os.path.realpath(path)] = None
    return list(found)
