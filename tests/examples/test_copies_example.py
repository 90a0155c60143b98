# SPDX-License-Identifier: MIT
"""The copies of examples/copies: they come after their job, and are replaced one at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from exampletree import example_server
from harness import Server, wait_until

NAMES = ("packer:0", "packer:1", "packer:2")
ENV = {"BOARD_DATABASE": None, "BOARD_PARCEL_SECONDS": "0.2", "BOARD_LIFETIME": "600", "BOARD_JITTER": None}


@pytest.fixture
def board() -> Iterator[Server]:
    with example_server("copies", ENV) as server:
        for name in NAMES:
            server.wait_companion(name)
        yield server


def packers(server: Server) -> dict[str, list[int]]:
    """The pids under which each has packed."""
    lines = [line.split() for line in server.get("/").text.splitlines() if line.startswith("packer")]
    return {words[0]: [int(pid) for pid in words[-1].split(",")] for words in lines}


def test_all_copies_pack_once_the_job_is_done(board: Server) -> None:
    wait_until(lambda: set(packers(board)) == set(NAMES), 10, lambda: board.get("/").text)
    found = board.companions()
    assert packers(board) == {name: [found[name]["pid"]] for name in NAMES}
    migrate = found["migrate"]
    assert (migrate["state"], migrate["description"]) == ("STOPPED", "done, exited with status 0")
    assert [found[name]["index"] for name in NAMES] == [0, 1, 2]


def test_more_and_fewer(board: Server) -> None:
    before = board.companions()
    assert board.ask("scale", "packer", numprocs=4)["added"] == ["packer:3"]
    board.wait_companion("packer:3")
    assert board.ask("scale", "packer", numprocs=2)["removed"] == ["packer:2", "packer:3"]
    wait_until(lambda: len(board.companions()) == 3, 10, lambda: str(board.companions().keys()))
    after = board.companions()
    assert [after[name]["pid"] for name in NAMES[:2]] == [before[name]["pid"] for name in NAMES[:2]]


def test_old_ones_are_replaced() -> None:
    with example_server("copies", {**ENV, "BOARD_LIFETIME": "2", "BOARD_JITTER": "1"}) as server:
        wait_until(
            lambda: len(packers(server)) == 3 and all(len(pids) > 1 for pids in packers(server).values()),
            30,
            lambda: server.log(),
        )
        assert "packer:0 has ended with code 0" in server.log()
        assert all(server.companion(name)["kill_count"] == 0 for name in NAMES)
