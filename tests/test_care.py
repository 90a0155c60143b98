# SPDX-License-Identifier: MIT
"""How many workers the load asks for."""

from __future__ import annotations

import pytest

from gunicorn.master.care import CALM, LOOK_INTERVAL, NEXT_ONE, Spares, idle, idle_one


@pytest.mark.parametrize(
    "running, places, expected",
    [
        ([], 1, 0),
        ([0, 0, 1], 1, 2),
        ([0, 2, 8, 8], 8, 1.75),
        # More than there are places for wait in the worker.
        ([9, 0], 8, 1),
        ([0, 1], 0, 1),
    ],
)
def test_idle(running: list[int], places: int, expected: float) -> None:
    assert idle(running, places) == expected


@pytest.mark.parametrize(
    "requests, due, expected",
    [
        ([], "", None),
        ([1, 2], "1", None),
        ([1, 0, 0], "", 1),
        ([1, 0, 0], "2", 2),
        ([1, 0, 0], "0", 1),
    ],
)
def test_which_one_ends(requests: list[int], due: str, expected: int | None) -> None:
    assert idle_one(dict(enumerate(requests)), [int(pid) for pid in due]) == expected


def grown(*looks: tuple[float, int], fixed: int = 2, most: int = 16, spare: int = 1, extra: int = 0) -> int:
    """The extra workers after *looks*, each with how many are idle and how many have yet to boot."""
    spares = Spares()
    spares.extra = extra
    for number, (free, booting) in enumerate(looks):
        spares.look(number * LOOK_INTERVAL, fixed=fixed, most=most, spare=spare, idle=free, booting=booting)
    return spares.extra


@pytest.mark.parametrize(
    "looks, more, expected",
    [
        ([(1, 0)] * 9, {}, 0),
        # Short at two looks in a row.
        ([(0, 0)], {}, 0),
        ([(0, 0), (1, 0), (0, 0)], {}, 0),
        ([(0, 0), (0, 0)], {}, 1),
        # Those that boot are as good as idle.
        ([(0, 0), (0, 0), (0, 1), (0, 1)], {}, 1),
        # They are busy at once: half as many again, each time.
        ([(0, 0), (0, 0), (0, 1), (0, 0), (0, 0)], {}, 3),
        ([(0, 0), (0, 0)], {"fixed": 8}, 4),
        # What is missing, if some are idle.
        ([(0.5, 0), (0.5, 0)], {"fixed": 8}, 1),
        ([(1, 0), (1, 0)], {"fixed": 8, "spare": 4}, 3),
        ([(1, 1), (1, 1)], {"fixed": 8, "spare": 4}, 2),
        # Not beyond the most.
        ([(0, 0)] * 20, {"most": 5}, 3),
        ([(0, 0)] * 20, {"most": 2}, 0),
        # One more of the fixed ones is one less of the others.
        ([(1, 0)], {"fixed": 4, "most": 6, "extra": 4}, 2),
        ([(1, 0)], {"fixed": 9, "most": 6, "extra": 4}, 0),
        # None is wanted at all.
        ([(0, 0)] * 3, {"fixed": 0, "extra": 4}, 0),
        # Nobody asks for spare ones.
        ([(0, 0)] * 9, {"spare": 0}, 0),
    ],
)
def test_growing(looks: list[tuple[float, int]], more: dict[str, int], expected: int) -> None:
    assert grown(*looks, **more) == expected


@pytest.mark.parametrize(
    "seconds, free, expected",
    [
        (CALM - 1, 4, 4),
        (CALM, 4, 3),
        (CALM + NEXT_ONE - 1, 4, 3),
        (CALM + NEXT_ONE, 4, 2),
        (CALM + 100, 4, 0),
        # With one fewer there would be too few.
        (CALM + 100, 1.9, 4),
        (CALM, 2, 3),
    ],
)
def test_shrinking(seconds: float, free: float, expected: int) -> None:
    looks = int(seconds / LOOK_INTERVAL) + 1
    assert grown(*[(free, 0)] * looks, extra=4) == expected


def test_a_busy_moment_begins_the_calm_anew() -> None:
    almost = [(4.0, 0)] * int((CALM - 1) / LOOK_INTERVAL)
    assert grown(*almost, (1, 0), *almost, extra=4) == 4
    assert grown(*almost, (4, 0), *almost, extra=4) < 4
