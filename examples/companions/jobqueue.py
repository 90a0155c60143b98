# SPDX-License-Identifier: MIT
"""A job queue in one SQLite file, safe for any number of processes on one host.

Every process calls `connect()` for itself after its fork; `prepare()` is called once before. Whatever
reads before it writes does so inside BEGIN IMMEDIATE, which takes the write lock first: two workers
never see the same job as free.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    argument TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done', 'failed')),
    source TEXT NOT NULL,
    source_pid INTEGER NOT NULL,
    put_at REAL NOT NULL,
    worker TEXT,
    worker_pid INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    ended_at REAL,
    result TEXT
);
CREATE INDEX IF NOT EXISTS jobs_waiting ON jobs (id) WHERE state = 'waiting';
CREATE TABLE IF NOT EXISTS schedule (kind TEXT PRIMARY KEY, next_at REAL NOT NULL);
"""
MAX_ATTEMPTS = 3

_connection: sqlite3.Connection | None = None


@dataclass(frozen=True)
class Job:
    """A job in the hands of one worker."""

    id: int
    kind: str
    argument: Any


def path() -> Path:
    """Where the database lives: $SHOP_DATABASE, else ``var/shop.sqlite3`` beside this file."""
    default = Path(__file__).resolve().parent / "var" / "shop.sqlite3"
    return Path(os.environ.get("SHOP_DATABASE", default))


def prepare() -> None:
    """Create the file and its tables, and leave no connection open."""
    path().parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(_open()) as connection:
        # Write-ahead logging lets readers go on while one writes. The mode stays with the file.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMA)


def connect() -> None:
    """Give this process a connection of its own."""
    global _connection
    _connection = _open()


def _open() -> sqlite3.Connection:
    # Autocommit: transactions are begun where they are meant. A writer waits its turn for up to 10 s.
    connection = sqlite3.connect(path(), timeout=10, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _database() -> sqlite3.Connection:
    if _connection is None:
        raise RuntimeError("connect() has not been called in this process")
    return _connection


@contextlib.contextmanager
def _writing() -> Iterator[sqlite3.Connection]:
    connection = _database()
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def put(kind: str, argument: Any, source: str) -> int:
    """Add a job; its number is the answer. `source` says who asked for it."""
    cursor = _database().execute(
        "INSERT INTO jobs (kind, argument, source, source_pid, put_at) VALUES (?, ?, ?, ?, ?)",
        (kind, json.dumps(argument), source, os.getpid(), time.time()),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def take(worker: str) -> Job | None:
    """Take the oldest waiting job for `worker`, or None where nothing waits."""
    with _writing() as connection:
        row = connection.execute(
            "SELECT id, kind, argument FROM jobs WHERE state = 'waiting' ORDER BY id LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        connection.execute(
            "UPDATE jobs SET state = 'running', worker = ?, worker_pid = ?, attempts = attempts + 1"
            " WHERE id = ?",
            (worker, os.getpid(), row["id"]),
        )
    return Job(row["id"], row["kind"], json.loads(row["argument"]))


def finish(job: Job, result: str, *, failed: bool = False) -> None:
    """Record how a job that this process took has ended."""
    _database().execute(
        "UPDATE jobs SET state = ?, ended_at = ?, result = ? WHERE id = ?",
        ("failed" if failed else "done", time.time(), result, job.id),
    )


def recover(worker: str) -> int:
    """Put back what an earlier process named `worker` died with; how many jobs that were.

    This is right because the companion manager never runs two processes of one name side by side: a
    running job that bears our name belongs to a process that is gone. A job that has taken several
    workers down with it is given up.
    """
    with _writing() as connection:
        connection.execute(
            "UPDATE jobs SET state = 'failed', ended_at = ?, result = 'its worker died each time'"
            " WHERE state = 'running' AND worker = ? AND attempts >= ?",
            (time.time(), worker, MAX_ATTEMPTS),
        )
        return connection.execute(
            "UPDATE jobs SET state = 'waiting' WHERE state = 'running' AND worker = ?", (worker,)
        ).rowcount


def put_when_due(kind: str, argument: Any, every: float, source: str) -> int | None:
    """Add a periodic job if its time has come; the time of the next is kept in the database.

    So a scheduler that was away neither forgets a job nor puts in all that it missed.
    """
    now = time.time()
    with _writing() as connection:
        row = connection.execute("SELECT next_at FROM schedule WHERE kind = ?", (kind,)).fetchone()
        # Further away than one period: the clock was set back, or the period was made shorter.
        if row is not None and now < row["next_at"] <= now + every:
            return None
        connection.execute(
            "INSERT INTO schedule (kind, next_at) VALUES (?, ?)"
            " ON CONFLICT (kind) DO UPDATE SET next_at = excluded.next_at",
            (kind, now + every),
        )
        return put(kind, argument, source)


def recent(limit: int = 20) -> list[dict[str, Any]]:
    """The latest jobs, newest first, as plain dictionaries."""
    rows = _database().execute("SELECT * FROM jobs ORDER BY id DESC LIMIT ?", (limit,))
    return [{**dict(row), "argument": json.loads(row["argument"])} for row in rows]


def counts() -> dict[str, int]:
    """How many jobs are in each state."""
    return dict(_database().execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall())
