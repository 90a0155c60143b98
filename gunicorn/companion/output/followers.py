# SPDX-License-Identifier: MIT
"""Answer ``logs``: the last lines of companions, and the next ones as they come."""

from __future__ import annotations

import contextlib
import heapq
import json
import select
import socket
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gunicorn.companion.output.lines import Lines, lines_of, split
from gunicorn.companion.output.ring import KINDS, Ring
from gunicorn.unix.poller import READABLE, WRITABLE, Poller

# What waits for a client that does not read, unless it asks for more. Lines beyond it are counted, not sent.
_MOST_UNREAD = 1024 * 1024


class Wanted(NamedTuple):
    """What a client has asked for. *lines*: how many; *since*: none that are older than this time.

    *resume*: all since then. *unread*: how many bytes may wait for it.
    """

    # None at all: everybody's.
    names: frozenset[str]
    lines: int
    since: float
    kind: int | None
    follow: bool
    resume: bool
    unread: int

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Wanted:
        kind = request.get("stream")
        return cls(
            frozenset(request["names"]),
            # No deque is longer.
            min(int(request["lines"]), sys.maxsize),
            float(request["since"]),
            None if kind is None else KINDS.index(kind),
            bool(request["follow"]),
            bool(request["resume"]),
            int(request.get("unread", _MOST_UNREAD)),
        )

    def includes(self, name: str, kind: int) -> bool:
        return (not self.names or name in self.names) and self.kind in (None, kind)


class Follower:
    """One client, until it has all lines or hangs up."""

    def __init__(self, sock: socket.socket, wanted: Wanted) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.wanted = wanted
        self.output = bytearray()
        self.left_out = 0
        # Whether it has closed its side.
        self.ended = False

    def add(self, name: str, pid: int, kind: int, moment: float, lines: Iterable[bytes]) -> None:
        head = {"name": name, "pid": pid, "stream": KINDS[kind], "time": round(moment, 6)}
        start = json.dumps(head)[:-1]
        for line in lines:
            if len(self.output) > self.wanted.unread:
                self.left_out += 1
                continue
            self.tell_left_out()
            # What is not UTF-8 comes out at the other end as it went in.
            text = json.dumps(line.decode("utf-8", "surrogateescape"))
            self.output += f'{start}, "line": {text}}}\n'.encode()

    def tell_left_out(self) -> None:
        if self.left_out:
            self.output += json.dumps({"left_out": self.left_out}).encode() + b"\n"
            self.left_out = 0


class Followers:
    """All clients of ``logs``. A slow one delays nobody."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self._followers: dict[int, Follower] = {}

    def answer(
        self, sock: socket.socket, request: Mapping[str, Any], rings: Mapping[str, Ring], most: int
    ) -> None:
        """Send the kept lines, at most *most* of each companion; with ``follow`` all others from now on."""
        follower = Follower(sock, Wanted.of(request))
        self._followers[sock.fileno()] = follower
        self.poller.add(sock.fileno(), lambda events: self._on_event(follower, events))
        reply = {"ok": True, "names": sorted(follower.wanted.names or rings)}
        follower.output += json.dumps(reply).encode() + b"\n"
        for moment, name, pid, kind, line in self._kept(follower.wanted, rings, most):
            follower.add(name, pid, kind, moment, [line])
        self._send(follower)

    def _kept(
        self, wanted: Wanted, rings: Mapping[str, Ring], most: int
    ) -> Iterable[tuple[float, str, int, int, bytes]]:
        each = (
            self._kept_of(name, rings[name], wanted, most)
            for name in sorted(wanted.names or rings)
            if name in rings
        )
        found = heapq.merge(*each, key=lambda entry: entry[0])
        return deque(found, maxlen=None if wanted.resume else wanted.lines)

    def _kept_of(
        self, name: str, ring: Ring, wanted: Wanted, most: int
    ) -> Iterable[tuple[float, str, int, int, bytes]]:
        records = (record for record in ring.records() if wanted.includes(name, record.kind))
        # With more to come, the end of an unfinished line comes too.
        found = lines_of(((record, ring.data(record)) for record in records), not wanted.follow)
        lines = [(r.time, name, r.pid, r.kind, line) for r, line in found if r.time >= wanted.since]
        # One who goes on after a pause gets all that he has not had.
        most = len(lines) if wanted.resume else min(wanted.lines, most)
        return lines[-most:] if most else []

    def tell(self, lines: Lines) -> None:
        """Send new lines to those who follow their companion."""
        for follower in list(self._followers.values()):
            if follower.wanted.follow and follower.wanted.includes(lines.name, lines.kind):
                waits = bool(follower.output)
                follower.add(lines.name, lines.pid, lines.kind, lines.time, split(lines.text))
                if not waits:
                    self._send(follower)

    def _on_event(self, follower: Follower, events: int) -> None:
        if events & (select.POLLHUP | select.POLLERR):
            self._drop(follower)
            return
        if events & READABLE:
            # It has nothing more to ask, and may go on to listen when it has closed its side.
            with contextlib.suppress(OSError):
                follower.ended = not follower.sock.recv(4096)
        self._send(follower)

    def _send(self, follower: Follower) -> None:
        while follower.output:
            try:
                sent = follower.sock.send(memoryview(follower.output)[:262144])
            except BlockingIOError:
                break
            except OSError:
                self._drop(follower)
                return
            del follower.output[:sent]
            if not follower.output:
                # Now, because the line that was left out may be the last one for long.
                follower.tell_left_out()
        if not follower.output and not follower.wanted.follow:
            self._drop(follower)
            return
        wanted = (WRITABLE if follower.output else 0) | (0 if follower.ended else READABLE)
        self.poller.modify(follower.sock.fileno(), wanted)

    def _drop(self, follower: Follower) -> None:
        fd = follower.sock.fileno()
        if self._followers.pop(fd, None) is not None:
            self.poller.remove(fd)
            follower.sock.close()
