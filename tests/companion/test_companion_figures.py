# SPDX-License-Identifier: MIT
"""Which step of a companion's life counts as what."""

from __future__ import annotations

import pytest

from gunicorn.companion.process import State
from gunicorn.companion.supervise.figures import BACKOFFS, KILLS, RESTARTS, counted
from gunicorn.companion.table import Snapshot


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((State.STOPPED, 0, 0), (State.STARTING, 0, 0), {}),
        ((State.STARTING, 0, 0), (State.RUNNING, 0, 0), {}),
        ((State.STARTING, 0, 0), (State.STARTING, 1, 0), {RESTARTS: 1}),
        ((State.RUNNING, 1, 0), (State.BACKOFF, 1, 0), {BACKOFFS: 1}),
        ((State.STARTING, 1, 0), (State.BACKOFF, 1, 0), {BACKOFFS: 1}),
        ((State.BACKOFF, 1, 0), (State.BACKOFF, 1, 0), {}),
        ((State.BACKOFF, 1, 0), (State.STOPPED, 1, 0), {}),
        ((State.STOPPING, 1, 0), (State.STOPPING, 1, 1), {KILLS: 1}),
        ((State.STOPPING, 1, 1), (State.STOPPED, 1, 1), {}),
    ],
)
def test_counted(
    before: tuple[State, int, int], after: tuple[State, int, int], expected: dict[str, int]
) -> None:
    assert counted(Snapshot(*before), Snapshot(*after)) == expected
