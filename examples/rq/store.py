# SPDX-License-Identifier: MIT
"""The connection to Redis, one for each process, and the queue."""

from __future__ import annotations

import os

from redis import Redis
from rq import Queue

QUEUE = "shop"

_redis: Redis | None = None


def connect() -> None:
    """Create this process's client, after each fork."""
    global _redis
    _redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))


def redis() -> Redis:
    """This process's client."""
    if _redis is None:
        raise RuntimeError("connect() has not been called in this process")
    return _redis


def queue() -> Queue:
    """The shop's queue."""
    return Queue(QUEUE, connection=redis())
