# SPDX-License-Identifier: MIT
"""A page, and four servers with a port and a log for each: start it with ``gunicorn`` in this directory."""

import os
import sys

wsgi_app = "page:app"
accesslog = "-"

companion_workers = [
    {
        "name": "live",
        "command": [sys.executable, "live.py", "%(name)s"],
        # live:8001 to live:8004, each on the port of its number.
        "numprocs": 4,
        "index_start": int(os.environ.get("LIVE_PORT", "8001")),
        "bind": "127.0.0.1:%(index)d",
        # A copy is RUNNING when it answers, and is restarted if it does not three times in a row.
        "probe": {"http": "http://127.0.0.1:%(index)d/"},
        "liveness": {"http": "http://127.0.0.1:%(index)d/", "every": 5},
        # Read at each start. What is secret stands there, and not here.
        "env_file": "live.env",
        "stdout": "live-%(index)d.log",
        "stderr": "stdout",
        "group": "sockets",
        # Its files are for its own group at most, and a crash leaves no core.
        "umask": "027",
        "rlimits": {"nofile": 4096, "core": 0},
    },
    {
        "name": "clock",
        "command": ["sh", "-c", "while date +%%T; do sleep 1; done"],
        "stop_as_group": True,
        "group": ["sockets", "chores"],
    },
]
companion_stop_timeout = companion_reload_timeout = 10
