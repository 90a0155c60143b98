# SPDX-License-Identifier: MIT
"""What the monitor makes of a manager that refuses, is silent or gone, and what viewers are told then."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import short_tmpdir

from gunicorn.monitor.collect import STANDBY, Refused, Source, Unavailable
from gunicorn.monitor.live import Live

STATUS = {
    "ok": True,
    "server": {"pid": 1},
    "companions": [],
    "memory": {"private": 5, "saved": 6},
}


class Manager:
    """A control socket; *answer* gives the reply to a request, or None for silence."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer: Callable[[dict[str, Any]], Any] = lambda request: STATUS
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as lines:
            for line in lines:
                reply = self.answer(json.loads(line))
                if reply is not None:
                    sock.sendall(json.dumps(reply).encode() + b"\n")

    def close(self) -> None:
        # A close alone would not end the accept.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    directory = short_tmpdir()
    found = Manager(directory / "s")
    yield found
    found.close()
    (directory / "s").unlink()
    directory.rmdir()


def refusing(request: dict[str, Any]) -> dict[str, Any]:
    return {"ok": False, "error": "too many connections"}


def test_the_status_and_what_web_says(manager: Manager) -> None:
    source = Source(str(manager.path))
    assert source.status()["web"] is None
    web = {"wanted": 0, "workers": [], "now": 1.0, "master": {"beat_age": 0.1}}
    manager.answer = lambda request: {"ok": True, "web": web} if request["cmd"] == "web" else STATUS
    assert source.status()["web"] == web
    # For the charts.
    assert [entry[1:] for entry in source.memory] == [(5, 6), (5, 6)]


def test_one_that_stands_by_for_its_lease_is_no_reason_not_to_be_ready(manager: Manager) -> None:
    def one(name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "state": "STARTING", **more}

    found = [one("a", standby=True, lease={}), one("b", standby=False, lease={}), one("c", lease=None)]
    manager.answer = lambda request: {"ok": True, "companions": found}
    states = Source(str(manager.path)).states(5)
    assert states == {"a": STANDBY, "b": "STARTING", "c": "STARTING"}


def test_refusals_silence_and_nobody(manager: Manager) -> None:
    source = Source(str(manager.path))
    manager.answer = refusing
    with pytest.raises(Refused, match="too many connections"):
        source.ask(cmd="stop", name="a")
    with pytest.raises(Refused):
        source.logs("a", 5)
    with pytest.raises(Unavailable, match="too many connections"):
        source.status()
    manager.answer = lambda request: None
    for ask in (source.status, lambda: source.logs(None, 5), lambda: source.states(0.05)):
        with pytest.raises(Unavailable, match="does not answer"):
            ask()
    with pytest.raises(Unavailable, match="no control socket"):
        Source(None).status()


def test_viewers_are_told_of_a_manager_that_does_not_answer_and_of_its_return(manager: Manager) -> None:
    live = Live(Source(str(manager.path)))
    first = live.watch()

    def next_of(viewer: Iterator[bytes], name: bytes) -> bytes:
        for _ in range(20):
            data = next(viewer)
            if b"event: %s\n" % name in data:
                return data
        raise AssertionError(name)

    assert b'"server":{"pid":1}' in next_of(first, b"status")
    manager.answer = refusing
    assert b"too many connections" in next_of(first, b"unavailable")
    # Somebody who comes now is told so at once, not what was right before.
    second = live.watch()
    assert b"too many connections" in next(second)
    manager.answer = lambda request: STATUS
    next_of(second, b"status")
    thread = live._thread
    assert thread is not None
    for viewer in (first, second):
        viewer.close()  # type: ignore[attr-defined]
    # Where nobody watches, nobody looks.
    thread.join(5)
    assert not thread.is_alive()
