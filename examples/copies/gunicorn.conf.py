# SPDX-License-Identifier: MIT
"""A page and the copies that work for it: start it with ``gunicorn`` in this directory."""

import os

wsgi_app = "board:app"
preload_app = True
accesslog = "-"

companion_workers = [
    # A job: it creates the table and exits with 0. After a failure it is retried, with growing delays. If it
    # has not ended after a minute, it has failed, too.
    {
        "name": "migrate",
        "target": "chores:migrate",
        "autorestart": "on-failure",
        "max_runtime": 60,
        # Longer than that: until it has ended it is not RUNNING, and the packers wait.
        "startsecs": 120,
        "restart_delay": 1,
        "restart_delay_max": 30,
    },
    # Three copies, which need the table.
    {
        "name": "packer",
        "target": "chores:pack",
        "numprocs": 3,
        "after": ["migrate"],
        # Restart old ones before a leak becomes a problem: one at a time, and not all within the same minute.
        "max_lifetime": float(os.environ.get("BOARD_LIFETIME", "60")),
        "max_lifetime_jitter": float(os.environ.get("BOARD_JITTER", "30")),
        "max_memory": "300M",
        # Give up after five failed starts in a row, or ten starts in five minutes; try afresh after an hour.
        "start_retries": 5,
        "start_limit": "10/5m",
        "retry_after": 3600,
        "restart_delay": 1,
    },
]
# A packer finishes its parcel before it stops.
companion_stop_timeout = companion_reload_timeout = 20


def companion_exit(manager, companion):
    # Tell an error reporter here. The manager waits for this hook, so keep it short.
    manager.log.info("%s has ended with code %s", companion.name, companion.last_exit_code)


def companion_give_up(manager, companion):
    # And send an alarm here.
    manager.log.critical("%s: %s", companion.name, companion.verdict)
