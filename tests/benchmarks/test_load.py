# SPDX-License-Identifier: MIT
"""Requests, their framing, and the own load generator against servers of a few lines."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import client, load, web
from benchmarks.load import Request

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
REQUESTS = [Request().to_bytes(n, "127.0.0.1") for n in range(5)]
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"


PLAIN: dict[str, str] = {}


@pytest.mark.parametrize(
    ("request_", "raw"),
    [
        (Request("/", headers=PLAIN), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        (
            Request("/{number}?{page}", "POST", {"X-Y": "{address}"}, b"{id}"),
            b"POST /6?6 HTTP/1.1\r\nHost: h\r\nX-Y: 198.51.100.6\r\nContent-Length: 4\r\n\r\n{id}",
        ),
        (
            Request("/", "POST", PLAIN, b"body", chunked=True),
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        ),
    ],
)
def test_requests_as_bytes(request_: Request, raw: bytes) -> None:
    assert request_.to_bytes(5, "h") == raw


@pytest.mark.parametrize("case", web.cases(), ids=lambda case: case.name)
def test_no_two_heads_of_a_case_are_alike(case: web.Case) -> None:
    request = case.request
    heads = {request.head(n, "h") for n in range(request.variants)}
    assert len(heads) == request.variants > case.connections
    # They differ in every part that varies behind a proxy.
    first, second = (request.head(n, "h").split(b"\r\n") for n in range(2))
    changed = {line.partition(b":")[0] for line, other in zip(first, second, strict=True) if line != other}
    assert {b"Cookie", b"X-Request-ID"} < changed and any(line.startswith(b"X-") for line in changed)
    assert first[0].split(b"?")[0] != second[0].split(b"?")[0]


def test_all_requests_are_written_and_read_again(tmp_path: Path) -> None:
    request = Request(method="POST", body=b"1\n2\n3")
    request.write(tmp_path / "requests", "h")
    expected = [request.to_bytes(n, "h") for n in range(request.variants)]
    assert client.read_requests(tmp_path / "requests") == expected


def test_a_body_in_chunks() -> None:
    assert load.chunks(b"abcde", 2) == b"2\r\nab\r\n2\r\ncd\r\n1\r\ne\r\n0\r\n\r\n"
    assert load.chunks(b"") == b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "good", "closes"),
    [
        (HELLO, True, False),
        (CLOSING, True, True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", True, True),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length:3\r\n\r\nno.", False, False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", True, False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", True, False),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_where_an_answer_ends(answer: bytes, good: bool, closes: bool, size: int) -> None:
    parser = client.Answer()
    pieces = [answer[start : start + size] for start in range(0, len(answer), size)]
    assert [parser.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert (parser.good, parser.closes) == (good, closes)


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    parser = client.Answer()
    assert not parser.closed()
    assert parser.feed(b"HTTP/1.0 200 OK\r\n\r\nabc") is False
    assert parser.closed()


@contextlib.contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that gives each connection to *handle*, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            handle(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        # Wakes accept(), which a close alone would not.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def keep_alive(connection: socket.socket) -> None:
    while connection.recv(4096):
        connection.sendall(HELLO)


def once(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(CLOSING)


def run(port: int, seconds: float = 0.2, rate: float | None = None) -> dict[str, float]:
    return client.Run(port, REQUESTS, 2, seconds, rate)()


@pytest.mark.parametrize("handle", [keep_alive, once])
def test_the_closed_loop_counts_answers(handle: Callable[[socket.socket], None]) -> None:
    with serving(handle) as port:
        figures = run(port)
    assert figures["requests"] > 2 and figures["failed"] == 0
    assert 0 < figures["p50"] <= figures["p99"]


def test_the_open_loop_asks_as_often_as_it_was_told() -> None:
    with serving(keep_alive) as port:
        figures = run(port, 0.5, rate=100)
    assert figures["requests"] == 50 and figures["failed"] == 0


def test_only_requests_with_the_text_are_timed() -> None:
    """Slow answers to the others do not show, though they are answered."""

    def slow_for_some(connection: socket.socket) -> None:
        while request := connection.recv(4096):
            threading.Event().wait(0 if b"/quick" in request else 0.1)
            connection.sendall(HELLO)

    requests = [b"GET /quick HTTP/1.1\r\n\r\n"] * 4 + [b"GET /slow HTTP/1.1\r\n\r\n"]
    with serving(slow_for_some) as port:
        timed, all_of_them = (client.Run(port, requests, 8, 0.5, 50, text)() for text in (b"/quick", b""))
    assert timed["requests"] == all_of_them["requests"] == 25
    assert timed["p50"] < all_of_them["p99"] and all_of_them["p99"] >= 0.1
    with serving(slow_for_some) as port, pytest.raises(SystemExit):
        client.Run(port, requests, 8, 0.5, 50, b"/none")()


def test_answers_that_are_errors_are_failures() -> None:
    answered = 0

    def every_other(connection: socket.socket) -> None:
        nonlocal answered
        while connection.recv(4096):
            answered += 1
            connection.sendall(HELLO if answered % 2 else HELLO.replace(b"200 OK", b"500 No"))

    with serving(every_other) as port:
        figures = run(port, 0.3, rate=100)
    assert figures["requests"] + figures["failed"] == 30
    assert figures["failed"] > 5


def test_a_request_counts_from_when_it_was_due() -> None:
    """One slow answer makes the requests slow that had to wait for its connection."""
    first = threading.Event()

    def stalls(connection: socket.socket) -> None:
        while connection.recv(4096):
            if not first.is_set():
                first.set()
                threading.Event().wait(0.3)
            connection.sendall(HELLO)

    with serving(stalls) as port:
        figures = client.Run(port, REQUESTS, 1, 0.5, 100)()
    assert figures["requests"] == 50
    # Thirty requests were due during the stall: their median cannot be short.
    assert figures["p50"] > 0.05


def test_nobody_answers() -> None:
    with serving(lambda connection: None) as port, pytest.raises(SystemExit):
        run(port, 0.2, rate=20)
