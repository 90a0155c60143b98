# SPDX-License-Identifier: MIT
"""Counting instructions: a worker that serves by itself answers well, and wrong calls are told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import instructions
from benchmarks.load import Request
from benchmarks.peers import ROOT


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("case", instructions.CASES)
def test_each_request_of_a_case_is_answered(case: str, tmp_path: Path) -> None:
    Request().write(tmp_path / "requests", "127.0.0.1:8000")
    done = run(str(ROOT / instructions.DRIVER), case, "25", str(tmp_path / "requests"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_answer_that_is_not_well_is_told() -> None:
    wrong = "inprocess.webapps.hello = lambda environ, start: (start('200 OK', []), [b'something else'])[1]"
    sent = "[b'GET / HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n']"
    script = f"import inprocess; {wrong}; print(inprocess.serve('sync', 3, {sent}))"
    done = run("-c", script, PYTHONPATH=f"{ROOT / instructions.DRIVER.parent}{os.pathsep}{ROOT}")
    assert done.stdout == "0\n", done.stderr


def test_the_table_compares_with_the_first_tree() -> None:
    assert instructions.row("a case", [1000]).split() == ["a", "case", "1,000"]
    assert instructions.row("a case", [1000, 750]).split() == ["a", "case", "1,000", "750", "(0.75)"]


@pytest.mark.parametrize(
    ("arguments", "path", "told"),
    [
        (["nothing"], os.environ.get("PATH", ""), "there is no case nothing; there are gthread,"),
        (["--tree", "docs"], os.environ.get("PATH", ""), f"there is no server in {ROOT / 'docs'}"),
        (["sync"], "", "this needs valgrind"),
    ],
)
def test_wrong_calls(arguments: list[str], path: str, told: str) -> None:
    done = run("-m", "benchmarks.instructions", *arguments, PATH=path)
    assert done.returncode != 0 and told in done.stderr
