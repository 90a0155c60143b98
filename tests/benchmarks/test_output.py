# SPDX-License-Identifier: MIT
"""The script that measures captured output, at a small scale."""

from __future__ import annotations

import pytest

from benchmarks import output


def test_no_line_is_missing_after_kills(capsys: pytest.CaptureFixture[str]) -> None:
    assert output.lines(40_000, 5)
    assert "files of their own: 20,000 lines, missing 0, torn 0, again 0" in capsys.readouterr().out


def test_lines_that_are_missing_torn_or_there_twice_are_counted() -> None:
    numbers = output.Numbers(["rq:0"], 4)
    for line in (b"rq:0 0 ", b"rq:0 1 .", b"rq:0 1 .", b"rq:0 2 .", b"rq:0 2 ..rq:0 3 ..."):
        numbers.add(line)
    assert (numbers.missing(), len(numbers.torn), numbers.twice) == (2, 2, 1)
