# SPDX-License-Identifier: MIT
"""The jobs. Each run is a process of its own that shares the memory of the application."""

from __future__ import annotations

import os
import sys
import time

DONE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "done.log")


def note(text: str) -> None:
    line = f"{time.strftime('%H:%M:%S')}  {os.environ['GUNICORN_COMPANION_NAME']} (pid {os.getpid()}): {text}"
    print(text, flush=True)
    with open(DONE, "a") as file:
        print(line, file=file)


def lines() -> list[str]:
    with open(DONE, "a+") as file:
        file.seek(0)
        return file.readlines()


def count() -> None:
    note(f"{len(lines())} lines so far")


def slow() -> None:
    note("begins")
    time.sleep(float(os.environ.get("SLOW_SECONDS", "15")))
    note("ends")


def flaky() -> None:
    failures, successes = (sum(text in line for line in lines()) for text in ("oh dear", "it works"))
    if failures <= successes:
        note("oh dear")
        sys.exit(1)
    note("it works")
