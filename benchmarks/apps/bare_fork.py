# SPDX-License-Identifier: MIT
"""The least that a supervisor can do: ``bare_fork.py COUNT`` forks COUNT children that report, and each again
that dies.

It loads what the companion manager has loaded, since the price of a fork is the size of the process. A child
sends its pid and the moment before its fork.
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


def main() -> None:
    gc.collect()
    gc.freeze()
    for _ in range(int(sys.argv[1])):
        start()
    while True:
        os.wait()
        start()


if __name__ == "__main__":
    main()
