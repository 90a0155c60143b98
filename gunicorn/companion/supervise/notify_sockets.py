# SPDX-License-Identifier: MIT
"""Receive sd_notify(3) messages: a socket for each companion, and a check of the sender.

A message counts if it comes from a process of the companion's session or from a
descendant of one. The kernel tells who sent it; the path or the name of the socket
is no secret.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from typing import Any

from gunicorn.companion.child.sdnotify import MAX_DATAGRAM, NOTHING, Notice, parse
from gunicorn.companion.process import CompanionProcess, Event, State
from gunicorn.companion.table import ProcessTable
from gunicorn.unix import session
from gunicorn.unix.kernel import KERNEL, Kernel
from gunicorn.unix.poller import Poller

__all__ = ["Notice", "NoticeSocket", "Notifications", "remove_stale"]

SUFFIX = ".notify"

# Datagrams to read at a time, so that a companion that sends many does not keep the others, or the control
# socket, waiting. If some are left, the poller returns at once.
MOST_AT_ONCE = 32

# A queue is shorter: /proc/sys/net/unix/max_dgram_qlen is 10, or 512 where systemd has set it.
MOST_DISCARDED = 1024

# Senders that are reported over the life of one socket: the log is not theirs to fill.
MOST_REJECTED = 16

# The most generations to search between a sender and its companion.
MOST_ANCESTORS = 64

# struct ucred of unix(7): pid, uid, gid.
_UCRED = struct.Struct("3i")
_FD = array.array("i")

# Whether the kernel names the sender of a datagram (if not, the directory keeps others out), and has abstract
# addresses, which need no directory: unix(7).
KNOWS_SENDERS = HAVE_ABSTRACT = sys.platform.startswith("linux")


class NoticeSocket:
    """Receives the messages of one companion. ``address`` is its ``NOTIFY_SOCKET``.

    ``rejected`` are the senders, as far as known, whose messages the last ``receive`` ignored: each of them
    once in the life of the socket, and only the first few.
    """

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.address = address
        self.rejected: list[int] = []
        self._sock = sock
        self._owner = os.getpid()
        self._seen: set[int] = set()

    @classmethod
    def open(cls, run_dir: str | None, name: str) -> NoticeSocket:
        """Listen for the companion *name*. Raises OSError.

        The socket is a file of mode 0600 in *run_dir*, or a Linux abstract socket if there is no such
        directory, or its path is too long or not writable. A manager that is root always uses an abstract
        one: its companions may change their user, as ``sudo`` does, and could not reach the file then.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if KNOWS_SENDERS:
                # Before it has an address: no datagram comes without its sender.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            return cls(sock, _bind(sock, run_dir, name))
        except BaseException:
            sock.close()
            raise

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def reachable(self) -> bool:
        """Whether ``address`` still leads here: a file may have been removed, with its directory."""
        return not self.address.startswith("/") or _is_socket(self.address)

    def receive(self, pid: int) -> list[Notice]:
        """Return the messages so far of the companion whose leader is *pid*; never blocks.

        At most ``MOST_AT_ONCE`` datagrams are taken, so more may be there.
        """
        notices: list[Notice] = []
        self.rejected = []
        for sender, datagram in self._datagrams(MOST_AT_ONCE):
            if sender is not None and not belongs(sender, pid):
                self._reject(sender)
            elif datagram is not None and (notice := parse(datagram)) != NOTHING:
                notices.append(notice)
        return notices

    def discard(self) -> None:
        """Drop all messages that are there now; never blocks."""
        # The bound is for senders that do not pause.
        for _ in self._datagrams(MOST_DISCARDED):
            pass

    def _datagrams(self, most: int) -> Iterator[tuple[int | None, bytes | None]]:
        """Yield up to *most* datagrams, each with its sender's pid; None for a datagram that was cut off.

        The pid is 0 if the kernel does not know the sender, None if it names none at all.
        """
        room = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(_FD.itemsize)
        cloexec = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        for _ in range(most):
            try:
                # Descriptors that find no room are closed by the kernel.
                datagram, ancillary, flags, _address = self._sock.recvmsg(MAX_DATAGRAM, room, cloexec)
            except OSError:
                return
            sender = 0 if KNOWS_SENDERS else None
            fds = array.array("i")
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                elif KNOWS_SENDERS and (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    sender = _UCRED.unpack_from(data)[0]
            yield sender, None if flags & socket.MSG_TRUNC else datagram
            # After the sender was looked for: with BARRIER=1 it waits for this, and then exits.
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _reject(self, sender: int) -> None:
        if sender not in self._seen and len(self._seen) < MOST_REJECTED:
            self._seen.add(sender)
            self.rejected.append(sender)

    def close(self) -> None:
        """Close it and remove its file, which only the process that made it does."""
        self._sock.close()
        if self.address.startswith("/") and os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                os.unlink(self.address)


def belongs(sender: int, leader: int) -> bool:
    """Whether *sender* is in the session that *leader* leads, or descends from a process in it.

    False for a process that was reaped: nothing is known of it any more.
    """
    pid = sender
    if leader <= 0:
        # getsid() returns 0 for every session outside of our pid namespace.
        return False
    for _ in range(MOST_ANCESTORS):
        # 0 is the parent of init, or the sender is in a pid namespace that we cannot see.
        if pid <= 0:
            return False
        if pid == leader:
            return True
        try:
            if os.getsid(pid) == leader:
                return True
            info = session.read_stat(pid)
        except OSError:
            return False
        if info is None:
            return False
        pid = info.ppid
    return False


def _bind(sock: socket.socket, run_dir: str | None, name: str) -> str:
    """Give *sock* its address, and return it as the environment shows it."""
    # socat reads what follows a colon as something else.
    name = name.replace(":", "@")
    if run_dir is not None and not (HAVE_ABSTRACT and os.geteuid() == 0):
        # Absolute, for a companion that enters a directory of its own.
        path = os.path.join(os.path.abspath(run_dir), f"{name}.{os.getpid()}{SUFFIX}")
        try:
            _bind_file(sock, path)
            return path
        except OSError:
            if not HAVE_ABSTRACT:
                raise
    elif not HAVE_ABSTRACT:
        raise OSError("there is no directory for the notify socket")
    # With a random part: nobody else may take the name while the companion of a dead manager still sends to
    # it.
    chosen = f"gunicorn/{os.getpid()}/{name[:50]}/{os.urandom(8).hex()}"
    sock.bind(b"\0" + chosen.encode())
    return "@" + chosen


def _bind_file(sock: socket.socket, path: str) -> None:
    # A process that had our pid may have left one.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    # bind() applies the umask: the mode is right from the first moment.
    umask = os.umask(0o177)
    try:
        sock.bind(path)
    finally:
        os.umask(umask)


def remove_stale(run_dir: str | None) -> None:
    """Remove the stale socket files in *run_dir*."""
    if run_dir is None:
        return
    try:
        names = [name for name in os.listdir(run_dir) if name.endswith(SUFFIX)]
    except OSError:
        return
    for name in names:
        path = os.path.join(run_dir, name)
        with contextlib.suppress(OSError):
            if _is_socket(path) and _is_deserted(path):
                os.unlink(path)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_deserted(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
        return False


class Notifications:
    """Receives the messages of all companions of *table*, and sends the events that follow."""

    def __init__(self, table: ProcessTable, log: Any, poller: Poller, kernel: Kernel = KERNEL) -> None:
        self.kernel = kernel
        self.table = table
        self.log = log
        self.poller = poller
        self._sockets: dict[str, NoticeSocket] = {}

    def open(self, process: CompanionProcess, run_dir: str | None) -> str | None:
        """The companion's ``NOTIFY_SOCKET``; None if none can be made.

        Raises OSError if the companion needs one.
        """
        name = process.name
        if name in self._sockets and not self._sockets[name].reachable:
            # The run directory was removed, and made again.
            self.close(name)
        if name not in self._sockets:
            try:
                self._sockets[name] = NoticeSocket.open(run_dir, name)
            except OSError as exc:
                if process.config.ready == "notify" or process.config.watchdog is not None:
                    reason = f"cannot make its notify socket: {exc.strerror or exc}"
                    raise OSError(exc.errno, reason) from None
                return None
            self.poller.add(self._sockets[name].fileno(), lambda events: self.receive(process))
        return self._sockets[name].address

    def renew(self, run_dir: str | None) -> None:
        """Listen again at addresses whose file was removed."""
        for process in self.table.values():
            notice_socket = self._sockets.get(process.name)
            if notice_socket is not None and not notice_socket.reachable:
                with contextlib.suppress(OSError):
                    self.open(process, run_dir)

    def receive(self, process: CompanionProcess) -> None:
        """Read the messages of *process*."""
        notice_socket = self._sockets.get(process.name)
        if notice_socket is None:
            return
        for notice in notice_socket.receive(process.pid or 0):
            if process.pid is not None:
                self.take(process, notice)
        for sender in notice_socket.rejected:
            self.log.warning(
                "Companion %s: ignoring a notification: its sender, pid %d, is none of the companion's"
                " processes, or has already exited",
                process.name,
                sender,
            )

    def take(self, process: CompanionProcess, notice: Notice) -> None:
        """Send the events that follow from *notice*."""
        now = self.kernel.now()
        if notice.status is not None:
            process.status_text = notice.status
        if notice.watchdog:
            self.table.send(process, Event.BEAT, now)
        if notice.ready:
            self.table.send(process, Event.READY, now)
        if notice.trigger and process.pid is not None and process.state is not State.STOPPING:
            self.table.send(process, Event.HUNG, now, reason="it sent WATCHDOG=trigger")

    def discard(self, name: str) -> None:
        """Drop the messages of a process that is gone: they are not its successor's."""
        notice_socket = self._sockets.get(name)
        if notice_socket is not None:
            notice_socket.discard()

    def close(self, name: str) -> None:
        """Close the socket of *name*."""
        notice_socket = self._sockets.pop(name, None)
        if notice_socket is not None:
            self.poller.remove(notice_socket.fileno())
            notice_socket.close()

    def descriptors(self) -> list[int]:
        return [notice_socket.fileno() for notice_socket in self._sockets.values()]
