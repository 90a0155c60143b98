# SPDX-License-Identifier: MIT
"""The PROXY protocol under every worker class: in front of a request, and in front of a TLS handshake."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from harness import Server, read_until_closed, wait_until
from workertools import Client, conf, get
from workertools import connect as stranger
from workertools import tls as secured

APP = """
def app(environ, start_response):
    body = " ".join(environ.get(name, "-") for name in (
        "REMOTE_ADDR", "REMOTE_PORT", "PROXY_PROTOCOL", "PROXY_ADDR", "PROXY_PORT", "wsgi.url_scheme"
    )).encode() + environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
CLIENT, PROXY = socket.inet_aton("192.0.2.9"), socket.inet_aton("127.0.0.1")
CLIENT6, PROXY6 = socket.inet_pton(socket.AF_INET6, "2001:db8::9"), socket.inet_pton(socket.AF_INET6, "::1")
PORTS = struct.pack("!HH", 5555, 80)


def v2(family: int, payload: bytes, command: int = 1) -> bytes:
    return SIGNATURE + bytes([0x20 | command, family]) + struct.pack("!H", len(payload)) + payload


IPV4 = b"192.0.2.9 5555 TCP4 127.0.0.1 80"
IPV6 = b"2001:db8::9 5555 TCP6 ::1 80"
#: What a proxy sends, and what the application then finds; None: the connection's own addresses.
HEADERS = {
    "v1": (b"PROXY TCP4 192.0.2.9 127.0.0.1 5555 80\r\n", IPV4),
    "v1 IPv6": (b"PROXY TCP6 2001:db8::9 ::1 5555 80\r\n", IPV6),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None),
    "v2": (v2(0x11, CLIENT + PROXY + PORTS), IPV4),
    "v2 IPv6": (v2(0x21, CLIENT6 + PROXY6 + PORTS), IPV6),
    "v2 with TLVs": (v2(0x11, CLIENT + PROXY + PORTS + b"\x04\x00\x03\n\r\n"), IPV4),
    "v2 local": (v2(0x00, b"", command=0), None),
    "none": (b"", None),
}
#: What no proxy sends.
MALFORMED = {
    "v1": b"PROXY TCP4 nonsense\r\n",
    "v1 without end": b"PROXY TCP4 " + b"1" * 200,
    "v2": SIGNATURE + b"\x31\x11\x00\x0c" + CLIENT + PROXY + PORTS,
    "v2 too short": v2(0x11, CLIENT),
}
KINDS = ["sync", "gthread", "gevent", "gevent_pywsgi", "tornado", "asgi"]


def as_told(server: Server, found: bytes | None) -> bytes | None:
    """What the application finds; there is no place for the proxy's own address in a scope of ASGI."""
    if found is None or "# 'asgi'" not in server.config_text:
        return found
    return b" ".join(found.split()[:2]) + b" - - -"


def start(kind: str, **settings: object) -> Server:
    settings = {"proxy_protocol": True, "proxy_allow_ips": "127.0.0.2", "accesslog": "-", **settings}
    return Server(APP, conf(kind, timeout=5, **settings), ready="listen")


def connect(server: Server) -> Client:
    """A connection from the proxy's address."""
    return Client(socket.create_connection((server.host, server.port), 10, ("127.0.0.2", 0)))


@pytest.fixture(scope="module", params=KINDS)
def plain(request: pytest.FixtureRequest) -> Iterator[Server]:
    with start(request.param) as server:
        yield server


@pytest.fixture(scope="module", params=KINDS)
def tls(request: pytest.FixtureRequest, certificate: dict[str, str]) -> Iterator[Server]:
    with start(request.param, **certificate) as server:
        yield server


def expected(client: Client, found: bytes | None, scheme: bytes) -> bytes:
    if found is None:
        host, port = client.sock.getsockname()
        found = f"{host} {port} - - -".encode()
    return found + b" " + scheme


