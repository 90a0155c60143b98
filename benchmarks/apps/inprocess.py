# SPDX-License-Identifier: MIT
"""Have a worker serve COUNT requests in this process, by itself: ``python inprocess.py CASE COUNT FILE``.

The client is a socket that has the next request of those in FILE (each after a line with its length) whenever
it is asked; nothing is waited for, and no two runs differ but by COUNT. Ends with an error if not every
request has been answered well.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

import webapps  # type: ignore[import-not-found]  # beside this file, which is run by itself

from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.scoreboard import Scoreboard
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker
from gunicorn.workers.threads.tconn import TConn

SERVER, CLIENT = ("127.0.0.1", 8000), ("127.0.0.1", 50000)
#: The worker, and what else there is.
CASES: dict[str, tuple[str, str]] = {
    "gthread": ("gthread", ""),
    "gthread-access-log": ("gthread", "access log"),
    "gthread-scoreboard": ("gthread", "scoreboard"),
    "sync": ("sync", ""),
    "sync-access-log": ("sync", "access log"),
    "sync-scoreboard": ("sync", "scoreboard"),
}


class Client:
    """Has the next request whenever it is asked for one, and counts good answers."""

    def __init__(self, requests: Iterator[bytes], descriptor: int) -> None:
        self.requests = requests
        self.descriptor = descriptor
        self.answered = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        return next(self.requests)

    def sendall(self, data: bytes) -> None:
        self.answered += data.endswith(webapps.HELLO)

    def send(self, data: bytes, flags: int = 0) -> int:
        self.sendall(data)
        return len(data)

    def fileno(self) -> int:
        return self.descriptor

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        pass

    def close(self) -> None:
        pass


def serve(case: str, count: int, requests: Sequence[bytes]) -> int:
    """Serve *count* requests in turn as *case* says; returns how many were answered well."""
    worker_class, more = CASES[case]
    ours, theirs = socket.socketpair()
    # On a disk or not, a file is what an access log costs its server.
    with ours, theirs, tempfile.NamedTemporaryFile(prefix="access-") as log:
        client = Client(cycle(requests), ours.fileno())
        cfg = Config()
        cfg.set("worker_class", worker_class)
        cfg.set("accesslog", log.name if more == "access log" else None)
        if worker_class == "gthread":
            cfg.set("threads", 8)
            serve_kept(cfg, client, count, more == "scoreboard")
        else:
            serve_each(cfg, client, count, more == "scoreboard")
    return client.answered


def serve_kept(cfg: Config, client: Client, count: int, scoreboard: bool) -> None:
    """All on one connection, from the report that it is readable to the next wait."""
    worker: Any = ThreadWorker(0, os.getpid(), [], None, 30, cfg, Logger(cfg))
    worker.wsgi = webapps.hello
    worker.slot = Scoreboard.create().take(0) if scoreboard else None
    if worker.slot is not None:
        worker.slot.watched = True
        worker.slot.limit = 60.0  # under valgrind a quick request may take longer than a millisecond
    worker._prepare_threads()
    conn = TConn(cfg, client, CLIENT, SERVER, worker.team.batch)
    conn.init(None, worker.cycle.policy)
    worker.conns[id(conn)] = conn
    conn.deadline = time.monotonic() + 3600
    worker.waiting.park(conn)
    for _ in range(count):
        worker.attend(conn.fd)


def serve_each(cfg: Config, client: Client, count: int, scoreboard: bool) -> None:
    """Each on a connection of its own, from its acceptance to its end."""
    listener = object()
    worker: Any = SyncWorker(0, os.getpid(), [listener], None, 30, cfg, Logger(cfg))
    worker.wsgi = webapps.hello
    worker.slot = Scoreboard.create().take(0) if scoreboard else None
    if worker.slot is not None:
        worker.slot.single = True
        worker.slot.limit = 60.0
    worker._names = {listener: SERVER}
    for _ in range(count):
        worker.handle(listener, client, CLIENT)


if __name__ == "__main__":
    wanted = int(sys.argv[2])
    with open(sys.argv[3], "rb") as file:
        sent = [file.read(int(size)) for size in iter(file.readline, b"")]
    answered = serve(sys.argv[1], wanted, sent)
    if answered != wanted:
        sys.exit(f"{answered} of {wanted} requests were answered well")
