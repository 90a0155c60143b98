# SPDX-License-Identifier: MIT
"""Small functions that other packages import from here; nothing in this package uses them."""

from __future__ import annotations

import fcntl
import inspect
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

from gunicorn.errors import AppImportError
from gunicorn.http.chunked import LAST_CHUNK, encode_chunk
from gunicorn.http.grammar import bytes_to_str, is_hoppish, to_bytestring, unquote_to_wsgi_str
from gunicorn.http.head import error_response, http_date
from gunicorn.loading import getcwd, import_app, load_class, load_entry_point, make_fail_app
from gunicorn.settings.validators import is_ipv6, parse_address
from gunicorn.unix.process import REDIRECT_TO, daemonize, get_username, set_owner_process
from gunicorn.unix.process import set_process_title as _setproctitle
from gunicorn.workers import SUPPORTED_WORKERS

__all__ = [
    "REDIRECT_TO",
    "SUPPORTED_WORKERS",
    "AppImportError",
    "_called_with_wrong_args",
    "_setproctitle",
    "bytes_to_str",
    "check_is_writable",
    "chown",
    "close",
    "close_on_exec",
    "daemonize",
    "get_arity",
    "get_username",
    "getcwd",
    "has_fileno",
    "http_date",
    "import_app",
    "is_hoppish",
    "is_ipv6",
    "load_class",
    "load_entry_point",
    "make_fail_app",
    "parse_address",
    "reraise",
    "seed",
    "set_non_blocking",
    "set_owner_process",
    "split_request_uri",
    "to_bytestring",
    "unlink",
    "unquote_to_wsgi_str",
    "warn",
    "write",
    "write_chunk",
    "write_error",
    "write_nonblock",
]


def chown(path: str, uid: int, gid: int) -> None:
    """Give *path* to *uid* and *gid*."""
    os.chown(path, uid, gid)


def unlink(filename: str) -> None:
    """Remove *filename* if it is there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(filename)


def seed() -> None:
    """Give a forked process its own random numbers."""
    random.seed(os.urandom(64))


def close_on_exec(fd: int) -> None:
    """Close *fd* in programs that this process starts."""
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.fcntl(fd, fcntl.F_GETFD) | fcntl.FD_CLOEXEC)


def set_non_blocking(fd: int) -> None:
    """Make reads and writes on *fd* non-blocking."""
    os.set_blocking(fd, False)


def get_arity(f: Callable[..., Any]) -> int:
    """How many arguments *f* takes by position or by name."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds for parameter in inspect.signature(f).parameters.values())


def _called_with_wrong_args(f: Callable[..., Any]) -> bool:
    """Whether the current TypeError came from the call of *f*, not from inside of *f*."""
    code = getattr(f, "__code__", None)
    tb = sys.exc_info()[2]
    while tb is not None:
        if tb.tb_frame.f_code is code:
            return False
        tb = tb.tb_next
    return True


def check_is_writable(path: str) -> None:
    """Raise RuntimeError unless a log can be appended to at *path*, which is created if it is missing."""
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise RuntimeError(f"cannot write to {path!r}: {error.strerror}") from error


def close(sock: Any) -> None:
    """Close *sock* and ignore errors."""
    try:
        sock.close()
    except OSError:
        pass


def has_fileno(obj: Any) -> bool:
    """Whether *obj* has an open descriptor."""
    try:
        os.fstat(obj.fileno())
    except (AttributeError, OSError, ValueError):  # io.UnsupportedOperation is both of the latter
        return False
    return True


def warn(msg: str) -> None:
    """Print *msg* on stderr where it is noticed."""
    print(f"!!! WARNING: {msg}", file=sys.stderr, flush=True)


def reraise(
    tp: type[BaseException], value: BaseException | None, tb: TracebackType | None = None
) -> NoReturn:
    """Raise *value*, or an instance of *tp*, with the traceback *tb*."""
    error = tp() if value is None else value
    raise error.with_traceback(tb)


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
    """Like write(), but raise BlockingIOError if the socket would have to wait."""
    with _timeout(sock, 0.0):
        write(sock, data, chunked)


def write_error(sock: Any, status_int: int, reason: str, mesg: str) -> None:
    """Send a complete error response without waiting for a client that does not read."""
    with _timeout(sock, 0.0):
        sock.sendall(error_response(status_int, reason, mesg))


def split_request_uri(uri: str) -> SplitResult:
    """The parts of a request target; a path of two slashes stays a path."""
    if uri.startswith("//"):
        # urlsplit() would read the rest as a host.
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
