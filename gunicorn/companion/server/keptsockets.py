# SPDX-License-Identifier: MIT
"""The listening sockets of companions, kept by the master for its next manager and for its successor.

A manager opens them as the companions' user and sends copies to the master. The next manager inherits these,
so clients that connect after a manager was killed wait in the backlog and are not refused. So does a
successor (USR2), to whom ``GUNICORN_COMPANION_SOCKETS`` names them: JSON with ``by`` (user, group and umask
of the manager), and ``sockets``, a list of group, address, device and inode of the file, and descriptor.
"""

from __future__ import annotations

import contextlib
import json
import os

from gunicorn.companion.supervise.sockets import KeptSocket

# More would not fit into a variable of the environment. The successor opens the others.
MOST_FOR_SUCCESSOR = 300


class KeptSockets:
    """The sockets by group and address. No child but a manager keeps them.

    *inherited*: what an old master's `for_successor` has returned.
    """

    def __init__(self, inherited: str = "") -> None:
        self._sockets: dict[tuple[str, str], KeptSocket] = {}
        # User, group and umask of the manager that has opened them: they shape the files of Unix sockets.
        self._made_by: list[int] | None = None
        with contextlib.suppress(ValueError, TypeError, KeyError):
            given = json.loads(inherited)
            self._made_by = given["by"]
            for group, address, file, fd in given["sockets"]:
                with contextlib.suppress(OSError):
                    os.set_inheritable(fd, False)
                    self.keep(group, address, file, fd)

    def keep(self, group: str, address: str, file: list[int] | None, fd: int) -> None:
        """Keep the socket *fd* of *group*; *file* is device and inode of a Unix socket's file."""
        self.let_go(group, address)
        owned = None if file is None else (file[0], file[1])
        self._sockets[group, address] = KeptSocket(group, address, owned, fd)

    def let_go(self, group: str, address: str) -> None:
        """Close the socket, because its manager has closed it."""
        kept = self._sockets.pop((group, address), None)
        if kept is not None:
            os.close(kept.fd)

    def begin(self, made_by: list[int]) -> None:
        """Before the fork of a manager: close sockets that one with other rights has opened."""
        if made_by != self._made_by:
            self.close()
        self._made_by = made_by

    def inherited(self) -> list[KeptSocket]:
        """In the manager: take them all."""
        found = list(self._sockets.values())
        self._sockets.clear()
        return found

    def names(self) -> list[tuple[str, str]]:
        """Group and address of those that a successor gets."""
        return list(self._sockets)[:MOST_FOR_SUCCESSOR]

    def for_successor(self) -> str:
        """In the child that becomes the successor: let it inherit them; return what tells it about them."""
        found = [self._sockets[name] for name in self.names()]
        for kept in found:
            os.set_inheritable(kept.fd, True)
        return json.dumps({"by": self._made_by, "sockets": found}) if found else ""

    def close(self) -> None:
        """Close them all."""
        for kept in self.inherited():
            os.close(kept.fd)
