# SPDX-License-Identifier: MIT
"""The companions' code: a worker that does jobs, and a scheduler that adds some periodically."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

import jobqueue

POLL_SECONDS = 0.2
STOCKTAKING_SECONDS = float(os.environ.get("SHOP_STOCKTAKING_SECONDS", 10))
PACKING_SECONDS = float(os.environ.get("SHOP_PACKING_SECONDS", 1))


class StopFlag:
    """True after a stop signal. The handler only sets it, so that the current job finishes."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True

    def __bool__(self) -> bool:
        return self._asked


def worker() -> None:
    """Do jobs, one at a time, until SIGTERM; then finish the current one and exit."""
    name = os.environ["GUNICORN_COMPANION_NAME"]
    stop = StopFlag()
    recovered = jobqueue.recover(name)
    print(f"{name}: ready, {recovered} unfinished job(s) put back", flush=True)
    while not stop:
        job = jobqueue.take(name)
        if job is None:
            time.sleep(POLL_SECONDS)
            continue
        try:
            result = CHORES[job.kind](job.argument)
        except Exception as error:  # a failed job does not end the worker
            jobqueue.finish(job, f"{type(error).__name__}: {error}", failed=True)
        else:
            jobqueue.finish(job, result)
    print(f"{name}: drained", flush=True)


def scheduler() -> None:
    """Add the periodic jobs when they are due, until SIGTERM."""
    stop = StopFlag()
    while not stop:
        jobqueue.put_when_due("stocktaking", None, STOCKTAKING_SECONDS, source="scheduler")
        time.sleep(POLL_SECONDS)


def pack(item: str) -> str:
    # Simulates work. After a signal handler sleep() goes on (PEP 475), as real work does.
    time.sleep(PACKING_SECONDS)
    return f"packed: {item}"


def stocktaking(argument: None) -> str:
    packed = jobqueue.counts().get("done", 0)
    return f"jobs done so far: {packed}"


CHORES = {"pack": pack, "stocktaking": stocktaking}
