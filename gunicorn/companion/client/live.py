# SPDX-License-Identifier: MIT
"""Watch a server: look at it again and again, and follow the output of a companion."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gunicorn.companion.client.connection import Changes, Connection, Failure, Reply, connect, refusal
from gunicorn.companion.client.rows import Look, clean

# Seconds for the server to be found, and to answer.
TIMEOUT = 3.0
RETRY_INTERVAL = 0.5
# However much happens, two looks are this far apart.
SHORTEST_INTERVAL = 0.25
# Measuring memory takes at most this share of the server's time, but is done at least this often, in seconds.
MEMORY_SHARE = 0.05
LONGEST_MEMORY_INTERVAL = 10.0
# Lines of output that are kept, and that are asked for at first.
KEPT_LINES = 2000
FIRST_LINES = 200

Find = Callable[[], Connection]


@dataclass(frozen=True)
class Gone:
    """Nobody answers, since this time of day."""

    since: float
    problem: str


def finder(connection: Connection, path: str | None) -> Find:
    """How to find the server of *connection* again; without a *path* it may come back with another one."""
    last = connection.path

    def find() -> Connection:
        nonlocal last
        try:
            found = connect(last, 0.0)
        except Failure:
            found = connect(path, 0.0)
        found.sock.settimeout(TIMEOUT)
        last = found.path
        return found

    return find


def looks(find: Find, interval: float, over: threading.Event) -> Iterator[Look | Gone]:
    """Look every *interval* seconds, and when something has happened, until *over*."""
    gone = None
    while not over.is_set():
        try:
            with find() as connection, Changes(connection.path) as changes:
                asker = _Asker(connection, interval)
                while not over.is_set():
                    look = asker.look()
                    gone = None
                    yield look
                    _wait(changes, interval, over)
        except Failure as exc:
            gone = Gone(time.time() if gone is None else gone.since, clean(str(exc).splitlines()[0]))
            yield gone
            over.wait(RETRY_INTERVAL)


def _wait(changes: Changes, interval: float, over: threading.Event) -> None:
    deadline = time.monotonic() + interval
    over.wait(min(interval, SHORTEST_INTERVAL))
    while not over.is_set() and time.monotonic() < deadline:
        if changes.wait(deadline):
            return


class _Asker:
    """Asks one connection for what a look needs."""

    def __init__(self, connection: Connection, interval: float) -> None:
        self._connection = connection
        self._interval = interval
        self._knows_web = True
        # The kernel walks through all pages for it: not at each look if that takes long.
        self._memory_due = 0.0
        self._memory: dict[Any, Any] = {}

    def look(self) -> Look:
        began = time.monotonic()
        measure = {"memory": True} if began >= self._memory_due else {}
        status = self._connection.must(cmd="status", **measure)
        web = self._ask_web(measure)
        took = time.monotonic() - began
        measured = [*status["companions"], *(web or {}).get("workers", ())]
        if measure:
            self._memory_due = began + min(LONGEST_MEMORY_INTERVAL, took / MEMORY_SHARE)
            self._memory = {_process(one): one.get("memory") for one in measured}
        for one in measured:
            one["memory"] = self._memory.get(_process(one))
        return Look(began, time.time(), status.get("server", {}), status["companions"], web)

    def _ask_web(self, measure: Reply) -> Reply | None:
        if not self._knows_web:
            return None
        reply = self._connection.ask(cmd="web", **measure)
        if not reply.get("ok"):
            # An older server.
            self._knows_web = "unknown command" not in refusal(reply)
            return None
        web: Reply = reply["web"]
        return web


def _process(one: Reply) -> Any:
    return one.get("name"), one["pid"]


class Output(threading.Thread):
    """Follows the output of one companion. ``lines`` has the latest, ``count`` grows with each."""

    def __init__(self, find: Find, name: str) -> None:
        super().__init__(name=f"output of {name}", daemon=True)
        self.companion = name
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.count = 0
        self.problem: str | None = None
        self._find = find
        self._over = threading.Event()
        self._sock: socket.socket | None = None

    def end(self) -> None:
        self._over.set()
        if self._sock is not None:
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def run(self) -> None:
        request = {"cmd": "logs", "names": [self.companion], "lines": FIRST_LINES, "follow": True}
        last = 0.0
        while not self._over.is_set():
            try:
                with self._find() as connection:
                    self._sock = connection.sock
                    connection.must(**request)
                    self.problem = None
                    # The next line may take any time to come.
                    connection.sock.settimeout(None)
                    while not self._over.is_set():
                        last = self._take(json.loads(connection.line())) or last
            except (Failure, ValueError) as exc:
                self.problem = clean(str(exc).splitlines()[0])
            if last:
                # The process that answers was replaced, or the server.
                request.update(resume=True, since=last + 1e-6)
            self._over.wait(RETRY_INTERVAL)

    def _take(self, entry: Reply) -> float | None:
        if "left_out" in entry:
            self.lines.append(
                f"({entry['left_out']} lines are left out: they came faster than they were read)"
            )
        else:
            # Bytes that are no text were sent as surrogates.
            text = entry["line"].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            self.lines.append(clean(text))
        self.count += 1
        return entry.get("time")
