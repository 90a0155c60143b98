# SPDX-License-Identifier: MIT
"""A proxy that loses or delays what passes through it, in one direction or in both."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time

UP, DOWN = "up", "down"


class FaultProxy:
    """Listens before the server at *port*. What it drops is gone, though the connection stays."""

    def __init__(self, port: int) -> None:
        self.server_port = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.dropped: set[str] = set()
        self.delays: dict[str, float] = {}
        self.refusing = False
        # Pieces that arrived late.
        self.late = 0
        self.closed = threading.Event()
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def drop(self, *directions: str) -> None:
        self.dropped = set(directions)

    def delay(self, seconds: float, *directions: str) -> None:
        """What comes from now on arrives *seconds* later, even if its sender is gone by then."""
        self.delays = dict.fromkeys(directions, seconds)

    def refuse(self) -> None:
        """End all connections, and each new one at once."""
        self.refusing = True
        self._end_connections()

    def heal(self) -> None:
        """Pass everything; connections that lost something are closed, as their rest makes no sense."""
        broken = self.dropped
        self.refusing, self.dropped, self.delays = False, set(), {}
        if broken:
            self._end_connections()

    def close(self) -> None:
        # What is delayed arrives at once.
        self.closed.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._end_connections()

    def _end_connections(self) -> None:
        connections, self.connections = self.connections, []
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self.closed.is_set():
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.server_port), 5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            self.connections += [client, server]
            for source, target, direction in ((client, server, UP), (server, client, DOWN)):
                pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                threading.Thread(target=self._read, args=[source, pieces, direction], daemon=True).start()
                threading.Thread(target=self._write, args=[target, pieces], daemon=True).start()

    def _read(self, source: socket.socket, pieces: queue.SimpleQueue, direction: str) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            if direction not in self.dropped or not data:
                delay = self.delays.get(direction, 0.0)
                pieces.put((time.monotonic() + delay if delay else 0.0, data))

    def _write(self, target: socket.socket, pieces: queue.SimpleQueue) -> None:
        while True:
            due, data = pieces.get()
            if due:
                self.closed.wait(max(0.0, due - time.monotonic()))
            try:
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
            except OSError:
                return
            finally:
                self.late += due > 0
