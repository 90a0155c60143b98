# SPDX-License-Identifier: MIT
"""Read from sources of bytes, and put back bytes that were read too far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .errors import of_connection

READ_SIZE = 65536


class Unreader:
    """Reads what was put back, and then from ``chunk()``, which subclasses define."""

    def __init__(self) -> None:
        #: Bytes to be read before the source is asked.
        self.pending = b""
        #: What the environs of the connection's requests have in common; wsgi.create() keeps it here.
        self.common: Any = None

    def chunk(self) -> bytes:
        """Return the next bytes of the source, at least one; empty at its end."""
        raise NotImplementedError

    def read(self, size: int | None = None) -> bytes:
        """Return *size* bytes, fewer only at the end; for None or less than 0 any number of bytes."""
        if size is not None and not isinstance(size, int):
            raise TypeError(f"size must be an int or None, not {type(size).__name__}")
        if size is None or size < 0:
            if not self.pending:
                return self.chunk()
            data, self.pending = self.pending, b""
            return data
        parts: list[bytes] = []
        while size > 0:
            data = self.read_some(size)
            if not data:
                break
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def read_some(self, limit: int = READ_SIZE) -> bytes:
        """Return from 1 to *limit* bytes, waiting only for the first; empty at the end."""
        data = self.pending or self._receive(limit)
        self.pending = data[limit:]
        return data[:limit]

    def unread(self, data: bytes) -> None:
        """Put *data* back, to be read next."""
        if data:
            self.pending = bytes(data) + self.pending

    def _receive(self, limit: int) -> bytes:
        return self.chunk()


class SocketUnreader(Unreader):
    """Reads from a socket, whose timeout holds. Its errors are marked as those of the connection."""

    #: Receives up to so many bytes of a body, waiting as the worker decides; None: as the socket does.
    receive: Callable[[Any, int], bytes] | None = None

    def __init__(self, sock: Any, max_chunk: int = 8192) -> None:
        Unreader.__init__(self)  # each connection's: a look along the classes would double its price
        if not isinstance(max_chunk, int):
            raise TypeError(f"max_chunk must be an int, not {type(max_chunk).__name__}")
        if max_chunk <= 0:
            raise ValueError("max_chunk must be positive")
        self.sock = sock
        self.mxchunk = max_chunk
        #: Whether something was received here. A worker that receives heads itself resets it.
        self.asked = False

    def chunk(self) -> bytes:
        self.asked = True
        try:
            data: bytes = self.sock.recv(self.mxchunk)
        except OSError as error:
            raise of_connection(error)
        return data

    def _receive(self, limit: int) -> bytes:
        # For a body: more at once than for a head.
        size = min(limit, READ_SIZE)
        self.asked = True
        try:
            data: bytes = self.receive(self.sock, size) if self.receive else self.sock.recv(size)
        except OSError as error:
            raise of_connection(error)
        return data


class IterUnreader(Unreader):
    """Reads from an iterable of bytes."""

    def __init__(self, iterable: Iterable[bytes]) -> None:
        super().__init__()
        self.iter: Iterator[bytes] | None = iter(iterable)

    def chunk(self) -> bytes:
        # An empty item is no end, but would be taken for one.
        for data in self.iter or ():
            if data:
                return data
        self.iter = None
        return b""
