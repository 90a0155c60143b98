# SPDX-License-Identifier: MIT
"""Sources of bytes that take back bytes that were read too far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .errors import of_connection

READ_SIZE = 65536


class Unreader:
    """Bytes from ``chunk()``, which subclasses give, before them whatever was put back."""

    def __init__(self) -> None:
        # : The bytes that can be read without asking the source.
        self.pending = b""
        #: What the connection's requests have in common for an application; whoever makes environs keeps it.
        self.common: Any = None

    def chunk(self) -> bytes:
        """The next bytes of the source, at least one; empty at its end."""
        raise NotImplementedError

    def read(self, size: int | None = None) -> bytes:
        """Return *size* bytes, fewer only at the end; with None or less than 0 the next bytes, of any
        length.
        """
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
        """At least one byte and at most *limit*, waiting only for the first; empty at the end."""
        data = self.pending or self._receive(limit)
        self.pending = data[limit:]
        return data[:limit]

    def unread(self, data: bytes) -> None:
        """Put *data* back: it is read next."""
        if data:
            self.pending = bytes(data) + self.pending

    def _receive(self, limit: int) -> bytes:
        return self.chunk()


class SocketUnreader(Unreader):
    """Reads from a socket, whose timeout holds and whose errors pass through, marked."""

    #: Receives at most so many bytes of a body from the socket, waiting as the worker sees fit. Without, as
    #: the socket's timeout says.
    receive: Callable[[Any, int], bytes] | None = None

    def __init__(self, sock: Any, max_chunk: int = 8192) -> None:
        Unreader.__init__(self)  # each connection's: a look along the classes would double its price
        if not isinstance(max_chunk, int):
            raise TypeError(f"max_chunk must be an int, not {type(max_chunk).__name__}")
        if max_chunk <= 0:
            raise ValueError("max_chunk must be positive")
        self.sock = sock
        self.mxchunk = max_chunk
        #: Whether something was received here; for those who receive a part by themselves.
        self.asked = False

    def chunk(self) -> bytes:
        self.asked = True
        try:
            data: bytes = self.sock.recv(self.mxchunk)
        except OSError as error:
            raise of_connection(error)
        return data

    def _receive(self, limit: int) -> bytes:
        # A body may ask for more at once than a head is worth.
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
        # An empty item is no end, though empty bytes would be read as one.
        for data in self.iter or ():
            if data:
                return data
        self.iter = None
        return b""
