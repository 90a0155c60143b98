# SPDX-License-Identifier: MIT
"""The companions' code: a job that creates the table, and packers, in several copies."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Iterator

PATH = os.environ.get("BOARD_DATABASE", "board.sqlite3")
PARCEL_SECONDS = float(os.environ.get("BOARD_PARCEL_SECONDS", "0.5"))


@contextlib.contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """Open a connection for each task, so that none is open during a fork."""
    connection = sqlite3.connect(PATH, timeout=10)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


def migrate() -> None:
    """Create the table, if it is missing. It returns, and so exits with 0."""
    with database() as db:
        db.execute("CREATE TABLE IF NOT EXISTS parcels (packer TEXT, pid INTEGER, packed REAL)")


def pack() -> None:
    """Pack parcels until SIGTERM; finish the current one."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: asked.append(signum))
    name = os.environ["GUNICORN_COMPANION_NAME"]
    # Copies differ only in their number: each begins a little later than the one before.
    time.sleep(PARCEL_SECONDS / 10 * int(os.environ["GUNICORN_COMPANION_INDEX"]))
    while not asked:
        time.sleep(PARCEL_SECONDS)  # simulates work
        with database() as db:
            db.execute("INSERT INTO parcels VALUES (?, ?, ?)", (name, os.getpid(), time.time()))
