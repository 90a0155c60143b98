# SPDX-License-Identifier: MIT
"""The line tracer, in a process of its own: a trace function would take the test runner's coverage away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
class Broken:
    def __repr__(self):
        raise ValueError

def work(number):
    broken = Broken()
    double = number * 2
    return broken, double
"""

SCRIPT = """
import threading
import traced
from gunicorn.debug import spew, unspew
spew({arguments})
traced.work(21)
thread = threading.Thread(target=traced.work, args=(5,))
thread.start()
thread.join()
unspew()
traced.work(1000)
"""


def run(directory: Path, arguments: str) -> str:
    (directory / "traced.py").write_text(MODULE)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(arguments=arguments)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{directory}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_each_line_with_its_values(tmp_path: Path) -> None:
    out = run(tmp_path, '["traced"], show_values=True')
    lines = out.splitlines()
    assert lines[0] == "traced:7: broken = Broken()"
    assert "\t(number=21)" in lines and "\t(number=5)" in lines, "threads too"
    assert "(broken=<ValueError in repr>" in out
    assert "1000" not in out and "threading:" not in out


@pytest.mark.parametrize("arguments", ['["traced"]', '["traced"], False'])
def test_without_values(tmp_path: Path, arguments: str) -> None:
    out = run(tmp_path, arguments)
    assert "traced:8: double = number * 2" in out and "number=21" not in out


def test_all_modules_by_default(tmp_path: Path) -> None:
    assert "threading:" in run(tmp_path, "")
