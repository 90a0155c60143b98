# SPDX-License-Identifier: MIT
"""The sockets of ``bind``: the manager opens and keeps them, each start of a companion gets them.

They stay open while the companion restarts: whoever connects meanwhile waits in the
queue and is not refused. The manager itself never accepts.

They are handed over as systemd hands over the sockets of a unit, sd_listen_fds(3): as the
descriptors 3, 4 … In a companion that is a program of its own these are free, or exec frees them. A
Python target shares the memory of the preloaded application, whose objects may hold descriptors of
these very numbers; so the master occupies them before it loads the application.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gunicorn import sock
from gunicorn.companion.supervise.sharedstate import Rights
from gunicorn.settings.addresses import parse_address

# SD_LISTEN_FDS_START
FIRST = 3

BACKLOG = 2048

# The numbers that `reserve` holds, in the master and in what it forks.
_RESERVED: set[int] = set()


class Occupied(Exception):
    """A number that a socket must get is held by somebody else; the text says by what."""


@dataclass(frozen=True)
class _Options:
    """What a listener of the web tier asks of the configuration."""

    umask: int = 0
    backlog: int = BACKLOG
    reuse_port: bool = False
    is_ssl: bool = False
    # Who has made them owns them: the manager runs as the user of the companions already.
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)


@dataclass
class _Group:
    """The listeners of a companion, or of all copies of one, by address."""

    listeners: dict[str, sock.BaseSocket] = field(default_factory=dict)

    def sockets(self, addresses: Iterable[str]) -> list[socket.socket]:
        return [_socket(self.listeners[address]) for address in addresses]


class Listeners:
    """The listening sockets of all companions that have ``bind``.

    *umask* shapes the mode of Unix sockets, as it does for those of the web tier. *rights* shows which
    addresses the manager of another master listens on.
    """

    def __init__(
        self, log: Any = None, umask: int = 0, backlog: int = BACKLOG, rights: Rights | None = None
    ) -> None:
        self.log = log
        self.rights = rights or Rights()
        self._options = _Options(umask=umask, backlog=backlog)
        self._groups: dict[str, _Group] = {}

    def open(self, group: str, addresses: Sequence[str]) -> list[socket.socket]:
        """The sockets of *group* for *addresses*, in this order; those that are open are kept.

        Raises OSError, whose text names the address.
        """
        known = self._groups.setdefault(group, _Group())
        for address in [address for address in known.listeners if address not in addresses]:
            self._close(address, known.listeners.pop(address))
        opened: list[sock.BaseSocket] = []
        try:
            for address in addresses:
                if address not in known.listeners:
                    known.listeners[address] = listener = self._listen(address)
                    opened.append(listener)
        except OSError:
            # Where nobody will accept, nobody is to wait.
            known.listeners = {a: each for a, each in known.listeners.items() if each not in opened}
            sock.close_sockets(opened)
            raise
        finally:
            if not known.listeners:
                del self._groups[group]
        for address in addresses:
            self.rights.hold(_right(address))
        found = known.sockets(addresses) if addresses else []
        for each in found:
            # The companion before may have asked for a shorter queue, which belongs to the socket.
            each.listen(self._options.backlog)
        return found

    def _listen(self, address: str) -> sock.BaseSocket:
        try:
            [listener] = sock.open_listeners([parse_address(address)], self._options, self.log, attempts=1)
        except sock.BindError as exc:
            cause = exc.__cause__
            number = cause.errno if isinstance(cause, OSError) and cause.errno else errno.EADDRINUSE
            raise OSError(number, str(exc)) from exc
        found = _socket(listener)
        # As systemd hands them over. Who wants it otherwise sets it, for all copies: it is no property of
        # a descriptor but of what all of them share.
        found.setblocking(True)
        found.set_inheritable(False)
        return listener

    def close(self, group: str) -> None:
        """Close the sockets of *group*, and remove the files of those that have one."""
        known = self._groups.pop(group, None)
        if known is not None:
            for address, listener in known.listeners.items():
                self._close(address, listener)

    def _close(self, address: str, listener: sock.BaseSocket) -> None:
        sock.close_sockets([listener])
        self.rights.let_go(_right(address))

    def group_on(self, addresses: Iterable[str], *, besides: str) -> str | None:
        """The other group for which one of *addresses* is listened on; None: there is none."""
        wanted = {_right(address) for address in addresses}
        for group, known in self._groups.items():
            if group != besides and not wanted.isdisjoint(map(_right, known.listeners)):
                return group
        return None

    def is_elsewhere(self, addresses: Iterable[str]) -> bool:
        """Whether the manager of another master listens on one of *addresses*."""
        return any(self.rights.is_elsewhere(_right(address)) for address in addresses)

    def close_all(self) -> None:
        for group in list(self._groups):
            self.close(group)

    def descriptors(self) -> list[int]:
        """Those of all groups."""
        return [listener.fileno() for known in self._groups.values() for listener in known.listeners.values()]


def _right(address: str) -> str:
    """The same for each way to write an address."""
    return f"address {parse_address(address)}"


def _socket(listener: sock.BaseSocket) -> socket.socket:
    assert listener.sock is not None
    return listener.sock


# -- the numbers from 3 on -------------------------------------------------------


def reserve(count: int) -> None:
    """Hold the numbers of *count* sockets, so that no file that is opened from now on gets one.

    To be called before the application is loaded. What is held by somebody already stays his.
    """
    for number in range(FIRST, FIRST + count):
        if not is_open(number):
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            if null != number:
                os.dup2(null, number, inheritable=False)
                os.close(null)
            _RESERVED.add(number)


def most(entries: Iterable[Any]) -> int:
    """The most sockets that one of the entries of `companion_workers` has, checked or not."""
    binds = [entry.get("bind") for entry in entries if isinstance(entry, dict)]
    counts = [
        1 if isinstance(bind, str) else len(bind) for bind in binds if isinstance(bind, str | list | tuple)
    ]
    return max(counts, default=0)


def holds_numbers() -> bool:
    """Whether `release` has anything to do."""
    return bool(_RESERVED)


def release() -> None:
    """In a companion: close what `reserve` holds."""
    for number in [number for number in _RESERVED if _is_placeholder(number)]:
        os.close(number)
    _RESERVED.clear()


def lift(fd: int, count: int) -> int:
    """*fd*, or a copy of it and *fd* closed, above the numbers of *count* sockets."""
    if not FIRST <= fd < FIRST + count:
        return fd
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST + count)
    os.close(fd)
    return copy


def hand_over(sources: Sequence[int], force: bool = False) -> None:
    """Have *sources* as the descriptors 3, 4 …, and nowhere else; a program started by exec inherits them.

    Raises Occupied, before anything is changed, where such a number is neither free, nor reserved, nor
    one of *sources*; with *force* it is theirs all the same, because no object outlives the exec that
    follows.
    """
    numbers = range(FIRST, FIRST + len(sources))
    if not force:
        for number in numbers:
            if number not in sources and is_open(number) and not _is_placeholder(number):
                raise Occupied(_occupied(number))
    # One that is in the place of another would be overwritten before its turn.
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, numbers.stop) if fd in numbers else fd for fd in sources]
    for fd, number in zip(lifted, numbers, strict=True):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)
    _RESERVED.difference_update(numbers)


def _occupied(number: int) -> str:
    text = f"descriptor {number}, where a socket of 'bind' belongs, is held by {_describe(number)}"
    if os.get_inheritable(number):
        # What Python opens is closed by an exec; what is not, came by one.
        return f"{text}, which the server was started with"
    return f"{text} of the application; a restart of the server keeps it free"


def is_open(number: int) -> bool:
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _is_placeholder(number: int) -> bool:
    """Whether *number* is still what `reserve` has put there."""
    if number not in _RESERVED:
        return False
    try:
        info = os.fstat(number)
    except OSError:
        return False
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == os.stat(os.devnull).st_rdev


def _describe(number: int) -> str:
    for directory in ("/proc/self/fd", "/dev/fd"):
        try:
            return os.readlink(f"{directory}/{number}")
        except OSError:
            continue
    return "a file"


def runs(descriptors: Iterable[int]) -> list[tuple[int, int]]:
    """*descriptors* as ranges (first, end), so that closing many that lie together costs one call."""
    found: list[tuple[int, int]] = []
    ordered = sorted(set(descriptors))
    if not ordered:
        return found
    first = end = ordered[0]
    for number in ordered:
        if number > end:
            found.append((first, end))
            first = number
        end = number + 1
    found.append((first, end))
    return found


def without(ranges: Iterable[tuple[int, int]], besides: Iterable[int]) -> list[tuple[int, int]]:
    """*ranges* but for the descriptors *besides*."""
    kept = sorted(besides)
    found = []
    for first, end in ranges:
        for number in kept:
            if first <= number < end:
                found.append((first, number))
                first = number + 1
        found.append((first, end))
    return [(first, end) for first, end in found if first < end]
