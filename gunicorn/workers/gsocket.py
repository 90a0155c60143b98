# SPDX-License-Identifier: MIT
"""gevent's sockets, for the connections that the gevent workers accept."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import gevent
import gevent.socket

from gunicorn.workers.bodies import probe

# How often to check whether a client that pauses may pause on.
_CHECK_SECONDS = 1.0


class _Patient:
    """A socket that blocks, as an application that takes it over expects, but not for ever.

    If the socket has a timeout of its own, that holds instead.
    """

    timeout: float | None
    _write_event: Any

    #: How many seconds a client may take to read, or to send more; None: for ever.
    patience: float | None = None
    #: Whether a client that has sent nothing for so long may pause on.
    may_pause_on: Callable[[], bool] | None = None

    def _wait(self, watcher: Any, *args: Any, **options: Any) -> Any:
        # The library's methods call this where the system call would block.
        if self.timeout is not None or self.patience is None:
            return super()._wait(watcher, *args, **options)  # type: ignore[misc]
        seconds = self.patience
        while True:
            with gevent.Timeout(seconds, False):
                return super()._wait(watcher, *args, **options)  # type: ignore[misc]
            if watcher is self._write_event or self.may_pause_on is None or not self.may_pause_on():
                raise TimeoutError("timed out")
            if seconds == self.patience:
                probe(self)
            seconds = min(self.patience, _CHECK_SECONDS)


class ClientSocket(_Patient, gevent.socket.socket):  # type: ignore[misc]
    """Sends a response that fits into the system's buffer, as most do, with one call.

    The library asks for the size of that buffer first, and cuts the response into pieces.
    """

    def sendall(self, data: Any, flags: int = 0) -> Any:
        if type(data) is bytes:
            try:
                sent = self._sock.send(data, flags)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return None
            data = memoryview(data)[sent:]
        return super().sendall(data, flags)


@lru_cache(maxsize=4)
def patient_class(base: Any) -> Any:
    """The class of TLS sockets *base*, with our patience."""
    return type(base.__name__, (_Patient, base), {})


def set_patience(sock: Any, seconds: float | None, may_pause_on: Callable[[], bool] | None = None) -> None:
    """Have *sock* wait for at most *seconds*; None: for ever."""
    if isinstance(sock, _Patient):
        sock.patience, sock.may_pause_on = seconds, may_pause_on
    else:
        # A subclass of the worker may accept in its own way.
        sock.settimeout(seconds)