@pytest.mark.parametrize("case", HEADERS)
def test_in_front_of_a_request(plain: Server, case: str) -> None:
    header, found = HEADERS[case]
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    with connect(plain) as client:
        client.send(header + post)
        answer = client.answer()
        assert answer.body == expected(client, as_told(plain, found), b"http") + b"abc"
        if not answer.closes:
            # It speaks for the connection, and is not said again.
            assert client.ask().body == expected(client, as_told(plain, found), b"http")
    if found:
        plain.wait_log(found.split()[0].decode() + " ")


@pytest.mark.parametrize("case", ["v1", "v2"])
def test_byte_by_byte(plain: Server, case: str) -> None:
    header, found = HEADERS[case]
    with connect(plain) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header + get():
            client.send(bytes([byte]))
        assert client.answer().body == expected(client, as_told(plain, found), b"http")


@pytest.mark.parametrize("case", ["v1", "v2"])
def test_nothing_is_imported_for_it(case: str) -> None:
    """A worker may see no modules any more, after a chroot or without descriptors."""
    # Some installations import it with the interpreter.
    hooks = """
import sys
def on_starting(server):
    sys.modules.pop("ipaddress", None)
def post_worker_init(worker):
    sys.meta_path.clear()
"""
    header, found = HEADERS[case]
    with Server(APP, "proxy_protocol = True" + hooks, ready="listen") as server, stranger(server) as client:
        client.send(header + get())
        assert client.answer().body == expected(client, found, b"http")


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_header(plain: Server, case: str) -> None:
    with connect(plain) as client:
        client.send(MALFORMED[case])
        assert read_until_closed(client.sock).startswith(b"HTTP/1.1 400 ")


def test_a_method_that_begins_alike(plain: Server) -> None:
    with connect(plain) as client:
        client.send(b"PRO")
        client.send(b"PFIND / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.answer().status == 200


@pytest.mark.parametrize("case", HEADERS)
def test_in_front_of_a_handshake(tls: Server, case: str) -> None:
    header, found = HEADERS[case]
    with connect(tls) as client:
        client.send(header)
        with secured(client.sock) as client:
            answer = client.ask()
            assert answer.body == expected(client, as_told(tls, found), b"https")
            if not answer.closes:
                assert client.ask().body == answer.body


@pytest.mark.parametrize("case", ["v1", "v2"])
def test_byte_by_byte_in_front_of_a_handshake(tls: Server, case: str) -> None:
    header, found = HEADERS[case]
    with connect(tls) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header:
            client.send(bytes([byte]))
        with secured(client.sock) as client:
            assert client.ask().body == expected(client, as_told(tls, found), b"https")


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_header_in_front_of_a_handshake(tls: Server, case: str) -> None:
    with connect(tls) as client:
        client.send(MALFORMED[case])
        if case in ("v1", "v2"):
            assert client.is_closed()
        else:
            # What is no answer to a hello is no PROXY header either.
            with pytest.raises(OSError), secured(client.sock):
                pass


def test_a_client_cannot_add_a_header_of_its_own(tls: Server) -> None:
    """The proxy sends its header before the handshake; one inside TLS is the client's."""
    with connect(tls) as client:
        client.send(HEADERS["v1"][0])
        with secured(client.sock) as client:
            client.send(b"PROXY TCP4 203.0.113.1 127.0.0.1 1 80\r\n" + get(close=True))
            assert b"203.0.113.1 " not in read_until_closed(client.sock).partition(b"\r\n\r\n")[2]


def test_others_may_not_say_such_things(plain: Server) -> None:
    for case in ("v1", "v2"):
        with stranger(plain) as client:
            client.send(HEADERS[case][0] + get())
            assert client.answer().status == 403 and client.is_closed()
    with stranger(plain) as client:
        assert client.ask().status == 200


def test_others_may_not_say_such_things_in_front_of_a_handshake(tls: Server) -> None:
    for case in ("v1", "v2"):
        before = tls.log().count("proxy_allow_ips does not name")
        with stranger(tls) as client:
            client.send(HEADERS[case][0])
            assert client.is_closed()
        wait_until(lambda before=before: tls.log().count("proxy_allow_ips does not name") > before)  # type: ignore[misc]
    with stranger(tls) as client, secured(client.sock) as client:
        assert client.ask().status == 200
