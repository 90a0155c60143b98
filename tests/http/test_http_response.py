# SPDX-License-Identifier: MIT
"""Responses over real connections: framing, validation, the rules of PEP 3333."""

from __future__ import annotations

import re
import sys
import threading
import time
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from httpkit import Collector, Exchange, split_response

from gunicorn.http import head, wsgi
from gunicorn.http.errors import InvalidHeader, InvalidHeaderName

GET = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
GET10 = "GET / HTTP/1.0\r\n\r\n"
KEEP10 = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
HEAD = "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"
TEXT = ("Content-Type", "text/plain")


def length(number: int) -> tuple[str, str]:
    return ("Content-Length", str(number))


def respond(
    request: str, status: str, headers: list[tuple[str, str]], pieces: list[bytes]
) -> tuple[str, dict[str, str], bytes, bool]:
    """Status line, headers, content, and whether the connection then closes."""
    with Exchange(request) as exchange:
        write = exchange.resp.start_response(status, headers)
        for piece in pieces:
            write(piece)
        exchange.resp.close()
        closes = exchange.resp.should_close()
        line, fields, content = split_response(exchange.answered())
    # What the client was told is what happens; a promise that failed is the exception.
    assert fields["connection"] == ("close" if closes else "keep-alive") or closes
    return line, fields, content, closes


@pytest.mark.parametrize(
    ("request_", "status", "headers", "pieces", "content", "framing", "closes"),
    [
        (GET, "200 OK", [length(5)], [b"hello"], b"hello", "length 5", False),
        (GET, "200 OK", [length(5)], [b"he", b"", b"llo"], b"hello", "length 5", False),
        (GET, "200 OK", [], [b"hello"], b"5\r\nhello\r\n0\r\n\r\n", "chunked", False),
        (GET, "200 OK", [], [b"he", b"", b"llo"], b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "chunked", False),
        (GET, "200 OK", [], [], b"0\r\n\r\n", "chunked", False),
        (GET, "200 OK", [length(0)], [], b"", "length 0", False),
        # Too much and too little.
        (GET, "200 OK", [length(5)], [b"hello world"], b"hello", "length 5", False),
        (GET, "200 OK", [length(5)], [b"hello", b"world"], b"hello", "length 5", False),
        (GET, "200 OK", [length(0)], [b"hello"], b"", "length 0", False),
        (GET, "200 OK", [length(5)], [b"hell"], b"hell", "length 5", True),
        (GET, "200 OK", [length(5)], [], b"", "length 5", True),
        # HTTP/1.0.
        (GET10, "200 OK", [length(5)], [b"hello"], b"hello", "length 5", True),
        (GET10, "200 OK", [], [b"hello"], b"hello", "none", True),
        (KEEP10, "200 OK", [length(5)], [b"hello"], b"hello", "length 5", False),
        (KEEP10, "200 OK", [], [b"hello"], b"hello", "none", True),
        # No content.
        (HEAD, "200 OK", [], [b"hello"], b"", "none", False),
        (HEAD, "200 OK", [length(5)], [b"hello"], b"", "length 5", False),
        (HEAD, "200 OK", [length(5)], [], b"", "length 5", False),
        (GET, "204 No Content", [], [], b"", "none", False),
        (GET, "204 No Content", [length(0)], [b"x"], b"", "none", False),
        (GET, "304 Not Modified", [], [], b"", "none", False),
        (GET, "304 Not Modified", [length(5)], [b"hello"], b"", "length 5", False),
        (KEEP10, "304 Not Modified", [], [], b"", "none", False),
        (GET, "101 Switching Protocols", [], [], b"", "none", True),
        ("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", "200 OK", [], [b"raw"], b"raw", "none", True),
        ("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", "405 No", [length(2)], [b"no"], b"no", "length 2", False),
        # Connection and other things of the connection.
        (GET, "200 OK", [length(1), ("Connection", "close")], [b"x"], b"x", "length 1", True),
        (GET, "200 OK", [length(1), ("connection", "X, Close")], [b"x"], b"x", "length 1", True),
        (GET, "200 OK", [length(1), ("Connection", "keep-alive")], [b"x"], b"x", "length 1", False),
        (GET10, "200 OK", [length(1), ("Connection", "keep-alive")], [b"x"], b"x", "length 1", True),
        (GET, "200 OK", [("Transfer-Encoding", "chunked")], [b"x"], b"1\r\nx\r\n0\r\n\r\n", "chunked", False),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
            "200 OK",
            [length(1)],
            [b"x"],
            b"x",
            "length 1",
            True,
        ),
        (GET, "200 OK", [length(1), length(1)], [b"x"], b"x", "length 1", False),
    ],
)
def test_framing(
    request_: str,
    status: str,
    headers: list[tuple[str, str]],
    pieces: list[bytes],
    content: bytes,
    framing: str,
    closes: bool,
) -> None:
    line, fields, found, closed = respond(request_, status, headers, pieces)
    assert line == f"HTTP/1.{'0' if 'HTTP/1.0' in request_ else '1'} {status}"
    assert found == content
    shown = "none"
    if "transfer-encoding" in fields:
        assert "content-length" not in fields
        shown = fields["transfer-encoding"]
    elif "content-length" in fields:
        shown = f"length {fields['content-length']}"
    assert shown == framing
    assert closed is closes


