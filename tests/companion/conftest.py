# SPDX-License-Identifier: MIT
"""Real companion managers for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from companiontools import HERE, Script
from managertools import Managed

from gunicorn.companion import ctl


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


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Runs gunicorn-companion in this process: exit code, stdout, stderr."""
    for name in ("GUNICORN_COMPANION_SOCKET", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")

    def call(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = ctl.main([str(word) for word in words])
        except SystemExit as exc:
            code = exc.code
        out, err = capsys.readouterr()
        return code, out, err

    return call
