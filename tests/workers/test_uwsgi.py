# SPDX-License-Identifier: MIT
"""uWSGI's protocol behind a real nginx, and from peers that are none."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import subprocess
from collections.abc import Iterator
from signal import SIGHUP, SIGKILL
from types import SimpleNamespace

import pytest
from harness import Server, free_port, load, wait_until
from proctools import program
from workertools import Client, conf, connect, dial, get

APP = """
import hashlib, os, threading

going = threading.Event()

def app(environ, start_response):
    path = environ["PATH_INFO"]
    body = environ["wsgi.input"]
    if path == "/stream":
        # The second part comes after the client has seen the first, by a request of its own.
        open("first", "w").close()
        start_response("200 OK", [("X-Accel-Buffering", "no")])
        return stream()
    if path == "/304":
        start_response("304 Not Modified", [("ETag", '"a"')])
        return []
    if path == "/hints":
        environ["wsgi.early_hints"]([("Link", "</a>")])
    if path == "/hash":
        digest, size = hashlib.sha256(), 0
        while data := body.read(65536):
            digest.update(data)
            size += len(data)
        text = f"{size} {digest.hexdigest()}"
    elif path == "/length":
        text = "known"
        start_response("200 OK", [("Content-Length", "5")])
        return [b"known"]
    else:
        names = environ.get("HTTP_X_NAMES", "PATH_INFO").split()
        text = "|".join(f"{environ.get(name, '-')}" for name in names)
    start_response("200 OK", [("X-Pid", str(os.getpid()))])
    return [text[:1].encode("latin-1"), text[1:].encode("latin-1")]

def stream():
    yield b"first,"
    while not os.path.exists("seen"):
        going.wait(0.01)
    yield b"second"
"""

NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/nginx.log;
events {{ worker_connections 100; }}
http {{
    access_log off;
    client_max_body_size 0;
    large_client_header_buffers 8 32k;
    client_body_temp_path {dir}/n1; uwsgi_temp_path {dir}/n2; proxy_temp_path {dir}/n3;
    fastcgi_temp_path {dir}/n4; scgi_temp_path {dir}/n5;
    uwsgi_param QUERY_STRING $query_string;
    uwsgi_param REQUEST_METHOD $request_method;
    uwsgi_param CONTENT_TYPE $content_type;
    uwsgi_param CONTENT_LENGTH $content_length;
    uwsgi_param REQUEST_URI $request_uri;
    uwsgi_param PATH_INFO $document_uri;
    uwsgi_param SERVER_PROTOCOL $server_protocol;
    uwsgi_param REQUEST_SCHEME $scheme;
    uwsgi_param REMOTE_ADDR 192.0.2.9;
    uwsgi_param SERVER_PORT $server_port;
    uwsgi_param SERVER_NAME shop.example;
    uwsgi_param HTTP_X_TRUSTED yes;
    uwsgi_param SHOP_ZONE north;
    server {{
        listen 127.0.0.1:{port};
        location / {{ uwsgi_pass {upstream}; }}
        location = /hash {{ uwsgi_request_buffering off; uwsgi_pass {upstream}; }}
    }}
}}
"""


class Nginx:
    """nginx in front of *server*."""

    def __init__(self, server: Server, upstream: str) -> None:
        self.host, self.port = "127.0.0.1", free_port()
        text = NGINX.format(dir=server.dir, port=self.port, upstream=upstream)
        path = server.write("nginx.conf", text)
        command = [program("nginx"), "-e", str(server.dir / "nginx.log"), "-c", str(path)]
        self.process = subprocess.Popen(command)
        wait_until(lambda: self.ask("GET", "/")[0] == 200)

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names, encode_chunked=True)  # type: ignore[arg-type]
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def values(self, path: str, names: str, **headers: str) -> list[str]:
        return self.ask("GET", path, X_Names=names, **headers)[2].decode("latin-1").split("|")

    def get(self, path: str) -> SimpleNamespace:
        """As that of a server, for ``load()``."""
        status, _, body = self.ask("GET", path)
        assert body == path.encode() or status != 200
        return SimpleNamespace(status=status)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@contextlib.contextmanager
def nginx_before(server: Server, upstream: str = "") -> Iterator[Nginx]:
    nginx = Nginx(server, upstream or f"unix:{server.dir}/web.sock")
    try:
        yield nginx
    finally:
        nginx.stop()


