# SPDX-License-Identifier: MIT
"""One epoll set shared by threads; each event goes to one of them.

After ``watch()`` the set reports bytes that arrive, and bytes that are there already. It may also report,
once, bytes that arrive before the next ``watch()``. The thread that has the connection must then ask for
another check, with ``recheck()``.
"""

from __future__ import annotations

import os
import select
import selectors
import threading
from collections import deque
from contextlib import suppress
from typing import Any, Protocol

from gunicorn.unix.unpatched import original, threads_are_greenlets

# How many events are fetched at once; the next leader goes on with them.
_BATCH = 64


class Poller(Protocol):
    def watch(self, fd: int, *, write: bool = False) -> None:
        """Report *fd* once when it is readable (*write*: writable), hung up or in error.

        The caller must have received everything from the last report, or have called ``recheck()``.
        """

    def watch_listener(self, fd: int) -> None:
        """Report *fd* once, to one thread, when clients wait to be accepted."""

    def recheck(self, fd: int) -> None:
        """Let the next ``watch()`` check for bytes: not all were received, or a report was dropped."""

    def renew(self, fd: int) -> None:
        """Take *fd* for a new connection's number; whatever had it before was closed."""

    def forget(self, fd: int) -> None:
        """Watch *fd* no longer; before it is closed."""

    def wait(self, most: int = _BATCH) -> int | None:
        """The next descriptor that is ready; None once ``stop()`` was called.

        *most*: of how many others that are ready this thread is to know; they wait for its next call.
        """

    def has_more(self) -> bool:
        """Whether more is ready than ``wait()`` has given."""

    def next_ready(self) -> int | None:
        """As ``wait()``, without waiting: None if nothing more is known to be ready."""

    def nudge(self) -> None:
        """Let a thread that waits return with a descriptor that nobody has."""

    def stop(self) -> None:
        """End every wait, now and later."""


# gevent removes it.
_epoll: Any = original("select", "epoll")

if _epoll is not None:
    _READ_EDGE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
    _WRITE_EDGE = select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
    _ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class EpollPoller:
    """Connections stay in the kernel's set, edge-triggered: once it watches one, that costs nothing more."""

    def __init__(self) -> None:
        self._epoll = _epoll()
        self._stop_reader, self._stop_writer = os.pipe()
        self._epoll.register(self._stop_reader, select.EPOLLIN)
        # The events that the kernel watches for each number; 0 if it may have unreported bytes.
        self._watched: dict[int, int] = {}
        self._ready: deque[tuple[int, int]] = deque()

    def watch(self, fd: int, *, write: bool = False) -> None:
        events = _WRITE_EDGE if write else _READ_EDGE
        if self._watched.get(fd) != events:
            self._watch(fd, events)

    def watch_listener(self, fd: int) -> None:
        # A client that waits would wake all threads, one after the other, until one has accepted it.
        self._watch(fd, select.EPOLLIN | select.EPOLLONESHOT)

    def _watch(self, fd: int, events: int) -> None:
        known = self._watched.get(fd)
        # Before the call: the event may come at once, and a recheck() for it must not be overwritten.
        self._watched[fd] = events
        try:
            if known is None:
                self._epoll.register(fd, events)
            else:
                # This also checks for bytes that are there already.
                self._epoll.modify(fd, events)
        except FileExistsError:
            self._epoll.modify(fd, events)
        except FileNotFoundError:
            self._epoll.register(fd, events)

    def recheck(self, fd: int) -> None:
        if fd in self._watched:
            self._watched[fd] = 0

    def renew(self, fd: int) -> None:
        self._watched.pop(fd, None)

    def forget(self, fd: int) -> None:
        # Closing is not enough where the application has forked: the child's copy keeps it in the set.
        if self._watched.pop(fd, None) is not None:
            with suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    def wait(self, most: int = _BATCH) -> int | None:
        while True:
            try:
                return self._take()
            except IndexError:
                self._ready.extend(self._epoll.poll(-1, most))

    def has_more(self) -> bool:
        return bool(self._ready)

    def next_ready(self) -> int | None:
        try:
            return self._take()
        except IndexError:
            return None

    def _take(self) -> int | None:
        fd, events = self._ready.popleft()
        if fd == self._stop_reader:
            self._ready.append((fd, events))
            return None
        if events & _ENDING:
            # End of input is reported together with the bytes before it, and only once.
            self.recheck(fd)
        return fd

    def nudge(self) -> None:
        # It can always be written to, which is reported once.
        self._watch(self._stop_writer, select.EPOLLOUT | select.EPOLLONESHOT)

    def stop(self) -> None:
        # Never read: it ends the wait of every thread.
        os.write(self._stop_writer, b"\0")


class SelectorPoller:
    """The same with whatever the system has: one thread waits, the others wait to take its place."""

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

    watch_listener = watch

    def recheck(self, fd: int) -> None:
        """Nothing: ``watch()`` always checks."""

    renew = recheck

    def forget(self, fd: int) -> None:
        self._change(fd, 0)

    def _change(self, fd: int, events: int) -> None:
        # Only the thread that waits may use the selector.
        self._changes.append((fd, events))
        self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._wake_writer, b"\0")

    def wait(self, most: int = _BATCH) -> int | None:
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

    def has_more(self) -> bool:
        return bool(self._ready)

    def next_ready(self) -> int | None:
        try:
            return self._ready.popleft()
        except IndexError:
            return None

    def nudge(self) -> None:
        # Where something is ready, a thread that comes to wait finds it.
        if not self._ready:
            self._ready.append(self._wake_reader)
            self._wake()

    def stop(self) -> None:
        self._stopped = True
        self._wake()


def make_poller() -> Poller:
    """The best that the system has. Greenlets wait by the loop of gevent, which patches selectors."""
    return SelectorPoller() if _epoll is None or threads_are_greenlets() else EpollPoller()
