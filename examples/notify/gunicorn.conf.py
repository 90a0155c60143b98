# SPDX-License-Identifier: MIT
"""A shop whose companions report readiness and heartbeats: start it with ``gunicorn`` here."""

import os
import sys

wsgi_app = "shop:app"
accesslog = "-"

companion_workers = [
    # A target. It takes a while to load, and is RUNNING when it reports ready.
    {"name": "recommender", "target": "recommender:run", "ready": "notify", "start_timeout": 30},
    # A program, which would send the same to systemd. It starts when the recommender is RUNNING.
    {
        "name": "courier",
        "command": [sys.executable, "courier.py"],
        "ready": "notify",
        "after": ["recommender"],
    },
]
# Without a heartbeat for so many seconds a companion dumps its stacks, is killed and restarts.
companion_watchdog = float(os.environ.get("SHOP_WATCHDOG", "10"))
companion_restart_delay = 2
