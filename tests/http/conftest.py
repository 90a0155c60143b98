# SPDX-License-Identifier: MIT
"""The tests of the HTTP layer start no process, and there are many of them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _nothing_left() -> None:
    """In place of the look at every process of the system, before and after each case."""
