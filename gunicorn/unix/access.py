# SPDX-License-Identifier: MIT
"""Check the rights of another user on a path."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Collection


class User:
    """The user that a process has after its change of user.

    For our own user the system is asked, which knows access lists; for others the permission bits.
    """

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

    def first_closed(self, directory: str) -> str | None:
        """The first directory on the way to *directory*, itself included, that this user may not enter."""
        parts = directory.split(os.sep)
        for end in range(1, len(parts) + 1):
            prefix = os.sep.join(parts[:end]) or os.sep
            if not self.may(prefix, os.X_OK):
                return prefix
        return None
