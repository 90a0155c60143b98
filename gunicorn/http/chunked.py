# SPDX-License-Identifier: MIT
"""Decode and frame the chunked transfer coding (RFC 9112 section 7.1)."""

from __future__ import annotations

import enum

from .errors import ChunkMissingTerminator, InvalidChunkSize, InvalidHeader, LimitRequestHeaders
from .grammar import CHUNK_LINE_RE
from .parse import Headers, parse_fields
from .policy import DEFAULT_MAX_HEADERFIELD_SIZE, RequestPolicy

LAST_CHUNK = b"0\r\n\r\n"
# Extensions mean nothing here: do not read a longer line of them.
MAX_CHUNK_LINE = 1024
# RFC 9110 section 6.5.1: framing, routing and credentials come too late in a trailer.
NO_TRAILERS = frozenset({"AUTHORIZATION", "CONTENT-LENGTH", "HOST", "TE", "TRAILER", "TRANSFER-ENCODING"})


class _State(enum.Enum):
    SIZE = "at a chunk-size line"
    DATA = "within chunk data"
    DATA_END = "before the CRLF that ends chunk data"
    TRAILERS = "at a trailer line or the final empty line"
    COMPLETE = "behind the message"


class ChunkedDecoder:
    """Turns the bytes of a chunked body into its content, however they are cut.

    When ``complete``, ``trailers`` holds the trailer fields and ``leftover`` the bytes that
    followed the body. An error is raised again by every later feed: its framing is lost.
    """

    __slots__ = (
        "_error",
        "_missing",
        "_partial",
        "_state",
        "_trailer_count",
        "_trailer_data",
        "leftover",
        "policy",
        "trailers",
    )

    def __init__(self, policy: RequestPolicy) -> None:
        self.policy = policy
        self.trailers: Headers = []
        self.leftover = b""
        self._state = _State.SIZE
        self._missing = 0  # bytes of the current chunk that are still to come
        self._partial = b""  # the received part of an unfinished line
        self._trailer_data = bytearray()
        self._trailer_count = 0
        self._error: Exception | None = None

    @property
    def complete(self) -> bool:
        return self._state is _State.COMPLETE

    def feed(self, data: bytes) -> bytes:
        """Return the content that *data* adds.

        Raises InvalidChunkSize, ChunkMissingTerminator, or what parse_fields() raises for trailers.
        """
        self.check()
        try:
            return self._decode(data)
        except Exception as error:
            self._error = error
            raise

    def check(self) -> None:
        """Raise the error of an earlier feed() again."""
        if self._error is not None:
            raise self._error

    def _decode(self, data: bytes) -> bytes:
        if self._partial:
            data = self._partial + data
            self._partial = b""
        content: list[bytes] = []
        position, end = 0, len(data)
        while position < end and self._state is not _State.COMPLETE:
            if self._state is _State.DATA:
                piece = data[position : position + self._missing]
                content.append(piece)
                position += len(piece)
                self._missing -= len(piece)
                if not self._missing:
                    self._state = _State.DATA_END
                continue
            after = (
                self._take_data_end(data, position)
                if self._state is _State.DATA_END
                else self._take_line(data, position)
            )
            if after < 0:
                self._partial = data[position:]
                return b"".join(content)
            position = after
        if self.complete:
            self.leftover += data[position:]
        return content[0] if len(content) == 1 else b"".join(content)

    def _take_data_end(self, data: bytes, position: int) -> int:
        terminator = data[position : position + 2]
        if terminator == b"\r\n":
            self._state = _State.SIZE
            return position + 2
        if terminator != b"\r":
            raise ChunkMissingTerminator(terminator)
        return -1

    def _take_line(self, data: bytes, position: int) -> int:
        """Handle one line of framing; return the offset behind it, or -1 while it is incomplete."""
        in_trailers = self._state is _State.TRAILERS
        limit = self._trailer_limit() if in_trailers else MAX_CHUNK_LINE
        newline = data.find(b"\n", position, position + limit)
        if newline < 0:
            if len(data) - position >= limit:
                if in_trailers:
                    raise LimitRequestHeaders(f"trailer field of more than {limit} bytes")
                raise InvalidChunkSize(data[position : position + limit])
            return -1
        line = data[position : newline + 1]
        if in_trailers:
            self._add_trailer(line)
        else:
            self._begin_chunk(line)
        return newline + 1

    def _trailer_limit(self) -> int:
        # With no limit on fields, trailers keep the default one; they are rare.
        return self.policy.limit_request_field_size or DEFAULT_MAX_HEADERFIELD_SIZE

    def _begin_chunk(self, line: bytes) -> None:
        self._missing = chunk_size(line)
        self._state = _State.DATA if self._missing else _State.TRAILERS

    def _add_trailer(self, line: bytes) -> None:
        self._trailer_data += line
        if line != b"\r\n":
            self._trailer_count += 1
            if self._trailer_count > self.policy.limit_request_fields:
                raise LimitRequestHeaders(f"more than {self.policy.limit_request_fields} trailer fields")
            return
        # Never trusted: no proxy speaks for its client in a trailer.
        self.trailers = parse_fields(bytes(self._trailer_data), self.policy)
        for name, _ in self.trailers:
            if name in NO_TRAILERS:
                raise InvalidHeader(name)
        self._state = _State.COMPLETE


def chunk_size(line: bytes) -> int:
    """Parse a chunk-size line, which must end in CRLF. Raises InvalidChunkSize."""
    match = CHUNK_LINE_RE.fullmatch(line, 0, len(line) - 2) if line.endswith(b"\r\n") else None
    if match is None:
        raise InvalidChunkSize(line)
    return int(match[1], 16)


def encode_chunk(data: bytes) -> bytes:
    """Frame *data*, which must not be empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)
