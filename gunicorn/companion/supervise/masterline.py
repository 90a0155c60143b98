# SPDX-License-Identifier: MIT
"""The manager's end of the link to the master, watched by the manager's poller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gunicorn.companion.link import Link
from gunicorn.unix.poller import READABLE, WRITABLE, Poller


class MasterLine:
    """Calls *hear* with each message of the master, and *ended* once when the master is gone.

    Without a link (a manager without a master) nothing arrives and nothing is sent.
    """

    def __init__(
        self,
        link: Link | None,
        poller: Poller,
        hear: Callable[[dict[str, Any]], None],
        ended: Callable[[], None],
    ) -> None:
        self.link = link
        self.poller = poller
        self.hear = hear
        self.ended = ended

    def open(self) -> None:
        """Watch it from now on."""
        if self.link is not None:
            self.poller.add(self.link.fileno(), lambda events: self.receive())

    def descriptors(self) -> list[int]:
        return [] if self.link is None else [self.link.fileno()]

    def tell(self, message: dict[str, Any]) -> None:
        """Send *message*, which replaces an earlier unsent one of its kind; never blocks."""
        if self.link is not None:
            self.link.send_latest(message)
            self._flush()

    def receive(self) -> None:
        """Read the messages that have arrived."""
        if self.link is None or self.link.ended:
            return
        self._flush()
        for message in self.link.receive():
            self.hear(message)
        if self.link.ended:
            self.poller.remove(self.link.fileno())
            self.ended()

    def _flush(self) -> None:
        """Send what the master takes now, and the rest when it takes it."""
        if self.link is not None and self.link.fileno() in self.poller:
            self.poller.modify(self.link.fileno(), READABLE if self.link.flush() else READABLE | WRITABLE)
