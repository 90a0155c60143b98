# SPDX-License-Identifier: MIT
"""A load generator in Python: ``python -m benchmarks.client PORT FILE``, the requests in FILE, sent in turn.

One thread over ``epoll`` or what there is in its place. Without ``--rate`` each connection sends its next
request when the last is answered. With it requests are due at even intervals, whatever the server does; one
that finds no free connection waits for one, and that wait counts.

It costs more a request than a server in C, so a rate that it measures is bounded by itself.
"""

from __future__ import annotations

import argparse
import json
import re
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

from benchmarks.stats import percentile

LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.I)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.I)
CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.I)
LAST_CHUNK = b"\r\n0\r\n\r\n"
# Time that is left to answers that are under way when the run is over.
GRACE = 5.0


class Answer:
    """Knows where an answer ends; fed with what was received."""

    def __init__(self) -> None:
        self.head: bytes | None = None
        self.rest = b""
        self.remaining = 0
        self.chunked = False
        self.until_close = False
        self.good = False
        self.closes = False

    def feed(self, data: bytes) -> bool:
        """True when the answer is complete."""
        if self.head is None:
            self.rest += data
            head, found, data = self.rest.partition(b"\r\n\r\n")
            if not found:
                return False
            self._begin(head)
            self.rest = b"\r\n"  # so that an empty chunked body ends as any other
        if self.chunked:
            self.rest = (self.rest + data)[-len(LAST_CHUNK) :]
            return self.rest == LAST_CHUNK
        if self.until_close:
            return False
        self.remaining -= len(data)
        return self.remaining <= 0

    def _begin(self, head: bytes) -> None:
        self.head = head
        version, _, status = head[:12].partition(b" ")
        self.good = status[:1] == b"2"
        self.closes = CLOSE.search(head) is not None or version == b"HTTP/1.0"
        length = LENGTH.search(head)
        self.chunked = CHUNKED.search(head) is not None
        self.until_close = length is None and not self.chunked
        self.remaining = int(length[1]) if length is not None else 0

    def closed(self) -> bool:
        """The server has closed: True where that is the end of the answer."""
        return self.head is not None and self.until_close


class Client:
    """One connection and the request that is under way on it."""

    def __init__(self, port: int, requests: Iterator[bytes], selector: selectors.BaseSelector) -> None:
        self.port = port
        self.requests = requests
        self.selector = selector
        self.sock: socket.socket | None = None
        self.answer = Answer()
        self.request = b""
        self.unsent = memoryview(b"")
        self.due = 0.0

    def begin(self, due: float) -> None:
        """Send the next request; its time counts from *due*."""
        self.due = due
        self.answer = Answer()
        self.request = next(self.requests)
        self.unsent = memoryview(self.request)
        if self.sock is None:
            self.sock = socket.create_connection(("127.0.0.1", self.port), 10)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock.setblocking(False)
            self.selector.register(self.sock, selectors.EVENT_READ, self)
        self.send()

    def send(self) -> None:
        assert self.sock is not None
        try:
            self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except BlockingIOError:
            pass
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        wanted = both if self.unsent else selectors.EVENT_READ
        if self.selector.get_key(self.sock).events != wanted:
            self.selector.modify(self.sock, wanted, self)

    def on_event(self, mask: int) -> bool | None:
        """True: answered well; False: it failed; None: not yet."""
        assert self.sock is not None
        try:
            if mask & selectors.EVENT_WRITE:
                self.send()
            data = self.sock.recv(256 * 1024) if mask & selectors.EVENT_READ else None
        except BlockingIOError:
            return None
        except OSError:
            self.drop()
            return False
        if data is None:
            return None
        if not data:
            good = self.answer.closed() and self.answer.good
            self.drop()
            return good
        if not self.answer.feed(data):
            return None
        if self.answer.closes:
            self.drop()
        return self.answer.good

    def drop(self) -> None:
        if self.sock is not None:
            self.selector.unregister(self.sock)
            self.sock.close()
            self.sock = None


class Run:
    """A load of *seconds* on *connections*, paced where there is a *rate*."""

    def __init__(
        self,
        port: int,
        requests: Sequence[bytes],
        connections: int,
        seconds: float,
        rate: float | None,
        timed: bytes = b"",
    ):
        self.selector = selectors.DefaultSelector()
        in_turn = cycle(requests)
        self.clients = [Client(port, in_turn, self.selector) for _ in range(connections)]
        self.seconds = seconds
        self.rate = rate
        self.timed = timed
        self.latencies: list[float] = []
        self.answered = self.failed = 0
        self.last = 0.0

    def __call__(self) -> dict[str, float]:
        start = time.perf_counter()
        self.end = start + self.seconds
        (self._closed if self.rate is None else self._paced)(start)
        for client in self.clients:
            client.drop()
        self.selector.close()
        if not self.latencies:
            raise SystemExit("no request was answered")
        return {
            "requests": self.answered,
            "seconds": self.last - start,
            "p50": percentile(self.latencies, 0.5),
            "p99": percentile(self.latencies, 0.99),
            "failed": self.failed,
        }

    def _closed(self, start: float) -> None:
        for client in self.clients:
            client.begin(time.perf_counter())
        now, busy = start, len(self.clients)
        while busy and now < self.end + GRACE:
            for client in self._wait(1.0):
                now = time.perf_counter()
                if now < self.end:
                    client.begin(now)
                else:
                    busy -= 1

    def _paced(self, start: float) -> None:
        assert self.rate is not None
        total, begun = int(self.seconds * self.rate), 0
        free, interval = deque(self.clients), 1 / self.rate
        while len(free) < len(self.clients) or begun < total:
            now = time.perf_counter()
            if now > self.end + GRACE:
                # What was not even begun has failed as well.
                self.failed += total - begun + len(self.clients) - len(free)
                return
            while begun < total and free and start + begun * interval <= now:
                free.popleft().begin(start + begun * interval)
                begun += 1
            wait = 0.2
            if begun < total and free:
                # epoll waits in milliseconds: what is nearer is waited for without sleeping.
                wait = max(0.0, start + begun * interval - time.perf_counter() - 0.001)
            free.extend(self._wait(wait))

    def _wait(self, timeout: float) -> list[Client]:
        """The clients whose request has ended, its time noted."""
        done = []
        for key, mask in self.selector.select(timeout):
            client: Client = key.data
            good = client.on_event(mask)
            if good is None:
                continue
            self.last = time.perf_counter()
            if good:
                self.answered += 1
                if self.timed in client.request:
                    self.latencies.append(self.last - client.due)
            else:
                self.failed += 1
            done.append(client)
        return done


def read_requests(path: Path) -> list[bytes]:
    """What ``load.Request.write`` has written."""
    with path.open("rb") as file:
        return [file.read(int(size)) for size in iter(file.readline, b"")]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rate", type=float, help="requests a second; default: as many as are answered")
    parser.add_argument("--timed", default="", help="time only requests with this text in them")
    options = parser.parse_args(argv)
    requests = read_requests(options.file)
    timed = options.timed.encode()
    run = Run(options.port, requests, options.connections, options.seconds, options.rate, timed)
    json.dump(run(), sys.stdout)


if __name__ == "__main__":
    main()
