# SPDX-License-Identifier: MIT
"""The last output of each companion, in shared memory that outlives the process that fills it.

One file in memory holds a ring for each companion. A ring holds records: what one ``readv()`` of a pipe
gave. It is also a journal: a reader that is killed between the read and its note of it loses nothing,
because its successor sees whether the bytes have arrived.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from gunicorn.companion.runfile import unnamed_file

STDOUT, STDERR = 0, 1
KINDS = ("stdout", "stderr")

# What is kept of a companion, in bytes.
CAPACITY = 256 * 1024
_HEADER = 4096
_SLOT = _HEADER + CAPACITY
# Rings in one mapping: Python keeps a descriptor for each.
_SEGMENT = 64

# In front of each record: time, length, and pid with two flags: "continues a line", "stderr".
_RECORD = struct.Struct("=dII")

# The words of a ring's header. Positions count all bytes since the beginning.
_HEAD, _TAIL, _PENDING, _OUT, _READ, _DROPPED_BYTES, _DROPPED_LINES, _NOTES = 0, 1, 2, 3, 5, 6, 7, 8


class Record(NamedTuple):
    """One piece of output. ``position`` is where the record begins, ``data`` where its bytes do."""

    position: int
    time: float
    length: int
    pid: int
    continues: bool
    kind: int

    @property
    def data(self) -> int:
        return self.position + _RECORD.size

    @property
    def end(self) -> int:
        return self.data + self.length


class Note(NamedTuple):
    """A write to a file: which file, its size before, and how much had been written to earlier files."""

    inode: int
    size: int
    done: int


class Counters(NamedTuple):
    """The bytes that a companion has written, and how much of that could not be written on."""

    bytes: int
    dropped_bytes: int
    dropped_lines: int


def footprint(length: int) -> int:
    """The room that a record of *length* bytes takes. Headers are aligned, so that none wraps around."""
    return (_RECORD.size + length + 15) & ~15


class RingFile:
    """The file of all rings. The manager hands out slots, the log keeper maps them."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.fd = unnamed_file("gunicorn-companion-output")
        self._free: list[int] = []
        self._count = 0
        self._segments: dict[int, memoryview] = {}

    def take(self) -> int:
        """Return the number of an empty ring. Raises OSError."""
        if self._free:
            return self._free.pop()
        if self._count % _SEGMENT == 0:
            os.ftruncate(self.fd, (self._count + _SEGMENT) * _SLOT)
        self._count += 1
        return self._count - 1

    def give_back(self, slot: int) -> None:
        os.pwrite(self.fd, bytes(_HEADER), slot * _SLOT)
        self._free.append(slot)

    def counters(self, slot: int) -> Counters:
        words = struct.unpack_from("=8Q", os.pread(self.fd, 64, slot * _SLOT))
        return Counters(words[_READ], words[_DROPPED_BYTES], words[_DROPPED_LINES])

    def map(self, slot: int) -> Ring:
        """Raises OSError."""
        number, place = divmod(slot, _SEGMENT)
        if number not in self._segments:
            length = _SEGMENT * _SLOT
            self._segments[number] = memoryview(mmap.mmap(self.fd, length, offset=number * length))
        return Ring(self._segments[number][place * _SLOT : (place + 1) * _SLOT])

    def close(self) -> None:
        os.close(self.fd)


class Ring:
    """The output of one companion: the records between ``tail`` and ``head``."""

    def __init__(self, memory: memoryview) -> None:
        # Stored with one instruction each, so a kill leaves the old value or the new one.
        self._words = memory[:_HEADER].cast("Q")
        self._data = memory[_HEADER:]

    @property
    def head(self) -> int:
        return self._words[_HEAD]

    @property
    def tail(self) -> int:
        return self._words[_TAIL]

    def out(self, kind: int) -> int:
        """Up to where the output of *kind* has been written to its destination."""
        return self._words[_OUT + kind]

    def set_out(self, kind: int, position: int) -> None:
        self._words[_OUT + kind] = max(position, self._words[_OUT + kind])

    def note(self, kind: int) -> Note | None:
        """The write to a file that may not have been finished, or may: see `set_note`."""
        words = self._words[_NOTES + 4 * kind : _NOTES + 4 * kind + 4]
        # What was noted before output that has been written since is of no use.
        return Note(*words[:3]) if words[0] and words[3] == self.out(kind) else None

    def set_note(self, kind: int, note: Note) -> None:
        """Keep what a successor needs to find out how much of a write to a file has happened."""
        words = self._words[_NOTES + 4 * kind : _NOTES + 4 * kind + 4]
        # Without an inode the rest counts for nothing, should we be killed in between.
        words[0] = 0
        words[1], words[2], words[3] = note.size, note.done, self.out(kind)
        words[0] = note.inode

    def count_dropped(self, size: int, lines: int) -> None:
        self._words[_DROPPED_BYTES] += size
        self._words[_DROPPED_LINES] += lines

    # -- writing -----------------------------------------------------------

    def read_from(
        self, fd: int, length: int, *, pid: int, kind: int, continues: bool, now: float
    ) -> tuple[Record, bytes]:
        """Read *length* bytes, which are there, into a new record. Raises OSError."""
        head = self.head
        self._evict(head + footprint(length))
        flags = pid << 2 | continues << 1 | kind
        _RECORD.pack_into(self._data, head % CAPACITY, now, length, flags)
        places = self._places(head + _RECORD.size, length)
        for place in places:
            place[:] = bytes(len(place))
        # From here on a successor that finds another byte than zero knows that the read has happened.
        self._words[_PENDING] = head + 1
        count = os.readv(fd, places)
        if count != length:
            _RECORD.pack_into(self._data, head % CAPACITY, now, count, flags)
        self._finish(head, count)
        record = Record(head, now, count, pid, continues, kind)
        return record, b"".join(places)[:count]

    def _finish(self, head: int, length: int) -> None:
        self._words[_READ] += length
        self._words[_HEAD] = head + footprint(length)

    def recover(self) -> None:
        """Complete a read that the last reader was killed in."""
        head = self.head
        if self._words[_PENDING] != head + 1:
            return
        _, length, _ = _RECORD.unpack_from(self._data, head % CAPACITY)
        if any(any(place) for place in self._places(head + _RECORD.size, length)):
            self._finish(head, length)

    def _evict(self, head: int) -> None:
        """Give up the oldest records, so that the ring has room up to *head*."""
        while head - self.tail > CAPACITY:
            _, length, _ = _RECORD.unpack_from(self._data, self.tail % CAPACITY)
            self._words[_TAIL] = self.tail + footprint(length)

    def _places(self, position: int, length: int) -> list[memoryview]:
        """The memory of *length* bytes from *position* on: two parts where the ring ends in between."""
        begin = position % CAPACITY
        first = min(length, CAPACITY - begin)
        parts = [self._data[begin : begin + first], self._data[: length - first]]
        return [part for part in parts if part]

    # -- reading -----------------------------------------------------------

    def records(self) -> Iterator[Record]:
        """From the oldest to the newest."""
        position = self.tail
        while position < self.head:
            moment, length, flags = _RECORD.unpack_from(self._data, position % CAPACITY)
            yield Record(position, moment, length, flags >> 2, bool(flags >> 1 & 1), flags & 1)
            position += footprint(length)

    def data(self, record: Record) -> bytes:
        return b"".join(self._places(record.data, record.length))
