# SPDX-License-Identifier: MIT
"""The monitor's HTTP server: what clients that are slow, silent, wrong or many can do to it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import read_until_closed, wait_until

from gunicorn.monitor import server as serving
from gunicorn.monitor import stream as streams
from gunicorn.monitor.server import Server
from gunicorn.monitor.stream import Stream, TooManyStreams

GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Application:
    """Answers at once; ``/held`` once *release* is set; ``/stream`` for ever; ``/large`` with 64 MiB."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.held = 0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path == "/held":
            self.held += 1
            self.release.wait(10)
        if path == "/stream":
            try:
                stream = Stream(self.ticks())
            except TooManyStreams:
                start_response("503 Service Unavailable", [])
                return [b"too many"]
            start_response("200 OK", [])
            return stream
        start_response("200 OK", [])
        return [b"x" * (64 * 2**20) if path == "/large" else environ["REMOTE_ADDR"].encode()]

    def ticks(self) -> Iterator[bytes]:
        while not self.release.wait(0.02):
            yield b"tick"


Connect = Callable[..., socket.socket]


@pytest.fixture
def application() -> Iterator[Application]:
    found = Application()
    yield found
    found.release.set()


@pytest.fixture
def connect(application: Application) -> Iterator[Connect]:
    """Start a server; a call connects to it, and sends a request."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        server = Server(listener, application)
        server.listener.setblocking(False)
        server.poller.add(listener.fileno(), server._accept)

        def run() -> None:
            while not ended.is_set():
                server.step(min(0.02, server._timeout() or 0.02))

        thread = threading.Thread(target=run)
        thread.start()

        def connect(data: bytes = b"") -> socket.socket:
            sock = stack.enter_context(socket.create_connection(listener.getsockname(), 5))
            sock.sendall(data)
            return sock

        yield connect
        application.release.set()
        ended.set()
        thread.join()
        wait_until(lambda: not server._served, 15, "the end of all requests")


def answer(sock: socket.socket) -> bytes:
    return read_until_closed(sock, 5)


def test_a_request_and_its_end(connect: Connect) -> None:
    whole = answer(connect(GET % b"/"))
    assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close\r\n" in whole
    assert whole.endswith(b"127.0.0.1\r\n0\r\n\r\n")
    in_parts = connect(b"GET / HT")
    in_parts.sendall(b"TP/1.1\r\nHost: localhost\r\n\r")
    in_parts.sendall(b"\n")
    assert answer(in_parts).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("request_", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"G" * 20_000])
def test_what_is_no_request_is_answered(connect: Connect, request_: bytes) -> None:
    assert answer(connect(request_)).startswith(b"HTTP/1.1 4")


def test_silent_clients_are_dropped(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.2)
    silent, half = connect(), connect(b"GET / HTTP/1.1\r\n")
    assert (answer(silent), answer(half)) == (b"", b"")


def test_the_oldest_silent_client_makes_room(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MOST_WAITING", 3)
    silent = [connect() for _ in range(4)]
    assert answer(silent[0]) == b""
    assert answer(connect(GET % b"/")).startswith(b"HTTP/1.1 200")
    # That one has taken the place of the second.
    silent[3].sendall(GET % b"/")
    assert answer(silent[3]).startswith(b"HTTP/1.1 200")


def test_more_requests_at_once_than_there_is_room_for(
    connect: Connect, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MOST_SERVED", 2)
    held = [connect(GET % b"/held") for _ in range(2)]
    wait_until(lambda: application.held == 2, 5, "two requests at once")
    assert answer(connect(GET % b"/")).startswith(b"HTTP/1.1 503 ")
    application.release.set()
    assert [answer(sock)[:12] for sock in held] == [b"HTTP/1.1 200"] * 2
    wait_until(lambda: answer(connect(GET % b"/")).startswith(b"HTTP/1.1 200"), 5, "room again")


def test_a_client_that_does_not_take_its_answer_is_cut_off(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "ANSWER_SECONDS", 0.3)
    slow = connect(GET % b"/large")
    started = time.monotonic()
    while time.monotonic() < started + 5:
        try:
            if not slow.recv(1):
                break
        except ConnectionResetError:
            break
        if time.monotonic() > started + 0.6:
            # By now it was cut off: the rest is what the kernel holds.
            rest = read_until_closed(slow, 5)
            assert len(rest) < 32 * 2**20
            break
    else:
        pytest.fail("it is still served")


def test_streams_last_and_are_limited(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(streams, "_places", threading.BoundedSemaphore(2))
    first, second = connect(GET % b"/stream"), connect(GET % b"/stream")
    assert first.recv(12) == second.recv(12) == b"HTTP/1.1 200"
    assert answer(connect(GET % b"/stream")).startswith(b"HTTP/1.1 503")
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        assert first.recv(1000)
    # Its place is free again as soon as an event finds it gone.
    second.close()

    def again() -> bool:
        with contextlib.closing(connect(GET % b"/stream")) as sock:
            return sock.recv(12) == b"HTTP/1.1 200"

    wait_until(again, 5, "a free place")
