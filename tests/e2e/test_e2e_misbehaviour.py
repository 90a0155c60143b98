# SPDX-License-Identifier: MIT
"""Clients that break off: no error is logged and nothing is left open."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from harness import Server, descriptors, wait_until

APP = """
def app(environ, start_response):
    if environ["PATH_INFO"] != "/endless":
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]
    start_response("200 OK", [])
    def chunks():
        try:
            while True:
                yield b"z" * 10000
        finally:
            open("generator-closed", "w").write("1")
    return chunks()
"""


@pytest.fixture(scope="module", params=["sync", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    threads = 4 if request.param == "gthread" else 1
    with Server(APP, f"worker_class = {request.param!r}\nthreads = {threads}\nkeepalive = 2\n") as running:
        yield running


def test_a_client_that_leaves_in_the_middle_closes_the_generator(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n")
        assert sock.recv(1000)
    server.wait_log("1", name="generator-closed")
    assert server.get("/").status == 200
    assert "Traceback" not in server.log()


def test_a_client_that_resets_at_any_stage_is_no_error(server: Server) -> None:
    pieces = [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"]
    pieces.append(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nab")
    pieces.append(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")
    for piece in pieces * 3:
        with server.connect() as sock:
            sock.sendall(piece)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert server.get("/").status == 200
    assert "Traceback" not in server.log()


def test_no_connection_stays_open(server: Server) -> None:
    """After the tests above and a few hundred more connections."""
    (worker,) = server.workers()
    for _ in range(200):
        with server.connect() as sock:
            sock.sendall(b"GET / HT")
        server.get("/")
    wait_until(lambda: str(descriptors(worker)).count("socket:") <= 3, 8, "connections closed")
