# SPDX-License-Identifier: MIT
"""Find products that are bought together. It is ready when it has loaded, after some seconds."""

import collections
import itertools
import json
import os
import threading
import time
from pathlib import Path

from gunicorn.companion import notify

VAR = Path(__file__).resolve().parent / "var"
SUGGESTIONS = VAR / "suggestions.json"
LOADING_SECONDS = float(os.environ.get("SHOP_LOADING_SECONDS", "3"))

ORDERS = [
    ["lamp", "bulb"],
    ["lamp", "bulb", "cable"],
    ["chair", "table"],
    ["table", "lamp"],
    ["cable", "plug"],
    ["bulb", "lamp"],
]


def run():
    VAR.mkdir(exist_ok=True)
    pairs = load()
    notify(ready=True, status=f"knows {len(pairs)} pairs")
    for turn in itertools.count(1):
        work(pairs)
        # From the loop that does the work, after the work: a thread that only sends heartbeats would keep
        # sending them while the work hangs.
        notify(watchdog=True, status=f"knows {len(pairs)} pairs, {turn} turns")
        time.sleep(pause())


def load():
    pairs = collections.Counter()
    for number, order in enumerate(ORDERS):
        notify(status=f"loading, {100 * number // len(ORDERS)} %")
        time.sleep(LOADING_SECONDS / len(ORDERS))
        pairs.update(itertools.permutations(order, 2))
    return pairs


def work(pairs):
    if (VAR / "hang").exists():
        hang()
    best = {}
    for (article, other), _ in pairs.most_common():
        best.setdefault(article, other)
    fresh = SUGGESTIONS.with_suffix(".new")
    fresh.write_text(json.dumps(best, sort_keys=True))
    fresh.replace(SUGGESTIONS)


def hang():
    """A deadlock, as it happens in good programs: one lock taken twice."""
    lock = threading.Lock()
    with lock, lock:
        pass


def pause():
    """Half of the watchdog's time, as sd_watchdog_enabled(3) recommends; at most a second."""
    return min(1.0, int(os.environ.get("WATCHDOG_USEC", "2000000")) / 2e6)
