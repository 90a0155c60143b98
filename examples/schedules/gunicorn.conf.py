# SPDX-License-Identifier: MIT
"""A page and jobs that run at their times: start it with ``gunicorn`` in this directory."""

import os

wsgi_app = "page:app"
preload_app = True

companion_workers = [
    {"name": "count", "target": "chores:count", "schedule": f"every {os.environ.get('COUNT_EVERY', '5s')}"},
    # It takes longer than the time to the next run, which is skipped. Other ways are "queue" and "restart".
    {"name": "slow", "target": "chores:slow", "schedule": "every 10s", "schedule_overlap": "skip"},
    # A failed run is tried again, twice at most. One that hangs is ended after a minute.
    {
        "name": "flaky",
        "target": "chores:flaky",
        "schedule": "every 20s",
        "schedule_retries": 2,
        "restart_delay": 1,
        "max_runtime": 60,
    },
    # Five fields of cron need the package cronsim. If no server ran at 03:30, it runs as soon as one does.
    # {
    #     "name": "nightly",
    #     "target": "chores:count",
    #     "schedule": "30 3 * * *",
    #     "schedule_timezone": "Europe/Berlin",
    #     "schedule_catch_up": True,
    # },
]
