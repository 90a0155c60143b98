# SPDX-License-Identifier: MIT
"""The graceful end of a worker, the same for all classes: answer open requests, then close every connection.

A wait for a client is never interrupted; instead the receiving side of its connection is shut down. The
waiting code then finds the bytes that had arrived, if any, and answers them before the end of input.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Protocol

from gunicorn.workers.connection import Connection, State, is_readable

# How many seconds a retiring worker waits for a connection in each state. A client that is about to send a
# request gets an answer with "Connection: close"; closing the connection under it would be a reset.
LAST_WAIT = {State.IDLE: 0.5, State.NEW: 1.0, State.HEAD: 2.0, State.HANDSHAKE: 2.0}

# How often a retiring worker looks at its connections.
RETIRE_TICK = 0.1

# How long it serves clients that wait to be accepted: under load the queue is never empty.
_DRAIN_SECONDS = 5.0


class Retiring(Protocol):
    """The methods of a worker class that its graceful end needs."""

    cfg: Any
    log: Any
    tmp: Any
    sockets: list[Any]

    @property
    def conns(self) -> Collection[Any]:
        """The open connections, by keys that stay the same."""

    def notify(self) -> None:
        """Send a heartbeat."""

    def graceful_deadline(self) -> float:
        """The moment at which the master stops waiting."""

    def at_work(self) -> Collection[Any]:
        """The keys of connections whose requests may hold the worker up for long."""

    def stop_accepting(self) -> None:
        """Accept connections only by ``take()`` from now on."""

    def has_room(self) -> bool:
        """Whether another connection may be taken."""

    def take(self, listener: Any) -> bool:
        """Begin to serve a connection from the accept queue; False if there is none."""

    def close_silent(self, retired_at: float) -> None:
        """Close connections that have waited for the time in LAST_WAIT, counted from *retired_at* at the
        earliest.
        """


def retire(worker: Retiring) -> Iterator[float]:
    """End *worker* gracefully, in steps.

    Each item is a number of seconds: the worker goes on serving for so long, or until a connection ends, and
    then asks for the next one. Connections that are open after the last one are to be cut off.
    """
    started = time.monotonic()
    deadline = end_by(worker)
    # The requests that are taken from the queue need time, too.
    drain_seconds = min(float(worker.cfg.graceful_timeout) / 2, _DRAIN_SECONDS)
    worker.log.debug("Worker %s retires with %d connections", os.getpid(), len(worker.conns))
    at_work = worker.at_work()
    # Meanwhile everything goes on, but each response says close.
    yield from _wait_while_connected(worker, started, min(started + LAST_WAIT[State.IDLE], deadline))
    worker.stop_accepting()
    if worker.tmp.leaving:
        # The master is still there, and keeps the queue for this worker's successor.
        yield from _serve_stalled(worker, started, at_work, deadline - drain_seconds)
    else:
        yield from _drain_queues(worker, started, min(time.monotonic() + drain_seconds, deadline))
    for listener in worker.sockets:
        close_listener(listener)
    yield from _wait_while_connected(worker, started, deadline)
    if worker.conns:
        worker.log.warning("Worker %s exits with %d requests unfinished", os.getpid(), len(worker.conns))


def end_by(worker: Retiring) -> float:
    """When *worker* must be done with its clients: a little before the master kills it."""
    return worker.graceful_deadline() - min(1.0, float(worker.cfg.graceful_timeout) / 4)


def _wait_while_connected(worker: Retiring, retired_at: float, until: float) -> Iterator[float]:
    while worker.conns and (now := time.monotonic()) < until:
        worker.close_silent(retired_at)
        yield min(RETIRE_TICK, until - now)


def _drain_queues(worker: Retiring, retired_at: float, until: float) -> Iterator[float]:
    """Serve the clients in the accept queues.

    The master may have closed its own listeners; the last process to close one resets clients in its queue.
    """
    for listener in worker.sockets:
        while time.monotonic() < until:
            worker.notify()
            if not worker.has_room():
                worker.close_silent(retired_at)
                yield RETIRE_TICK
            elif not worker.take(listener):
                break
        # At once: a client that comes between the last look and here is lost.
        close_listener(listener)


def _serve_stalled(
    worker: Retiring, retired_at: float, at_work: Collection[Any], until: float
) -> Iterator[float]:
    """Serve clients that no other worker accepts, as long as requests hold this worker.

    The master may start a successor only at its exit. A client that was already in the queue at the last
    check is one that no other worker accepts.
    """
    waited: set[Any] = set()
    while time.monotonic() < until and any(key in worker.conns for key in at_work):
        waiting = set(filter(is_readable, worker.sockets))
        for listener in waiting & waited:
            while time.monotonic() < until and worker.has_room() and worker.take(listener):
                worker.notify()
        waited = waiting - waited
        worker.close_silent(retired_at)
        yield 2 * RETIRE_TICK


def close_silent(conns: Iterable[Connection], retired_at: float) -> None:
    """Close connections that have waited long enough for a worker that retires since *retired_at*."""
    now = time.monotonic()
    for conn in conns:
        if now - max(conn.since, retired_at) >= LAST_WAIT.get(conn.state, now):
            conn.hang_up()


def close_listener(listener: Any) -> None:
    """Close the socket in *listener*, so that code that is about to use it gets a plain OSError."""
    getattr(listener, "sock", listener).close()
