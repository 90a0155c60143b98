# SPDX-License-Identifier: MIT
"""One set of descriptors that many threads wait on, each event going to one of them.

A descriptor is watched for one event at a time: whoever gets it has it for itself until it is
watched again. So a thread that finds a request serves it, with no queue and no other thread in between.
"""

from __future__ import annotations

import os
import select
import selectors
import threading
from collections import deque
from contextlib import suppress
from typing import Any, Protocol


class Poller(Protocol):
    def watch(self, fd: int, *, write: bool = False) -> None:
        """Report *fd* once when it is readable (*write*: writable), hung up or in error."""

    def forget(self, fd: int) -> None:
        """Watch *fd* no longer; before it is closed."""

    def wait(self) -> int | None:
        """The next descriptor that is ready; None once ``stop()`` was called."""

    def stop(self) -> None:
        """End every wait, now and later."""

    def close(self) -> None:
        """Let go of the system's resources, when nobody waits any more."""


class EpollPoller:
    """The kernel does it all: it wakes one thread for one event."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._stop_reader, self._stop_writer = os.pipe()
        self._epoll.register(self._stop_reader, select.EPOLLIN)

    def watch(self, fd: int, *, write: bool = False) -> None:
        events = select.EPOLLONESHOT | (select.EPOLLOUT if write else select.EPOLLIN)
        try:
            self._epoll.modify(fd, events)
        except FileNotFoundError:
            self._epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        # Closing is not enough where the application has forked: the child's copy keeps it in the set.
        with suppress(OSError, ValueError):
            self._epoll.unregister(fd)

    def wait(self) -> int | None:
        while True:
            for fd, _ in self._epoll.poll(-1, 1):
                return None if fd == self._stop_reader else fd

    def stop(self) -> None:
        # Never read: it ends the wait of every thread.
        os.write(self._stop_writer, b"\0")

    def close(self) -> None:
        self._epoll.close()
        os.close(self._stop_reader)
        os.close(self._stop_writer)


class SelectorPoller:
    """The same by whatever the system has: one thread waits, the others wait for its place."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._turn = threading.Lock()
        self._changes: deque[tuple[int, int]] = deque()
        self._ready: deque[int] = deque()
        self._stopped = False
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)

    def watch(self, fd: int, *, write: bool = False) -> None:
        self._change(fd, selectors.EVENT_WRITE if write else selectors.EVENT_READ)

    def forget(self, fd: int) -> None:
        self._change(fd, 0)

    def _change(self, fd: int, events: int) -> None:
        # The selector belongs to the thread whose turn it is.
        self._changes.append((fd, events))
        self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._wake_writer, b"\0")

    def wait(self) -> int | None:
        with self._turn:
            while not self._stopped:
                if self._ready:
                    return self._ready.popleft()
                self._apply_changes()
                for key, _ in self._selector.select():
                    if key.fd == self._wake_reader:
                        with suppress(BlockingIOError):
                            os.read(self._wake_reader, 4096)
                    else:
                        self._set(key.fd, 0)
                        self._ready.append(key.fd)
            return None

    def _apply_changes(self) -> None:
        while self._changes:
            fd, events = self._changes.popleft()
            with suppress(OSError, ValueError):
                self._set(fd, events)

    def _set(self, fd: int, events: int) -> None:
        with suppress(KeyError):
            self._selector.unregister(fd)
        if events:
            self._selector.register(fd, events)

    def stop(self) -> None:
        self._stopped = True
        self._wake()

    def close(self) -> None:
        self._selector.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)


def make_poller() -> Any:
    """The best that the system has."""
    return EpollPoller() if hasattr(select, "epoll") else SelectorPoller()
