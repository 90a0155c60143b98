# SPDX-License-Identifier: MIT
"""Files as responses: copied by the system where it can, read where it cannot."""

from __future__ import annotations

import gzip
import io
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from httpkit import Collector, Exchange, split_response

from gunicorn.http.wsgi import FileWrapper

GET = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
HEAD = GET.replace("GET", "HEAD")
DATA = bytes(range(256)) * 4096  # 1 MiB, more than a socket's buffer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "data"
    file.write_bytes(DATA)
    return file


def serve(
    filelike: Any,
    headers: list[tuple[str, str]] | None = None,
    request: str = GET,
    status: str = "200 OK",
    before: bytes = b"",
    slow: bool = False,
    **settings: Any,
) -> tuple[dict[str, str], bytes, Exchange]:
    exchange = Exchange(request, **settings)
    with exchange:
        if slow:
            # A small buffer and a reader that takes its time make the system send in parts.
            exchange.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        collector = Collector(exchange.client)
        exchange.resp.start_response(status, headers or [])
        if before:
            exchange.resp.write(before)
        exchange.resp.write_file(FileWrapper(filelike))
        exchange.resp.close()
        exchange.sock.close()
        _, fields, content = split_response(collector.result())
    return fields, content, exchange


@pytest.mark.parametrize("sendfile", [True, False])
def test_length_of_a_file_is_announced(path: Path, sendfile: bool) -> None:
    with path.open("rb") as file:
        fields, content, exchange = serve(file, slow=True, sendfile=sendfile)
    assert fields["content-length"] == str(len(DATA))
    assert "transfer-encoding" not in fields
    assert content == DATA
    assert exchange.resp.sent == len(DATA)
    assert not exchange.resp.should_close()


@pytest.mark.parametrize("buffering", [0, -1])
def test_a_file_is_sent_from_where_it_stands(path: Path, buffering: int) -> None:
    with path.open("rb", buffering=buffering) as file:
        assert file.read(10) == DATA[:10]  # a buffered file's descriptor is far ahead now
        fields, content, _ = serve(file)
    assert fields["content-length"] == str(len(DATA) - 10)
    assert content == DATA[10:]


@pytest.mark.parametrize("sendfile", [True, False])
def test_the_applications_length_counts(path: Path, sendfile: bool) -> None:
    with path.open("rb") as file:
        _, content, exchange = serve(file, [("Content-Length", "1000")], sendfile=sendfile)
    assert content == DATA[:1000]
    assert not exchange.resp.should_close()
    with path.open("rb") as file:
        _, content, exchange = serve(file, [("Content-Length", str(len(DATA) + 1))], sendfile=sendfile)
    assert content == DATA
    assert exchange.resp.should_close()


@pytest.mark.parametrize("sendfile", [True, False])
def test_after_other_content(path: Path, sendfile: bool) -> None:
    path.write_bytes(b"hello")
    with path.open("rb") as file:
        _, content, _ = serve(file, before=b"x", sendfile=sendfile)
    assert content == b"1\r\nx\r\n5\r\nhello\r\n0\r\n\r\n"
    with path.open("rb") as file:
        _, content, _ = serve(file, [("Content-Length", "4")], before=b"x", sendfile=sendfile)
    assert content == b"xhel"


@pytest.mark.parametrize("sendfile", [True, False])
@pytest.mark.parametrize(
    ("request_", "length"), [(HEAD, str(len(DATA))), (GET.replace("1.1", "1.0"), str(len(DATA)))]
)
def test_head_and_old_clients(path: Path, request_: str, length: str, sendfile: bool) -> None:
    with path.open("rb") as file:
        fields, content, _ = serve(file, request=request_, sendfile=sendfile)
    assert fields["content-length"] == length
    assert content == (b"" if request_ is HEAD else DATA)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_no_content(path: Path, status: str) -> None:
    with path.open("rb") as file:
        fields, content, _ = serve(file, status=status)
    assert "content-length" not in fields
    assert content == b""


def test_empty_file(path: Path) -> None:
    path.write_bytes(b"")
    with path.open("rb") as file:
        fields, content, exchange = serve(file)
    assert fields["content-length"] == "0"
    assert content == b""
    assert not exchange.resp.should_close()


def kernel_file(path: str) -> tuple[Any, bytes]:
    try:
        with open(path, "rb") as file:
            content = file.read()
        size = os.stat(path).st_size
    except OSError:
        pytest.skip(f"there is no {path}")
    assert content and len(content) != size
    return open(path, "rb"), content


