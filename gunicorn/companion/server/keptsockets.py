# SPDX-License-Identifier: MIT
"""The listening sockets of companions, kept by the master while there is no manager.

A manager opens them as the companions' user and sends copies to the master. The next manager inherits these,
so clients that connect after a manager was killed wait in the backlog and are not refused.
"""

from __future__ import annotations

import os
from typing import Any

from gunicorn.companion.supervise.sockets import KeptSocket


class KeptSockets:
    """The sockets by group and address. No child but a manager keeps them."""

    def __init__(self) -> None:
        self._sockets: dict[tuple[str, str], KeptSocket] = {}
        # User, group and umask of the manager that has opened them: they shape the files of Unix sockets.
        self._made_by: Any = None

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

    def begin(self, made_by: Any) -> None:
        """Before the fork of a manager: close sockets that one with other rights has opened."""
        if made_by != self._made_by:
            self.close()
        self._made_by = made_by

    def inherited(self) -> list[KeptSocket]:
        """In the manager: take them all."""
        found = list(self._sockets.values())
        self._sockets.clear()
        return found

    def close(self) -> None:
        """Close them all."""
        for kept in self.inherited():
            os.close(kept.fd)
