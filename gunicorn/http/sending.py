# SPDX-License-Identifier: MIT
"""Small functions that code outside of this package knows from ``gunicorn.util``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

from .chunked import LAST_CHUNK, encode_chunk
from .head import error_response


def write_chunk(sock: Any, data: bytes | str) -> None:
    """Send *data* as one chunk; empty data is the last one."""
    if isinstance(data, str):
        data = data.encode("utf-8")
    sock.sendall(encode_chunk(data) if data else LAST_CHUNK)


def write(sock: Any, data: bytes, chunked: bool = False) -> None:
    """Send *data* as it is, or as a chunk."""
    if chunked:
        write_chunk(sock, data)
    else:
        sock.sendall(data)


def write_nonblock(sock: Any, data: bytes, chunked: bool = False) -> None:
    """As write(), but raise BlockingIOError where the socket would have to wait."""
    with _timeout(sock, 0.0):
        write(sock, data, chunked)


def write_error(sock: Any, status_int: int, reason: str, mesg: str) -> None:
    """Send a complete error response without waiting for a client that does not read."""
    with _timeout(sock, 0.0):
        sock.sendall(error_response(status_int, reason, mesg))


def split_request_uri(uri: str) -> SplitResult:
    """The parts of a request target; a path of two slashes stays a path."""
    if uri.startswith("//"):
        # urlsplit() would take what follows for a host.
        parts = urlsplit("." + uri)
        return parts._replace(path=parts.path[1:])
    return urlsplit(uri)


@contextmanager
def _timeout(sock: Any, seconds: float) -> Iterator[None]:
    before = sock.gettimeout()
    if before == seconds:
        yield
        return
    sock.settimeout(seconds)
    try:
        yield
    finally:
        sock.settimeout(before)