def test_head_and_content_leave_in_one_packet() -> None:
    class Counting:
        def __init__(self, sock: Any) -> None:
            self.sock, self.sends = sock, 0

        def sendall(self, data: bytes) -> None:
            self.sends += 1
            self.sock.sendall(data)

    for headers in ([length(5)], []):
        with Exchange(GET) as exchange:
            counting = exchange.resp.sock = Counting(exchange.sock)
            exchange.resp.start_response("200 OK", headers)
            assert exchange.arrived() == b""
            assert not exchange.resp.headers_sent
            exchange.resp.write(b"hello")
            assert counting.sends == 1
            assert exchange.resp.headers_sent
            assert exchange.resp.sent == 5


def test_large_content() -> None:
    data = bytes(range(256)) * 8192  # 2 MiB
    for headers in ([length(len(data))], []):
        with Exchange(GET) as exchange:
            collector = Collector(exchange.client)
            exchange.resp.start_response("200 OK", headers)
            exchange.resp.write(data)
            exchange.resp.close()
            exchange.sock.close()
            content = split_response(collector.result())[2]
            assert content == (data if headers else b"200000\r\n" + data + b"\r\n0\r\n\r\n")


def test_nothing_is_sent_before_there_is_content() -> None:
    with Exchange(GET) as exchange:
        write = exchange.resp.start_response("200 OK", [TEXT])
        write(b"")
        assert exchange.arrived() == b""
        try:
            raise LookupError("late")
        except LookupError:
            exchange.resp.start_response("500 Oops", [length(2)], sys.exc_info())  # type: ignore[arg-type]
        exchange.resp.write(b"no")
        line, fields, content = split_response(exchange.answered())
        assert (line, fields["content-length"], content) == ("HTTP/1.1 500 Oops", "2", b"no")
        assert "content-type" not in fields


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "103 Early Hints"])
def test_an_answer_without_content_is_taken_back(status: str) -> None:
    with Exchange(GET) as exchange:
        exchange.resp.start_response(status, [TEXT])
        try:
            raise LookupError("late")
        except LookupError:
            exchange.resp.start_response("500 Oops", [length(2)], sys.exc_info())  # type: ignore[arg-type]
        exchange.resp.write(b"no")
        assert not exchange.resp.should_close()
        line, fields, content = split_response(exchange.answered())
        assert (line, fields["content-length"], content) == ("HTTP/1.1 500 Oops", "2", b"no")


def test_start_response_with_exc_info_after_content_raises_it() -> None:
    with Exchange(GET) as exchange:
        exchange.resp.start_response("200 OK", [TEXT])(b"x")
        try:
            raise LookupError("late")
        except LookupError:
            info = sys.exc_info()
        with pytest.raises(LookupError, match="late"):
            exchange.resp.start_response("500 Oops", [], info)  # type: ignore[arg-type]
        assert exchange.resp.status == "200 OK"


def test_start_response_twice() -> None:
    with Exchange(GET) as exchange:
        exchange.resp.start_response("200 OK", [])
        with pytest.raises(AssertionError):
            exchange.resp.start_response("200 OK", [])


def test_no_start_response() -> None:
    for call in ("write", "write_file", "close"):
        with Exchange(GET) as exchange:
            with pytest.raises(AssertionError):
                getattr(exchange.resp, call)(*([b"x"] if call != "close" else []))
            assert exchange.arrived() == b""


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (200, TypeError),
        (b"200 OK", TypeError),
        (None, TypeError),
        ("", ValueError),
        ("OK", ValueError),
        ("20 OK", ValueError),
        ("2000 OK", ValueError),
        ("200OK", ValueError),
        ("099 No", ValueError),
        ("\u0662\u0660\u0660 OK", ValueError),
        (" 200 OK", ValueError),
        ("200 O\r\nK", ValueError),
        ("200 OK\n", ValueError),
        ("200 \0", ValueError),
        ("200 \u0107", ValueError),
        ("200\tOK", ValueError),
    ],
)
def test_bad_status(status: Any, error: type[Exception]) -> None:
    with Exchange(GET) as exchange:
        with pytest.raises(error):
            exchange.resp.start_response(status, [])
        # The application may still answer properly.
        exchange.resp.start_response("500 Oops", [])


