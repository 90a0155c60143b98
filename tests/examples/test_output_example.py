# SPDX-License-Identifier: MIT
"""The output of examples/output: shown with names, kept, rotated and compressed."""

from __future__ import annotations

from exampletree import example_server
from harness import wait_until


def test_it_writes_where_its_configuration_says() -> None:
    with example_server("output", {}) as server:
        server.wait_log("talker:1 | this is line 1")
        server.wait_log("failing | KeyError: 'tea'")
        assert "blah" not in server.log()
        wait_until(lambda: (server.dir / "chatter-0.log.1.gz").exists(), 20, "a compressed file")
        assert (server.dir / "chatter-0.log").stat().st_size <= 100 * 1024
