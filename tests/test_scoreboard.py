# SPDX-License-Identifier: MIT
"""The scoreboard: slots are written by workers, kept by the master, and read by anybody."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import pytest

from gunicorn import scoreboard
from gunicorn.scoreboard import BUCKETS, ENDS, HEADER, SLOT, Scoreboard, Slot, places


class Request:
    def __init__(self, path: str = "/", method: str = "GET") -> None:
        self.path, self.method = path, method


def serve(slot: Slot, status: int | None = 200, sent: int = 0) -> None:
    """Serve one request."""
    slot.begin(one := Request(), since := time.monotonic())
    slot.end(one, since, status, sent)
    slot.write()


def begun(board: Scoreboard, pid: int = 4711, age: int = 1) -> Slot:
    slot = board.take(age)
    assert slot is not None
    slot.set("pid", pid)
    slot.set("booted", 1)
    return slot


@pytest.mark.parametrize("fields", [HEADER, SLOT])
def test_every_field_has_its_own_words(fields: tuple[scoreboard.Field, ...]) -> None:
    starts, size = places(fields)
    taken = [word for field in fields for word in range(starts[field.name], starts[field.name] + field.size)]
    assert taken == list(range(size))
    assert all(field.meaning for field in fields)


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (101, "1xx"),
        (200, "2xx"),
        (304, "3xx"),
        (404, "4xx"),
        (500, "5xx"),
        (599, "5xx"),
        (None, None),
        (999, None),
    ],
)
def test_an_answer_is_counted_in_its_class(status: int | None, name: str | None) -> None:
    board = Scoreboard.create(4)
    slot = begun(board)
    serve(slot, status, 5)
    found = board.read()["workers"][0]
    assert (found["requests"], found["bytes"], sum(found["histogram"])) == (1, 5, 1)
    assert {key: count for key, count in found["answers"].items() if count} == ({name: 1} if name else {})


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (0.001, 0), (0.0011, 1), (0.03, 5), (60.0, 14), (60.1, 15), (1e6, 15)]
)
def test_a_duration_is_counted_in_its_bucket(
    monkeypatch: pytest.MonkeyPatch, seconds: float, bucket: int
) -> None:
    board = Scoreboard.create(4)
    slot = begun(board)
    slot.begin(one := Request(), 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: seconds)
        slot.end(one, 0.0, 200, 0)
    slot.write()
    found = board.read()
    assert len(found["workers"][0]["histogram"]) == len(found["buckets"]) + 1 == len(BUCKETS) + 1
    assert found["workers"][0]["histogram"].index(1) == bucket
    assert found["workers"][0]["seconds"] == seconds


@pytest.mark.parametrize("watched", [False, True])
def test_the_oldest_request_is_shown_until_it_ends(watched: bool) -> None:
    board = Scoreboard.create(4)
    slot = begun(board)
    slot.watched = watched
    first, second, third = Request("/first"), Request("/second", "POST"), Request("/third")
    since = time.monotonic() - 1
    for each in (first, second, third):
        slot.begin(each, since)
        since += 0.001
    if watched:
        # Once: as long as nothing begins, nobody looks again.
        slot.look(idle=True)

    def oldest() -> Any:
        worker = board.read()["workers"][0]
        return worker["running"], worker["oldest"] and (worker["oldest"]["method"], worker["oldest"]["path"])

    assert oldest() == (3, ("GET", "/first"))
    slot.end(third, since, 200, 0)
    assert oldest() == (2, ("GET", "/first"))
    slot.end(first, since, 200, 0)
    assert oldest() == (1, ("POST", "/second"))
    slot.end(second, since, 200, 0)
    assert oldest() == (0, None)


def test_a_request_that_was_refused_is_counted_and_one_without_an_answer_is_not() -> None:
    board = Scoreboard.create(4)
    slot = begun(board)
    slot.refuse(None, 400, 1)
    slot.begin(one := Request(), time.monotonic())
    slot.refuse(one, 500, 1)
    slot.begin(two := Request(), time.monotonic())
    slot.forget(two)
    slot.write()
    assert board.read()["totals"]["answers"] == {"1xx": 0, "2xx": 0, "3xx": 0, "4xx": 1, "5xx": 1}
    assert (board.read()["totals"]["requests"], board.read()["totals"]["running"]) == (2, 0)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/plain", "/plain"),
        ("/\x1b[31m\r\n", "/\\x1b[31m\\r\\n"),
        ("/caf\xc3\xa9", "/café"),
        ("/\xff", "/\\xff"),
        ("/" + "x" * 200, "/" + "x" * 127),
        ("/\u20ac", "/?"),
        ("", ""),
    ],
)
def test_a_path_is_shown_without_what_steers_a_terminal(path: str, shown: str) -> None:
    board = Scoreboard.create(4)
    begun(board).begin(Request(path), 1.0)
    assert board.read()["workers"][0]["oldest"]["path"] == shown


def test_states() -> None:
    board = Scoreboard.create(4)
    slot = board.take(1)
    assert slot is not None
    assert board.read()["workers"] == []  # not forked yet

    def state() -> str:
        worker: str = board.read()["workers"][0]["state"]
        return worker

    slot.set("pid", 1)
    assert state() == "booting"
    slot.set("booted", 1)
    assert state() == "idle"
    slot.begin(one := Request(), since := time.monotonic())
    assert state() == "busy"
    slot.retire()
    assert (state(), slot.cause) == ("retiring", None)
    slot.end(one, since, 200, 0)
    assert state() == "retiring"


def test_a_slot_is_used_again_and_its_numbers_stay() -> None:
    board = Scoreboard.create(2)
    for age, cause in enumerate((*ENDS, None), 1):
        slot = begun(board, age=age)
        assert slot.number == 0
        serve(slot, 200, 7)
        board.take_back(slot, cause)
    found = board.read()
    assert found["workers"] == []
    assert found["totals"]["ends"] == dict.fromkeys(ENDS, 1)
    assert (found["totals"]["requests"], found["totals"]["bytes"]) == (12, 84)
    fresh = begun(board)
    assert board.read()["workers"][0]["requests"] == 0
    board.take_back(fresh)


def test_more_workers_than_slots_have_none() -> None:
    board = Scoreboard.create(2)
    first, second = board.take(1), board.take(2)
    assert first is not None and second is not None and board.take(3) is None
    board.take_back(first)
    assert board.take(4) is not None


def test_the_master_says_what_it_wants_and_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Scoreboard.create(2)
    board.beat(4, "gthread", 8)
    now = time.monotonic_ns() + 3_000_000_000
    monkeypatch.setattr(scoreboard, "monotonic_ns", lambda: now)
    found = board.read()
    assert (found["class"], found["wanted"], found["threads"]) == ("gthread", 4, 8)
    assert found["master"]["pid"] == os.getpid() and 3 <= found["master"]["beat_age"] < 4
    board.beat(1, "sync", 1)
    found = board.read()
    assert (found["class"], found["threads"], found["master"]["beat_age"]) == ("sync", 1, 0)
    json.dumps(found)


def test_a_child_writes_and_the_parent_reads() -> None:
    board = Scoreboard.create(2)
    slot = begun(board)
    pid = os.fork()
    if pid == 0:
        serve(slot, 204, 11)
        slot.begin(Request("/left/running"), time.monotonic())
        os._exit(0)
    os.waitpid(pid, 0)
    found = board.read()["workers"][0]
    assert (found["requests"], found["bytes"], found["oldest"]["path"]) == (1, 11, "/left/running")


def test_threads_lose_no_increment() -> None:
    board = Scoreboard.create(2)
    slot = begun(board)

    def work() -> None:
        for _ in range(2000):
            serve(slot, 200, 3)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = board.read()["workers"][0]
    assert (found["requests"], found["bytes"], found["running"], found["oldest"]) == (16000, 48000, 0, None)


def test_a_reader_sees_no_number_go_back_while_the_master_moves_it() -> None:
    board = Scoreboard.create(2)
    slot = begun(board)
    serve(slot, 200, 1)
    with board._moving():
        stopped = board.read()  # a master that was stopped here: read what there is
    assert stopped["totals"]["requests"] == 1
    pid = os.fork()
    if pid == 0:
        for _ in range(3000):
            serve(slot, 200, 1)
            board.take_back(slot, "exit")
            slot = begun(board)
        os._exit(0)
    last = 1
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        seen = board.read()["totals"]["requests"]
        assert seen >= last
        last = seen
    assert board.read()["totals"]["requests"] == 3001


def test_the_numbers_of_an_old_master_are_continued() -> None:
    first = Scoreboard.create(2)
    old = begun(first)
    serve(old, 200, 10)
    second = Scoreboard.create(2)
    second.old = Scoreboard.inherit(first.fd)
    new = begun(second)
    serve(new, 500, 1)

    def totals(board: Scoreboard) -> tuple[int, ...]:
        found = board.read()["totals"]
        return found["requests"], found["bytes"], found["ends"]["command"], found["reloads"]["refused"]

    second.count_reload("refused")
    assert totals(second) == (2, 11, 0, 1)
    first.count_reload("refused")
    first.take_back(old, "command")
    assert totals(second) == (2, 11, 1, 2)
    assert [worker["pid"] for worker in second.read()["workers"]] == [4711]
    # Another process, which has opened both before, does not count them twice.
    reader = Scoreboard.inherit(second.fd)
    reader.old = second.old
    second.absorb_old()
    assert totals(second) == totals(reader) == (2, 11, 1, 2)
    third = Scoreboard.create(2)
    third.old = Scoreboard.inherit(second.fd)
    assert totals(third) == (2, 11, 1, 2)


def test_another_layout_is_refused(tmp_path: Any) -> None:
    board = Scoreboard.create(2)
    os.pwrite(board.fd, b"\1" * 8, 0)
    with pytest.raises(ValueError, match="layout"):
        Scoreboard.inherit(board.fd)
    os.truncate(board.fd, 16)
    with pytest.raises(ValueError, match="short"):
        Scoreboard.inherit(board.fd)
