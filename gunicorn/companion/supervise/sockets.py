# SPDX-License-Identifier: MIT
"""Open the sockets of ``bind`` and keep them for each start of a companion.

They stay open while the companion restarts: whoever connects meanwhile waits in the
backlog and is not refused. The manager itself never accepts. The master keeps copies
for the next manager, see ``companion/server/keptsockets.py``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gunicorn import sock
from gunicorn.companion.supervise.sharedstate import Rights
from gunicorn.settings.validators import parse_address

BACKLOG = 2048


@dataclass(frozen=True)
class _Options:
    """The settings that `sock.open_listeners` reads."""

    umask: int = 0
    backlog: int = BACKLOG
    reuse_port: bool = False
    is_ssl: bool = False
    protocol: str = "http"
    # The manager runs as the user of the companions already.
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)


class KeptSocket(NamedTuple):
    """A socket that an earlier manager has opened. *file*: that of a Unix socket, by device and inode."""

    group: str
    address: str
    file: tuple[int, int] | None
    fd: int


@dataclass
class _Group:
    """The listeners of a companion, or of all copies of one, by address."""

    listeners: dict[str, sock.BaseSocket] = field(default_factory=dict)

    def sockets(self, addresses: Iterable[str]) -> list[socket.socket]:
        return [_socket(self.listeners[address]) for address in addresses]


class Listeners:
    """The listening sockets of all companions that have ``bind``.

    *umask* shapes the mode of Unix sockets, as it does for those of the web tier. *rights* shows which
    addresses the manager of another master listens on. *tell* sends the master a message, with a copy of a
    socket if it is about one that was opened. *kept*: those that the master has kept. *beside_owner*: the
    manager of an old master still owns the files of these.
    """

    def __init__(
        self,
        log: Any = None,
        umask: int = 0,
        backlog: int = BACKLOG,
        rights: Rights | None = None,
        tell: Callable[[dict[str, Any], int | None], object] = lambda message, fd: None,
        kept: Iterable[KeptSocket] = (),
        beside_owner: bool = False,
    ) -> None:
        self.log = log
        self.rights = rights or Rights()
        self.tell = tell
        self._options = _Options(umask=umask, backlog=backlog)
        self._groups: dict[str, _Group] = {}
        # Files of an old master's manager, as long as that lives.
        self._theirs: dict[sock.BaseSocket, tuple[int, int]] = {}
        for each in kept:
            self._take_over(each, beside_owner)

    def _take_over(self, kept: KeptSocket, beside_owner: bool) -> None:
        """Go on with a socket of an earlier manager, unless somebody has removed or replaced its file."""
        try:
            [listener] = sock.open_listeners([kept.fd], self._options, self.log, attempts=1)
        except sock.BindError:
            # An application may have shut it down. The next start opens another one.
            self._tell_let_go(kept.group, kept.address)
            return
        _as_systemd_passes(_socket(listener))
        listener.file = kept.file
        if kept.file is not None and not listener.owns_path():
            self._close(kept.group, kept.address, listener)
            return
        self._groups.setdefault(kept.group, _Group()).listeners[kept.address] = listener
        if not beside_owner:
            self.rights.hold(_right(kept.address))
        elif kept.file is not None:
            self._theirs[listener], listener.file = kept.file, None

    def promoted(self) -> None:
        """The old master is gone: its files are ours, also those of sockets that were closed meanwhile."""
        for listener, file in self._theirs.items():
            listener.file = file
            if listener.sock is None and listener.owns_path():
                with contextlib.suppress(OSError):
                    os.unlink(listener.cfg_addr)
        self._theirs.clear()

    def leave_files(self, names: Iterable[Sequence[str]]) -> None:
        """Leave the files of sockets, given as group and address, to the successor, which has copies."""
        for group, address in names:
            known = self._groups.get(group)
            if known is not None and address in known.listeners:
                known.listeners[address].file = None

    def _is_reachable(self, listener: sock.BaseSocket) -> bool:
        """Whether the file of a Unix socket is still there."""
        file = listener.file or self._theirs.get(listener)
        return file is None or file == sock.file_identity(listener.cfg_addr)

    def open(self, group: str, addresses: Sequence[str]) -> list[socket.socket]:
        """Return the sockets of *group* for *addresses*, in this order; open ones are kept.

        Raises OSError, whose text names the address.
        """
        known = self._groups.setdefault(group, _Group())
        for address in [
            address
            for address, listener in known.listeners.items()
            if address not in addresses or not self._is_reachable(listener)
        ]:
            self._close(group, address, known.listeners.pop(address))
        opened: dict[str, sock.BaseSocket] = {}
        try:
            for address in addresses:
                if address not in known.listeners:
                    known.listeners[address] = opened[address] = self._listen(address)
        except OSError:
            # Nothing will accept on the others: no client should wait there.
            known.listeners = {a: each for a, each in known.listeners.items() if a not in opened}
            sock.close_sockets(opened.values())
            raise
        finally:
            if not known.listeners:
                del self._groups[group]
        for address in addresses:
            self.rights.hold(_right(address))
        for address, listener in opened.items():
            which = {"group": group, "address": address, "file": listener.file}
            inode = os.fstat(listener.fileno()).st_ino
            self.tell({"keep": {**which, "inode": inode}}, listener.fileno())
        found = known.sockets(addresses) if addresses else []
        for each in found:
            # An earlier process may have set a shorter backlog, which belongs to the socket.
            each.listen(self._options.backlog)
        return found

    def _listen(self, address: str) -> sock.BaseSocket:
        try:
            [listener] = sock.open_listeners([parse_address(address)], self._options, self.log, attempts=1)
        except sock.BindError as exc:
            cause = exc.__cause__
            number = cause.errno if isinstance(cause, OSError) and cause.errno else errno.EADDRINUSE
            raise OSError(number, str(exc)) from exc
        _as_systemd_passes(_socket(listener))
        return listener

    def close(self, group: str) -> None:
        """Close the sockets of *group*, and remove the files of those that have one."""
        known = self._groups.pop(group, None)
        if known is not None:
            for address, listener in known.listeners.items():
                self._close(group, address, listener)

    def _close(self, group: str, address: str, listener: sock.BaseSocket) -> None:
        sock.close_sockets([listener])
        self.rights.let_go(_right(address))
        self._tell_let_go(group, address)

    def _tell_let_go(self, group: str, address: str) -> None:
        self.tell({"let_go": {"group": group, "address": address}}, None)

    def hand_over(self) -> None:
        """Leave the sockets, and the files of those that have one, to the next manager."""
        for known in self._groups.values():
            for address, listener in known.listeners.items():
                sock.close_sockets([listener], False)
                self.rights.let_go(_right(address))
        self._groups.clear()

    def group_on(self, addresses: Iterable[str], *, besides: str) -> str | None:
        """Return another group that listens on one of *addresses*; None if there is none."""
        wanted = {_right(address) for address in addresses}
        for group, known in self._groups.items():
            if group != besides and not wanted.isdisjoint(map(_right, known.listeners)):
                return group
        return None

    def is_elsewhere(self, addresses: Iterable[str]) -> bool:
        """Whether the manager of another master listens on one of *addresses*."""
        return any(self.rights.is_elsewhere(_right(address)) for address in addresses)

    def groups(self) -> list[str]:
        """The groups that have sockets."""
        return list(self._groups)

    def close_all(self) -> None:
        for group in self.groups():
            self.close(group)

    def descriptors(self) -> list[int]:
        return [listener.fileno() for known in self._groups.values() for listener in known.listeners.values()]


def _right(address: str) -> str:
    """Name the lock for *address*, the same for each way to write it."""
    return f"address {parse_address(address)}"


def _as_systemd_passes(found: socket.socket) -> None:
    """Make it blocking. A companion may change the mode; all copies share it with the socket."""
    found.setblocking(True)
    found.set_inheritable(False)


def _socket(listener: sock.BaseSocket) -> socket.socket:
    assert listener.sock is not None
    return listener.sock
