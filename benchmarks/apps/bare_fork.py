# SPDX-License-Identifier: MIT
"""The least that a supervisor can do: ``bare_fork.py COUNT`` forks COUNT children that report, and each again
that dies.

It does so in a process that was forked from one with everything loaded that the arbiter and the companion
manager have loaded, as they do: the price of a fork is the size of the process. A child sends its pid and the
moment before its fork.
"""

from __future__ import annotations

import gc
import os
import sys
import time

import webapps  # type: ignore[import-not-found]

import gunicorn.app.wsgiapp
import gunicorn.arbiter
import gunicorn.companion.manager
import gunicorn.companion.parent  # noqa: F401


def start() -> None:
    before = time.monotonic_ns()
    if os.fork() == 0:
        webapps.report(before)
        os._exit(0)


def supervise(count: int) -> None:
    for _ in range(count):
        start()
    while True:
        os.wait()
        start()


def main() -> None:
    gc.collect()
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        supervise(int(sys.argv[1]))
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
