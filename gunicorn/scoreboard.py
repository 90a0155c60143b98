# SPDX-License-Identifier: MIT
"""The scoreboard: what each web worker is doing, in memory that master, workers and manager share.

Each worker writes its own slot; the master gives slots out, takes them back, and keeps the totals of workers
that are gone. Any process forked from the master reads all of it without asking anybody, so a worker that
hangs can be read as well as any other. Every number is one aligned word, which no reader sees half written.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import heapq
import mmap
import os
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from time import monotonic_ns
from typing import Any, Final, NamedTuple

from gunicorn.companion.runfile import unnamed_file
from gunicorn.unix.libc import map_shared

#: Upper bounds of the histogram of durations, in seconds; one more bucket is for longer ones.
BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
#: Classes of answers. The first row is for requests that the application answered on the socket itself.
ANSWERS: Final = ("", "1xx", "2xx", "3xx", "4xx", "5xx")
#: Why workers end.
ENDS: Final = (
    "exit",
    "reload",
    "max_requests",
    "timeout",
    "killed",
    "crash",
    "boot",
    "command",
    "memory",
    "lifetime",
    "idle",
)
#: What comes of reloads.
RELOADS: Final = ("applied", "refused")
#: More workers than this serve as well, without a slot.
SLOTS: Final = 1024

_FORMAT = 0x67756E69_00000003  # to be changed with the layout: a successor may be of another version
_WORD = 8
_COLUMNS = len(BUCKETS) + 1
# How often a reader begins again because the master is just moving numbers.
_TRIES = 1000


class Field(NamedTuple):
    """A part of the layout: *size* words of 8 bytes."""

    name: str
    size: int
    meaning: str


#: Only ever growing. A slot has those of its worker, the header those of workers that are gone.
COUNTERS: Final = (
    Field("quick", 1, "requests that were answered with 200 within the first bucket"),
    Field("bytes", 1, "bytes of content sent"),
    Field("spent", 1, "nanoseconds spent in requests"),
    Field(
        "answered",
        len(ANSWERS) * _COLUMNS,
        "requests, a row for each class of answers, a column for each bucket",
    ),
)
SLOT: Final = (
    Field("pid", 1, "0: the slot is free"),
    Field("age", 1, "the worker's number, counted from the start of the master"),
    Field("started", 1, "when it was forked, in nanoseconds of the monotonic clock"),
    Field("booted", 1, "1 from its first heartbeat on"),
    Field("retiring", 1, "1 once it has been told to end, or ends by itself"),
    Field("cause", 1, "why it ends by itself: 1 more than the place in ENDS"),
    Field("connections", 1, "open connections"),
    Field("running", 1, "requests that are being served, if there are several"),
    Field("since", 1, "when the oldest of them began, in seconds as a floating-point number; 0: none"),
    Field("method", 1, "its method, the first 8 bytes"),
    Field("path", 16, "its path, without query"),
    *COUNTERS,
)
HEADER: Final = (
    Field("format", 1, "the number of this layout"),
    Field("slots", 1, "how many there are"),
    Field("used", 1, "the slots from this number on have never been used"),
    Field("turn", 1, "odd while the master moves numbers from a slot to the totals"),
    Field("master", 1, "its pid"),
    Field("beat", 1, "when its loop last turned, as started"),
    Field("wanted", 1, "how many workers there should be"),
    Field("fixed", 1, "how many of them whatever the load"),
    Field("most", 1, "how many there may be, if the load asks for them"),
    Field("threads", 1, "of each worker"),
    Field("class", 16, "the worker class"),
    Field("absorbed", 1, "1 once the totals hold those of the old master's scoreboard"),
    Field("ends", len(ENDS), "workers that have ended, by cause"),
    Field("reloads", len(RELOADS), "reloads, by result"),
    *COUNTERS,
)


def places(fields: Iterable[Field]) -> tuple[dict[str, int], int]:
    """Return the first word of each field, and the number of all words."""
    found, size = {}, 0
    for field in fields:
        found[field.name] = size
        size += field.size
    return found, size


_H, _HEADER_SIZE = places(HEADER)
_S, _SLOT_SIZE = places(SLOT)
_SIZES = {field.name: field.size for field in (*HEADER, *SLOT)}
_COUNTER_WORDS = sum(field.size for field in COUNTERS)

_RUNNING, _SINCE, _METHOD = _S["running"], _S["since"], _S["method"]
_QUICK, _BYTES, _SPENT, _ANSWERED = (_S[field.name] for field in COUNTERS)
_PATH_SIZE = _SIZES["path"] * _WORD


class Slot:
    """The part of one worker. Requests are any distinct objects with ``method`` and ``path``.

    ``Cycle.serve()`` writes the usual case by itself, which costs no call: `begin`, and `end` for a request
    that was answered with 200 within ``limit`` seconds. Threads lose nothing of each other's ``+=``: the
    interpreter switches only at calls and loops. Where it has no lock, ``limit`` is negative.
    """

    #: Seconds until what was counted is written out, while requests come one after the other.
    WRITE_INTERVAL = 0.1

    __slots__ = (
        "_lock",
        "_memory",
        "_words",
        "_written",
        "is_due",
        "limit",
        "method",
        "number",
        "path",
        "quick",
        "running",
        "sent",
        "since",
        "single",
        "spent",
        "watched",
        "write_later",
    )

    def __init__(self, words: memoryview, path: Any, number: int) -> None:
        self.number = number
        self.path = path
        self.method = ""
        self._words = words
        self._memory = words.cast("B")
        #: The word of this name, alone.
        self.since = self._memory.cast("d")[_SINCE : _SINCE + 1]
        # Not of `threading`: a lock of gevent's would cost more, and nothing waits within.
        self._lock = _thread.allocate_lock()
        self._written = 0.0
        #: Whether what was counted is to be written soon.
        self.is_due = False
        #: Called when something was counted: it is to have `write` called soon. Then not until after that.
        self.write_later: Callable[[], object] | None = None
        #: Requests that are being served, the oldest first, and since when (by ``time.monotonic()``).
        self.running: dict[Any, float] = {}
        #: Whether another thread calls `look` and shows what is running; without, each request shows itself.
        self.watched = False
        #: Whether there is only one request at a time.
        self.single = False
        self.limit = BUCKETS[0] if getattr(sys, "_is_gil_enabled", lambda: True)() else -1.0
        self.quick = self.sent = 0
        self.spent = 0.0

    def get(self, name: str) -> int:
        """Return the word of a field."""
        value: int = self._words[_S[name]]
        return value

    def set(self, name: str, value: int) -> None:
        """Write the word of a field."""
        self._words[_S[name]] = value

    def retire(self, cause: str | None = None) -> None:
        """Note that the worker ends; with a *cause* of ENDS, that it does so by itself."""
        self.set("retiring", 1)
        if cause is not None:
            self.set("cause", ENDS.index(cause) + 1)

    @property
    def cause(self) -> str | None:
        """Why the worker said that it ends by itself; None if it has not."""
        number = self.get("cause")
        return ENDS[number - 1] if 0 < number <= len(ENDS) else None

    # -- the worker ----------------------------------------------------------------------------

    def begin(self, request: Any, since: float) -> None:
        """Note that *request* is being served."""
        if not (self.watched or self.running):
            self.show(request, since)
        if not self.single:
            self.running[request] = since
            self._words[_RUNNING] = len(self.running)

    def show(self, request: Any, since: float) -> None:
        """Show *request* as the one that has run for the longest time."""
        self.since[0] = 0.0
        if request.method != self.method:
            self.set_method(request.method)
        try:
            self.path.value = request.path.encode()
        except ValueError:
            self.path.value = request.path.encode("utf-8", "replace")[:_PATH_SIZE]
        self.since[0] = since

    def set_method(self, method: str) -> None:
        """Show another method from now on."""
        self.method = method
        shown = method.encode("utf-8", "replace")[:_WORD].ljust(_WORD, b"\0")
        self._words[_METHOD] = int.from_bytes(shown, sys.byteorder)

    def end(self, request: Any, since: float, status: int | None, sent: int) -> None:
        """Count *request*, answered with *status* (None: by the application itself) and *sent* bytes."""
        took = time.monotonic() - since
        row = status // 100 if status is not None and 100 <= status < 600 else 0
        with self._lock:
            self.sent += sent
            self.spent += took
            self._words[_ANSWERED + row * _COLUMNS + bisect_left(BUCKETS, took)] += 1
        self.forget(request)
        if self.watched:
            # Who looks may have stopped doing so, as there is nothing else to do.
            self.write()

    def refuse(self, request: Any, status: int, sent: int) -> None:
        """Count *request*, which was answered before the application could have it."""
        now = time.monotonic()
        self.end(request, self.running.get(request, now), status, sent)

    def forget(self, request: Any) -> None:
        """Note that *request* is not being served any more."""
        since = self.running.pop(request, None)
        # Who looks may have stopped doing so, as nothing has begun.
        if not self.watched or since == self.since[0] or self._words[_RUNNING]:
            self.settle()

    def settle(self) -> None:
        """Show what is still running after a request has ended, and see to it that this is written."""
        self.show_oldest()
        if self.write_later is not None and not self.is_due:
            self.is_due = True
            self.write_later()

    def show_oldest(self) -> None:
        """Show the request that has run for the longest time, if there is one."""
        with self._lock:
            running = self.running.copy()
            # A single one is known by its text.
            self._words[_RUNNING] = len(running) if len(running) > 1 else 0
            request, since = next(iter(running.items()), (None, 0.0))
            if request is None:
                self.since[0] = 0.0
            elif self.since[0] != since:
                self.show(request, since)

    def look(self, idle: bool) -> None:
        """Show what is running, and what was counted: all of it, if the worker is *idle*."""
        if not self.single or idle:
            self.show_oldest()
        if idle or time.monotonic() - self._written >= self.WRITE_INTERVAL:
            self.write()

    def write(self) -> None:
        """Write out what was counted."""
        self.is_due = False
        self._written = time.monotonic()
        with self._lock:
            words = self._words
            words[_QUICK], words[_BYTES], words[_SPENT] = self.quick, self.sent, int(self.spent * 1e9)

    # -- readers -------------------------------------------------------------------------------

    @property
    def serving(self) -> int:
        """How many requests are being served."""
        return max(self.get("running"), int(self.since[0] != 0))

    def oldest(self) -> tuple[float, bytes, bytes] | None:
        """Return since when the oldest request runs, its method and its path."""
        for _ in range(_TRIES):
            since = self.since[0]
            method = self.get("method").to_bytes(_WORD, sys.byteorder)
            path = bytes(self._memory[_S["path"] * _WORD : _S["path"] * _WORD + _PATH_SIZE])
            if since == self.since[0]:
                return (since, method.rstrip(b"\0"), path.partition(b"\0")[0]) if since else None
        return None


class Scoreboard:
    """The shared memory; ``fd`` is for a successor, which reads on in it."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self._map = map_shared(fd, size) or mmap.mmap(fd, size)
        self._memory = memoryview(self._map).cast("B")
        self._words = self._memory.cast("Q")
        self._free: list[int] = []
        #: That of the master which this one succeeds.
        self.old: Scoreboard | None = None

    @classmethod
    def create(cls, slots: int = SLOTS) -> Scoreboard:
        """Make one for this process as the master. Raises OSError."""
        fd = unnamed_file("gunicorn-scoreboard")
        try:
            size = (_HEADER_SIZE + slots * _SLOT_SIZE) * _WORD
            os.truncate(fd, size)
            board = cls(fd, size)
        except BaseException:
            os.close(fd)
            raise
        board._free = list(range(slots))
        board._set("format", _FORMAT)
        board._set("slots", slots)
        board._set("master", os.getpid())
        board._set("beat", monotonic_ns())
        return board

    @classmethod
    def inherit(cls, fd: int) -> Scoreboard:
        """Open that of an old master. Raises OSError, and ValueError for one of another version."""
        size = os.fstat(fd).st_size
        if size < _HEADER_SIZE * _WORD:
            raise ValueError("it is too short")
        board = cls(fd, size)
        board.fd = -1
        wanted = _HEADER_SIZE + board._get("slots") * _SLOT_SIZE
        if board._get("format") != _FORMAT or wanted * _WORD > size:
            raise ValueError("it has another layout")
        return board

    def close_descriptor(self) -> None:
        """Close ``fd``; the memory stays."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _get(self, name: str) -> int:
        value: int = self._words[_H[name]]
        return value

    def _set(self, name: str, value: int) -> None:
        self._words[_H[name]] = value

    def _slot(self, number: int) -> Slot:
        first = _HEADER_SIZE + number * _SLOT_SIZE
        path = (ctypes.c_char * _PATH_SIZE).from_buffer(self._map, (first + _S["path"]) * _WORD)
        return Slot(self._words[first : first + _SLOT_SIZE], path, number)

    # -- the master ----------------------------------------------------------------------------

    def beat(self, wanted: int, worker_class: str, threads: int, *, fixed: int = 0, most: int = 0) -> None:
        """Note that the master's loop turns, and what workers it wants."""
        self._set("beat", monotonic_ns())
        self._set("wanted", wanted)
        self._set("fixed", fixed or wanted)
        self._set("most", max(most, fixed or wanted))
        self._set("threads", threads)
        first, size = _H["class"] * _WORD, _SIZES["class"] * _WORD
        name = worker_class.encode("utf-8", "replace")[:size].ljust(size, b"\0")
        if bytes(self._memory[first : first + size]) != name:
            self._memory[first : first + size] = name

    def take(self, age: int) -> Slot | None:
        """Give a slot to the next worker; None if all are taken. It counts once its ``pid`` is set."""
        if not self._free:
            return None
        slot = self._slot(heapq.heappop(self._free))
        slot.set("age", age)
        slot.set("started", monotonic_ns())
        self._set("used", max(self._get("used"), slot.number + 1))
        return slot

    def take_back(self, slot: Slot, cause: str | None = None) -> None:
        """Take the slot of a worker that is gone, which ended by a *cause* of ENDS, or was never forked."""
        with self._moving():
            self._add(slot._words[_S[COUNTERS[0].name] :])
            if cause is not None:
                self._words[_H["ends"] + ENDS.index(cause)] += 1
            slot._memory[:] = bytes(len(slot._memory))
        heapq.heappush(self._free, slot.number)

    def count_reload(self, result: str) -> None:
        """Count a reload, whose *result* is one of RELOADS."""
        self._words[_H["reloads"] + RELOADS.index(result)] += 1

    def absorb_old(self) -> None:
        """Add the numbers of the old master, which is gone: the next successor reads only this scoreboard."""
        if self.old is None:
            return
        with self._moving():
            for words in self.old._all_counters():
                self._add(words)
            for name in ("ends", "reloads"):
                for place, count in enumerate(self.old._counted(name)):
                    self._words[_H[name] + place] += count
            self._set("absorbed", 1)
        self.old = None

    @contextlib.contextmanager
    def _moving(self) -> Iterator[None]:
        self._set("turn", self._get("turn") + 1)
        try:
            yield
        finally:
            self._set("turn", self._get("turn") + 1)

    def _add(self, counters: Any) -> None:
        first = _H[COUNTERS[0].name]
        for place, count in enumerate(counters, first):
            self._words[place] += count

    # -- readers -------------------------------------------------------------------------------

    def _slots(self) -> list[Slot]:
        """The slots that are taken."""
        slots = map(self._slot, range(min(self._get("used"), self._get("slots"))))
        return [slot for slot in slots if slot.get("pid")]

    def _all_counters(self) -> list[list[int]]:
        """The counters of workers that are gone, and of each that lives; and what the old master has."""
        first = _H[COUNTERS[0].name]
        found = [self._words[first : first + _COUNTER_WORDS].tolist()]
        found += [slot._words[_S[COUNTERS[0].name] :].tolist() for slot in self._slots()]
        if self.old is not None and not self._get("absorbed"):
            found += self.old._steady(self.old._all_counters)
        return found

    def _counted(self, name: str) -> list[int]:
        """The counts in a field of the header, with those of the old master."""
        first = _H[name]
        counts: list[int] = self._words[first : first + _SIZES[name]].tolist()
        old = self.old
        if old is not None and not self._get("absorbed"):
            before = old._steady(lambda: old._counted(name))
            counts = [a + b for a, b in zip(counts, before, strict=True)]
        return counts

    def _steady(self, read: Any) -> Any:
        """The result of *read*, during which the master has moved no numbers."""
        for _ in range(_TRIES):
            turn = self._get("turn")
            found = read()
            if turn % 2 == 0 and self._get("turn") == turn:
                break
        # If there is none, the master was stopped, or has died, in the middle.
        return found

    def read(self) -> dict[str, Any]:
        """Return everything, in values that JSON has."""
        found: dict[str, Any] = self._steady(self._read)
        return found

    def _read(self) -> dict[str, Any]:
        now, mono = time.time(), monotonic_ns()

        def epoch(moment: float) -> float:
            return round(now - (mono - moment) / 1e9, 3)

        workers = [_describe(slot, epoch) for slot in self._slots()]
        first = _H["class"] * _WORD
        name = bytes(self._memory[first : first + _SIZES["class"] * _WORD]).rstrip(b"\0")
        totals = _named([sum(column) for column in zip(*self._all_counters(), strict=True)])
        return {
            "class": name.decode("utf-8", "replace"),
            "wanted": self._get("wanted"),
            "fixed": self._get("fixed"),
            "most": self._get("most"),
            "threads": self._get("threads"),
            "master": {
                "pid": self._get("master"),
                "beat_age": round(max(0.0, (mono - self._get("beat")) / 1e9), 3),
            },
            "now": round(now, 3),
            "workers": workers,
            "totals": {
                **totals,
                "connections": sum(worker["connections"] for worker in workers),
                "running": sum(worker["running"] for worker in workers),
                "ends": dict(zip(ENDS, self._counted("ends"), strict=True)),
                "reloads": dict(zip(RELOADS, self._counted("reloads"), strict=True)),
            },
            "buckets": list(BUCKETS),
        }


