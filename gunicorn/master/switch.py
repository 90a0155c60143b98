# SPDX-License-Identifier: MIT
"""Keep the previous configuration until a reload's workers have booted, to go back to it."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

from gunicorn import sock
from gunicorn.pidfile import Pidfile


class Switch(NamedTuple):
    """A configuration that was taken over, as long as it can still be taken back."""

    undo: contextlib.ExitStack
    # What the old configuration alone wants.
    listeners: list[Any]
    pidfile: Pidfile | None
    # The workers of the old configuration, and the companions' manager.
    current: set[int]
    manager: int

    def settle(self) -> None:
        """Let go of what the old configuration needs."""
        self.undo.pop_all()
        sock.close_sockets(self.listeners)
        if self.pidfile is not None:
            self.pidfile.unlink()

    def take_back(self) -> None:
        """Have the arbiter live by the old configuration again."""
        self.undo.close()
