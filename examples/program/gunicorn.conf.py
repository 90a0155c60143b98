# SPDX-License-Identifier: MIT
"""A shop beside a program in another language: start it with ``gunicorn`` in this directory."""

import os

wsgi_app = "shop:app"
workers = 2
accesslog = "-"

# Where browsers connect to the live server; a proxy in front would send /events there.
raw_env = ["LIVE_PORT=" + os.environ.get("LIVE_PORT", "8001")]

companion_workers = [
    {
        "name": "live",
        # There is no shell: each string is one argument.
        "command": ["node", "live.js"],
        # Descriptors 3 and 4 of the program. They stay open while it restarts.
        "bind": [f"127.0.0.1:{os.environ.get('LIVE_PORT', '8001')}", "unix:live.socket"],
        "stop_timeout": 5,
    },
]
