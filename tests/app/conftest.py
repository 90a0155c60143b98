# SPDX-License-Identifier: MIT
"""A directory to start in, and applications that are started there in the process of the test."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gunicorn.app.base import Application


class NoApp(Application):
    """All layers of configuration, and nothing to serve."""

    framework: dict[str, Any] = {}

    def init(self, parser: ArgumentParser, opts: Namespace, args: list[str]) -> dict[str, Any]:
        return self.framework

    def load(self) -> Any:
        return lambda environ, start_response: []


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory; afterwards the import path, the modules and the environment are as before."""
    for name in ("WEB_CONCURRENCY", "PORT", "FORWARDED_ALLOW_IPS", "GUNICORN_CMD_ARGS", "PWD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    path, modules, environ = list(sys.path), dict(sys.modules), dict(os.environ)
    yield tmp_path
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environ)
    for name in sys.modules.keys() - modules.keys():
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)) or name.startswith("__config"):
            del sys.modules[name]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Starts an application of class *kind* with these arguments on its command line."""

    def start(*args: str, kind: type[Application] = NoApp, framework: dict[str, Any] | None = None) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["gunicorn", *args])
            patch.setattr(NoApp, "framework", framework or {})
            return kind()

    return start
