# SPDX-License-Identifier: MIT
"""The order of examples/order: nothing is missing in what the store has written at its end."""

from __future__ import annotations

import json
import re

from exampletree import example_server
from harness import wait_until


def test_the_store_is_the_last_to_stop() -> None:
    server = example_server("order", {"ORDER_MIGRATION_SECONDS": "0.5"})
    server.env["ORDER_ADDRESS"] = server.address
    with server:
        # The first one was that of the start.
        assert re.fullmatch(r"visit \d, schema 2\n", server.get("/").text)
        server.wait_companion("packer")
        wait_until(lambda: len(visits(server.log())) >= 1, 10, "the visitor is there")
        assert server.stop() == 0
        numbers = json.loads(server.log("numbers.json"))
        # The visitor was answered after it had been told to stop.
        assert numbers["visits"] == max(visits(server.log(), "the last"))
        assert numbers["parcels"] >= 1


def visits(log: str, which: str = "a") -> list[int]:
    """The numbers that the visitor has seen."""
    return [int(number) for number in re.findall(rf"visitor \| {which} visit (\d+),", log)]
