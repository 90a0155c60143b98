# SPDX-License-Identifier: MIT
"""Requests that were received and not begun, and answers that are complete and not sent. No clock.

A system call between two views makes the processor forget what both of them need. So where several requests
have arrived, the leader receives all of them, serves one after the other, and sends the answers together.
Nobody waits for a slow view because of it: what was received belongs to whichever thread leads next, and what
has been held for too long is sent by the main thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

#: For how many seconds an answer may wait for those after it.
LONGEST_HOLD = 0.001
#: After a view that took longer, so many answers are sent at once: the next views may be as slow.
CAUTIOUS_FOR = 64


class Batch:
    """*send* is called with each connection whose answer was held, in any thread; *may_wait* says whether an
    answer of the current thread may be held: whether anyone will send it in time.

    Each change is one of a deque, which is atomic, so that it needs no lock.
    """

    def __init__(self, send: Callable[[Any], object], may_wait: Callable[[], bool] = lambda: True) -> None:
        #: Connections whose next request was parsed.
        self.received: deque[Any] = deque()
        self._held: deque[Any] = deque()
        # When the last request began, before the first answer was held.
        self._begun = self._held_since = 0.0
        self._cautious = 0
        self._send = send
        self._may_wait = may_wait

    def start(self, now: float) -> None:
        """Note that requests were received, and the first one is about to begin."""
        self._begun = now

    def begin(self, now: float) -> bool:
        """Note that a request begins, and send what is due; whether its answer may be held."""
        if now - self._begun > LONGEST_HOLD:
            self._cautious = CAUTIOUS_FOR
        self._begun = now
        self.send_overdue(now)
        if self._cautious:
            self._cautious -= 1
            return False
        return True

    def hold(self, conn: Any, may_wait: bool) -> None:
        """Send the answer of *conn*, whose request began last, at once or in a moment if it *may_wait*."""
        if not self._held:
            self._held_since = self._begun
        self._held.append(conn)
        # Not sooner: a thread that leads from now on sees it.
        if not (may_wait and self._may_wait()):
            self.send()

    def send_overdue(self, now: float) -> bool:
        """Send what is held if the first of it has been held for long enough; whether anything is left."""
        if self.is_overdue(now):
            self.send()
        return bool(self._held)

    def is_overdue(self, now: float) -> bool:
        """Whether the first answer that is held has been held for long enough."""
        return bool(self._held) and now - self._held_since > LONGEST_HOLD

    def send(self) -> None:
        """Send the answers that are held."""
        held = self._held
        while held:
            try:
                conn = held.popleft()
            except IndexError:
                return  # another thread was faster
            self._send(conn)
