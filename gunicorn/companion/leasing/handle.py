# SPDX-License-Identifier: MIT
"""The manager's side of the lease keeper and of the lease guard."""

from __future__ import annotations

import signal
from typing import Any

from gunicorn.companion.helpers.handle import ServingHelper
from gunicorn.companion.helpers.wire import Wire
from gunicorn.companion.leasing.guard import start_guard
from gunicorn.companion.leasing.keeper import start_lease_keeper
from gunicorn.companion.leasing.words import LeaseMemory
from gunicorn.unix import session
from gunicorn.unix.poller import Poller

# Seconds for the keeper to give up what is held, and for the guard to end.
_END = 2.0


class _LeaseHelper(ServingHelper):
    """Either of them."""

    memory: LeaseMemory

    def kill(self) -> None:
        """End one that hangs; another one follows."""
        if self.pid is not None:
            session.send(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """The server ends: wait a moment for it to end too, and kill it if it is stuck."""
        self.wanted, self.start_at = False, None
        if self.pid is not None:
            self.send({"end": True})
            self.leave()
            self.wait(_END)
            self.kill()
            self.wait(_END)
        self.drop_wire()

    def leave(self) -> None:
        """Have it end, now that it knows."""


class LeaseKeeper(_LeaseHelper):
    """Starts the lease keeper, which is *owner* to stores."""

    title = "lease keeper of companions"

    def __init__(self, log: Any, poller: Poller, owner: str) -> None:
        super().__init__(log, poller)
        self.owner = owner

    def fork(self, wire: Wire) -> int:
        return start_lease_keeper(wire, self.memory, self.owner)


class LeaseGuard(_LeaseHelper):
    """Starts the lease guard."""

    title = "lease guard of companions"

    def fork(self, wire: Wire) -> int:
        return start_guard(wire, self.memory)

    def leave(self) -> None:
        # It ends with the wire.
        self.drop_wire()
