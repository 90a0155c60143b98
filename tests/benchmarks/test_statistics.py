# SPDX-License-Identifier: MIT
"""Medians, paired ratios, targets: tables of cases."""

from __future__ import annotations

import pytest

from benchmarks.stats import (
    ITSELF,
    Comparison,
    Spread,
    Target,
    compare,
    paired_ratios,
    percentile,
    rotations,
)


@pytest.mark.parametrize(
    ("values", "spread"),
    [
        ([3.0], Spread(3, 3, 3)),
        ([5.0, 1.0, 3.0], Spread(3, 1, 5)),
        ([4.0, 1.0, 2.0, 3.0], Spread(2.5, 1, 4)),
    ],
)
def test_a_spread_is_the_median_and_both_ends(values: list[float], spread: Spread) -> None:
    assert Spread.of(values) == spread


def test_there_is_no_spread_of_nothing() -> None:
    with pytest.raises(ValueError, match="no figures"):
        Spread.of([])


def test_runs_are_compared_with_those_next_to_them() -> None:
    # A machine that is twice as slow in the second half changes both figures and not the ratio.
    compared = compare("theirs", [10, 10, 5, 5], [5, 5, 2.5, 2.5], Target(">=", 2))
    assert compared == Comparison("theirs", Spread(2, 2, 2), Target(">=", 2))
    assert compared.met is True


@pytest.mark.parametrize(
    ("ours", "theirs", "ratios"),
    [
        ([1, 2], [2, 1], [0.5, 2]),
        ([0, 2], [10, 1], [0, 2]),
        ([1, 2], [0, 1], [2]),
        ([1], [0], []),
        ([], [], []),
    ],
)
def test_pairs(ours: list[float], theirs: list[float], ratios: list[float]) -> None:
    assert paired_ratios(ours, theirs) == ratios


def test_runs_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_ratios([1, 2], [1])


def test_a_comparison_with_zero_throughout_says_nothing() -> None:
    assert compare("theirs", [1.0], [0.0]) is None


@pytest.mark.parametrize(
    ("sense", "bound", "ratio", "met"),
    [
        (">=", 3, 3.0, True),
        (">=", 3, 2.99, False),
        ("<=", 0.5, 0.5, True),
        ("<=", 0.5, 0.51, False),
        ("<=", 0, 0, True),
    ],
)
def test_a_target_includes_its_bound(sense: str, bound: float, ratio: float, met: bool) -> None:
    assert Target(sense, bound).met(ratio) is met


def test_a_target_knows_two_senses() -> None:
    with pytest.raises(ValueError, match="neither"):
        Target("==", 1)


def test_a_comparison_without_a_target_is_neither_met_nor_missed() -> None:
    assert Comparison("theirs", Spread(1, 1, 1)).met is None


@pytest.mark.parametrize(
    "comparison",
    [
        Comparison("theirs", Spread(1, 0.5, 2)),
        Comparison("theirs", Spread(1, 0.5, 2), Target(">=", 3)),
        Comparison(ITSELF, Spread(0, 0, 0), Target("<=", 0)),
    ],
)
def test_a_comparison_survives_its_json(comparison: Comparison) -> None:
    assert Comparison.from_json(comparison.to_json()) == comparison


@pytest.mark.parametrize(
    ("fraction", "value"), [(0, 1), (0.01, 1), (0.5, 50), (0.505, 51), (0.99, 99), (0.991, 100), (1, 100)]
)
def test_a_percentile_is_one_of_the_values(fraction: float, value: int) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], fraction) == value


@pytest.mark.parametrize(("values", "fraction"), [([], 0.5), ([1.0], 1.1), ([1.0], -0.1)])
def test_a_percentile_that_cannot_be(values: list[float], fraction: float) -> None:
    with pytest.raises(ValueError):
        percentile(values, fraction)


def test_every_other_run_goes_backwards() -> None:
    assert rotations(["a", "b"], 3) == [["a", "b"], ["b", "a"], ["a", "b"]]
