# SPDX-License-Identifier: MIT
"""A job queue in one SQLite file, safe for any number of processes on one host.

Each process calls `connect()` after its fork; the master calls `prepare()` once before. Code that reads
before it writes does so in BEGIN IMMEDIATE, which takes the write lock first: two workers never take the
same job.
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
    """A job that a worker has taken."""

    id: int
    kind: str
    argument: Any


def path() -> Path:
    """The path of the database: $SHOP_DATABASE, else ``var/shop.sqlite3`` beside this file."""
    default = Path(__file__).resolve().parent / "var" / "shop.sqlite3"
    return Path(os.environ.get("SHOP_DATABASE", default))


def prepare() -> None:
    """Create the file and its tables, and leave no connection open."""
    path().parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(_open()) as connection:
        # With write-ahead logging, a writer does not block readers. The file keeps the mode.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMA)


def connect() -> None:
    """Open this process's own connection."""
    global _connection
    _connection = _open()


def _open() -> sqlite3.Connection:
    # Autocommit: we begin transactions ourselves. A writer waits up to 10 s for its turn.
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
    """Add a job and return its number. `source` says who requested it."""
    cursor = _database().execute(
        "INSERT INTO jobs (kind, argument, source, source_pid, put_at) VALUES (?, ?, ?, ?, ?)",
        (kind, json.dumps(argument), source, os.getpid(), time.time()),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def take(worker: str) -> Job | None:
    """Take the oldest waiting job for `worker`; None if there is none."""
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
    """Record the result of a job that this process has taken."""
    _database().execute(
        "UPDATE jobs SET state = ?, ended_at = ?, result = ? WHERE id = ?",
        ("failed" if failed else "done", time.time(), result, job.id),
    )


def recover(worker: str) -> int:
    """Put back the jobs of an earlier process named `worker` that died; return their number.

    The companion manager never runs two processes of one name at the same time, so a running job with our
    name belongs to a dead process. A job whose workers have died several times has failed.
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
    """Add a periodic job if it is due; the database has the time of the next one.

    So a scheduler that was down neither forgets a job nor adds all that it missed.
    """
    now = time.time()
    with _writing() as connection:
        row = connection.execute("SELECT next_at FROM schedule WHERE kind = ?", (kind,)).fetchone()
        # More than one period away: the clock was set back, or the period is shorter now.
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
