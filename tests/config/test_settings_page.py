# SPDX-License-Identifier: MIT
"""The page of settings in the documentation says all that the settings say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gunicorn.settings import KNOWN_SETTINGS, SECTIONS

EXTENSION = Path(__file__).resolve().parents[2] / "docs/_ext/settings_page.py"


@pytest.fixture(scope="module")
def extension() -> ModuleType:
    spec = importlib.util.spec_from_file_location("settings_page_tested", EXTENSION)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setting_is_on_the_page(extension: ModuleType) -> None:
    text = extension.page()
    for section in SECTIONS:
        assert f"\n{section}\n{'-' * len(section)}\n" in text
    for cls in KNOWN_SETTINGS:
        assert f"\n``{cls.name}``\n~~" in text
        assert cls.desc in text
        for flag in cls.cli or ():
            assert f"``{flag}" in text


@pytest.mark.parametrize(
    "line",
    [
        ":Flag: ``-w INT``, ``--workers INT``",
        ":Flag: ``--preload``",
        ":Flag: ``--companion-worker NAME=MODULE:CALLABLE``",
        ":Default: ``['127.0.0.1:8000']``",
        ":Default: the current directory",
        ":Default: none",
        ":Default: ``def pre_fork(server, worker)``, does nothing",
        ":Default: ``0o600``",
    ],
)
def test_facts(extension: ModuleType, line: str) -> None:
    assert line in extension.page().splitlines()


def test_the_page_is_good_markup(extension: ModuleType, tmp_path: Path) -> None:
    application = pytest.importorskip("sphinx.application")
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(EXTENSION.parent)!r})\nextensions = ['settings_page']\n"
    )
    (tmp_path / "index.rst").write_text("Start\n=====\n\n.. toctree::\n\n   settings\n")
    path = list(sys.path)
    try:
        app = application.Sphinx(
            tmp_path, tmp_path, tmp_path / "out", tmp_path / "trees", "dummy", status=None, warning=None
        )
        app.build()
    finally:
        sys.path[:] = path
    assert app._warncount == 0
    assert (tmp_path / "settings.rst").read_text() == extension.page()
