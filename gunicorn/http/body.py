# SPDX-License-Identifier: MIT
"""``wsgi.input``: readers that know where a body ends, and the file-like Body over them.

A reader's ``read(size)`` returns *size* bytes, fewer only at the end. If the connection ends before the body,
it raises NoMoreData, so that an application never takes a part for the whole.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from . import chunked as chunked_coding
from .errors import NoMoreData, of_connection
from .parse import parse_fields
from .policy import RequestPolicy
from .unreader import READ_SIZE, Unreader

# Read smaller sizes from a buffer: readers of Git or protobuf frames ask for four bytes at a time.
SMALL_READ = 8192


class Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Reader:
    """Reads by ``read_some()``, which subclasses define."""

    def read_some(self, limit: int = READ_SIZE) -> bytes:
        """Return the next bytes, at least one and at most *limit*; empty at the end."""
        raise NotImplementedError

    def read(self, size: int) -> bytes:
        if not isinstance(size, int):
            raise TypeError(f"size must be an int, not {type(size).__name__}")
        if size < 0:
            raise ValueError("size must not be negative")
        parts: list[bytes] = []
        while size > 0 and (data := self.read_some(size)):
            parts.append(data)
            size -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class ChunkedReader(_Reader):
    """Reads a chunked body. At its end the trailers are in ``req.trailers``, the rest in *unreader*.

    *req* may be None; an error in the framing closes its connection.
    """

    def __init__(self, req: Any, unreader: Unreader) -> None:
        self.req = req
        self.unreader = unreader
        self._decoder = chunked_coding.ChunkedDecoder(self._policy())
        self._content = io.BytesIO()

    def _policy(self) -> RequestPolicy:
        policy = getattr(self.req, "policy", None)
        return policy if isinstance(policy, RequestPolicy) else RequestPolicy()

    @property
    def finished(self) -> bool:
        """Whether the whole body was received."""
        return self._decoder.complete

    @property
    def remaining(self) -> int | None:
        """How many bytes are still to come; None if unknown."""
        return 0 if self._decoder.complete else None

    def read_some(self, limit: int = READ_SIZE) -> bytes:
        data = self._content.read(limit)
        while not data and not self._decoder.complete:
            data = self._receive()  # may be framing alone
            if len(data) > limit:
                self._content = io.BytesIO(data)
                data = self._content.read(limit)
        return data

    def _receive(self) -> bytes:
        decoder = self._decoder
        decoder.check()  # rather than wait for bytes that cannot be read
        received = self.unreader.read_some(READ_SIZE)
        try:
            if not received:
                raise NoMoreData(b"")
            content = decoder.feed(received)
        except Exception as error:
            # Nobody knows where the next request would begin.
            if self.req is not None:
                self.req.force_close()
            raise of_connection(error)
        if decoder.complete:
            self.unreader.unread(decoder.leftover)
            if self.req is not None:
                self.req.trailers = decoder.trailers
        return content

    # The rest is the public interface, for subclasses that drive the parts by hand.

    def parse_trailers(self, unreader: Unreader, data: bytes) -> None:
        """Read trailers, which begin with *data*, up to their end."""
        buffer = io.BytesIO()
        buffer.write(data)
        while not buffer.getvalue().startswith(b"\r\n") and b"\r\n\r\n" not in buffer.getvalue():
            self.get_data(unreader, buffer)
        received = buffer.getvalue()
        end = 2 if received.startswith(b"\r\n") else received.index(b"\r\n\r\n") + 4
        if self.req is not None:
            self.req.trailers = parse_fields(received[:end], self._policy())
        unreader.unread(received[end:])

    def parse_chunked(self, unreader: Unreader) -> Iterator[bytes]:
        """Yield the content of the body in *unreader*."""
        reader = self if unreader is self.unreader else type(self)(self.req, unreader)
        while data := reader.read_some():
            yield data

    def parse_chunk_size(self, unreader: Unreader, data: bytes | None = None) -> tuple[int, bytes | None]:
        """Return the size of the next chunk and the bytes after its line; for the last chunk (0, None)."""
        buffer = io.BytesIO()
        buffer.write(data or b"")
        while b"\n" not in buffer.getvalue():
            if len(buffer.getvalue()) > chunked_coding.MAX_CHUNK_LINE:
                break
            self.get_data(unreader, buffer)
        line, newline, rest = buffer.getvalue().partition(b"\n")
        size = chunked_coding.chunk_size(line + newline)
        if size == 0:
            self.parse_trailers(unreader, rest)
            return 0, None
        return size, rest

    def get_data(self, unreader: Unreader, buf: io.BytesIO) -> None:
        """Append the next bytes to *buf*. Raises NoMoreData at the end."""
        data = unreader.read()
        if not data:
            raise of_connection(NoMoreData(buf.getvalue()))
        buf.write(data)


class LengthReader(_Reader):
    """Reads a body of *length* bytes."""

    def __init__(self, unreader: Unreader, length: int) -> None:
        self.unreader = unreader
        self.length = length

    @property
    def finished(self) -> bool:
        return not self.length

    @property
    def remaining(self) -> int | None:
        return self.length

    def read_some(self, limit: int = READ_SIZE) -> bytes:
        limit = min(limit, self.length)
        if not limit:
            return b""
        data = self.unreader.read_some(limit)
        if not data:
            raise of_connection(NoMoreData(b""))
        self.length -= len(data)
        return data


class EOFReader(_Reader):
    """Reads a body that ends with its connection."""

    def __init__(self, unreader: Unreader) -> None:
        self.unreader = unreader
        self.finished = False

    @property
    def remaining(self) -> int | None:
        return 0 if self.finished else None

    def read_some(self, limit: int = READ_SIZE) -> bytes:
        if self.finished:
            return b""
        data = self.unreader.read_some(limit)
        self.finished = not data
        return data


class Body:
    """The input of PEP 3333 over *reader*, anything with ``read(size)``.

    ``before_read`` is called once, when the application first asks for content.
    """

    __slots__ = ("_buffer", "_some", "before_read", "reader")

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        # If the reader can, do not wait for bytes beyond the end of a line.
        self._some: Callable[[int], bytes] = getattr(reader, "read_some", reader.read)
        self._buffer: io.BytesIO | None = None
        self.before_read: Callable[[], object] | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing of the body is left in the connection."""
        return bool(getattr(self.reader, "finished", False))

    @property
    def remaining(self) -> int | None:
        """How many bytes the connection still owes; None if unknown."""
        return getattr(self.reader, "remaining", None)

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    next = __next__

    def getsize(self, size: int | None) -> int:
        """Return *size* as a limit: None and negative numbers are none."""
        if size is None:
            return sys.maxsize
        if not isinstance(size, int):
            raise TypeError(f"size must be an int or None, not {type(size).__name__}")
        return size if size >= 0 else sys.maxsize

    def read(self, size: int | None = None) -> bytes:
        """Read *size* bytes, fewer only at the end; None: all."""
        wanted = self.getsize(size)
        if not wanted:
            return b""
        self._begin()
        if self._buffer is None:
            if wanted >= SMALL_READ or wanted >= (self.remaining or 0) or self._some == self.reader.read:
                return self.reader.read(wanted)
            self._buffer = io.BytesIO(self._some(READ_SIZE))
        data = self._buffer.read(wanted)
        if len(data) == wanted:
            return data
        self._buffer = None
        return data + self.reader.read(wanted - len(data))

    def readline(self, size: int | None = None) -> bytes:
        """Read up to and including the next LF, at most *size* bytes."""
        wanted = self.getsize(size)
        if not wanted:
            return b""
        self._begin()
        parts: list[bytes] = []
        while True:
            if self._buffer is None:
                data = self._some(READ_SIZE)
                if not data:
                    break
                self._buffer = io.BytesIO(data)
            piece = self._buffer.readline(wanted)
            parts.append(piece)
            wanted -= len(piece)
            if not wanted or piece.endswith(b"\n"):
                break
            self._buffer = None  # used up: the line goes on in what comes next
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readlines(self, size: int | None = None) -> list[bytes]:
        """Read lines until they have *size* bytes or more; None: all."""
        wanted = self.getsize(size) or sys.maxsize
        lines: list[bytes] = []
        while wanted > 0 and (line := self.readline()):
            lines.append(line)
            wanted -= len(line)
        return lines

    def discard(self, limit: int) -> bool:
        """Read and drop the rest; True if the body ended within *limit* bytes."""
        self.before_read = None
        self._buffer = None
        while not self.finished:
            if limit <= 0:
                return False
            data = self._some(min(limit, READ_SIZE))
            if not data:
                return self.finished
            limit -= len(data)
        return True

    def _begin(self) -> None:
        if self.before_read is not None:
            before_read, self.before_read = self.before_read, None
            before_read()


class _NoBody(Body):
    """The body of a request without one. It has no state, so one object serves all requests."""

    # Asked for every request, and found faster here than in the class.
    __slots__ = ("finished", "remaining")

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.finished = True  # type: ignore[misc]
        self.remaining = 0  # type: ignore[misc]

    def read(self, size: int | None = None) -> bytes:
        self.getsize(size)
        return b""

    readline = read

    def readlines(self, size: int | None = None) -> list[bytes]:
        self.getsize(size)
        return []


NO_BODY = _NoBody()
