# SPDX-License-Identifier: MIT
"""What the workers with an event loop share: their tasks, and how they accept connections."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

from gunicorn.workers.base import Worker
from gunicorn.workers.connection import AcceptErrors, Connection, accept, hang_up_longest_idle

# How many connections one wake-up accepts, so that the loop does not neglect the others.
BURST = 16

# Seconds between looks at the connections.
SWEEP = 0.5

# The limit of a TLS handshake where `timeout` sets none.
HANDSHAKE_SECONDS = 30.0


class LoopWorker(Worker):
    """A worker whose connections live in ``loop``, at most ``worker_connections`` of them at a time."""

    loop: asyncio.AbstractEventLoop
    # A class keeps them in a form of its own.
    conns: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.worker_connections: int = self.cfg.worker_connections
        self._listeners: dict[int, Any] = {}
        self._paused: set[int] = set()
        self._accept_errors = AcceptErrors(self.log)
        self._tasks: set[asyncio.Task[None]] = set()

    def current_conns(self) -> Iterable[Connection]:
        """The connections that are open."""
        raise NotImplementedError

    def serve(self, client: Any, peer: Any) -> None:
        """Begin to serve a connection that was accepted. *client* does not block."""
        raise NotImplementedError

    @classmethod
    def places(cls, cfg: Any) -> int:
        connections: int = cfg.worker_connections
        return connections

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self.loop.create_task(work)
        # The loop itself holds no reference to it.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- listeners -----------------------------------------------------------------------

    def _watch(self, fd: int) -> None:
        self.loop.add_reader(fd, self._accept, fd)

    def _unwatch(self, fd: int) -> None:
        self.loop.remove_reader(fd)

    def _listen(self) -> None:
        for listener in self.sockets:
            listener.setblocking(False)
            self._listeners[listener.fileno()] = listener
            self._watch(listener.fileno())

    def stop_accepting(self) -> None:
        for fd in self._listeners:
            self._unwatch(fd)
        self._listeners.clear()
        self._paused.clear()

    def has_room(self) -> bool:
        return len(self.conns) < self.worker_connections

    def _accept(self, fd: int) -> None:
        listener = self._listeners[fd]
        # Among several workers each takes one at a time, so that a burst is spread over them.
        if not self.has_room():
            hang_up_longest_idle(self.current_conns())
            self._pause(fd)
            return
        for _ in range(BURST if self.cfg.workers == 1 else 1):
            if not self.has_room() or not self.take(listener):
                return

    def take(self, listener: Any) -> bool:
        """Begin to serve a connection from the accept queue; False if there is none."""
        try:
            client, peer = accept(listener)
        except BlockingIOError:
            return False
        except OSError as error:
            if self._accept_errors.is_transient(error):
                return True
            self._pause(listener.fileno())
            return False
        client.setblocking(False)
        self.serve(client, peer)
        return True

    def _pause(self, fd: int) -> None:
        """Accept nothing there until a connection ends."""
        if fd in self._listeners:
            self._unwatch(fd)
            self._paused.add(fd)

    def _resume_accepting(self, anyway: bool = False) -> None:
        while self._paused and (anyway or self.has_room()):
            self._watch(self._paused.pop())
