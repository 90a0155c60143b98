# SPDX-License-Identifier: MIT
"""The companions: RQ's own classes, each in its own process."""

from __future__ import annotations

import os
import sys

import store
import work
from rq import Worker
from rq.cron import CronScheduler
from rq.scheduler import RQScheduler

STOCKTAKING_SECONDS = int(os.environ.get("SHOP_STOCKTAKING_SECONDS", 10))


def worker() -> None:
    """Run an RQ worker. It forks a work horse for each job, which the companion's session includes."""
    Worker([store.queue()], connection=store.redis()).work()


def scheduler() -> None:
    """Move delayed jobs into the queue when they are due."""
    scheduler = RQScheduler([store.QUEUE], connection=store.redis(), interval=1)
    # After a scheduler was killed, its lock stays in Redis for about a minute. Exit here: the manager retries
    # after restart_delay until the lock is free.
    if not scheduler.acquire_locks():
        sys.exit("another scheduler holds the lock; trying again")
    scheduler.work()


def cron() -> None:
    """Add the periodic jobs."""
    cron = CronScheduler(connection=store.redis())
    cron.register(work.take_stock, queue_name=store.QUEUE, interval=STOCKTAKING_SECONDS)
    cron.start()
