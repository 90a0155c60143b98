# SPDX-License-Identifier: MIT
"""uWSGI's protocol: packets as bytes, the heads that they become, and the environs of these."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from httpkit import CUTS, PEER, SERVER, byte_by_byte, make_config
from hypothesis import given, settings
from hypothesis import strategies as st

from gunicorn.http import uwsgi, wsgi
from gunicorn.http.errors import (
    ClientAnswer,
    ForbiddenUwsgiRequest,
    InvalidHeader,
    InvalidHTTPVersion,
    InvalidRequestLine,
    InvalidRequestMethod,
    InvalidUwsgiPacket,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
)
from gunicorn.http.policy import RequestPolicy

Pairs = list[tuple[str, str]]

# What nginx sends for a request, with its own file uwsgi_params.
NGINX: dict[str, str] = {
    "QUERY_STRING": "x=1",
    "REQUEST_METHOD": "GET",
    "CONTENT_TYPE": "",
    "CONTENT_LENGTH": "",
    "REQUEST_URI": "/a%20b?x=1",
    "PATH_INFO": "/a b",
    "DOCUMENT_ROOT": "/usr/share/nginx/html",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REQUEST_SCHEME": "http",
    "REMOTE_ADDR": "192.0.2.9",
    "REMOTE_PORT": "5555",
    "SERVER_PORT": "80",
    "SERVER_NAME": "shop.example",
    "HTTP_HOST": "shop.example",
    "HTTP_USER_AGENT": "curl/8",
}


def packet(pairs: Pairs, modifier1: int = 0) -> bytes:
    data = b"".join(struct.pack("<H", len(text)) + text.encode("latin-1") for pair in pairs for text in pair)
    return struct.pack("<BHB", modifier1, len(data), 0) + data


def told(more: Pairs | None = None, without: str = "", **changed: str) -> Pairs:
    """What nginx sends, with other values and *more* at the end."""
    names = {**NGINX, **changed}
    names.pop(without, None)
    return [*names.items(), *(more or [])]


CONFIG = make_config(protocol="uwsgi")


def read(pairs: Pairs, body: bytes = b"", **given: Any) -> Any:
    cfg = make_config(protocol="uwsgi", **given) if given else CONFIG
    return next(uwsgi.UwsgiParser(cfg, [packet(pairs) + body], PEER))


def environ_of(pairs: Pairs, body: bytes = b"", server: Any = SERVER, **given: Any) -> dict[str, Any]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        request = read(pairs, body, **given)
        return wsgi.create(request, ours, PEER, server, request.cfg)[1]


def test_a_request_of_nginx() -> None:
    pairs = told(REQUEST_METHOD="POST", CONTENT_TYPE="text/plain", CONTENT_LENGTH="5")
    for cut in CUTS:
        parser = uwsgi.UwsgiParser(CONFIG, cut(packet(pairs) + b"hello, and more"), PEER)
        request = next(parser)
        assert (request.method, request.uri, request.path, request.query) == (
            "POST",
            "/a%20b?x=1",
            "/a%20b",
            "x=1",
        )
        assert ("USER-AGENT", "curl/8") in request.headers and ("CONTENT-LENGTH", "5") in request.headers
        assert request.body.read() == b"hello"
        assert request.should_close() and request.version == (1, 1) and not request.expects_continue
        assert next(parser, None) is None


def test_the_environ_is_the_proxys() -> None:
    environ = environ_of(told(HTTPS="on", REMOTE_USER="ann", HTTP_COOKIE="a=b"))
    expected = {
        "REQUEST_METHOD": "GET",
        "QUERY_STRING": "x=1",
        "RAW_URI": "/a%20b?x=1",
        "PATH_INFO": "/a b",
        "SCRIPT_NAME": "",
        "REMOTE_ADDR": "192.0.2.9",
        "REMOTE_PORT": "5555",
        "REMOTE_USER": "ann",
        "SERVER_NAME": "shop.example",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "shop.example",
        "HTTP_COOKIE": "a=b",
        "wsgi.url_scheme": "https",
    }
    assert {name: environ.get(name) for name in expected} == expected
    # As in HTTP, where a request without a body has none.
    assert "CONTENT_LENGTH" not in environ and "CONTENT_TYPE" not in environ


def test_the_peer_is_the_client_where_the_proxy_names_none() -> None:
    minimal = [("REQUEST_METHOD", "GET"), ("PATH_INFO", "/caf\xc3\xa9 1"), ("QUERY_STRING", "y")]
    environ = environ_of(minimal)
    assert environ["REMOTE_ADDR"] == PEER[0] and environ["SERVER_PORT"] == "8000"
    assert environ["RAW_URI"] == "/caf%C3%A9%201?y" and environ["PATH_INFO"] == "/caf\xc3\xa9 1"
    # A rewrite in the proxy changes the query alone.
    assert read(told(QUERY_STRING="z")).query == "z"
    assert environ_of([*minimal, ("HTTP_HOST", "h:81")], server="/run/sock")["SERVER_PORT"] == "81"


@pytest.mark.parametrize(
    ("sent", "scheme"),
    [
        ([], "http"),
        ([("HTTPS", "on")], "https"),
        ([("HTTPS", "1")], "https"),
        ([("HTTPS", "off"), ("REQUEST_SCHEME", "https")], "http"),
        ([("REQUEST_SCHEME", "https")], "https"),
        ([("REQUEST_SCHEME", "ftp")], "http"),
        # A client can send the header; the proxy itself says otherwise.
        ([("REQUEST_SCHEME", "http"), ("HTTP_X_FORWARDED_PROTO", "https")], "http"),
        # It does not say: the header of a trusted proxy counts, as in HTTP.
        ([("HTTP_X_FORWARDED_PROTO", "https")], "https"),
    ],
)
def test_the_scheme(sent: Pairs, scheme: str) -> None:
    assert environ_of(told(sent, without="REQUEST_SCHEME"))["wsgi.url_scheme"] == scheme
    untrusted = environ_of(told(sent, without="REQUEST_SCHEME"), forwarded_allow_ips="10.0.0.1")
    by_header = sent == [("HTTP_X_FORWARDED_PROTO", "https")]
    assert untrusted["wsgi.url_scheme"] == ("http" if by_header else scheme)


@pytest.mark.parametrize(
    ("script_name", "uri", "path", "expected"),
    [
        ("", "/app/x", "/app/x", ("", "/app/x")),
        # With the whole path, as in nginx's uwsgi_params ...
        ("/app", "/app/x?y", "/app/x", ("/app", "/x")),
        ("/app/", "/app/x", "/app/x", ("/app", "/x")),
        ("/app", "/app", "/app", ("/app", "")),
        ("/app", "/app/app/x", "/app/app/x", ("/app", "/app/x")),
        # ... and with the path behind SCRIPT_NAME, as in CGI.
        ("/app", "/app/x", "/x", ("/app", "/x")),
        ("/app", "/app/app%20x", "/app x", ("/app", "/app x")),
        ("/app", "/app/app/x", "/app/x", ("/app", "/app/x")),
        ("/app", "/apple", "/apple", ("/app", "/apple")),
        ("/app", "/old", "/new/x", ("/app", "/new/x")),
        # Rewritten in the proxy.
        ("", "/old", "/new", ("", "/new")),
        # An escape that is left is not resolved a second time.
        ("", "/%2541", "/%41", ("", "/%41")),
    ],
)
def test_the_paths(script_name: str, uri: str, path: str, expected: tuple[str, str]) -> None:
    environ = environ_of(told([("SCRIPT_NAME", script_name)], REQUEST_URI=uri, PATH_INFO=path))
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == expected
    assert environ["RAW_URI"] == uri


def test_headers_as_the_proxy_maps_them() -> None:
    sent = [
        ("HTTP_X_A", " 1 "),
        ("HTTP_X_A", "2"),
        ("HTTP_COOKIE", "a=1"),
        ("HTTP_COOKIE", "b=2"),
        ("HTTP_X.B", "3"),
        # The client's "Script-Name: /evil", which is no mount point.
        ("HTTP_SCRIPT_NAME", "/evil"),
    ]
    environ = environ_of(told(sent))
    assert (
        environ["HTTP_X_A"] == "1,2" and environ["HTTP_COOKIE"] == "a=1; b=2" and environ["HTTP_X.B"] == "3"
    )
    assert environ["SCRIPT_NAME"] == "" and environ["PATH_INFO"] == "/a b"


def test_the_words_of_the_client_do_not_frame_the_body() -> None:
    sent = [
        ("HTTP_CONTENT_LENGTH", "99"),
        ("HTTP_TRANSFER_ENCODING", "chunked"),
        ("HTTP_EXPECT", "100-continue"),
        ("HTTP_CONTENT_TYPE", "text/evil"),
        ("HTTP_CONNECTION", "keep-alive"),
    ]
    for length, body in (("5", b"hello"), ("", b"")):
        request = read(told(sent, CONTENT_LENGTH=length), b"hello, and more")
        assert request.body.read() == body
        assert request.should_close() and not request.expects_continue
        environ = environ_of(told(sent, CONTENT_LENGTH=length))
        left = {"HTTP_CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_CONTENT_TYPE"}
        assert not left & environ.keys()


def test_the_last_of_two_counts_where_nothing_hangs_on_it() -> None:
    # An included file of parameters, and the one that the user sets.
    assert environ_of(told([("REMOTE_ADDR", "198.51.100.7")]))["REMOTE_ADDR"] == "198.51.100.7"


@pytest.mark.parametrize("protocol", ["HTTP/2.0", "HTTP/2", "HTTP/3.0", "HTTP/1.0"])
def test_whatever_the_client_speaks(protocol: str) -> None:
    environ = environ_of(told(SERVER_PROTOCOL=protocol, without="HTTP_HOST"))
    assert environ["SERVER_PROTOCOL"] == protocol


MALFORMED: list[tuple[Pairs, type[ParseException]]] = [
    ([], InvalidUwsgiPacket),
    (told(without="REQUEST_METHOD"), InvalidUwsgiPacket),
    (told(REQUEST_METHOD=""), InvalidUwsgiPacket),
    (told(REQUEST_METHOD="G T"), InvalidRequestMethod),
    (told(REQUEST_METHOD="get"), InvalidRequestMethod),
    ([("REQUEST_METHOD", "GET")], InvalidUwsgiPacket),
    (told(REQUEST_URI="/a b"), InvalidRequestLine),
    (told(REQUEST_URI="/a\r\nb"), InvalidRequestLine),
    (told(REQUEST_URI="a"), InvalidRequestLine),
    (told(CONTENT_LENGTH="5x"), InvalidHeader),
    (told(CONTENT_LENGTH="-1"), InvalidHeader),
    (told(CONTENT_LENGTH="+1"), InvalidHeader),
    (told(CONTENT_LENGTH="1,1"), InvalidHeader),
    (told(CONTENT_LENGTH="9" * 20), InvalidHeader),
    (told(SERVER_PROTOCOL="HTTP"), InvalidHTTPVersion),
    (told(SERVER_PROTOCOL=""), InvalidHTTPVersion),
    (told(HTTP_HOST="a b"), InvalidHeader),
    *((told([(name, NGINX[name])]), InvalidUwsgiPacket) for name in sorted(uwsgi._ONLY_ONCE)),
    (told([("", "x")]), InvalidUwsgiPacket),
    (told([("HTTP_", "x")]), InvalidUwsgiPacket),
    (told([("HTTP_X-A", "x")]), InvalidUwsgiPacket),
    (told([("HTTP_x", "x")]), InvalidUwsgiPacket),
    (told([("wsgi.url_scheme", "https")]), InvalidUwsgiPacket),
    (told([("gunicorn.socket", "x")]), InvalidUwsgiPacket),
    (told([("A B", "x")]), InvalidUwsgiPacket),
    (told([("A\n", "x")]), InvalidUwsgiPacket),
    (told([("A", "x\0")]), InvalidUwsgiPacket),
    (told(PATH_INFO="/\0"), InvalidUwsgiPacket),
    (told([("HTTP_X", "a\r\nb")]), InvalidUwsgiPacket),
    (told(CONTENT_TYPE="a\nb"), InvalidUwsgiPacket),
]


@pytest.mark.parametrize(("pairs", "error"), MALFORMED)
def test_malformed(pairs: Pairs, error: type[ParseException]) -> None:
    with pytest.raises(error) as caught:
        read(pairs)
    assert caught.value.status == 400 and str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x01", "modifier1 is 1, not 0"),
        (b"GET / HTTP/1.1\r\n", "modifier1 is 71, not 0"),
        (packet(told(), modifier1=5), "modifier1 is 5, not 0"),
        # Half a size, a name beyond the packet, a name alone, and a value beyond the packet.
        (struct.pack("<BHB", 0, 1, 0) + b"\x01", "longer than the packet"),
        (struct.pack("<BHB", 0, 2, 0) + b"\x01\x00", "longer than the packet"),
        (struct.pack("<BHB", 0, 3, 0) + b"\x01\x00A", "has no value: 'A'"),
        (struct.pack("<BHB", 0, 5, 0) + b"\x01\x00A\x01\x00" + b"B" * 9, "longer than the packet"),
    ],
)
def test_no_packet(data: bytes, message: str) -> None:
    with pytest.raises(InvalidUwsgiPacket, match=message):
        next(uwsgi.UwsgiParser(CONFIG, [data], PEER))


def test_ends() -> None:
    assert next(uwsgi.UwsgiParser(CONFIG, [], PEER), None) is None
    whole = packet(told())
    for size in range(1, len(whole)):
        with pytest.raises(NoMoreData):
            next(uwsgi.UwsgiParser(CONFIG, [whole[:size]], PEER))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"limit_request_line": 20}, LimitRequestLine),
        ({"limit_request_fields": 1}, LimitRequestHeaders),
        ({"limit_request_field_size": 12}, LimitRequestHeaders),
    ],
)
def test_limits(given: dict[str, Any], error: type[ParseException]) -> None:
    assert read(told())
    with pytest.raises(error):
        read(told(), **given)


def test_who_may_use_it() -> None:
    cfg = make_config(protocol="uwsgi", uwsgi_allow_ips="10.0.0.0/8")
    for peer in (("10.1.2.3", 1), "", b""):  # those of Unix sockets have no address
        assert next(uwsgi.UwsgiParser(cfg, [packet(told())], peer))
    for data in (packet(told()), b"GET"):
        with pytest.raises(ForbiddenUwsgiRequest, match="uwsgi_allow_ips does not name") as caught:
            next(uwsgi.UwsgiParser(cfg, byte_by_byte(data), PEER))
        assert caught.value.status == 403


NAMES = st.sampled_from([*NGINX, "HTTP_X", "HTTP_CONTENT_LENGTH", "SCRIPT_NAME", "HTTPS"]) | st.text(
    st.characters(max_codepoint=255), max_size=8
)
VALUES = st.sampled_from([*NGINX.values(), "7", "*", "chunked"]) | st.text(
    st.characters(max_codepoint=255), max_size=8
)
POLICY = RequestPolicy(protocol="uwsgi")


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.booleans())
def test_any_pairs_become_a_request_or_an_answer(pairs: Pairs, whole: bool) -> None:
    if whole:
        pairs = [*NGINX.items(), *pairs]
    assert uwsgi.parse_packet(packet(pairs)[4:]) == pairs
    try:
        environ = environ_of(pairs)
    except ParseException as error:
        assert 400 <= error.status <= 505
    else:
        assert all(isinstance(environ[name], str) for name in ("PATH_INFO", "SCRIPT_NAME", "RAW_URI"))
        assert environ["wsgi.url_scheme"] in ("http", "https")
        assert environ["wsgi.errors"] and environ["wsgi.input"] is not None


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=40), st.integers(0, 400), st.booleans())
def test_any_bytes_are_read_alike_in_one_piece_and_in_many(noise: bytes, at: int, valid: bool) -> None:
    data = noise
    if valid:
        good = packet(told())
        data = good[:at] + noise + good[at + len(noise) :]
    results = []
    for cut in CUTS:
        try:
            request = next(uwsgi.UwsgiParser(CONFIG, cut(data), PEER, POLICY), None)
            results.append(request and (request.method, request.uri, request.headers, request.variables))
        except (ParseException, NoMoreData) as error:
            assert isinstance(error, ClientAnswer)
            results.append(type(error))
    assert results[0] == results[1] == results[2]