@pytest.mark.parametrize("sendfile", [True, False])
@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("path", ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_files_whose_size_is_not_that_of_their_status(path: str, announced: bool, sendfile: bool) -> None:
    file, expected = kernel_file(path)
    with file:
        headers = [("Content-Length", str(len(expected)))] if announced else []
        fields, content, exchange = serve(file, headers, sendfile=sendfile)
    if not announced:
        assert fields["transfer-encoding"] == "chunked"
        expected = b"%x\r\n%b\r\n0\r\n\r\n" % (len(expected), expected)
    assert content == expected
    assert not exchange.resp.should_close()


def test_a_file_of_holes_alone(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 100_000)
    with path.open("rb") as file:
        fields, content, _ = serve(file)
    assert fields["content-length"] == "100000" and content == bytes(100_000)


def test_no_more_of_an_endless_file_than_was_announced() -> None:
    for request in (GET, HEAD):
        with open("/dev/zero", "rb") as file:
            _, content, _ = serve(file, [("Content-Length", "100000")], request)
        assert content == (bytes(100_000) if request is GET else b"")


def test_temporary_files() -> None:
    for make in (tempfile.TemporaryFile, tempfile.NamedTemporaryFile):
        with make() as file:
            file.write(DATA)
            file.seek(5)
            fields, content, _ = serve(file)
        assert fields["content-length"] == str(len(DATA) - 5)
        assert content == DATA[5:]


def test_files_that_are_not_what_their_descriptor_holds(path: Path) -> None:
    packed = path.with_suffix(".gz")
    packed.write_bytes(gzip.compress(DATA))
    with gzip.open(packed) as file:
        _, content, _ = serve(file, [("Content-Length", str(len(DATA)))])
    assert content == DATA
    with gzip.open(packed) as file:
        _, content, _ = serve(io.BufferedReader(file), [("Content-Length", str(len(DATA)))])  # type: ignore[type-var]
    assert content == DATA


def test_files_that_read_otherwise(path: Path) -> None:
    class Loud(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
            return super().read(size).upper()

    class Wrapped:
        def __init__(self, file: Any) -> None:
            self.file = file
            self.fileno = file.fileno
            self.tell = file.tell

        def read(self, size: int) -> bytes:
            return bytes(self.file.read(size)).upper()

    path.write_bytes(b"hello")
    with Loud(path) as loud, path.open("rb") as file:
        for filelike in (loud, Wrapped(file)):
            _, content, _ = serve(filelike, [("Content-Length", "5")])
            assert content == b"HELLO"


def test_objects_without_a_descriptor() -> None:
    fields, content, _ = serve(io.BytesIO(b"hello"))
    assert fields["transfer-encoding"] == "chunked"
    assert content == b"5\r\nhello\r\n0\r\n\r\n"


def test_pipes_are_read() -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb", buffering=0) as file:
        os.write(write_end, b"hello")
        os.close(write_end)
        fields, content, _ = serve(file)
    assert fields["transfer-encoding"] == "chunked"
    assert content == b"5\r\nhello\r\n0\r\n\r\n"


def test_sockets_that_encrypt_are_written_to(path: Path) -> None:
    class Encrypting:
        """As an SSLSocket: it has sendfile() by inheritance, and must not be passed by."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def sendall(self, data: bytes, flags: int = 0) -> None:
            assert not flags, "flags mean nothing in TLS"
            self.sock.sendall(data)

        def sendfile(self, *arguments: Any) -> int:
            raise AssertionError("plain text")

        def unwrap(self) -> None: ...

    with Exchange(GET) as exchange, path.open("rb") as file:
        collector = Collector(exchange.client)
        exchange.resp.sock = Encrypting(exchange.sock)
        exchange.resp.start_response("200 OK", [])
        assert exchange.resp.sendfile(FileWrapper(file)) is False
        exchange.resp.write_file(FileWrapper(file))
        exchange.sock.close()
        assert split_response(collector.result())[2] == DATA


def test_a_file_that_shrinks_closes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with path.open("rb") as file:
        span = (0, len(DATA) + 100)
        monkeypatch.setattr("gunicorn.http.wsgi.file_span", lambda _: span)
        fields, content, exchange = serve(file)
    assert fields["content-length"] == str(len(DATA) + 100)
    assert content == DATA
    assert exchange.resp.should_close()


def test_a_client_that_leaves(path: Path) -> None:
    with Exchange(GET) as exchange, path.open("rb") as file:
        exchange.resp.start_response("200 OK", [])
        exchange.client.close()
        with pytest.raises(OSError):
            exchange.resp.write_file(FileWrapper(file))


def test_a_socket_with_a_timeout_gives_up(path: Path) -> None:
    with Exchange(GET) as exchange, path.open("rb") as file:
        exchange.sock.settimeout(0.05)
        exchange.resp.start_response("200 OK", [])
        with pytest.raises(TimeoutError):
            exchange.resp.write_file(FileWrapper(file))
