# SPDX-License-Identifier: MIT
"""The least that a keep-alive server can do: one loop over epoll, a fixed answer for whatever arrives."""

from __future__ import annotations

import select
import socket
import sys

RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: bare\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nConnection: keep-alive\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 14\r\n\r\nHello, world!\n"
)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=2048)
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poller.poll():
            connection = connections.get(fd)
            if connection is None:
                connection, _ = listener.accept()
                connections[connection.fileno()] = connection
                poller.register(connection, select.EPOLLIN)
                continue
            try:
                alive = connection.send(RESPONSE) if connection.recv(8192) else 0
            except OSError:
                alive = 0
            if not alive:
                del connections[fd]
                connection.close()


if __name__ == "__main__":
    main()
