# SPDX-License-Identifier: MIT
"""Send and parse the datagrams of sd_notify(3).

`notify` is for targets, `parse` for their supervisor. Targets import this file, so it needs the standard
library alone.
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

# sd_notify(3) sets no limit; systemd reads a page, and libraries send no more.
MAX_DATAGRAM = 4096

# Characters of a STATUS= that are shown, in a column of a table.
MAX_STATUS = 256

# Seconds to wait for a supervisor whose queue is full. A heartbeat must not hold up the work, and another
# follows soon.
PATIENCE = 1.0
PATIENCE_OF_BEAT = 0.1


class Notice(NamedTuple):
    """The content of a datagram. ``status``: "" removes the text, None leaves it."""

    ready: bool = False
    watchdog: bool = False
    trigger: bool = False
    status: str | None = None
    stopping: bool = False
    reloading: bool = False


NOTHING = Notice()


def parse(datagram: bytes) -> Notice:
    """Read one datagram: lines of ``NAME=value``.

    Unknown and malformed lines are ignored. The last value of a repeated name counts.
    """
    # A C program may have sent the NUL at the end of its string; any other NUL is an error.
    text = datagram.removesuffix(b"\0")
    if b"\0" in text:
        return NOTHING
    fields = {}
    for line in text.split(b"\n"):
        name, found, value = line.partition(b"=")
        if found:
            fields[name] = value
    status = fields.get(b"STATUS")
    return Notice(
        ready=fields.get(b"READY") == b"1",
        watchdog=fields.get(b"WATCHDOG") == b"1",
        trigger=fields.get(b"WATCHDOG") == b"trigger",
        status=None if status is None else printable(status.decode("utf-8", "replace")),
        stopping=fields.get(b"STOPPING") == b"1",
        reloading=fields.get(b"RELOADING") == b"1",
    )


def printable(text: str) -> str:
    """*text* as one line, without control characters, which a terminal would obey."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown.strip()[:MAX_STATUS]


def notify(
    ready: bool = False, watchdog: bool = False, status: str | None = None, stopping: bool = False
) -> bool:
    """Report this process's state to its supervisor; True if the message was sent.

    *ready*: it has started and works from now on. *watchdog*: a heartbeat; send one at least every half of
    the watchdog's time. *status*: a phrase for people, shown until the next; "" removes it. *stopping*: it
    is about to exit. Several arguments make one message.

    It does not raise if nobody listens: without ``NOTIFY_SOCKET`` in the environment, or when the supervisor
    is gone, it does nothing and returns False. If the supervisor is busy it waits a moment, at most a
    second. Any thread and any child process may call it. sd_notify(3).
    """
    lines = []
    if ready:
        lines.append("READY=1")
    if stopping:
        lines.append("STOPPING=1")
    if watchdog:
        lines.append("WATCHDOG=1")
    if status is not None:
        # A line break would begin a new assignment.
        lines.append("STATUS=" + printable(status))
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not lines or not address.startswith(("/", "@")):
        return False
    patience = PATIENCE_OF_BEAT if lines == ["WATCHDOG=1"] else PATIENCE
    return _send(address, "\n".join(lines).encode("utf-8", "replace"), patience)


def _send(address: str, datagram: bytes, timeout: float) -> bool:
    name = os.fsencode(address)
    if address.startswith("@"):
        # A name in the abstract namespace of Linux begins with NUL.
        name = b"\0" + name[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout)
            # Connect it: then poll(2) shows when the receiver's queue has room.
            sock.connect(name)
            return sock.send(datagram) == len(datagram)
    except OSError:
        return False