@pytest.fixture(scope="module", params=["sync", "gthread", "gevent"])
def site(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Nginx]]:
    program("nginx")
    config = conf(request.param, protocol="uwsgi", accesslog="-", workers=2, uwsgi_allow_ips="127.0.0.2")
    args = ["-b", f"127.0.0.1:{free_port()}"]
    with (
        Server(APP, config, bind="unix", args=args, ready="listen") as server,
        nginx_before(server) as nginx,
    ):
        yield server, nginx


def test_variables(site: tuple[Server, Nginx]) -> None:
    server, nginx = site
    names = "RAW_URI PATH_INFO QUERY_STRING REMOTE_ADDR SERVER_NAME SHOP_ZONE HTTP_X_TRUSTED wsgi.url_scheme"
    found = nginx.values("/a%20b//c?x=1", names, X_Trusted="evil", X_Forwarded_Proto="https")
    assert found == ["/a%20b//c?x=1", "/a b/c", "x=1", "192.0.2.9", "shop.example", "north", "yes", "http"]
    # The access log shows the client and not nginx.
    wait_until(
        lambda: "192.0.2.9 - - [" in server.log() and '"GET /a%20b//c?x=1 HTTP/1.1" 200' in server.log()
    )
    # Larger than what is received at once, and nearly as large as a packet may be.
    for size in (1, 8000, 8100):
        headers = {f"X_H{number}": "v" * size for number in range(7)}
        assert nginx.values("/", "HTTP_X_H6", **headers) == ["v" * size]
    assert nginx.ask("GET", "/", X_Large="v" * 9000)[0] == 431


def test_bodies(site: tuple[Server, Nginx]) -> None:
    _, nginx = site
    data = bytes(range(256)) * 20000
    expected = f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()
    # To /hash as it comes, to the other as a whole.
    assert nginx.ask("POST", "/hash", data)[2] == expected
    assert nginx.ask("POST", "/hash", iter([data[:1000], data[1000:]]))[2] == expected
    assert nginx.ask("POST", "/hash", data, Expect="100-continue")[2] == expected
    assert nginx.ask("POST", "//hash", data)[2] == expected
    # A body that the application does not read.
    assert nginx.ask("POST", "/", data)[::2] == (200, b"/")


def test_answers(site: tuple[Server, Nginx]) -> None:
    server, nginx = site
    assert nginx.ask("HEAD", "/length")[::2] == (200, b"")
    status, headers, body = nginx.ask("GET", "/length")
    assert (status, headers["Content-Length"], body) == (200, "5", b"known")
    status, headers, body = nginx.ask("GET", "/304")
    assert (status, headers["ETag"], body) == (304, '"a"', b"")
    assert nginx.ask("GET", "/hints")[::2] == (200, b"/hints")
    # The content has no length: it ends with the connection, and nginx makes the chunks.
    connection = http.client.HTTPConnection(nginx.host, nginx.port, timeout=10)
    connection.request("GET", "/stream")
    answer = connection.getresponse()
    assert answer.read(6) == b"first,"
    (server.dir / "seen").touch()
    assert answer.read() == b"second"
    # The client's connection to nginx stays.
    connection.request("GET", "/again")
    assert connection.getresponse().read() == b"/again"
    connection.close()


def test_peers_that_may_not_and_what_is_no_packet(site: tuple[Server, Nginx]) -> None:
    server, _ = site
    with Client(server.connect()) as client:  # a Unix socket: any peer may
        client.send(get())
        answer = client.answer()
        assert (answer.status, answer.closes) == (400, True)
    wait_until(lambda: "modifier1 is 71, not 0; does the client speak HTTP?" in server.log())
    host, port = server.args[server.args.index("-b", 2) + 1].rsplit(":")
    for source, status in (("127.0.0.1", 403), ("127.0.0.2", 200)):
        with Client(socket.create_connection((host, int(port)), 10, (source, 0))) as client:
            data = b"\x0e\x00REQUEST_METHOD\x03\x00GET\x09\x00PATH_INFO\x07\x00/length"
            whole = b"\x00%c\x00\x00" % len(data) + data
            # Byte by byte; the other is refused after the first.
            for byte in whole if status == 200 else whole[:1]:
                client.send(bytes([byte]))
            answer = client.answer()
            assert (answer.status, answer.closes) == (status, True)
            assert client.is_closed()
    wait_until(lambda: "uwsgi_allow_ips does not name" in server.log())


