# SPDX-License-Identifier: MIT
"""Applications that break the WSGI rules and clients that break off: nobody else notices."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Server, read_until_closed, wait_until

APP = """
import os, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))

def mark(name, text=""):
    with open(os.path.join(HERE, name), "a") as f:
        f.write(f"{text}\\n")

TEXT = [("Content-Type", "text/plain")]

class Closing:
    def __init__(self, chunks, fail=False):
        self.chunks, self.fail = chunks, fail
    def __iter__(self):
        return iter(self.chunks)
    def close(self):
        mark("closed", "1")
        if self.fail:
            raise RuntimeError("close fails")

def no_start_response(environ, start):
    return [b"x"]

def returns_none(environ, start):
    start("200 OK", TEXT)
    return None

def returns_text(environ, start):
    start("200 OK", TEXT)
    return ["text, not bytes"]

def header_injection(environ, start):
    start("200 OK", [("X-A", "a\\r\\nX-Injected: yes")])
    return [b"x"]

def header_name(environ, start):
    start("200 OK", [("X A:", "a")])
    return [b"x"]

def header_number(environ, start):
    start("200 OK", [("X-A", 5)])
    return [b"x"]

def hop_by_hop(environ, start):
    start("200 OK", [("Transfer-Encoding", "chunked"), ("Connection", "keep-alive")])
    return [b"x"]

def status_number(environ, start):
    start(200, TEXT)
    return [b"x"]

def status_injection(environ, start):
    start("200 OK\\r\\nX-Injected: yes", TEXT)
    return [b"x"]

def twice(environ, start):
    start("200 OK", TEXT)
    start("404 Not Found", TEXT)
    return [b"x"]

def length_text(environ, start):
    start("200 OK", [("Content-Length", "many")])
    return [b"x"]

def exits(environ, start):
    sys.exit(0)

def interrupts(environ, start):
    raise KeyboardInterrupt

def cancelled(environ, start):
    import asyncio
    raise asyncio.CancelledError

def close_fails(environ, start):
    start("200 OK", [("Content-Length", "2")])
    return Closing([b"ok"], fail=True)

def too_long(environ, start):
    start("200 OK", [("Content-Length", "2")])
    return [b"ok", b" and more"]

def too_short(environ, start):
    start("200 OK", [("Content-Length", "10")])
    return [b"short"]

def after_start_exc_info(environ, start):
    start("200 OK", TEXT)
    try:
        raise ValueError("changed my mind")
    except ValueError:
        start("500 Changed", TEXT, sys.exc_info())
    return [b"changed"]

def by_write(environ, start):
    write = start("200 OK", TEXT)
    write(b"written ")
    return [b"returned"]

def empty_chunks(environ, start):
    start("200 OK", TEXT)
    return [b"", b"a", b"", b"b", b""]

def body_for_head(environ, start):
    start("200 OK", [("Content-Length", "4")])
    return [b"body"]

def endless(environ, start):
    start("200 OK", TEXT)
    def chunks():
        try:
            while True:
                yield b"z" * 10000
        finally:
            mark("generator-closed", "1")
    return chunks()

def leaves_the_body(environ, start):
    start("200 OK", [("Content-Length", "4")])
    return [b"done"]

def odd_types(environ, start):
    start("200 OK", TEXT)
    return [bytearray(b"array "), memoryview(b"view")]

def app(environ, start_response):
    name = environ["PATH_INFO"].strip("/")
    if name in globals() and name != "app":
        return globals()[name](environ, start_response)
    start_response("200 OK", [("Content-Length", str(len(str(os.getpid()))))])
    return [str(os.getpid()).encode()]
