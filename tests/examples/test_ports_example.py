# SPDX-License-Identifier: MIT
"""The servers of examples/ports: a port and a log for each."""

from __future__ import annotations

import socket

from exampletree import example_server
from test_e2e_companion_copies import free_range


def first_line(port: int) -> str:
    """What the server on *port* says first, after the head of its answer."""
    with socket.create_connection(("127.0.0.1", port), 15) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        file = connection.makefile("rb")
        while file.readline().strip():
            pass
        return file.readline().decode().strip()


def test_each_copy_has_a_port_and_a_log() -> None:
    first = free_range(4)
    with example_server("ports", {"LIVE_PORT": str(first)}) as server:
        assert server.get("/").text.count("curl") == 4
        for port in range(first, first + 4):
            server.wait_companion(f"live:{port}")
            greeting = f"Hello, this is live:{port} on port {port}"
            assert first_line(port) == greeting
            assert server.log(f"live-{port}.log") == f"{greeting}\n"
        server.wait_companion("clock")
        assert {name for name, found in server.companions().items() if "sockets" in found["groups"]} == {
            *(f"live:{port}" for port in range(first, first + 4)),
            "clock",
        }
