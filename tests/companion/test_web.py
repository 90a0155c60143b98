# SPDX-License-Identifier: MIT
"""What the manager tells of web workers, and asks the master for."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from test_scoreboard import Request

from gunicorn.companion.supervise.questions import Questions
from gunicorn.companion.supervise.web import WebWorkers
from gunicorn.scoreboard import Scoreboard
from gunicorn.unix import sockdiag


@pytest.fixture
def board() -> Scoreboard:
    board = Scoreboard.create(4)
    slot = board.take(1)
    assert slot is not None
    # It has figures of its own that the kernel knows.
    slot.set("pid", os.getpid())
    slot.set("booted", 1)
    slot.begin(Request("/slow"), time.monotonic())
    return board


@pytest.fixture(params=["inet", "inet6", "unix"])
def listener(request: Any, short_dir: Any) -> Iterator[socket.socket]:
    family, address = {
        "inet": (socket.AF_INET, ("127.0.0.1", 0)),
        "inet6": (socket.AF_INET6, ("::1", 0)),
        "unix": (socket.AF_UNIX, str(short_dir / "s")),
    }[request.param]
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(address)
        except OSError:
            assert family == socket.AF_INET6  # a machine without it
            sock = socket.create_server(("127.0.0.1", 0))
        sock.listen(7)
        yield sock


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_the_kernel_tells_how_many_wait(listener: socket.socket) -> None:
    clients = [socket.socket(listener.family, socket.SOCK_STREAM) for _ in range(3)]
    for client in clients:
        client.connect(listener.getsockname())
    assert sockdiag.backlogs([inode(listener)]) == {inode(listener): (3, 7)}
    listener.accept()[0].close()
    assert sockdiag.backlogs([inode(listener), 1]) == {inode(listener): (2, 7)}
    for client in clients:
        client.close()


def test_what_is_read(board: Scoreboard) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=5) as listener:
        server = {"addresses": ["http://one", "http://two"], "inodes": [inode(listener), 1]}
        web = WebWorkers(board, server=server, questions=Questions(None))
        found = web.read(memory=False)["web"]
        assert found["listeners"] == [
            {"address": "http://one", "waiting": 0, "backlog": 5},
            {"address": "http://two", "waiting": None, "backlog": None},
        ]
    (worker,) = found["workers"]
    assert (worker["pid"], worker["state"], worker["oldest"]["path"]) == (os.getpid(), "busy", "/slow")
    assert worker["cpu"] > 0 and worker["memory"] is None
    (worker,) = web.read(memory=True)["web"]["workers"]
    assert worker["memory"]["pss"] >= worker["memory"]["private"] > 2**20


def test_a_server_without_a_scoreboard() -> None:
    assert WebWorkers(None, server={}, questions=Questions(None)).read(memory=True) == {
        "ok": False,
        "error": "what web workers do is not known: the server had no memory for its scoreboard",
    }


def test_the_master_is_asked_and_its_answer_passed_on(board: Scoreboard) -> None:
    told: list[dict[str, Any]] = []
    first: list[dict[str, Any]] = []
    second: list[dict[str, Any]] = []
    questions = Questions(told.append)
    web = WebWorkers(board, server={}, questions=questions)
    web.change({"cmd": "web", "do": "add", "count": 2, "more": 1})["later"](first.append)
    web.change({"cmd": "web", "do": "kill", "pid": 4711})["later"](second.append)
    assert told == [
        {"ask": {"cmd": "web", "do": "add", "count": 2, "ticket": 1}},
        {"ask": {"cmd": "web", "do": "kill", "pid": 4711, "ticket": 2}},
    ]
    questions.answered({"ticket": 2, "ok": True, "message": "yes"})
    assert (first, second) == ([], [{"ok": True, "message": "yes"}])
    questions.answered({"ticket": 2, "ok": True})
    questions.master_gone()
    assert first == [{"ok": False, "error": "the master is gone"}] and len(second) == 1
    assert "does not take commands" in web.change({"do": "reload"})["error"]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"do": "dance"}, "'do': 'dance' is none of add, remove, reload, kill"),
        ({"do": ["add"]}, "'do': ['add'] is none of add, remove, reload, kill"),
        ({"do": "add", "count": 0}, "'count': 0 is not a number of 1 or more"),
        ({"do": "remove", "count": True}, "'count': True is not a number of 1 or more"),
        ({"do": "kill"}, "'pid': None is not a number of 1 or more"),
        ({"do": "kill", "pid": "1"}, "'pid': '1' is not a number of 1 or more"),
        ({"do": "kill", "pid": -5}, "'pid': -5 is not a number of 1 or more"),
    ],
)
def test_a_wrong_request_does_not_reach_the_master(request_: dict[str, Any], text: str) -> None:
    told: list[Any] = []
    with pytest.raises(ValueError) as info:
        WebWorkers(None, server={}, questions=Questions(told.append)).change(request_)
    assert str(info.value) == text and told == []