"""


@pytest.fixture(scope="module", params=["sync", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    threads = 4 if request.param == "gthread" else 1
    config = (
        f"worker_class = {request.param!r}\nthreads = {threads}\nworkers = 1\ntimeout = 10\nkeepalive = 2\n"
    )
    with Server(APP, config) as running:
        yield running


def ask(server: Server, name: str, method: str = "GET") -> bytes:
    return server.raw(f"{method} /{name} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())


SERVER_ERRORS = [
    "no_start_response",
    "returns_none",
    "header_injection",
    "header_name",
    "header_number",
    "status_number",
    "status_injection",
    "twice",
    "length_text",
]


@pytest.mark.parametrize("name", SERVER_ERRORS)
def test_a_broken_application_is_a_500(server: Server, name: str) -> None:
    answer = ask(server, name)
    assert answer.startswith(b"HTTP/1.1 500 "), answer
    assert b"X-Injected" not in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert server.get("/").status == 200


def test_text_in_place_of_bytes_is_never_sent_as_a_good_answer(server: Server) -> None:
    answer = ask(server, "returns_text")
    assert b"text, not bytes" not in answer
    assert not answer.endswith(b"0\r\n\r\n"), "no proper end"
    assert server.get("/").status == 200


def test_an_application_that_exits_is_interrupted_or_cancelled(server: Server) -> None:
    for name in ("exits", "interrupts", "cancelled") * 2:
        answer = ask(server, name)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 500 ")
        wait_until(lambda: server.get("/").status == 200, 5, f"serving after {name}")
    assert server.pid and server.proc is not None and server.proc.poll() is None


def test_close_is_called_and_its_failure_is_logged(server: Server) -> None:
    (server.dir / "closed").unlink(missing_ok=True)
    answer = ask(server, "close_fails")
    assert answer.startswith(b"HTTP/1.1 200 OK") and answer.endswith(b"ok")
    server.wait_log("close fails")
    assert server.log("closed") == "1\n"


def test_more_than_the_announced_length_is_cut(server: Server) -> None:
    assert ask(server, "too_long").endswith(b"\r\n\r\nok")


def test_less_than_the_announced_length_closes_the_connection(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /too_short HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = read_until_closed(sock, 4)
    assert answer.endswith(b"short") and answer.count(b"HTTP/1.1") == 1


def test_what_is_allowed_works(server: Server) -> None:
    assert ask(server, "after_start_exc_info").startswith(b"HTTP/1.1 500 Changed")
    assert server.get("/by_write").text == "written returned"
    assert server.get("/empty_chunks").text == "ab"
    assert server.get("/odd_types").text in ("array view", "") or server.get("/odd_types").status == 500
    answer = ask(server, "body_for_head", "HEAD")
    assert answer.endswith(b"\r\n\r\n") and b"ontent-" in answer


def test_the_server_frames_not_the_application(server: Server) -> None:
    answer = ask(server, "hop_by_hop")
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert head.count(b"transfer-encoding") <= 1 and head.count(b"connection:") == 1
    assert server.get("/hop_by_hop").status in (200, 500)


def test_a_client_that_leaves_in_the_middle_closes_the_generator(server: Server) -> None:
    (server.dir / "generator-closed").unlink(missing_ok=True)
    before = server.log().count("Traceback")
    with server.connect() as sock:
        sock.sendall(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n")
        assert sock.recv(1000)
    wait_until(lambda: server.log("generator-closed"), 5, "the generator closed")
    assert server.get("/").status == 200
    assert server.log().count("Traceback") == before, "a client that leaves is no error"


def test_a_client_that_resets_at_every_stage(server: Server) -> None:
    pieces = [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"]
    pieces.append(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nab")
    pieces.append(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")
    before = server.log().count("Traceback")
    for piece in pieces * 3:
        with server.connect() as sock:
            sock.sendall(piece)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert server.get("/").status == 200
    assert server.log().count("Traceback") == before


def test_a_body_that_the_application_does_not_read(server: Server) -> None:
    body = b"b" * 90_000
    head = b"POST /leaves_the_body HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    with server.connect() as sock:
        sock.sendall(head + body)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        answer = read_until_closed(sock)
    assert answer.startswith(b"HTTP/1.1 200 OK") and b"done" in answer
    # Either it was drained and the next request answered, or the connection was closed: never mixed up.
    assert answer.count(b"HTTP/1.1 ") in (1, 2) and b"HTTP/1.1 4" not in answer
    started = time.monotonic()
    assert server.get("/").status == 200
    assert time.monotonic() - started < 2


def test_an_unread_body_that_never_comes_holds_nobody(server: Server) -> None:
    if "gthread" not in server.config_text:
        pytest.skip("a sync worker serves one connection at a time by design")
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            sock = stack.enter_context(server.connect())
            sock.sendall(
                b"POST /leaves_the_body HTTP/1.1\r\nHost: h\r\nContent-Length: 90000\r\n\r\n" + b"b" * 100
            )
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        assert server.get("/").status == 200
        assert time.monotonic() - started < 2


def test_descriptors_and_memory_are_flat(server: Server) -> None:
    """After all of the above, and a few hundred more connections, nothing is left open."""
    worker = server.wait_workers(1)[0]
    for _ in range(200):
        with server.connect() as sock:
            sock.sendall(b"GET / HT")
        server.get("/")
    wait_until(
        lambda: (
            sum(
                os.readlink(f"/proc/{worker}/fd/{fd}").startswith("socket:")
                for fd in os.listdir(f"/proc/{worker}/fd")
            )
            <= 3
        ),
        8,
        "connections closed",
    )
    assert Path(f"/proc/{worker}").exists()
