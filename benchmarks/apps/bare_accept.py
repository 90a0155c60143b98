# SPDX-License-Identifier: MIT
"""The least that a server of one request a connection can do: accept, recv, send, close."""

from __future__ import annotations

import contextlib
import socket
import sys

RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: bare\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nConnection: close\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 14\r\n\r\nHello, world!\n"
)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=2048)
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError):
            connection.recv(8192)
            connection.send(RESPONSE)
        connection.close()


if __name__ == "__main__":
    main()
