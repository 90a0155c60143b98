# SPDX-License-Identifier: MIT
"""The manager's side of the prober."""

from __future__ import annotations

import signal

from gunicorn.companion.helpers.handle import ServingHelper
from gunicorn.companion.helpers.wire import Wire
from gunicorn.companion.probing.prober import STUCK, start_prober
from gunicorn.unix import session
from gunicorn.unix.process import describe_status, term_signal

# Seconds for it to end what it runs.
_END = 1.0


class ProberHandle(ServingHelper):
    """Starts the prober."""

    title = "prober of companions"
    # Of the companions, and so of commands: see `Starter.nofile`.
    nofile: tuple[int, int] | None = None

    def fork(self, wire: Wire) -> int:
        return start_prober(wire, self.nofile)

    def describe_end(self, status: int) -> str:
        if term_signal(status) == signal.SIGALRM:
            return f"hung for {STUCK} s, probably in a file system, and was ended"
        return describe_status(status)

    def stop(self) -> None:
        """There is nothing left to check: it ends with the wire."""
        self.wanted, self.start_at = False, None
        self.drop_wire()

    def end(self) -> None:
        """The server ends: wait a moment for it to end too, and kill it if it is stuck."""
        self.stop()
        self.wait(_END)
        if self.pid is not None:
            session.send(self.pid, signal.SIGKILL)
