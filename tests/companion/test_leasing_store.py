# SPDX-License-Identifier: MIT
"""The store of leases in a directory, and what a URL of a store may be."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gunicorn.companion.leasing import store
from gunicorn.companion.leasing.store import Answer, StoreError
from gunicorn.unix import boottime

A, B = "web-1 (pid 1) aa", "web-2 (pid 2) bb"
TTL = 15.0


class Clock:
    time = 1000.0


@pytest.fixture
def clock(monkeypatch) -> type[Clock]:
    monkeypatch.setattr(boottime, "now", lambda: Clock.time)
    return Clock


@pytest.fixture
def connect(tmp_path) -> Callable[[], store.Store]:
    return lambda: store.connect(f"file://{tmp_path}/leases", 0.05)


def test_one_holds_it_until_it_gives_it_up(connect) -> None:
    one, other = connect(), connect()
    assert one.acquire("a", A, TTL) == Answer(True, A, 1, TTL, "")
    # It keeps its own.
    assert one.acquire("a", A, TTL).token == 1
    refused = other.acquire("a", B, TTL)
    assert (refused.mine, refused.owner, refused.token) == (False, A, 1)
    assert not other.renew("a", B, 1, TTL, None)
    other.release("a", B, 1, None)
    assert one.renew("a", A, 1, TTL, "first note")
    one.release("a", A, 1, None)
    assert other.acquire("a", B, TTL) == Answer(True, B, 2, TTL, "first note")
    assert not one.renew("a", A, 1, TTL, None)
    other.release("a", B, 2, "second note")
    assert one.acquire("a", A, TTL) == Answer(True, A, 3, TTL, "second note")
    # Another name is another lease.
    assert other.acquire("b", B, TTL).mine


def test_it_is_free_when_it_was_not_renewed_for_the_ttl(connect, clock) -> None:
    one, other = connect(), connect()
    one.acquire("a", A, TTL)
    clock.time += 100
    # However long ago that was: this one sees it for the first time.
    assert other.acquire("a", B, TTL).expires_in == TTL
    clock.time += 10
    assert one.renew("a", A, 1, TTL, None)
    clock.time += 10
    # It was renewed since, as is seen only now.
    assert other.acquire("a", B, TTL).expires_in == TTL
    clock.time += 14.9
    assert not other.acquire("a", B, TTL).mine
    clock.time += 0.1
    assert other.acquire("a", B, TTL).token == 2
    assert not one.renew("a", A, 1, TTL, None)


def test_a_writer_that_was_killed_leaves_the_record_before(connect, tmp_path) -> None:
    connect().acquire("a", A, TTL)
    connect().renew("a", A, 1, TTL, "kept")
    (file,) = (tmp_path / "leases").iterdir()
    before = file.read_bytes()
    connect().renew("a", A, 1, TTL, "lost")
    after = file.read_bytes()
    # Half of what was written.
    start = next(place for place in range(len(before)) if before[place] != after[place])
    file.write_bytes(after[: start + 40] + before[start + 40 :])
    answer = connect().acquire("a", B, TTL)
    assert (answer.owner, answer.token, answer.note) == (A, 1, "kept")


def test_waiting_ends_when_one_is_free_or_somebody_wakes_it(connect) -> None:
    one, other = connect(), connect()
    one.acquire("a", A, TTL)
    one.acquire("b", A, TTL)
    woken, wake = os.pipe()
    try:
        began = time.monotonic()
        other.wait(["a", "b"], 0.01, woken)
        timer = threading.Timer(0.05, one.release, ("b", A, 1, None))
        timer.start()
        other.wait(["a", "b"], 60, woken)
        timer.join()
        assert other.acquire("b", B, TTL).mine
        os.write(wake, b"x")
        other.wait(["a"], 60, woken)
        assert time.monotonic() < began + 30
    finally:
        os.close(woken)
        os.close(wake)


def test_a_lock_that_another_one_keeps_is_an_error(connect, tmp_path) -> None:
    connect().acquire("a", A, TTL)
    (file,) = (tmp_path / "leases").iterdir()
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"a\.lease is locked by another process"):
            connect().acquire("a", B, TTL)


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Not a directory"):
        store.connect(f"file://{tmp_path}/file/leases", 1).acquire("a", A, TTL)


def test_a_name_cannot_leave_the_directory(connect, tmp_path) -> None:
    assert connect().acquire("../a/b", A, TTL).mine
    assert [path.parent.name for path in tmp_path.rglob("*.lease")] == ["leases"]


class Home:
    """A store that a user has written."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout

    def acquire(self, name: str, owner: str, ttl: float) -> Answer:
        return Answer(True, owner, 1)

    def renew(self, name: str, owner: str, token: int, ttl: float, note: str | None) -> bool:
        raise RuntimeError("no answer from redis://user:secret@host")


def test_a_store_of_ones_own(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    made = store.connect("test_leasing_store:Home", 2.0)
    assert made.acquire("a", A, TTL).mine
    with pytest.raises(StoreError) as caught:
        made.renew("a", A, 1, TTL, None)
    assert str(caught.value) == "Home.renew: RuntimeError: no answer from redis://user:***@host"
    made.close()
    with pytest.raises(StoreError, match="nowhere_to_be_found"):
        store.connect("nowhere_to_be_found:Home", 2.0)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("file:///mnt/leases", None),
        ("file://localhost/mnt/leases", None),
        ("shop.locks:Store", None),
        ("file://mnt/leases", "write file:///PATH"),
        ("file:relative", "is no store of leases"),
        ("/mnt/leases", "is no store of leases"),
        ("mysql://user:secret@host/", r"'mysql://user:\*\*\*@host/' is no store"),
    ],
)
def test_what_a_url_may_be(url: str, problem: str | None) -> None:
    if problem is None:
        store.check_url(url)
    else:
        with pytest.raises(ValueError, match=problem):
            store.check_url(url)
