# SPDX-License-Identifier: MIT
"""Requests off a connection: one after the other, with their bodies."""

from __future__ import annotations

import io
import socket
import time
from typing import Any

import pytest
from httpkit import CUTS, PEER, make_config, read_request

from gunicorn.http import Message, Request, RequestParser, message
from gunicorn.http import errors as e
from gunicorn.http.policy import MAX_HEADERS, MAX_REQUEST_LINE, policy_for
from gunicorn.http.unreader import IterUnreader, SocketUnreader

GET = b"GET /a?b#c HTTP/1.1\r\nHost: h\r\nX: 1\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED_HEAD = b"PUT /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = CHUNKED_HEAD + b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX-Sum: 1\r\n\r\n"


def test_attributes() -> None:
    request = read_request(GET)
    assert (request.method, request.uri, request.path, request.query, request.fragment) == (
        "GET",
        "/a?b#c",
        "/a",
        "b",
        "c",
    )
    assert request.version == (1, 1)
    assert request.headers == [("HOST", "h"), ("X", "1")]
    assert request.trailers == []
    assert request.scheme == "http"
    assert request.must_close is False
    assert request.req_number == 1
    assert request.peer_addr == request.remote_addr == PEER
    assert request.proxy_protocol_info is None
    assert request.body.read() == b""
    assert (request.limit_request_line, request.limit_request_fields, request.limit_request_field_size) == (
        4094,
        100,
        8190,
    )
    assert isinstance(request, Message)
    assert not request.should_close()
    request.force_close()
    assert request.should_close()


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({"limit_request_line": 0}, (0, 100, 8190)),
        ({"limit_request_line": 99999}, (MAX_REQUEST_LINE, 100, 8190)),
        ({"limit_request_fields": 0}, (4094, MAX_HEADERS, 8190)),
        ({"limit_request_fields": 99999}, (4094, MAX_HEADERS, 8190)),
        ({"limit_request_field_size": 0}, (4094, 100, 0)),
        ({"limit_request_field_size": 99999}, (4094, 100, 99999)),
    ],
)
def test_limits_are_brought_into_range(settings: dict[str, int], limits: tuple[int, int, int]) -> None:
    request = read_request(GET, **settings)
    assert (
        request.limit_request_line,
        request.limit_request_fields,
        request.limit_request_field_size,
    ) == limits


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("read", [True, False], ids=["read", "left"])
def test_pipelining(cut: Any, read: bool) -> None:
    parser = RequestParser(make_config(), cut(GET + POST + b"\r\n" + CHUNKED + POST + GET), PEER)
    seen = []
    for request in parser:
        content = request.body.read() if read else None
        seen.append((request.path, request.req_number, content))
        if read and request.path == "/c":
            assert request.trailers == [("X-SUM", "1")]
            assert ("X-SUM", "1") not in request.headers
    contents = [b"", b"hello", b"hello", b"hello", b""] if read else [None] * 5
    assert seen == list(zip(["/a", "/p", "/c", "/p", "/a"], range(1, 6), contents, strict=True))


def test_nothing_follows_a_request_that_closes() -> None:
    closing = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert len(list(RequestParser(make_config(), [closing + GET], PEER))) == 1
    parser = RequestParser(make_config(), [GET + GET], PEER)
    next(parser).force_close()
    assert list(parser) == []


def test_the_end_of_a_connection() -> None:
    assert list(RequestParser(make_config(), [], PEER)) == []
    for end in range(1, len(GET)):
        with pytest.raises(e.NoMoreData) as caught:
            next(RequestParser(make_config(), [GET[:end]], PEER))
        assert caught.value.buf == GET[:end]
    with pytest.raises(e.NoMoreData) as caught:
        Request(make_config(), IterUnreader([]), PEER)
    assert caught.value.buf == b""


def test_bytes_read_before_may_be_given_back() -> None:
    a, b = socket.socketpair()
    with a, b:
        unreader = SocketUnreader(b)
        unreader.unread(POST[:-2])
        a.sendall(POST[-2:] + GET)
        parser = RequestParser(make_config(), unreader, PEER)
        assert next(parser).body.read() == b"hello"
        assert next(parser).path == "/a"


def test_a_body_cut_short_raises_and_ends_the_connection() -> None:
    for raw in (POST[:-1], CHUNKED[:-1], CHUNKED[:-8]):
        parser = RequestParser(make_config(), [raw], PEER)
        with pytest.raises(e.NoMoreData):
            next(parser).body.read()
        assert list(parser) == []


def test_bad_chunks_raise_and_end_the_connection() -> None:
    parser = RequestParser(make_config(), [CHUNKED.replace(b"3\r\nllo", b"3_0\r\nllo") + GET], PEER)
    request = next(parser)
    for _ in range(2):
        with pytest.raises(e.InvalidChunkSize):
            request.body.read()
    assert request.should_close()
    assert list(parser) == []


def test_trailer_limits_are_those_of_fields() -> None:
    request = read_request(CHUNKED.replace(b"X-Sum: 1", b"X-Sum: " + b"1" * 30), limit_request_field_size=30)
    with pytest.raises(e.LimitRequestHeaders):
        request.body.read()


def upload(length: int, sent: int) -> tuple[socket.socket, Request]:
    client, server = socket.socketpair()
    client.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % length + b"x" * sent)
    return client, next(RequestParser(make_config(), server, PEER))


