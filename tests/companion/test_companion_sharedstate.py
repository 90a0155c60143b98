# SPDX-License-Identifier: MIT
"""What outlives a manager: written by one process, read by others, whole whatever becomes of the writer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from gunicorn.companion.supervise.overrides import OldOverrides, Overrides
from gunicorn.companion.supervise.sharedstate import _HEAD, _PLACES, SharedState, _checksum


@pytest.fixture
def shared() -> Iterator[SharedState]:
    shared = SharedState.create()
    yield shared
    shared.close()


def test_the_last_state_counts(shared: SharedState) -> None:
    assert shared.read() == {} and shared.version() == b""
    for state in ({"a": 1}, {}, {"long": "x" * 100_000}, {"b": "\udc80ü"}, {"short": 2}):
        before = shared.version()
        shared.write(state)
        assert shared.version() != before
        assert shared.read() == SharedState(shared.fd).read() == state


def test_another_process_reads_and_goes_on(shared: SharedState) -> None:
    shared.write({"n": 1})
    pid = os.fork()
    if pid == 0:
        copy = shared.copy()
        copy.write({"n": copy.read()["n"] + 1})
        os._exit(0)
    os.waitpid(pid, 0)
    assert shared.read() == {"n": 2}
    shared.write({"n": 3})
    assert SharedState(shared.fd).read() == {"n": 3}


@pytest.mark.parametrize("cut", [0, 5, _HEAD.size, _HEAD.size + 3])
def test_a_writer_that_dies_in_the_middle_leaves_the_state_before(shared: SharedState, cut: int) -> None:
    shared.write({"n": 1})
    shared.write({"n": 22})
    whole = _HEAD.pack(3, 9, 12345) + b'{"n":333}'
    os.pwrite(shared.fd, whole[:cut], _PLACES[1])
    assert SharedState(shared.fd).read() == {"n": 22}


def test_any_moment_of_a_killed_writer(shared: SharedState) -> None:
    shared.write({"n": 0, "text": ""})
    for _ in range(5):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            number = 0
            copy = SharedState(shared.fd)
            copy.read()
            while True:
                number += 1
                copy.write({"n": number, "text": str(number) * 10_000})
                os.write(write, b".") if number < 10 else None
        os.read(read, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)
        state = SharedState(shared.fd).read()
        assert state["text"] == str(state["n"]) * 10_000
        shared.read()


def test_too_much_is_refused_and_changes_nothing(shared: SharedState) -> None:
    shared.write({"n": 1})
    with pytest.raises(OSError, match="too large"):
        shared.write({"n": "x" * 20_000_000})
    assert shared.read() == {"n": 1}


def test_a_state_that_is_nested_too_deep_is_none(shared: SharedState) -> None:
    shared.write({"n": 1})
    text = b'{"n":' * 100_000
    os.pwrite(shared.fd, _HEAD.pack(2, len(text), _checksum(2, text)) + text, _PLACES[0])
    assert shared.read() == {"n": 1}


def test_a_descriptor_of_something_else_says_nothing() -> None:
    read, write = os.pipe()
    try:
        for fd in (read, 99999):
            assert SharedState(fd).read() == {} and SharedState(fd).version() == b""
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize(
    "state", [{}, {"stopped": 1, "scale": 2}, {"stopped": ["a"], "scale": {"rq": 3}}, {"scale": {"rq": [1]}}]
)
def test_overrides_of_another_version_are_none(state: dict[str, object]) -> None:
    assert Overrides.of(state) == Overrides()


def test_the_old_master_s_overrides_before_and_now(shared: SharedState) -> None:
    old = OldOverrides(shared.copy(), Overrides())
    assert not old.has_changed
    overrides = Overrides({"a": True}, {"rq": (3, 2)})
    shared.write(overrides.as_state())
    assert old.has_changed
    assert old.look() == (Overrides(), overrides)
    assert not old.has_changed
    old.shared.close()
