# SPDX-License-Identifier: MIT
"""The chunked coding: content, trailers and end, however the bytes are cut; and what is refused."""

from __future__ import annotations

import time
from typing import Any

import pytest
from httpkit import CUTS
from hypothesis import given, settings
from hypothesis import strategies as st

from gunicorn.http import errors as e
from gunicorn.http.chunked import LAST_CHUNK, ChunkedDecoder, encode_chunk
from gunicorn.http.policy import RequestPolicy

POLICY = RequestPolicy(limit_request_fields=3, limit_request_field_size=100)


def decode(pieces: list[bytes], policy: RequestPolicy = POLICY) -> tuple[bytes, ChunkedDecoder, bytes]:
    """Content, decoder, and all that came behind the body."""
    decoder = ChunkedDecoder(policy)
    content = b""
    for index, piece in enumerate(pieces):
        content += decoder.feed(piece)
        if decoder.complete:
            return content, decoder, decoder.leftover + b"".join(pieces[index + 1 :])
    return content, decoder, b""


VALID: list[tuple[bytes, bytes, list[tuple[str, str]]]] = [
    (b"0\r\n\r\n", b"", []),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello", []),
    (b"5\r\nhello\r\n006\r\n world\r\n00\r\n\r\n", b"hello world", []),
    (b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2, []),
    (b"2\r\n\r\n\r\n3\r\n0\r\n\r\n0\r\n\r\n", b"\r\n0\r\n", []),
    (
        b'1;a\r\nx\r\n1 ; a = b\r\ny\r\n1;a="q;\\"\r";c=d\r\nz\r\n0;end\r\n\r\n'.replace(b'\r"', b'"'),
        b"xyz",
        [],
    ),
    (b"1\r\nx\r\n0\r\nX-Sum:  abc \r\nB:\r\n\r\n", b"x", [("X-SUM", "abc"), ("B", "")]),
    (b"0\r\nA_B: dropped\r\n\r\n", b"", []),
]


@pytest.mark.parametrize(("raw", "content", "trailers"), VALID)
def test_valid(raw: bytes, content: bytes, trailers: list[tuple[str, str]]) -> None:
    for tail in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\n\0"):
        for cut in CUTS:
            found, decoder, rest = decode(cut(raw + tail))
            assert decoder.complete
            assert (found, decoder.trailers, rest) == (content, trailers, tail)


@pytest.mark.parametrize(("raw", "content", "trailers"), VALID)
def test_no_part_is_taken_for_the_whole(raw: bytes, content: bytes, trailers: Any) -> None:
    for end in range(len(raw)):
        for cut in CUTS:
            assert not decode(cut(raw[:end]))[1].complete


INVALID: list[tuple[bytes, type[Exception]]] = [
    *[
        (line + b"\r\n", e.InvalidChunkSize)
        for line in (
            b"",
            b" ",
            b"x",
            b"0x5",
            b"+5",
            b"-5",
            b"5_0",
            b" 5",
            b"5 ",
            b"5\t",
            b"5.0",
            b"5,",
            b"5 5",
            b"\xb2",
            b"1" * 17,
            b"5;",
            b"5;;a",
            b"5;a b",
            b"5;a=",
            b'5;a="x',
            b"5;a=b;",
            b"5;a\x00",
            b"5;a=\x7f",
            b"5;\ra",
            b"5\r",
            b";a",
            b"5;" + b"a" * 2000,
        )
    ],
    (b"5\nhello", e.InvalidChunkSize),
    (b"5;a\nb\r\n", e.InvalidChunkSize),
    (b"a" * 5000, e.InvalidChunkSize),
    (b"5\r\nhello\n0\r\n\r\n", e.ChunkMissingTerminator),
    (b"5\r\nhello\r\r\n0\r\n\r\n", e.ChunkMissingTerminator),
    (b"5\r\nhello!\r\n0\r\n\r\n", e.ChunkMissingTerminator),
    (b"5\r\nhello0\r\n\r\n", e.ChunkMissingTerminator),
    (b"4\r\nhello\r\n0\r\n\r\n", e.ChunkMissingTerminator),
    (b"0\r\nfoo\r\n\r\n", e.InvalidHeader),
    (b"0\r\nA: \x00\r\n\r\n", e.InvalidHeader),
    *[
        (b"0\r\nA: b\r\n" + name + b": 1\r\n\r\n", e.InvalidHeader)
        for name in (b"Content-Length", b"transfer-encoding", b"HOST", b"Authorization", b"Trailer", b"TE")
    ],
    (b"0\r\nA : b\r\n\r\n", e.InvalidHeaderName),
    (b"0\r\nA: b\n\r\n\r\n", e.InvalidHeader),
    (b"0\r\nA: b\r\n c\r\n\r\n", e.ObsoleteFolding),
    (b"0\r\n" + b"A: b\r\n" * 4, e.LimitRequestHeaders),
    (b"0\r\nA: " + b"b" * 200, e.LimitRequestHeaders),
]


@pytest.mark.parametrize(("raw", "error"), INVALID)
def test_invalid(raw: bytes, error: type[Exception]) -> None:
    for cut in CUTS:
        decoder = ChunkedDecoder(POLICY)
        with pytest.raises(error) as caught:
            for piece in cut(raw):
                decoder.feed(piece)
        assert caught.value.status in (400, 431)  # type: ignore[attr-defined]
        # Nothing that follows is taken for content.
        with pytest.raises(error):
            decoder.feed(b"5\r\nhello\r\n0\r\n\r\n")
        assert not decoder.complete


@settings(max_examples=100, deadline=None)
@given(chunks=st.lists(st.binary(min_size=1, max_size=40)), cuts=st.lists(st.integers(1, 9), min_size=1))
def test_what_is_encoded_is_decoded(chunks: list[bytes], cuts: list[int]) -> None:
    raw = b"".join(map(encode_chunk, chunks)) + LAST_CHUNK + b"tail"
    pieces = []
    while raw:
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(raw[:size])
        raw = raw[size:]
    content, decoder, rest = decode(pieces)
    assert (content, rest) == (b"".join(chunks), b"tail")
    assert decoder.complete


def test_many_small_chunks_take_linear_time() -> None:
    def seconds(count: int) -> float:
        raw = b"1\r\nx\r\n" * count + LAST_CHUNK
        decoder = ChunkedDecoder(POLICY)
        start = time.process_time()
        size = sum(len(decoder.feed(raw[i : i + 8192])) for i in range(0, len(raw), 8192))
        assert size == count
        return time.process_time() - start

    small = min(seconds(5_000) for _ in range(3))
    assert seconds(50_000) < 40 * small
