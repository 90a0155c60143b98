# SPDX-License-Identifier: MIT
"""The companions: RQ's own classes, as they are, each in a process of its own."""

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
    """Move jobs that were put in for later into the queue when their time has come."""
    scheduler = RQScheduler([store.QUEUE], connection=store.redis(), interval=1)
    # RQ keeps a lock per queue in Redis for about a minute after a scheduler was killed. Leaving here means
    # being started again after restart_delay: the lock is tried until it is free.
    if not scheduler.acquire_locks():
        sys.exit("another scheduler holds the lock; trying again")
    scheduler.work()


def cron() -> None:
    """Put periodic jobs in."""
    cron = CronScheduler(connection=store.redis())
    cron.register(work.take_stock, queue_name=store.QUEUE, interval=STOCKTAKING_SECONDS)
    cron.start()
