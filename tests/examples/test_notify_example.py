# SPDX-License-Identifier: MIT
"""The shop of examples/notify: companions that say when they are ready, and that hang when told to."""

from __future__ import annotations

import pytest
from exampletree import example_server
from harness import wait_until

pytest.importorskip("sdnotify")


def test_each_is_ready_when_it_says_so() -> None:
    with example_server("notify", {"SHOP_LOADING_SECONDS": "1.5", "SHOP_WATCHDOG": "10"}) as server:
        assert server.get("/").status == 503
        wait_until(lambda: str(server.companion("recommender")["status_text"]).startswith("loading"))
        assert server.companion("courier")["description"] == "waiting for recommender"
        server.wait_companion("recommender")
        server.wait_companion("courier")
        wait_until(lambda: server.companion("courier")["status_text"] == "carries 6 suggestions")
        assert "knows 12 pairs" in server.companion("recommender")["description"]
        assert "Who buys a lamp also buys a bulb." in server.get("/").text


def test_a_hung_companion_shows_where_and_is_started_again() -> None:
    with example_server("notify", {"SHOP_LOADING_SECONDS": "0", "SHOP_WATCHDOG": "1"}) as server:
        old = server.wait_companion("recommender")["pid"]
        (server.dir / "var" / "hang").touch()
        backoff = server.wait_companion("recommender", "BACKOFF")
        assert backoff["description"].startswith("no WATCHDOG=1 for 1s, retrying in")
        assert "in hang" in server.log()
        (server.dir / "var" / "hang").unlink()
        server.wait_companion("recommender", without=[old])
