# SPDX-License-Identifier: MIT
"""systemd's protocols for a server: socket activation, and notification of its state.

Sources: sd_listen_fds(3), sd_notify(3).
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Mapping
from typing import Any

from gunicorn.master.announce import Announcer, watchdog_seconds
from gunicorn.master.handoff import LISTEN_VARIABLES, SD_LISTEN_FDS_START, listen_fd_count

__all__ = ["SD_LISTEN_FDS_START", "Unit", "listen_fds", "sd_notify"]

# Seconds until the next attempt if the queue of the service manager is full, and messages kept meanwhile.
RETRY_AFTER = 0.1
MOST_UNSENT = 32


def listen_fds(unset_environment: bool = True) -> int:
    """How many sockets were passed to this process, from ``SD_LISTEN_FDS_START`` on.

    0 if the variables are missing, malformed or meant for another process. With *unset_environment* they are
    removed, so that no child uses them.
    """
    count = listen_fd_count(os.environ, os.getpid())
    if count and unset_environment:
        for name in LISTEN_VARIABLES:
            os.environ.pop(name, None)
    return count


def sd_notify(state: str, logger: Any, unset_environment: bool = False) -> None:
    """Send *state*, lines such as ``READY=1``, to the service manager, if there is one.

    A failure is only logged, as debugging information.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        _send(address, state, blocking=True)
    except (OSError, ValueError) as exc:
        logger.debug("Cannot send %r to the service manager: %s", state, exc)
    finally:
        if unset_environment:
            os.environ.pop("NOTIFY_SOCKET", None)


def _send(address: str, state: str, *, blocking: bool) -> None:
    if address.startswith("@"):
        # The abstract namespace of Linux, whose names begin with NUL.
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(blocking)
        sock.connect(address)
        sock.sendall(state.encode("utf-8", "replace"))


class Unit:
    """The master's connection to the service manager that started it, if any.

    `Announcer` decides what to send. The variables stay in the environment for the workers, as in Gunicorn:
    an application may send a ``STATUS=`` if the unit has ``NotifyAccess=all``. Companions don't inherit them.
    """

    def __init__(self, arbiter: Any) -> None:
        self.arbiter = arbiter
        self.announcer: Announcer | None = None
        self._address = ""
        # What the queue of the manager had no room for, oldest first.
        self._unsent: deque[str] = deque(maxlen=MOST_UNSENT)

    def open(self, environ: Mapping[str, str], pid: int) -> None:
        """Begin to send to the manager that *environ* names."""
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address:
            self.announcer = Announcer(watchdog_seconds(environ, pid))

    def step(self, now: float) -> None:
        """Send due messages."""
        if self.announcer is not None:
            self._deliver(self.announcer.step(now, self.arbiter.situation(now)))

    def next_deadline(self, now: float) -> float | None:
        """The latest time of the next ``step()``; None: it has nothing to do."""
        if self.announcer is None:
            return None
        return now + RETRY_AFTER if self._unsent else self.announcer.next_deadline(now)

    def reload_begins(self, now: float) -> None:
        """Report that the configuration is read again."""
        if self.announcer is not None:
            self._deliver(self.announcer.reload_begins(now))

    def reload_refused(self, why: str) -> None:
        """Report that the old configuration stays."""
        if self.announcer is not None:
            self.announcer.reload_refused(why)

    def upgrade_failed(self, why: str) -> None:
        """Report that a successor has not taken over."""
        if self.announcer is not None:
            self.announcer.upgrade_failed(why)

    def leave(self, now: float) -> None:
        """Send the last message before the process exits."""
        if self.announcer is not None:
            self._deliver(self.announcer.leave(now, self.arbiter.situation(now)))

    def _deliver(self, message: str) -> None:
        if message:
            self._unsent.append(message)
        while self._unsent:
            try:
                # The master never waits, even for the service manager.
                _send(self._address, self._unsent[0], blocking=False)
            except BlockingIOError:
                return
            except (OSError, ValueError) as exc:
                self.arbiter.log.debug("Cannot send %r to the service manager: %s", self._unsent[0], exc)
            self._unsent.popleft()