def _describe(slot: Slot, epoch: Any) -> dict[str, Any]:
    oldest = slot.oldest()
    running = slot.serving
    state = "busy" if running else "idle"
    if slot.get("retiring"):
        state = "retiring"
    elif not slot.get("booted"):
        state = "booting"
    shown = None
    if oldest is not None:
        since, method, path = oldest
        shown = {"method": _printable(method), "path": _printable(path), "since": epoch(since * 1e9)}
    return {
        "pid": slot.get("pid"),
        "age": slot.get("age"),
        "state": state,
        "started": epoch(slot.get("started")),
        "connections": slot.get("connections"),
        "running": running,
        **_named(slot._words[_S[COUNTERS[0].name] :].tolist()),
        "oldest": shown,
    }


def _named(counters: list[int]) -> dict[str, Any]:
    quick, sent, spent, *answered = counters
    answered[ANSWERS.index("2xx") * _COLUMNS] += quick
    rows = [answered[at : at + _COLUMNS] for at in range(0, len(answered), _COLUMNS)]
    return {
        "requests": sum(answered),
        "bytes": sent,
        "seconds": round(spent / 1e9, 6),
        "answers": {name: sum(row) for name, row in zip(ANSWERS, rows, strict=True) if name},
        "histogram": [sum(column) for column in zip(*rows, strict=True)],
    }


def _printable(text: bytes) -> str:
    """Decode *text*, with escapes for what would steer a terminal."""
    # A path has a character for each byte that came.
    decoded = text.decode("utf-8", "replace").encode("latin-1", "replace").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded)
