# SPDX-License-Identifier: MIT
"""Ask the kernel how many connections wait at a listening socket of another process: sock_diag(7), Linux."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator

# netlink(7)
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")

_LISTEN = 1 << 10  # the state TCP_LISTEN; Unix sockets have the same number for it
_SHOW_RQLEN = 0x10
_RQLEN = 4
_INET_MESSAGE, _UNIX_MESSAGE = 72, 16
# The answer comes from within the kernel, without waiting for anybody.
_TIMEOUT = 0.5


def backlogs(inodes: Collection[int]) -> dict[int, tuple[int, int]]:
    """Return by inode how many connections wait to be accepted, and how many may.

    A socket of which the system does not tell is left out.
    """
    # Linux numbers sockets with 32 bits.
    wanted = {inode & 0xFFFFFFFF: inode for inode in inodes}
    found: dict[int, tuple[int, int]] = {}
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        if len(found) == len(wanted):
            break
        try:
            for inode, waiting, most in _listening(family):
                if inode in wanted:
                    found[wanted[inode]] = waiting, most
        except (OSError, AttributeError, struct.error):
            continue  # no Linux, a container that forbids it, or a kernel without the module
    return found


def _listening(family: int) -> Iterator[tuple[int, int, int]]:
    """Inode, queue and its limit of each listening socket of the network namespace."""
    if family == socket.AF_UNIX:
        request = struct.pack("=BBHIIIII", family, 0, 0, _LISTEN, 0, _SHOW_RQLEN, 0, 0)
    else:
        request = struct.pack("=BBBBI48s", family, socket.IPPROTO_TCP, 0, 0, _LISTEN, b"")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(_TIMEOUT)
        size = _HEADER.size + len(request)
        sock.sendall(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
        while True:
            data = sock.recv(65536)
            while data:
                size, kind, *_ = _HEADER.unpack_from(data)
                if kind in (_DONE, _ERROR) or size < _HEADER.size:
                    return
                message, data = data[_HEADER.size : size], data[(size + 3) & ~3 :]
                yield _of_unix(message) if family == socket.AF_UNIX else _of_inet(message)


def _of_inet(message: bytes) -> tuple[int, int, int]:
    """From struct inet_diag_msg, linux/inet_diag.h."""
    waiting, most, _, inode = struct.unpack_from("=IIII", message, _INET_MESSAGE - 16)
    return inode, waiting, most


def _of_unix(message: bytes) -> tuple[int, int, int]:
    """From struct unix_diag_msg and its attributes, linux/unix_diag.h."""
    (inode,) = struct.unpack_from("=I", message, 4)
    place = _UNIX_MESSAGE
    while place + 4 <= len(message):
        size, kind = struct.unpack_from("=HH", message, place)
        if kind == _RQLEN:
            waiting, most = struct.unpack_from("=II", message, place + 4)
            return inode, waiting, most
        place += max(4, (size + 3) & ~3)
    raise struct.error("no RQLEN")
