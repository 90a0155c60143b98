# SPDX-License-Identifier: MIT
"""What the tests of the HTTP layer share: ways to cut input, and a connection with a response on it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.message import Request
from gunicorn.http.parse import RequestHead
from gunicorn.http.parser import RequestParser

PEER = ("127.0.0.1", 51000)
SERVER = ("127.0.0.1", 8000)


def make_config(**settings: Any) -> Config:
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


def content(head: RequestHead) -> list[Any]:
    """All that a head says, to be compared."""
    names = [name for name in RequestHead.__slots__ if name not in ("_headers", "_lines", "fields")]
    return [*(getattr(head, name) for name in names), head.headers]


def whole(data: bytes) -> list[bytes]:
    return [data]


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def in_threes(data: bytes) -> list[bytes]:
    return [data[i : i + 3] for i in range(0, len(data), 3)]


CUTS = [whole, byte_by_byte, in_threes]


def read_request(data: bytes | list[bytes], peer: Any = PEER, **settings: Any) -> Request:
    """The first request in *data*; bytes are read in one piece."""
    source = [data] if isinstance(data, bytes) else data
    return next(RequestParser(make_config(**settings), source, peer))


class Exchange:
    """A real connection with one request on it, whose response a test makes by hand."""

    def __init__(self, head: str | bytes = "GET / HTTP/1.1\r\nHost: h\r\n\r\n", **settings: Any) -> None:
        self.client, self.sock = socket.socketpair()
        self.client.settimeout(10)
        self.sock.settimeout(10)
        self.cfg = make_config(**settings)
        self.parser = RequestParser(self.cfg, self.sock, PEER)
        self.client.sendall(head.encode("latin-1") if isinstance(head, str) else head)
        self.next()

    def next(self) -> None:
        self.req = next(self.parser)
        self.resp, self.environ = wsgi.create(self.req, self.sock, PEER, SERVER, self.cfg)

    def answered(self) -> bytes:
        """All that the server sent, its side being closed."""
        self.sock.close()
        parts: list[bytes] = []
        while data := self.client.recv(65536):
            parts.append(data)
        return b"".join(parts)

    def arrived(self) -> bytes:
        """What has been sent so far."""
        self.client.setblocking(False)
        try:
            return self.client.recv(1 << 20)
        except BlockingIOError:
            return b""
        finally:
            self.client.settimeout(10)

    def close(self) -> None:
        self.client.close()
        self.sock.close()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Collector:
    """Reads a socket to its end in a thread, so that a large response finds a reader."""

    def __init__(self, sock: socket.socket) -> None:
        self.data = b""
        self._sock = sock
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.data = b"".join(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        try:
            while data := self._sock.recv(65536):
                yield data
        except OSError:
            return

    def result(self) -> bytes:
        self._thread.join(20)
        return self.data


def split_response(data: bytes) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers with lower-case names, and content of a response."""
    head, _, content = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        assert name.lower() not in headers, f"{name} twice"
        headers[name.lower()] = value
    return status, headers, content
