# SPDX-License-Identifier: MIT
"""The map in docs/architecture.rst is that of the house as it is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.rst"


def on_the_map() -> list[str]:
    """The files that the tables name, each below the title with its directory."""
    found, directory = [], ""
    for line in PAGE.read_text().splitlines():
        title = re.fullmatch(r"``(gunicorn/(?:\w+/)*)``", line)
        row = re.match(r"``(\w+\.py)``  ", line)
        if title:
            directory = title[1]
        elif row:
            found.append(directory + row[1])
    return found


def in_the_house() -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / "gunicorn").rglob("*.py")}


def test_every_module_is_on_the_map() -> None:
    # A package is described by its files.
    modules = {path for path in in_the_house() if not path.endswith("/__init__.py")}
    assert modules - set(on_the_map()) == set()


def test_the_map_names_nothing_else_and_nothing_twice() -> None:
    named = on_the_map()
    assert sorted(set(named)) == sorted(named)
    assert set(named) <= in_the_house()


def test_walks_go_through_files_that_exist() -> None:
    names = {path.split("gunicorn/", 1)[1] for path in in_the_house()}
    text = PAGE.read_text()
    for word in re.findall(r"``((?:\w+/)*\w+\.py)``", text):
        path = word.removeprefix("gunicorn/")
        assert path in names or any(name.endswith("/" + path) for name in names), word