@pytest.mark.parametrize("status", ["200", "200 ", "200 OK", "299 Caf\xe9 \t!"])
def test_good_status(status: str) -> None:
    with Exchange(GET) as exchange:
        exchange.resp.start_response(status, [length(0)])
        exchange.resp.close()
        assert exchange.resp.status_code == int(status[:3])
        assert re.match(rb"HTTP/1\.1 2[0-9]{2} [^\r\n]*\r\n", exchange.answered())


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("", "x", InvalidHeaderName),
        ("A B", "x", InvalidHeaderName),
        ("A:", "x", InvalidHeaderName),
        ("A\r\nB", "x", InvalidHeaderName),
        ("A\n", "x", InvalidHeaderName),
        ("\xe9", "x", InvalidHeaderName),
        (b"A", "x", TypeError),
        (None, "x", TypeError),
        (["A"], "x", TypeError),
        ("A", b"x", TypeError),
        ("A", 5, TypeError),
        ("A", None, TypeError),
        ("A", "x\r\nB: y", InvalidHeader),
        ("A", "x\n", InvalidHeader),
        ("A", "\rx", InvalidHeader),
        ("A", "x\0", InvalidHeader),
        ("A", "\x7f", InvalidHeader),
        ("A", "\u0107", InvalidHeader),
        ("Content-Length", "+5", InvalidHeader),
        ("Content-Length", "5_0", InvalidHeader),
        ("Content-Length", "", InvalidHeader),
        ("Content-Length", "\xb2", InvalidHeader),
        ("Content-Length", "1, 1", InvalidHeader),
    ],
)
def test_bad_headers(name: Any, value: Any, error: type[Exception]) -> None:
    with Exchange(GET) as exchange:
        with pytest.raises(error):
            exchange.resp.start_response("200 OK", [TEXT, (name, value)])
        exchange.resp.start_response("500 Oops", [length(1)])
        exchange.resp.write(b"x")
        line, fields, _ = split_response(exchange.answered())
        assert line == "HTTP/1.1 500 Oops"
        assert "content-type" not in fields


def test_contradicting_lengths() -> None:
    with Exchange(GET) as exchange, pytest.raises(InvalidHeader):
        exchange.resp.start_response("200 OK", [length(1), length(2)])


def test_headers_pass_through() -> None:
    with Exchange(GET) as exchange:
        exchange.resp.start_response(
            "200 OK",
            [length(0), ("Set-Cookie", "a=1"), ("set-cookie", "b=2"), ("X-Latin", " caf\xe9\t"), ("X-E", "")],
        )
        exchange.resp.close()
        answer = exchange.answered()
        assert b"\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nX-Latin: caf\xe9\r\nX-E: \r\n" in answer


def test_hop_by_hop_headers_stay_here() -> None:
    dropped = [
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
    ]
    _, fields, _, _ = respond(GET, "200 OK", [length(0), *((name, "x") for name in dropped)], [])
    assert set(fields) == {"server", "date", "connection", "content-length"}


def test_upgrade() -> None:
    with Exchange(GET) as exchange:
        exchange.resp.start_response(
            "101 Switching Protocols",
            [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", "x")],
        )
        exchange.resp.close()
        assert exchange.resp.upgrade
        assert exchange.resp.should_close()
        _, fields, content = split_response(exchange.answered())
        assert fields["connection"] == "upgrade"
        assert fields["upgrade"] == "websocket"
        assert fields["sec-websocket-accept"] == "x"
        assert not {"content-length", "transfer-encoding"} & set(fields)
        assert content == b""


def test_upgrade_required() -> None:
    with Exchange(GET10) as exchange:
        exchange.resp.start_response(
            "426 Upgrade Required", [("Connection", "upgrade"), ("Upgrade", "x"), length(0)]
        )
        exchange.resp.close()
        _, fields, _ = split_response(exchange.answered())
        assert (fields["connection"], fields["upgrade"]) == ("upgrade, close", "x")


def test_server_and_date() -> None:
    _, fields, _, _ = respond(GET, "200 OK", [length(0)], [])
    assert fields["server"] == wsgi.SERVER == "gunicorn"
    assert abs(parsedate_to_datetime(fields["date"]).timestamp() - time.time()) < 5
    _, fields, _, _ = respond(GET, "200 OK", [length(0), ("Server", "mine"), ("date", "then")], [])
    assert (fields["server"], fields["date"]) == ("mine", "then")


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (784111777, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (1709210096.7, "Thu, 29 Feb 2024 12:34:56 GMT"),
    ],
)
def test_http_date(timestamp: float, text: str) -> None:
    assert head.http_date(timestamp) == text
    assert head.http_date() == head.current_date() or head.http_date() == head.current_date()


