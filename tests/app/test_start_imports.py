# SPDX-License-Identifier: MIT
"""A start loads only what it needs: each of these modules takes several percent of its time."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Needed for TLS, run files, temporary files, addresses of proxies, the quoting of links and pages, and log
# configurations.
SPARED = {
    "ssl",
    "dataclasses",
    "inspect",
    "tempfile",
    "ipaddress",
    "urllib.parse",
    "html",
    "logging.config",
    "json",
}

# `logging`, which every start needs, loads more with each version of Python: dataclasses from 3.14 on.
SCRIPT = """
import logging, sys
before = set(sys.modules)
sys.argv = ["gunicorn", "--bind", "127.0.0.1:0", "--worker-class", sys.argv[1], "shop:app"]
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter
Arbiter(WSGIApplication()).start()
print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_a_plain_start_spares(worker: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, worker], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = done.stdout.split()
    assert f"gunicorn.workers.{worker}" in loaded
    assert SPARED.isdisjoint(loaded), sorted(SPARED.intersection(loaded))