def test_a_reload_loses_nothing(site: tuple[Server, Nginx]) -> None:
    server, nginx = site
    with load(nginx, "/x", interval=0) as problems:  # type: ignore[arg-type]
        before = server.workers()
        server.signal(SIGHUP)
        server.wait_workers(2, without=before)
    assert problems == []


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        (
            "gevent_pywsgi",
            "",
            "works under sync, gthread and gevent, not under the worker class gevent_pywsgi",
        ),
        ("tornado", "", "not under the worker class tornado"),
        ("app.Foreign", "", "not under the worker class app.Foreign"),
        ("sync", "proxy_protocol = True", "proxy_protocol does not go with"),
    ],
)
def test_refused(kind: str, more: str, expected: str) -> None:
    foreign = "\nclass Foreign:\n    pass\n"
    config = conf(kind, protocol="uwsgi") + more + "\n"
    checks = [kind != "sync"] if kind != "tornado" else [True, False]
    for check in checks:
        server = Server(APP + foreign, config, ["--check-config"] if check else [], ready=None)
        with server:
            server.expected_code = 1
            assert server.wait_exit() == 1
            assert expected in server.log()


KINDS = pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])


@pytest.mark.matrix
@KINDS
def test_tls(kind: str, certificate: dict[str, str]) -> None:
    config = conf(kind, protocol="uwsgi", **certificate)
    data = bytes(range(256)) * 20000
    with Server(APP, config, ready="listen") as server:
        assert f"Listening on suwsgi://127.0.0.1:{server.port}" in server.log()
        with nginx_before(server, f"suwsgi://127.0.0.1:{server.port}") as nginx:
            # The scheme is that of the client's connection.
            assert nginx.values("/", "wsgi.url_scheme REMOTE_ADDR") == ["http", "192.0.2.9"]
            expected = f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()
            assert nginx.ask("POST", "/hash", data)[2] == expected
            assert nginx.ask("POST", "//hash", data)[2] == expected
            for _ in range(10):
                assert nginx.ask("POST", "/", data)[::2] == (200, b"/")
            with load(nginx, "/x", interval=0) as problems:  # type: ignore[arg-type]
                before = server.workers()
                server.signal(SIGHUP)
                server.wait_workers(1, without=before)
            assert problems == []
        with dial(server, secure=True) as client:
            assert client.ask().status == 400


PACKET = b"\x00\x29\x00\x00\x0e\x00REQUEST_METHOD\x03\x00GET\x09\x00PATH_INFO\x07\x00/length"


@pytest.mark.matrix
@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_slow_peers(kind: str) -> None:
    config = conf(kind, protocol="uwsgi", timeout=2)
    with (
        Server(APP, config, bind="unix", ready="listen") as server,
        nginx_before(server) as nginx,
        contextlib.ExitStack() as stack,
    ):
        # Nothing, a part of the prefix, a part of the packet.
        peers = [stack.enter_context(connect(server)) for _ in range(12)]
        for number, peer in enumerate(peers):
            peer.send(PACKET[: number % 3 * 3])
        assert nginx.ask("GET", "/x")[0] == 200
        for number, peer in enumerate(peers):
            if number % 3:
                answer = peer.answer()
                assert (answer.status, answer.closes) == (408, True)
            assert peer.is_closed()
        assert nginx.ask("GET", "/x")[0] == 200


@pytest.mark.matrix
@KINDS
def test_the_loss_of_a_worker_costs_its_own_requests(kind: str) -> None:
    config = conf(kind, protocol="uwsgi", workers=2)
    with Server(APP, config, bind="unix", ready="listen") as server, nginx_before(server) as nginx:
        server.wait_workers(2)
        with load(nginx, "/x", interval=0) as problems:  # type: ignore[arg-type]
            for _ in range(5):
                before = server.workers()
                os.kill(before[0], SIGKILL)
                server.wait_workers(2, without=before[:1])
        # One client: at most one request was under way.
        assert len(problems) <= 5
        assert nginx.ask("GET", "/x")[0] == 200