@pytest.mark.parametrize(
    ("length", "sent", "limit", "drained"),
    [
        (0, 0, 0, True),
        (5, 5, 5, True),
        (5, 5, 4, False),
        (90_000, 90_000, 100_000, True),
        (5, 4, 100, False),
        (1 << 40, 100, 1 << 20, False),
    ],
)
def test_drain(length: int, sent: int, limit: int, drained: bool) -> None:
    client, request = upload(length, sent)
    with client, request.unreader.sock:  # type: ignore[attr-defined]
        request.unreader.sock.settimeout(7)  # type: ignore[attr-defined]
        start = time.monotonic()
        assert request.drain(limit, timeout=0.05) is drained
        assert time.monotonic() - start < 3
        assert request.unreader.sock.gettimeout() == 7  # type: ignore[attr-defined]


def test_drain_has_one_deadline_for_all() -> None:
    client, request = upload(1000, 0)
    with client, request.unreader.sock:  # type: ignore[attr-defined]
        assert request.drain(10_000, timeout=0) is False
        client.sendall(b"x" * 1000)
        assert request.drain(10_000, timeout=0) is True


def test_drain_fails_where_framing_is_lost() -> None:
    request = read_request(CHUNKED.replace(b"3\r\nllo", b"x\r\nllo"))
    assert request.drain() is False
    assert read_request(CHUNKED.replace(b"X-Sum:", b"X-Sum :")).drain() is False


def test_drain_does_not_wait_for_a_body_that_waits_for_100() -> None:
    request = read_request(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert request.expects_continue
    request.body.before_read = lambda: None
    assert request.drain() is False


def test_the_policy_follows_the_configuration() -> None:
    cfg = make_config()
    cfg.set("limit_request_fields", 7)
    assert policy_for(cfg).limit_request_fields == 7
    # As a hook in a worker may do, after the master has asked.
    cfg.forwarded_allow_ips.append("192.0.2.1")
    assert policy_for(cfg).forwarded_allow.allows(("192.0.2.1", 80))
    cfg.secure_scheme_headers["X-SSL"] = "on"
    assert policy_for(cfg).secure_scheme_headers["X-SSL"] == "on"
    assert policy_for(make_config(header_map="refuse")).header_map == "refuse"
    assert policy_for(make_config(forwarder_headers="a_b, C_D")).forwarder_headers == {
        "A_B",
        "C_D",
    }


def test_trust_in_forwarded_headers() -> None:
    raw = b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: https\r\n\r\n"
    assert read_request(raw).scheme == "https"
    assert read_request(raw, peer=("10.0.0.1", 1)).scheme == "http"
    assert read_request(raw, peer=("10.0.0.1", 1), forwarded_allow_ips="*").scheme == "https"
    assert read_request(raw, peer="").scheme == "https"  # a Unix socket


def test_reference_methods() -> None:
    request = read_request(GET)
    buffer = io.BytesIO()
    request.get_data(IterUnreader([b"abc"]), buffer)
    assert buffer.getvalue() == b"abc"
    with pytest.raises(e.NoMoreData):
        request.get_data(IterUnreader([]), buffer)
    with pytest.raises(StopIteration):
        request.get_data(IterUnreader([]), buffer, stop=True)
    assert request.read_line(IterUnreader([b"d\r", b"\ne"]), buffer) == (b"abcd", b"e")
    with pytest.raises(e.LimitRequestLine):
        request.read_line(IterUnreader([b"x" * 30]), io.BytesIO(), 10)
    request.parse_request_line(b"DELETE /z HTTP/1.0")
    assert (request.method, request.path, request.version) == ("DELETE", "/z", (1, 0))
    assert request.parse_headers(b"A: 1\r\nB: 2") == [("A", "1"), ("B", "2")]
    assert request.parse_headers(b"A: 1\r\nB: 2\r\n", from_trailer=True) == [("A", "1"), ("B", "2")]
    assert request.parse_headers(b"") == []
    with pytest.raises(e.InvalidHeader):
        request.parse_headers(b"A: \0\r\n\r\n")


def test_reference_constants() -> None:
    assert message.MAX_REQUEST_LINE == 8190
    assert message.MAX_HEADERS == 32768
    assert message.DEFAULT_MAX_HEADERFIELD_SIZE == 8190
    assert message.TOKEN_RE.fullmatch("a" + message.RFC9110_5_6_2_TOKEN_SPECIALS)
    assert not message.TOKEN_RE.fullmatch("a:")
    assert message.METHOD_BADCHAR_RE.search("GeT")
    assert message.VERSION_RE.fullmatch("HTTP/1.1")
    assert message.RFC9110_5_5_INVALID_AND_DANGEROUS.search("a\0")


def test_a_repeated_head_is_read_as_the_first_one_was() -> None:
    head = b"GET /a HTTP/1.1\r\nHost: h\r\nX: 1\r\n\r\n"
    parser = RequestParser(make_config(), [head, head, head.replace(b"1\r", b"2\r")], PEER)
    first = next(parser)
    first.headers.append(("MINE", "1"))
    second, third = next(parser), next(parser)
    assert second.headers == [("HOST", "h"), ("X", "1")]
    assert third.headers == [("HOST", "h"), ("X", "2")]
    assert (second.method, second.path, second.req_number) == ("GET", "/a", 2)
