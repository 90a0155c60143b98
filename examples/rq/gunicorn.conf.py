# SPDX-License-Identifier: MIT
"""A shop with RQ workers, RQ's scheduler and RQ's cron: start it with ``gunicorn`` in this directory.

The Redis server's address comes from $REDIS_URL.
"""

wsgi_app = "shop:app"
preload_app = True
workers = 2
accesslog = "-"

companion_workers = [
    {"name": "rq-1", "target": "companions:worker"},
    {"name": "rq-2", "target": "companions:worker"},
    {"name": "rq-scheduler", "target": "companions:scheduler", "stop_timeout": 10},
    {"name": "rq-cron", "target": "companions:cron", "stop_timeout": 10},
]
# RQ's warm shutdown: at SIGTERM a worker finishes its job. Allow enough time for the longest job.
companion_stop_timeout = 60


# Two processes must not share a connection, so each opens its own after the fork.


def post_fork(server, worker):
    import store

    store.connect()


def companion_post_fork(manager, companion):
    import store

    store.connect()
