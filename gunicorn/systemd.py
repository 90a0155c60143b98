# SPDX-License-Identifier: MIT
"""The two protocols of systemd that a server speaks: sockets passed in, and state told back.

Sources: sd_listen_fds(3), sd_notify(3).
"""

from __future__ import annotations

import os
import socket
from typing import Any

from gunicorn.handoff import LISTEN_VARIABLES, SD_LISTEN_FDS_START, listen_fd_count

__all__ = ["SD_LISTEN_FDS_START", "listen_fds", "sd_notify"]


def listen_fds(unset_environment: bool = True) -> int:
    """How many sockets were passed to this process, from ``SD_LISTEN_FDS_START`` on.

    0 if the variables are missing, malformed or meant for another process. With
    *unset_environment* they are removed once taken, so that no child takes them for its own.
    """
    count = listen_fd_count(os.environ, os.getpid())
    if count and unset_environment:
        for name in LISTEN_VARIABLES:
            os.environ.pop(name, None)
    return count


def sd_notify(state: str, logger: Any, unset_environment: bool = False) -> None:
    """Send *state* (``READY=1`` and the like, a line each) to the service manager, if there is one.

    A failure is logged for debugging and otherwise ignored: the service runs with or without.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        # The abstract namespace of Linux, whose names begin with NUL.
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.sendall(state.encode("utf-8"))
    except (OSError, ValueError) as exc:
        logger.debug("The service manager could not be told %r: %s", state, exc)
    finally:
        if unset_environment:
            os.environ.pop("NOTIFY_SOCKET", None)
