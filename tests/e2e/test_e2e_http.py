# SPDX-License-Identifier: MIT
"""HTTP on the wire, against a running server: framing, limits, files, errors."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from e2e_apps import WEB
from harness import Server, read_until_closed, readable


@pytest.fixture(scope="module", params=["sync", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    config = f"""
        worker_class = {request.param!r}
        threads = {4 if request.param == "gthread" else 1}
        keepalive = 2
        accesslog = "access.log"
    """
    with Server(WEB, config) as running:
        (running.dir / "big.bin").write_bytes(bytes(range(256)) * 4096)
        yield running


def request(*lines: str, body: bytes = b"", host: bool = True) -> bytes:
    fields = [lines[0], *(["Host: h"] if host else []), *lines[1:], "", ""]
    return "\r\n".join(fields).encode("latin-1") + body


REJECTED = {
    "both lengths": (request("POST /echo HTTP/1.1", "Content-Length: 3", "Transfer-Encoding: chunked"), 400),
    "duplicate length": (request("POST /echo HTTP/1.1", "Content-Length: 3", "Content-Length: 4"), 400),
    "list of lengths": (request("POST /echo HTTP/1.1", "Content-Length: 3, 3"), 400),
    "negative length": (request("POST /echo HTTP/1.1", "Content-Length: -3"), 400),
    "signed length": (request("POST /echo HTTP/1.1", "Content-Length: +3"), 400),
    "coding after chunked": (request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked, gzip"), 400),
    "unknown coding": (request("POST /echo HTTP/1.1", "Transfer-Encoding: rot13"), 501),
    "chunked twice": (request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked, chunked"), 400),
    "bare LF in the head": (b"GET / HTTP/1.1\nHost: h\n\n", 400),
    "NUL in a value": (request("GET / HTTP/1.1", "X: a\0b"), 400),
    "control in a value": (request("GET / HTTP/1.1", "X: a\x01b"), 400),
    "space before the colon": (request("GET / HTTP/1.1", "X : a"), 400),
    "folded field": (request("GET / HTTP/1.1", "X: a", " b"), 400),
    "no field name": (request("GET / HTTP/1.1", ": a"), 400),
    "duplicate host": (request("GET / HTTP/1.1", "Host: other"), 400),
    "bad version": (request("GET / HTTP/9.9"), 505),
    "lower-case method": (request("get / HTTP/1.1"), 400),
    "no path": (request("GET HTTP/1.1"), 400),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "long line": (request("GET /" + "a" * 5000 + " HTTP/1.1"), 414),
    "many fields": (request("GET / HTTP/1.1", *(f"X-{n}: 1" for n in range(200))), 431),
    "long field": (request("GET / HTTP/1.1", "X: " + "a" * 9000), 431),
}


@pytest.mark.parametrize("case", REJECTED)
def test_bad_requests_get_an_error_and_a_close(server: Server, case: str) -> None:
    data, status = REJECTED[case]
    answer = server.raw(data)
    head = answer.partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 "), answer
    shown = int(head.split()[1])
    # Which 4xx exactly is the server's choice (RFC 9112), but for those with a meaning of their own.
    assert shown == status or (400 <= shown < 600 and shown // 100 == status // 100 and status == 400), head
    assert b"connection: close" in head.lower()
    assert b"HTTP/1.1 200" not in answer
    assert server.get("/").status == 200


BAD_CHUNKS = {
    "size is no number": b"zz\r\nabc\r\n0\r\n\r\n",
    "signed size": b"+3\r\nabc\r\n0\r\n\r\n",
    "prefixed size": b"0x3\r\nabc\r\n0\r\n\r\n",
    "empty size": b"\r\nabc\r\n0\r\n\r\n",
    "no CRLF after the data": b"3\r\nabcXX0\r\n\r\n",
    "bare LF": b"3\nabc\n0\n\n",
    "underscore": b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_bad_chunks_are_rejected(server: Server, case: str) -> None:
    head = request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked")
    answer = server.raw(head + BAD_CHUNKS[case])
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_truncated_body_is_not_served_as_whole(server: Server) -> None:
    import socket

    for framing, body in (
        ("Content-Length: 10", b"abc"),
        ("Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n"),
    ):
        with server.connect() as sock:
            sock.sendall(request("POST /echo HTTP/1.1", framing) + body)
            sock.shutdown(socket.SHUT_WR)
            answer = read_until_closed(sock)
        assert not answer.startswith(b"HTTP/1.1 200"), (framing, answer)


def test_expect_100_continue_is_asked_for_only_when_the_body_is_wanted(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(
            request("POST /echo HTTP/1.1", "Content-Length: 5", "Expect: 100-continue", "Connection: close")
        )
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(1)
        assert data.startswith(b"HTTP/1.1 100 Continue\r\n")
        sock.sendall(b"hello")
        rest = read_until_closed(sock)
    assert rest.startswith(b"HTTP/1.1 200 OK") and rest.endswith(b"hello")


def test_streamed_answers_are_chunked_for_http11_and_closed_for_http10(server: Server) -> None:
    answer = server.raw(request("GET /stream HTTP/1.1", "Connection: close"))
    assert b"transfer-encoding: chunked" in answer.lower()
    assert answer.endswith(b"8\r\nchunk 0\n\r\n8\r\nchunk 1\n\r\n8\r\nchunk 2\n\r\n0\r\n\r\n")
    answer = server.raw(request("GET /stream HTTP/1.0"))
    assert answer.endswith(b"\r\n\r\nchunk 0\nchunk 1\nchunk 2\n")


@pytest.mark.parametrize("path", ["/empty", "/not-modified"])
def test_answers_without_a_body(server: Server, path: str) -> None:
    answer = server.raw(request(f"GET {path} HTTP/1.1", "Connection: close"))
    assert answer.split()[1] in (b"204", b"304")
    assert answer.endswith(b"\r\n\r\n") and answer.count(b"\r\n\r\n") == 1
    assert b"transfer-encoding" not in answer.lower()


def test_a_file_is_sent_whole(server: Server) -> None:
    assert server.get("/file").body == bytes(range(256)) * 4096


def test_an_application_error_is_a_500_with_its_traceback_in_the_log(server: Server) -> None:
    reply = server.get("/boom")
    assert reply.status == 500
    assert b"boom on purpose" not in reply.body, "the client sees no internals"
    server.wait_log("boom on purpose")
    assert "Traceback" in server.log()


def test_an_error_after_the_head_cuts_the_answer(server: Server) -> None:
    answer = server.raw(request("GET /late-boom HTTP/1.1"))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.count(b"HTTP/1.1") == 1, "no second answer into the first"
    assert answer.endswith(b"x" * 10)
    server.wait_log("late boom on purpose")


def test_the_environ_is_wsgi(server: Server) -> None:
    reply = server.get("/environ/deep%2Fer?a=1&b=%20")
    assert reply.status == 200
    environ = server.get("/environ?a=1&b=%20", headers={"X-Odd": "v", "Cookie": "a=b"}).json()
    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["QUERY_STRING"] == "a=1&b=%20"
    assert environ["RAW_URI"] == "/environ?a=1&b=%20"
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["HTTP_X_ODD"] == "v" and environ["HTTP_COOKIE"] == "a=b"
    assert environ["REMOTE_ADDR"] == "127.0.0.1" and environ["REMOTE_PORT"].isdigit()
    assert environ["SERVER_PORT"] == str(server.port)
    assert environ["SERVER_SOFTWARE"].startswith("gunicorn/")


def test_underscored_fields_do_not_pass_for_dashed_ones(server: Server) -> None:
    environ = server.get("/environ", headers={"X_Forwarded_For": "evil", "Remote_User": "root"}).json()
    assert "HTTP_X_FORWARDED_FOR" not in environ and "HTTP_REMOTE_USER" not in environ


def test_forwarded_headers_of_a_trusted_peer_count(server: Server) -> None:
    environ = server.get("/environ", headers={"X-Forwarded-Proto": "https"}).json()
    assert environ["wsgi.url_scheme"] == "https"


def test_the_access_log_has_one_line_a_request(server: Server) -> None:
    server.get("/echo?unique-line")
    line = next(
        line
        for line in server.wait_log("unique-line", name="access.log").splitlines()
        if "unique-line" in line
    )
    assert line.startswith("127.0.0.1 - - [")
    assert '"GET /echo?unique-line HTTP/1.1" 200 0 "-" "-"' in line
    assert server.log("access.log").count("unique-line") == 1


def test_a_silent_connection_costs_nobody_else(server: Server) -> None:
    """An open connection that says nothing must not hold up a worker that has threads to spare."""
    if "gthread" not in server.config_text:
        pytest.skip("a sync worker serves one connection at a time by design")
    with server.connect() as silent, server.connect() as half:
        half.sendall(b"GET / HTTP/1.1\r\nHo")
        started = time.monotonic()
        assert server.get("/").status == 200
        assert time.monotonic() - started < 1.0
        assert not readable(silent, 0)


def test_an_idle_kept_connection_is_closed_after_keepalive(server: Server) -> None:
    if "gthread" not in server.config_text:
        pytest.skip("a sync worker keeps no connection")
    with server.connect() as sock:
        sock.sendall(request("GET / HTTP/1.1"))
        started = time.monotonic()
        answer = read_until_closed(sock, 8)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert 1.5 < time.monotonic() - started < 6
