# SPDX-License-Identifier: MIT
"""Whether the kernel has killed a process for memory."""

from __future__ import annotations

import sys

import pytest

from gunicorn.unix.cgroup import OomKills, oom_kills


class Count:
    value = 7

    def __call__(self) -> int:
        return self.value


def test_each_kill_explains_the_end_of_one_process() -> None:
    count = Count()
    kills = OomKills(count)
    for pid in (1, 2, 3):
        kills.note_start(pid)
    count.value += 1
    # One that is started before the first is reaped.
    kills.note_start(4)
    assert kills.note_end(1, True)
    assert not kills.note_end(2, True)
    count.value += 1
    assert kills.note_end(4, True)
    assert not kills.note_end(3, True)


def test_an_end_that_is_no_kill_explains_nothing() -> None:
    count = Count()
    kills = OomKills(count)
    kills.note_start(1)
    kills.note_start(2)
    count.value += 1
    assert not kills.note_end(1, False)
    assert kills.note_end(2, True)
    # It was never started here.
    count.value += 1
    assert not kills.note_end(3, True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts them")
def test_the_kernel_counts() -> None:
    found = oom_kills()
    assert found is not None
    assert found >= 0


def test_where_nothing_counts_nothing_is_for_memory() -> None:
    kills = OomKills(lambda: None)
    kills.note_start(1)
    assert not kills.note_end(1, True)
