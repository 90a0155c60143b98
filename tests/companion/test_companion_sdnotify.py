# SPDX-License-Identifier: MIT
"""The datagrams of sd_notify(3): how they are read, and how a target sends them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from companiontools import answer_of
from harness import LINUX, wait_until
from hypothesis import given
from hypothesis import strategies as st

from gunicorn.companion import notify
from gunicorn.companion.child.sdnotify import MAX_DATAGRAM, MAX_STATUS, NOTHING, Notice, parse, printable

# -- reading --

DATAGRAMS = {
    "ready": (b"READY=1", Notice(ready=True)),
    "line end": (b"READY=1\n", Notice(ready=True)),
    "a C string with its end": (b"READY=1\0", Notice(ready=True)),
    "several": (
        b"READY=1\nSTATUS=Serving\nWATCHDOG=1\n",
        Notice(ready=True, watchdog=True, status="Serving"),
    ),
    "trigger": (b"WATCHDOG=trigger", Notice(trigger=True)),
    "stopping": (b"STOPPING=1\nSTATUS=bye", Notice(stopping=True, status="bye")),
    "reloading": (b"RELOADING=1\nMONOTONIC_USEC=17", Notice(reloading=True)),
    "status taken back": (b"STATUS=", Notice(status="")),
    "status with =": (b"STATUS=a=b=c", Notice(status="a=b=c")),
    "status of many letters": ("STATUS=läuft, 走".encode(), Notice(status="läuft, 走")),
    "the last counts": (b"STATUS=a\nSTATUS=b", Notice(status="b")),
    "a ready taken back": (b"READY=1\nREADY=0", NOTHING),
    "empty lines": (b"\n\nREADY=1\n\n", Notice(ready=True)),
    "unknown names": (b"MAINPID=7\nFDSTORE=1\nX_MINE=1\nWATCHDOG_USEC=5", NOTHING),
    "barrier": (b"BARRIER=1", NOTHING),
    "other values": (b"READY=yes\nWATCHDOG=0\nSTOPPING=\nRELOADING=11", NOTHING),
    "names are exact": (b"ready=1\n READY=1\nREADY =1\nREADY= 1\nXREADY=1", NOTHING),
    "no assignment": (b"READY", NOTHING),
    "nothing": (b"", NOTHING),
    "NUL within": (b"READY=1\0STATUS=x", NOTHING),
    "two NUL at the end": (b"READY=1\0\0", NOTHING),
    "carriage returns are no line ends": (b"READY=1\r\nSTATUS=x\r\n", Notice(status="x")),
    "bad UTF-8": (b"READY=1\nSTATUS=a\xffb", Notice(ready=True, status="a\N{REPLACEMENT CHARACTER}b")),
    "escapes of a terminal": (b"STATUS=\x1b[31mred\x07\tx\xc2\x9b2J", Notice(status="[31mred  x 2J")),
    "text turned around": ("STATUS=a\N{RIGHT-TO-LEFT OVERRIDE}b".encode(), Notice(status="a b")),
    "a long status": (b"STATUS=" + b"x" * 3000, Notice(status="x" * MAX_STATUS)),
}


@pytest.mark.parametrize(("datagram", "notice"), DATAGRAMS.values(), ids=DATAGRAMS)
def test_what_a_datagram_says(datagram: bytes, notice: Notice) -> None:
    assert parse(datagram) == notice


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda data: b"STATUS=" + data))
def test_any_bytes_are_read(datagram: bytes) -> None:
    status = parse(datagram).status
    assert status is None or (status.isprintable() and len(status) <= MAX_STATUS)


@given(st.text(max_size=300))
def test_what_is_printable_stays_so_on_its_way(text: str) -> None:
    shown = printable(text)
    assert parse(b"STATUS=" + shown.encode()).status == shown


# -- sending --


@pytest.fixture(params=["path", "abstract"])
def supervisor(
    request: pytest.FixtureRequest, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """A socket that is listened on, and named in the environment."""
    if request.param == "abstract":
        if not LINUX:
            pytest.skip("abstract sockets are Linux's")
        address = f"@test/{os.getpid()}/{short_dir.name}"
    else:
        address = str(short_dir / "nötify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.settimeout(10)
        yield sock


SAID: dict[str, tuple[dict[str, Any], bytes]] = {
    "ready": ({"ready": True}, b"READY=1"),
    "beat": ({"watchdog": True}, b"WATCHDOG=1"),
    "stopping": ({"stopping": True}, b"STOPPING=1"),
    "status": ({"status": "7 jobs"}, b"STATUS=7 jobs"),
    "status taken back": ({"status": ""}, b"STATUS="),
    "all": (
        {"ready": True, "watchdog": True, "status": "läuft", "stopping": True},
        "READY=1\nSTOPPING=1\nWATCHDOG=1\nSTATUS=läuft".encode(),
    ),
    "a status is no way to say other things": ({"status": "x\nREADY=1"}, b"STATUS=x READY=1"),
    "a status that is no text": ({"status": "a\udcffb"}, b"STATUS=a b"),
}


@pytest.mark.parametrize(("said", "datagram"), SAID.values(), ids=SAID)
def test_what_is_sent(supervisor: socket.socket, said: dict[str, Any], datagram: bytes) -> None:
    assert notify(**said) is True
    assert supervisor.recv(MAX_DATAGRAM) == datagram


def test_the_longest_status_fits_a_datagram(supervisor: socket.socket) -> None:
    assert notify(ready=True, watchdog=True, stopping=True, status="\N{GRINNING FACE}" * 5000)
    said = parse(supervisor.recv(MAX_DATAGRAM))
    assert said.ready and said.status == "\N{GRINNING FACE}" * MAX_STATUS


def test_nothing_said_sends_nothing(supervisor: socket.socket) -> None:
    assert notify() is False
    supervisor.setblocking(False)
    with pytest.raises(BlockingIOError):
        supervisor.recv(1)


def test_descriptors_are_not_kept(supervisor: socket.socket) -> None:
    before = os.listdir("/dev/fd")
    for _ in range(5):
        assert notify(watchdog=True)
    assert os.listdir("/dev/fd") == before


ABSENT: dict[str, Callable[[Path], str | None]] = {
    "unset": lambda directory: None,
    "empty": lambda directory: "",
    "no such file": lambda directory: str(directory / "none"),
    "no socket": lambda directory: __file__,
    "too long": lambda directory: "/" + "x" * 300,
    "too long a name": lambda directory: "@" + "x" * 300,
    "no such name": lambda directory: f"@nobody/{os.getpid()}",
    "no name": lambda directory: "@",
    "relative": lambda directory: "notify.sock",
    "another kind": lambda directory: "vsock:2:1234",
    "nothing that can be encoded": lambda directory: "/a\udcff",
}


@pytest.mark.parametrize("address", ABSENT.values(), ids=ABSENT)
def test_nobody_listens(
    address: Callable[[Path], str | None], short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = address(short_dir)
    if value is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    assert notify(ready=True, watchdog=True, status="here") is False


def test_the_listener_is_gone(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(short_dir / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    assert notify(ready=True) is False


def fill(sock: socket.socket) -> int:
    """Fill the queue of *sock*; the number of datagrams that it took."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.setblocking(False)
        full.connect(sock.getsockname())
        for count in range(100_000):
            try:
                full.send(b"X=1")
            except BlockingIOError:
                return count
    raise AssertionError("a queue without end")


def test_a_supervisor_that_hangs_holds_nobody_up(supervisor: socket.socket) -> None:
    fill(supervisor)
    begun = time.monotonic()
    assert notify(watchdog=True) is False
    assert notify(ready=True) is False
    assert time.monotonic() - begun < 10


def test_a_busy_supervisor_is_waited_for(supervisor: socket.socket) -> None:
    count = fill(supervisor)
    taken: list[bytes] = []

    def drain() -> None:
        wait_until(lambda: taken.append(supervisor.recv(100)) or len(taken) == count + 1)

    # The queue has room as soon as the first is taken out, which may be before or after the call.
    thread = threading.Thread(target=drain)
    thread.start()
    try:
        assert notify(ready=True) is True
    finally:
        thread.join(20)
    assert taken[-1] == b"READY=1"


def test_the_import_is_light() -> None:
    """A target that imports it gets none of the server along; nor does gunicorn-companion."""
    code = """
    import json, sys
    from gunicorn.companion import notify
    print(json.dumps([name for name in sys.modules if name.startswith("gunicorn")]))
    """
    parts = ("", ".companion", ".companion.child", ".companion.child.lease", ".companion.child.sdnotify")
    assert sorted(answer_of(code)) == [f"gunicorn{part}" for part in parts]
