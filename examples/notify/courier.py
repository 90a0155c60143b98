# SPDX-License-Identifier: MIT
"""A program written for systemd, which needs no change to be a companion."""

import json
import os
import time
from pathlib import Path

import sdnotify

SUGGESTIONS = Path("var/suggestions.json")


def main():
    notifier = sdnotify.SystemdNotifier()
    pause = min(1.0, int(os.environ.get("WATCHDOG_USEC", "2000000")) / 2e6)
    while not SUGGESTIONS.exists():
        time.sleep(0.1)
    notifier.notify("READY=1")
    while True:
        suggestions = json.loads(SUGGESTIONS.read_text())
        notifier.notify(f"STATUS=carries {len(suggestions)} suggestions")
        notifier.notify("WATCHDOG=1")
        time.sleep(pause)


main()
