# SPDX-License-Identifier: MIT
"""A shop whose companions say when they are ready and that they live: start it with ``gunicorn`` here."""

import os
import sys

wsgi_app = "shop:app"
accesslog = "-"

companion_workers = [
    # A target. It takes a while to load, and counts as RUNNING when it says so itself.
    {"name": "recommender", "target": "recommender:run", "ready": "notify", "start_timeout": 30},
    # A program of its own, which would say the same to systemd. It starts when the other is RUNNING.
    {
        "name": "courier",
        "command": [sys.executable, "courier.py"],
        "ready": "notify",
        "after": ["recommender"],
    },
]
# Who has not said for so many seconds that it is alive has its stacks dumped, is killed and started again.
companion_watchdog = float(os.environ.get("SHOP_WATCHDOG", "10"))
companion_restart_delay = 2
