# SPDX-License-Identifier: MIT
"""The last hour: notes in shared memory, and what is computed from them."""

from __future__ import annotations

import os
from typing import Any

import pytest

from gunicorn.monitor import timeline
from gunicorn.monitor.timeline import Note, Timeline, quantile, restarts_in, samples


class Board:
    """A scoreboard that shows *requests*, all in the first of three buckets."""

    def __init__(self) -> None:
        self.requests = 0

    def read(self) -> dict[str, Any]:
        answers = {"2xx": self.requests, "5xx": self.requests // 10}
        totals = {"requests": self.requests, "answers": answers, "histogram": [self.requests, 0, 0]}
        return {"totals": totals, "workers": [{"state": "busy"}, {"state": "idle"}]}


def test_another_process_reads_what_the_master_notes() -> None:
    kept, board = Timeline(3), Board()
    assert (kept.notes(), kept.latest()) == ([], 0.0)
    for second in range(12):
        board.requests = second * 10
        kept.tick(100.0 + second, board)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, repr([note[1:] for note in kept.notes()]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    # Every five seconds.
    expected = [(at * 10, at, (at * 10, 0, 0), 1, 2) for at in (0, 5, 10)]
    assert os.read(reader, 4096).decode() == repr(expected)
    assert kept.latest() == kept.notes()[-1].time


def test_only_an_hour_is_kept() -> None:
    kept, board = Timeline(3), Board()
    for number in range(timeline.KEPT + 10):
        board.requests = number
        kept.tick(number * timeline.INTERVAL, board)
    notes = kept.notes()
    # One less than there is room for: the oldest may just be written again.
    assert [note.requests for note in notes] == list(range(11, timeline.KEPT + 10))


def note(moment: float, requests: int, errors: int = 0, *histogram: int) -> Note:
    return Note(moment, requests, errors, histogram or (requests, 0, 0), 1, 4)


def test_a_sample_is_the_difference_of_two_notes() -> None:
    notes = [note(100, 50), note(105, 150, 5), note(110, 150, 5)]
    found = samples(notes, [0.1, 1.0], restarts=[99.0, 101.0, 104.9], memory=[(103, 7, 8), (104, 10, 20)])
    assert found == [
        {
            "time": 105,
            "rps": 20.0,
            "p50": 0.05,
            "p95": 0.095,
            "p99": 0.099,
            "errors": 1.0,
            "memory": 10,
            "saved": 20,
            "restarts": 2,
            "busy": 1,
            "workers": 4,
        },
        {
            **{"time": 110, "rps": 0.0, "p50": None, "p95": None, "p99": None, "errors": 0.0},
            **{"memory": None, "saved": None, "restarts": 0, "busy": 1, "workers": 4},
        },
    ]
    assert {sample["restarts"] for sample in samples(notes, [0.1, 1.0])} == {None}


def test_gaps_and_clocks_that_are_set_give_no_sample() -> None:
    # A stopped master, a clock set back, an hour forward, and a new board.
    for before, after in ((note(0, 5), note(60, 9)), (note(50, 5), note(45, 9)), (note(0, 9), note(5, 1))):
        assert samples([before, after], [0.1, 1.0]) == []


@pytest.mark.parametrize(
    "counts, part, expected",
    [
        ([0, 0, 0], 0.5, None),
        ([10, 0, 0], 0.5, 0.5),
        ([10, 0, 0], 1.0, 1.0),
        ([5, 5, 0], 0.5, 1.0),
        ([5, 5, 0], 0.75, 1.5),
        ([0, 10, 0], 0.1, 1.1),
        ([0, 0, 10], 0.5, 2.0),
        ([1, 0, 99], 0.01, 1.0),
    ],
)
def test_quantiles(counts: list[int], part: float, expected: float | None) -> None:
    assert quantile(counts, [1.0, 2.0], part) == expected


def test_a_restart_is_a_start_after_an_end() -> None:
    def entry(event: str, name: str, moment: float) -> dict[str, Any]:
        return {"event": event, "name": name, "time": moment}

    history = [
        entry("start", "a", 1.0),
        entry("start", "b", 2.0),
        entry("exit", "a", 3.0),
        entry("start", "a", 4.0),
        entry("gave up", "b", 5.0),
        entry("start", "b", 6.0),
        entry("start", "a", 7.0),
    ]
    assert restarts_in(history) == [4.0, 7.0]
