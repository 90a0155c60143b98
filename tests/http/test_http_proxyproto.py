# SPDX-License-Identifier: MIT
"""The PROXY protocol, as bytes and at the start of a connection."""

from __future__ import annotations

import socket
import struct

import pytest
from httpkit import CUTS, PEER, Exchange, make_config

from gunicorn.http.errors import ForbiddenProxyRequest, InvalidProxyLine, InvalidRequestLine, ParseException
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.proxyproto import V2_SIGNATURE, ProxyInfo, split_proxy_header
from gunicorn.http.unreader import IterUnreader

REQUEST = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def v2(command: int, family: int, payload: bytes, version: int = 2) -> bytes:
    return V2_SIGNATURE + struct.pack("!BBH", version << 4 | command, family, len(payload)) + payload


IP4 = socket.inet_aton("192.168.0.1") + socket.inet_aton("192.168.0.11") + struct.pack("!HH", 56324, 443)
IP6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + socket.inet_pton(socket.AF_INET6, "::1") + IP4[8:]
TLV = b"\x04\x00\x03\r\n\r"

VALID: list[tuple[bytes, ProxyInfo | None]] = [
    (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        ProxyInfo("TCP4", "192.168.0.1", 56324, "192.168.0.11", 443),
    ),
    (b"PROXY TCP6 2001:DB8::0001 ::1 0 65535\r\n", ProxyInfo("TCP6", "2001:db8::1", 0, "::1", 65535)),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 whatever 65535\r\n", None),
    (v2(1, 0x11, IP4), ProxyInfo("TCP4", "192.168.0.1", 56324, "192.168.0.11", 443)),
    (v2(1, 0x11, IP4 + TLV), ProxyInfo("TCP4", "192.168.0.1", 56324, "192.168.0.11", 443)),
    (v2(1, 0x21, IP6), ProxyInfo("TCP6", "2001:db8::1", 56324, "::1", 443)),
    (v2(0, 0x00, b""), None),
    (v2(0, 0x11, IP4), None),
    (v2(1, 0x00, TLV), None),
    (v2(1, 0x31, b"\0" * 216), None),
    (v2(1, 0x12, IP4), None),
]


@pytest.mark.parametrize(("raw", "info"), VALID)
def test_valid(raw: bytes, info: ProxyInfo | None) -> None:
    version, other = ("v1", "v2") if raw.startswith(b"PROXY") else ("v2", "v1")
    for mode in ("auto", version):
        assert split_proxy_header(raw + REQUEST, mode) == (len(raw), info)
        for end in range(len(raw)):
            assert split_proxy_header(raw[:end], "auto") is None
    with pytest.raises(InvalidProxyLine):
        split_proxy_header(raw + REQUEST, other)
    with pytest.raises(InvalidProxyLine):
        RequestParser(make_config(proxy_protocol=other), [raw + REQUEST], PEER).__next__()


@pytest.mark.parametrize(("raw", "info"), VALID)
def test_valid_before_a_request(raw: bytes, info: ProxyInfo | None) -> None:
    cfg = make_config(proxy_protocol=True)
    for cut in CUTS:
        parser = RequestParser(cfg, cut(raw + REQUEST + REQUEST), PEER)
        for number in (1, 2):
            request = next(parser)
            assert request.req_number == number
            assert request.path == "/"
            # It holds for the connection, not for the first request alone.
            assert request.proxy_protocol_info == (info and info.as_dict())


INVALID = [
    b"PROXY \r\n",
    b"PROXY TCP5 1.1.1.1 1.1.1.2 1 2\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.2 1\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.2 1 2 3\r\n",
    b"PROXY TCP4  1.1.1.1 1.1.1.2 1 2\r\n",
    b"PROXY TCP4 ::1 ::1 1 2\r\n",
    b"PROXY TCP6 1.1.1.1 1.1.1.2 1 2\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.300 1 2\r\n",
    b"PROXY TCP6 fe80::1%\x1b[31m ::1 1 2\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.2 1 65536\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.2 +1 2\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.2 01 2\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.2 1 2\n",
    b"PROXY TCP4 " + b"1" * 200,
    b"PROXY UNKNOWN " + b"1" * 100 + b"\r\n",
    v2(1, 0x11, IP4, version=1),
    v2(2, 0x11, IP4),
    v2(1, 0x11, IP4[:-1]),
    v2(1, 0x21, IP4),
    v2(1, 0x41, IP4),
    v2(1, 0x11, b"\0" * 5000),
]


@pytest.mark.parametrize("raw", INVALID)
def test_invalid(raw: bytes) -> None:
    cfg = make_config(proxy_protocol=True)
    for cut in CUTS:
        with pytest.raises(InvalidProxyLine) as caught:
            next(RequestParser(cfg, cut(raw + REQUEST), PEER))
        assert caught.value.status == 400


@pytest.mark.parametrize("raw", [VALID[0][0], VALID[4][0]])
def test_only_allowed_peers_may_say_it(raw: bytes) -> None:
    cfg = make_config(proxy_protocol=True, proxy_allow_ips="10.0.0.1")
    with pytest.raises(ForbiddenProxyRequest) as caught:
        next(RequestParser(cfg, [raw + REQUEST], PEER))
    assert caught.value.status == 403
    assert next(RequestParser(cfg, [raw + REQUEST], ("10.0.0.1", 5))).proxy_protocol_info
    assert next(RequestParser(cfg, [REQUEST], PEER)).proxy_protocol_info is None


@pytest.mark.parametrize("raw", [VALID[0][0], VALID[4][0]])
def test_off_it_is_no_request(raw: bytes) -> None:
    with pytest.raises(ParseException):
        next(RequestParser(make_config(), [raw + REQUEST], PEER))


def test_only_before_the_first_request() -> None:
    parser = RequestParser(make_config(proxy_protocol=True), [REQUEST + VALID[0][0] + REQUEST], PEER)
    next(parser)
    with pytest.raises(InvalidRequestLine):
        next(parser)


def test_environ_names_client_and_proxy() -> None:
    with Exchange(VALID[0][0] + REQUEST, proxy_protocol=True) as exchange:
        environ = exchange.environ
        assert environ["REMOTE_ADDR"] == "192.168.0.1"
        assert environ["REMOTE_PORT"] == "56324"
        assert environ["PROXY_PROTOCOL"] == "TCP4"
        assert environ["PROXY_ADDR"] == "192.168.0.11"
        assert environ["PROXY_PORT"] == "443"


def test_reference_methods() -> None:
    request = Request(make_config(proxy_protocol=True), IterUnreader([REQUEST]), PEER)
    assert not request.proxy_protocol("GET / HTTP/1.1")
    other = Request(make_config(proxy_protocol="v2"), IterUnreader([REQUEST]), PEER)
    assert not other.proxy_protocol("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443")
    assert request.proxy_protocol("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443")
    assert request.proxy_protocol_info == VALID[0][1].as_dict()  # type: ignore[union-attr]
    with pytest.raises(InvalidProxyLine):
        request.parse_proxy_protocol("PROXY nonsense")
