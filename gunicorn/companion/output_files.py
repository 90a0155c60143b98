# SPDX-License-Identifier: MIT
"""Check that the output files of companions can be written by the user who will write them."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Collection, Mapping
from typing import Any

from gunicorn.companion.checks import INVALID


class WriterIdentity:
    """Who will write the companions' output files: they are checked for that user, not for ours."""

    def __init__(self, uid: int, gid: int, initgroups: bool = False) -> None:
        self.uid = uid
        self.myself = uid == os.geteuid() and gid == os.getegid()
        self.groups = {gid, *self._supplementary_groups(uid, gid, initgroups)}

    @staticmethod
    def _supplementary_groups(uid: int, gid: int, initgroups: bool) -> Collection[int]:
        """Those after the change of user, which keeps ours unless *initgroups* gives it its own."""
        if initgroups and uid and gid:
            with contextlib.suppress(KeyError):
                return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
        return os.getgroups()

    @property
    def name(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"

    def may(self, path: str, want: int) -> bool:
        """Whether that user has the permission bits *want* (of os.R_OK, W_OK, X_OK) on *path*."""
        if self.myself:
            return os.access(path, want, effective_ids=os.access in os.supports_effective_ids)
        if self.uid == 0:
            return True
        info = os.stat(path)
        if info.st_uid == self.uid:
            bits = info.st_mode >> 6
        elif info.st_gid in self.groups:
            bits = info.st_mode >> 3
        else:
            bits = info.st_mode
        return bits & want == want


def output_problems(label: str, values: Mapping[str, Any], user: WriterIdentity) -> list[str]:
    problems = []
    for key in ("stdout", "stderr"):
        path, cwd = values.get(key), values.get("cwd")
        if path is None or path is INVALID or (key == "stderr" and path == "stdout"):
            continue
        if cwd is INVALID and not os.path.isabs(path):
            continue  # nobody knows where that would be
        problem = _output_problem(path if cwd is INVALID else os.path.join(cwd or "", path), user)
        if problem:
            problems.append(f"{label}: {key}: {problem}")
    return problems


def _output_problem(path: str, user: WriterIdentity) -> str | None:
    """Why *path* cannot be opened for append by *user*; None if it can."""
    path = os.path.abspath(path)
    parent = os.path.dirname(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as exc:
        return f"{path}: {exc.strerror}"
    if not os.path.isdir(parent):
        return f"directory {parent} does not exist"
    if mode is not None and stat.S_ISDIR(mode):
        return f"{path} is a directory"
    blocked = _first_closed_directory(parent, user)
    if blocked:
        return f"{path}: {user.name} may not enter {blocked}"
    if mode is None and not user.may(parent, os.W_OK | os.X_OK):
        return f"directory {parent} is not writable for {user.name}"
    if mode is not None and not user.may(path, os.W_OK):
        return f"{path} is not writable for {user.name}"
    return None


def _first_closed_directory(directory: str, user: WriterIdentity) -> str | None:
    parts = directory.split(os.sep)
    for end in range(1, len(parts) + 1):
        prefix = os.sep.join(parts[:end]) or os.sep
        if not user.may(prefix, os.X_OK):
            return prefix
    return None
