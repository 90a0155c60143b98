# SPDX-License-Identifier: MIT
"""gevent's socket, for the connections that the gevent worker accepts."""

from __future__ import annotations

from typing import Any

import gevent.socket


class ClientSocket(gevent.socket.socket):  # type: ignore[misc]
    """Sends what fits into the buffer of the system, as most responses do, with one call.

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
