# SPDX-License-Identifier: MIT
"""Real companion managers for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from companiontools import HERE, Script
from managertools import Managed


@pytest.fixture(scope="module")
def masters() -> Iterator[Script]:
    """The process that masters are forked from."""
    script = Script(HERE / "minimaster.py")
    yield script
    script.go_on()
    script.wait_closed()
    script.end()


@pytest.fixture
def managed(masters: Script) -> Iterator[Callable[..., Managed]]:
    """Starts a master and its manager with the configuration that is given."""
    started: list[Managed] = []

    def start(config: str = "workers = []", **options: Any) -> Managed:
        started.append(Managed(masters, config, **options))
        return started[-1].ready()

    yield start
    for each in reversed(started):
        each.end()
