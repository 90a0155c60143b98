# SPDX-License-Identifier: MIT
"""The map in the architecture page is made from docstrings, and its walks go through files that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.rst"
MODULES = sorted((ROOT / "gunicorn").rglob("*.py"))


@pytest.fixture(scope="module")
def extension() -> ModuleType:
    path = ROOT / "docs" / "_ext" / "module_map.py"
    spec = importlib.util.spec_from_file_location("module_map_tested", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def summaries(extension: ModuleType) -> dict[Path, str]:
    return {path: extension.summary(path) for path in MODULES}


def test_a_module_says_in_a_sentence_what_it_is_about(summaries: dict[Path, str]) -> None:
    found = {str(path.relative_to(ROOT)): text for path, text in summaries.items()}
    wrong = {name: text for name, text in found.items() if not (10 < len(text) <= 120 and text.endswith("."))}
    assert wrong == {}


def test_every_module_is_on_the_map(extension: ModuleType, summaries: dict[Path, str]) -> None:
    text = extension.table()
    for path, summary in summaries.items():
        directory, _, name = str(path.relative_to(ROOT)).rpartition("/")
        section = text.partition(f"\n``{directory}/``\n")[2].partition("\n``gunicorn/")[0]
        assert name == "__init__.py" or f"\n``{name}``\n   {summary}\n" in section
    assert ".. include:: modules.inc" in PAGE.read_text()


def test_walks_go_through_files_that_exist() -> None:
    names = {str(path.relative_to(ROOT / "gunicorn")) for path in MODULES}
    names |= {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    text = PAGE.read_text()
    for word in re.findall(r"``((?:\w+/)*\w+\.py)``", text):
        path = word.removeprefix("gunicorn/")
        assert path in names or any(name.endswith("/" + path) for name in names), word
