# SPDX-License-Identifier: MIT
"""Prices that change all the time: a companion makes them, the web workers read them."""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

INTERVAL = float(os.environ.get("TICKER_SECONDS", 1))
FILE = Path(os.environ.get("TICKER_FILE", Path(tempfile.gettempdir()) / f"ticker-{os.getuid()}.json"))


def run() -> None:
    """The companion: one process draws the prices, however many workers serve them."""
    prices = {"apples": 100, "pears": 120, "quinces": 180}
    number = 0
    while True:
        number += 1
        prices = {name: max(1, price + random.randint(-3, 3)) for name, price in prices.items()}
        fresh = FILE.with_suffix(".new")
        fresh.write_text(json.dumps({"number": number, "pid": os.getpid(), "prices": prices}))
        # Atomic: readers see the old prices or the new ones.
        fresh.replace(FILE)
        time.sleep(INTERVAL)


def latest() -> dict[str, Any]:
    """The latest prices; number 0 before there are any."""
    try:
        found: dict[str, Any] = json.loads(FILE.read_text())
    except FileNotFoundError:
        return {"number": 0, "pid": None, "prices": {}}
    return found
