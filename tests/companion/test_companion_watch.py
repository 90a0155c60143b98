# SPDX-License-Identifier: MIT
"""What a companion tells its manager of a changed file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import wait_until

from gunicorn.companion.child.watch import Change, SourceWatch
from gunicorn.reloader import Reloader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.py"
    path.write_text("one")
    return path


@pytest.fixture
def watch(path: Path) -> Iterator[SourceWatch]:
    reloaders: list[Reloader] = []

    def make(callback: Callable[[str], Any]) -> Reloader:
        reloaders.append(Reloader([str(path)], interval=0.02, callback=callback))
        return reloaders[-1]

    watch = SourceWatch(make)
    yield watch
    for reloader in reloaders:
        reloader.stop()
    watch.close()


def wait_change(watch: SourceWatch) -> Change:
    return wait_until(lambda: list(watch.receive()), 5, "a change")[0]


def test_a_change_is_told_once(watch: SourceWatch, path: Path) -> None:
    watch.begin(inherited=set())
    assert list(watch.receive()) == []
    path.write_text("three")
    assert wait_change(watch) == Change(os.getpid(), str(path), False)
    path.write_text("three and one")
    assert list(watch.receive()) == []


def test_what_the_master_has_loaded_as_well(watch: SourceWatch, path: Path) -> None:
    watch.begin(inherited={str(path)})
    path.write_text("three")
    assert wait_change(watch).inherited


@pytest.mark.parametrize("name", ["\N{SNOWMAN}" * 80 + ".py", "x" * 200])
def test_a_path_that_is_too_long_for_a_pipe(watch: SourceWatch, tmp_path: Path, name: str) -> None:
    tells: list[Callable[[str], Any]] = []

    def make(callback: Callable[[str], Any]) -> Reloader:
        tells.append(callback)
        return Reloader(interval=0.02, callback=callback)

    watch._make = make
    watch.begin(inherited=set())
    tells[0]("/very/" + "long/" * 2000 + name)
    assert wait_change(watch).path == name


def test_nonsense_is_dropped(watch: SourceWatch) -> None:
    os.write(watch._write, b"[" * 20000 + b"\n")
    assert list(watch.receive()) == []
    os.write(watch._write, b'nonsense\n{"pid": 1}\n[]\n7\n{"pid": 2, "path": "x", "inherited": false}\n')
    assert list(watch.receive()) == [Change(2, "x", False)]
