# SPDX-License-Identifier: MIT
"""The claim about shared memory, measured by the benchmark that prints it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from harness import ROOT


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs /proc/<pid>/smaps_rollup")
def test_a_companion_shares_the_preloaded_memory() -> None:
    command = [sys.executable, "-m", "benchmarks.memory", "--megabytes", "50"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    frozen, unfrozen, alone = (float(figure) for figure in re.findall(r"([\d.]+) MB +[\d.]+x", done.stdout))
    assert frozen < 10, done.stdout
    assert frozen < unfrozen < alone, done.stdout
    assert alone > 50, done.stdout