@pytest.mark.parametrize("data", ["text", None, 5, bytearray(b"x"), ["x"]])
def test_content_is_bytes(data: Any) -> None:
    with Exchange(GET) as exchange:
        write = exchange.resp.start_response("200 OK", [])
        with pytest.raises(TypeError):
            write(data)
        assert exchange.arrived() == b""


def test_force_close() -> None:
    with Exchange(GET) as exchange:
        exchange.resp.start_response("200 OK", [length(0)])
        exchange.resp.force_close()
        exchange.resp.close()
        assert split_response(exchange.answered())[1]["connection"] == "close"


EXPECT = "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"


def test_continue_is_sent_when_the_body_is_read() -> None:
    with Exchange(EXPECT) as exchange:
        assert exchange.arrived() == b""
        assert exchange.environ["wsgi.input"].read(0) == b""
        assert exchange.arrived() == b""
        # The client sends once it has been asked.
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(exchange.environ["wsgi.input"].read()))
        reader.start()
        assert exchange.client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        exchange.client.sendall(b"hello")
        reader.join(10)
        assert got == [b"hello"]
        exchange.resp.start_response("200 OK", [length(0)])
        exchange.resp.close()
        assert not exchange.resp.should_close()
        assert exchange.answered().startswith(b"HTTP/1.1 200 OK\r\n")


def test_continue_is_not_sent_after_the_response_began() -> None:
    with Exchange(EXPECT) as exchange:
        exchange.resp.start_response("403 No", [length(2)])
        exchange.resp.write(b"no")
        exchange.resp.close()
        exchange.client.sendall(b"hello")
        assert exchange.environ["wsgi.input"].read() == b"hello"
        # Nobody knew whether the body would come, so nothing can follow it.
        assert exchange.resp.should_close()
        line, fields, content = split_response(exchange.answered())
        assert (line, fields["connection"], content) == ("HTTP/1.1 403 No", "close", b"no")


def test_continue_is_not_sent_to_a_client_that_does_not_wait() -> None:
    with Exchange(EXPECT + "hello") as exchange:
        assert exchange.environ["wsgi.input"].read() == b"hello"
        assert exchange.arrived() == b""
    with Exchange(EXPECT.replace("HTTP/1.1", "HTTP/1.0")) as exchange:
        exchange.client.sendall(b"hello")
        assert exchange.environ["wsgi.input"].read() == b"hello"
        assert exchange.arrived() == b""
    with Exchange(EXPECT.replace("Content-Length: 5", "Content-Length: 0")) as exchange:
        assert exchange.environ["wsgi.input"].read() == b""
        assert exchange.arrived() == b""


def test_a_body_too_long_to_drain_closes() -> None:
    for size, closes in ((100_000, False), (10_000_000, True)):
        with Exchange(f"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n") as exchange:
            exchange.resp.start_response("200 OK", [length(0)])
            exchange.resp.close()
            assert exchange.resp.should_close() is closes
            assert split_response(exchange.answered())[1]["connection"] == (
                "close" if closes else "keep-alive"
            )


def test_early_hints() -> None:
    with Exchange(GET) as exchange:
        hints = exchange.environ["wsgi.early_hints"]
        hints([("Link", "</a.css>; rel=preload")])
        assert exchange.arrived() == b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
        with pytest.raises(InvalidHeader):
            hints([("Link", "x\r\ny")])
        exchange.resp.start_response("200 OK", [length(0)])
        exchange.resp.close()
        hints([("Link", "late")])
        assert exchange.answered().count(b"HTTP/1.1") == 1
    with Exchange(GET10) as exchange:
        exchange.environ["wsgi.early_hints"]([("Link", "x")])
        assert exchange.arrived() == b""


def test_send_headers_by_hand() -> None:
    with Exchange(GET) as exchange:
        response = wsgi.Response(exchange.req, exchange.sock, None)
        response.headers.append(("X", "caf\xe9"))
        response.send_headers()
        response.send_headers()
        assert exchange.arrived().count(b"X: caf\xe9\r\n\r\n") == 1
        response = wsgi.Response(exchange.req, exchange.sock, None)
        response.headers.append(("X", "\u0103"))
        with pytest.raises(UnicodeEncodeError):
            response.send_headers()
        assert exchange.arrived() == b""
        assert not response.headers_sent


def test_pipelined_responses() -> None:
    with Exchange(GET + GET) as exchange:
        for last in (False, True):
            exchange.resp.start_response("200 OK", [length(1)])
            exchange.resp.write(b"x")
            exchange.resp.close()
            if not last:
                exchange.next()
        assert exchange.answered().count(b"\r\n\r\nx") == 2


def test_error_response() -> None:
    line, fields, content = split_response(head.error_response(400, "Bad Request", "<b> & so"))
    assert line == "HTTP/1.1 400 Bad Request"
    assert fields["connection"] == "close"
    assert int(fields["content-length"]) == len(content)
    assert b"&lt;b&gt; &amp; so" in content
