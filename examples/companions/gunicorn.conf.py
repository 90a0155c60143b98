# SPDX-License-Identifier: MIT
"""A shop with its job workers and its scheduler: start it with ``gunicorn`` in this directory."""

wsgi_app = "shop:app"
preload_app = True
workers = 2
accesslog = "-"

companion_workers = [
    {"name": "scheduler", "target": "chores:scheduler", "stop_timeout": 5},
    {"name": "worker-1", "target": "chores:worker"},
    {"name": "worker-2", "target": "chores:worker"},
]
# A worker finishes its job before it stops: allow enough time for the longest job.
companion_stop_timeout = 30


def on_starting(server):
    # Once, in the master, before any fork: create the tables for all processes.
    import jobqueue

    jobqueue.prepare()


# An SQLite connection must not be used after a fork, so each process opens its own.


def post_fork(server, worker):
    import jobqueue

    jobqueue.connect()


def companion_post_fork(manager, companion):
    import jobqueue

    jobqueue.connect()
