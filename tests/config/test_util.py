# SPDX-License-Identifier: MIT
"""The names that others import from ``gunicorn.util``."""

from __future__ import annotations

import fcntl
import io
import os
import random
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from gunicorn import util

NAMES = """
SUPPORTED_WORKERS REDIRECT_TO _setproctitle load_entry_point load_class get_arity get_username
set_owner_process chown unlink is_ipv6 parse_address close_on_exec set_non_blocking close
write_chunk write write_nonblock write_error _called_with_wrong_args import_app getcwd http_date
is_hoppish daemonize seed check_is_writable to_bytestring has_fileno warn make_fail_app
split_request_uri reraise bytes_to_str unquote_to_wsgi_str
"""


@pytest.mark.parametrize("name", NAMES.split())
def test_names(name: str) -> None:
    assert hasattr(util, name)


def test_workers() -> None:
    assert set(util.SUPPORTED_WORKERS) == {
        "sync",
        "gthread",
        "gevent",
        "gevent_wsgi",
        "gevent_pywsgi",
        "tornado",
        "asgi",
    }


@pytest.mark.parametrize(
    ("func", "arity"), [(lambda: 1, 0), (lambda a, b=1: 1, 2), (lambda a, *b, c=1, **d: 1, 1)]
)
def test_get_arity(func: Any, arity: int) -> None:
    assert util.get_arity(func) == arity


def test_called_with_wrong_args() -> None:
    def func(a: int) -> None:
        raise TypeError

    for args, wrong in (((), True), ((1,), False)):
        try:
            func(*args)
        except TypeError:
            assert util._called_with_wrong_args(func) is wrong


def test_http_date() -> None:
    assert util.http_date(1508607753.740316) == "Sat, 21 Oct 2017 17:42:33 GMT"


def test_check_is_writable(tmp_path: Path) -> None:
    util.check_is_writable(str(tmp_path / "new.log"))
    with pytest.raises(RuntimeError, match="no/such"):
        util.check_is_writable("/no/such/directory/file")


def test_has_fileno() -> None:
    with open(__file__) as file:
        assert util.has_fileno(file) is True
    assert util.has_fileno(file) is False
    assert util.has_fileno(io.BytesIO()) is False
    assert util.has_fileno(3) is False


def test_close_and_write() -> None:
    ours, theirs = socket.socketpair()
    util.write(ours, b"plain")
    util.write_chunk(ours, b"0123456789")
    util.write_nonblock(ours, b"", chunked=True)
    util.close(ours)
    util.close(ours)
    with theirs, theirs.makefile("rb") as file:
        assert file.read().lower() == b"plaina\r\n0123456789\r\n0\r\n\r\n"


def test_write_error() -> None:
    ours, theirs = socket.socketpair()
    util.write_error(ours, 400, "Bad Request", "no <b>such</b> thing")
    ours.close()
    with theirs, theirs.makefile("rb") as file:
        reply = file.read()
    assert reply.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"<b>such" not in reply


def test_warn(capsys: pytest.CaptureFixture[str]) -> None:
    util.warn("look here")
    assert "WARNING: look here" in capsys.readouterr().err


def test_make_fail_app() -> None:
    seen: list[Any] = []
    body = util.make_fail_app("broken")({}, lambda status, headers: seen.append(status))
    assert (seen, b"".join(body)) == (["500 Internal Server Error"], b"broken")


def test_reraise() -> None:
    try:
        raise KeyError("k")
    except KeyError:
        tp, value, tb = sys.exc_info()
    assert tp is not None
    with pytest.raises(KeyError) as info:
        util.reraise(tp, value, tb)
    assert info.value is value
    with pytest.raises(ValueError, match=r"^$"):
        util.reraise(ValueError, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://example.org/a/b?c=1#d", ("https", "example.org", "/a/b", "c=1", "d")),
        ("a/b?c=1#d", ("", "", "a/b", "c=1", "d")),
        ("/a/b?c=1#d", ("", "", "/a/b", "c=1", "d")),
        ("//a/b?c=1#d", ("", "", "//a/b", "c=1", "d")),
        ("///a/b?c=1#d", ("", "", "///a/b", "c=1", "d")),
    ],
)
def test_split_request_uri(text: str, expected: tuple[str, ...]) -> None:
    assert tuple(util.split_request_uri(text)) == expected


def test_to_bytestring() -> None:
    assert util.to_bytestring("ä") == "ä".encode()
    assert util.to_bytestring("a", "ascii") == b"a"
    assert util.to_bytestring(b"a") == b"a"
    with pytest.raises(TypeError):
        util.to_bytestring(100)


def test_descriptors() -> None:
    read, write = os.pipe()
    try:
        os.set_inheritable(read, True)
        util.close_on_exec(read)
        assert not os.get_inheritable(read)
        util.set_non_blocking(read)
        assert fcntl.fcntl(read, fcntl.F_GETFL) & os.O_NONBLOCK
    finally:
        os.close(read)
        os.close(write)


def test_seed() -> None:
    state = random.getstate()
    try:
        random.seed(1)
        first = random.random()
        util.seed()
        assert random.random() != first
    finally:
        random.setstate(state)


def test_unlink(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    for name in ("x", "x", "x/y", "nothing/there"):
        util.unlink(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []
