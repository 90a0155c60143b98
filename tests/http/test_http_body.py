# SPDX-License-Identifier: MIT
"""Unreaders, body readers, and wsgi.input over them."""

from __future__ import annotations

import io
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from httpkit import CUTS

from gunicorn.http.body import Body, ChunkedReader, EOFReader, LengthReader
from gunicorn.http.chunked import encode_chunk
from gunicorn.http.errors import ChunkMissingTerminator, InvalidChunkSize, NoMoreData
from gunicorn.http.unreader import IterUnreader, SocketUnreader, Unreader


def test_unreader_gives_back_what_was_put_back_first() -> None:
    unreader = IterUnreader([b"abc", b"", b"def"])
    assert unreader.read() == b"abc"
    unreader.unread(b"bc")
    unreader.unread(b"")
    unreader.unread(b"a")
    assert len(unreader.pending) == 3
    assert unreader.read(0) == b""
    assert unreader.read(2) == b"ab"
    assert unreader.read(3) == b"cde"
    assert unreader.read(-1) == b"f"
    assert unreader.read() == b""
    assert unreader.read(5) == b""


def test_unreader_read_some_does_not_wait_for_more() -> None:
    unreader = IterUnreader([b"abc", b"def"])
    assert unreader.read_some(2) == b"ab"
    assert unreader.read_some(9) == b"c"
    assert unreader.read_some(9) == b"def"
    assert unreader.read_some(9) == b""


@pytest.mark.parametrize("size", ["5", 1.5, [1]])
def test_unreader_size_must_be_a_number(size: Any) -> None:
    with pytest.raises(TypeError):
        IterUnreader([b"abc"]).read(size)


def test_unreader_needs_a_source() -> None:
    with pytest.raises(NotImplementedError):
        Unreader().read()


@pytest.mark.parametrize(("size", "error"), [("5", TypeError), (0, ValueError), (-1, ValueError)])
def test_socket_unreader_checks_max_chunk(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        SocketUnreader(None, max_chunk=size)


def test_socket_unreader_keeps_the_sockets_timeout() -> None:
    a, b = socket.socketpair()
    with a, b:
        unreader = SocketUnreader(b, max_chunk=4)
        b.settimeout(0.01)
        with pytest.raises(TimeoutError):
            unreader.read()
        a.sendall(b"abcdefgh")
        assert unreader.read() == b"abcd"
        unreader.unread(b"cd")
        assert unreader.read(4) == b"cdef"
        a.close()
        assert unreader.read(9) == b"gh"


CONTENT = b"first\nsecond line\n\nlast"


def by_length(pieces: list[bytes]) -> Any:
    return LengthReader(IterUnreader([*pieces, b"TAIL"]), len(CONTENT))


def by_chunks(pieces: list[bytes]) -> Any:
    raw = b"".join(map(encode_chunk, pieces)) + b"0\r\n\r\nTAIL"
    return ChunkedReader(None, IterUnreader([raw[i : i + 7] for i in range(0, len(raw), 7)]))


def by_end(pieces: list[bytes]) -> Any:
    return EOFReader(IterUnreader(pieces))


def by_file(pieces: list[bytes]) -> Any:
    return io.BytesIO(b"".join(pieces))


READERS = [by_length, by_chunks, by_end, by_file]


@pytest.fixture(
    params=[(reader, cut) for reader in READERS for cut in CUTS],
    ids=lambda p: f"{p[0].__name__}-{p[1].__name__}",
)
def body(request: pytest.FixtureRequest) -> Callable[[], Body]:
    reader, cut = request.param
    return lambda: Body(reader(cut(CONTENT)))


def test_body_read(body: Callable[[], Body]) -> None:
    assert body().read() == CONTENT
    assert body().read(-1) == CONTENT
    assert body().read(10_000) == CONTENT
    some = body()
    assert some.read(0) == b""
    assert some.read(3) == CONTENT[:3]
    assert some.read(10) == CONTENT[3:13]
    assert some.read(None) == CONTENT[13:]
    assert some.read(1) == some.read() == some.readline() == b""
    assert some.readlines() == []


def test_small_reads_of_a_body_receive_as_much_as_there_is() -> None:
    class Counting(IterUnreader):
        received = 0

        def chunk(self) -> bytes:
            self.received += 1
            return super().chunk()

    unreader = Counting([b"0123456789" * 100] * 4 + [b"TAIL"])
    body = Body(LengthReader(unreader, 4000))
    content = b""
    while data := body.read(7):
        content += data
    assert content == b"0123456789" * 400 and unreader.received == 4
    # What follows is not the body's.
    assert body.finished and unreader.read() == b"TAIL"


def test_small_reads_do_not_wait_for_more_than_they_ask_for() -> None:
    a, b = socket.socketpair()
    with a, b:
        b.settimeout(0)
        a.sendall(b"abcdef")
        body = Body(LengthReader(SocketUnreader(b), 100))
        assert body.read(4) == b"abcd"
        assert body.read(2) == b"ef"
        with pytest.raises(BlockingIOError):
            body.read(1)
        a.close()
        with pytest.raises(NoMoreData):
            body.read(4)


def test_body_lines(body: Callable[[], Body]) -> None:
    lines = [b"first\n", b"second line\n", b"\n", b"last"]
    assert list(body()) == lines
    assert body().readlines() == lines
    assert body().readlines(7) == lines[:2]
    assert body().readlines(1) == lines[:1]
    assert body().readlines(0) == lines
    one = body()
    assert [one.readline(0), one.readline(2), one.readline(100), one.readline(6), one.readline(-1)] == [
        b"",
        b"fi",
        b"rst\n",
        b"second",
        b" line\n",
    ]
    assert next(one) == b"\n"
    assert one.next() == b"last"
    with pytest.raises(StopIteration):
        next(one)


def test_body_lines_and_bytes_mixed(body: Callable[[], Body]) -> None:
    mixed = body()
    assert mixed.read(2) == b"fi"
    assert mixed.readline() == b"rst\n"
    assert mixed.read(3) == b"sec"
    assert mixed.readline(4) == b"ond "
    assert mixed.read() == b"line\n\nlast"


@pytest.mark.parametrize("method", ["read", "readline", "readlines"])
def test_body_size_must_be_a_number(method: str) -> None:
    with pytest.raises(TypeError):
        getattr(Body(io.BytesIO(CONTENT)), method)("5")


def test_body_like_a_file_at_random(body: Callable[[], Body]) -> None:
    chance = random.Random(5)
    for _ in range(30):
        ours, file = body(), io.BytesIO(CONTENT)
        for _ in range(12):
            method, size = chance.choice(["read", "readline"]), chance.randint(-1, 9)
            assert getattr(ours, method)(size) == getattr(file, method)(size)


@pytest.mark.parametrize(
    "reader",
    [LengthReader(IterUnreader([]), 5), EOFReader(IterUnreader([])), ChunkedReader(None, IterUnreader([]))],
)
def test_readers_check_sizes(reader: Any) -> None:
    assert reader.read(0) == b""
    with pytest.raises(TypeError):
        reader.read("1")
    with pytest.raises(ValueError):
        reader.read(-1)


@pytest.mark.parametrize("call", ["read", "readline", "readlines"])
def test_a_short_body_is_no_body(call: str) -> None:
    for reader in (
        LengthReader(IterUnreader([b"abc"]), 4),
        ChunkedReader(None, IterUnreader([b"3\r\nabc\r\n"])),
        ChunkedReader(None, IterUnreader([b"3\r\nabc\r\n0\r\n"])),
        ChunkedReader(None, IterUnreader([b"4\r\nabc"])),
    ):
        with pytest.raises(NoMoreData):
            getattr(Body(reader), call)()
        assert not reader.finished


def test_readers_leave_what_follows() -> None:
    unreader = IterUnreader([b"abcNEXT"])
    assert LengthReader(unreader, 3).read(100) == b"abc"
    assert unreader.read() == b"NEXT"
    unreader = IterUnreader([b"3\r\nabc\r\n0\r\nA: b\r\n\r\nNEXT"])
    reader = ChunkedReader(None, unreader)
    assert reader.read(3) == b"abc"
    assert reader.read(1) == b""
    assert reader.finished
    assert unreader.read() == b"NEXT"


def test_a_line_does_not_wait_for_what_follows_it() -> None:
    a, b = socket.socketpair()
    with a, b:
        b.settimeout(5)
        for reader, data in (
            (LengthReader(SocketUnreader(b), 100), b"one\ntw"),
            (ChunkedReader(None, SocketUnreader(b)), b"6\r\none\ntw\r\n"),
        ):
            a.sendall(data)
            assert Body(reader).readline() == b"one\n"


def test_discard() -> None:
    assert Body(LengthReader(IterUnreader([b"abc"] * 9), 27)).discard(27)
    assert not Body(LengthReader(IterUnreader([b"abc"] * 9), 27)).discard(26)
    body = Body(ChunkedReader(None, IterUnreader([b"3\r\nabc\r\n0\r\n\r\n"])))
    assert body.readline(1) == b"a"
    assert body.discard(10)
    assert Body(LengthReader(IterUnreader([]), 0)).discard(0)


def test_before_read_is_called_once_and_only_for_content() -> None:
    calls: list[int] = []
    body = Body(LengthReader(IterUnreader([b"ab\nc"]), 4))
    body.before_read = lambda: calls.append(1)
    assert body.read(0) == body.readline(0) == b""
    assert not calls
    assert body.readline() == b"ab\n"
    assert body.read() == b"c"
    assert calls == [1]


def fastest(function: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def test_reading_takes_linear_time() -> None:
    def lines(count: int) -> Callable[[], object]:
        return lambda: sum(1 for _ in Body(LengthReader(IterUnreader([b"x\n" * count]), 2 * count)))

    def pieces(count: int) -> Callable[[], object]:
        return lambda: Body(LengthReader(IterUnreader([b"x"] * count), count)).read()

    def bytes_of_a_line(count: int) -> Callable[[], object]:
        return lambda: Body(LengthReader(IterUnreader([b"x"] * count), count)).readline()

    def single_reads(count: int) -> Callable[[], object]:
        raw = encode_chunk(b"x" * count) + b"0\r\n\r\n"

        def read() -> None:
            body = Body(ChunkedReader(None, IterUnreader([raw])))
            while body.read(1):
                pass

        return read

    for make in (lines, pieces, bytes_of_a_line, single_reads):
        assert fastest(make(20_000)) < 40 * fastest(make(2_000)) + 0.05, make.__name__


def test_reference_methods_of_the_chunked_reader() -> None:
    reader = ChunkedReader(None, IterUnreader([]))
    assert reader.parse_chunk_size(IterUnreader([b"5;a", b"=b\r\nhel"])) == (5, b"hel")
    assert reader.parse_chunk_size(IterUnreader([b"f\r\nrest"]), data=b"f") == (255, b"rest")
    rest = IterUnreader([b"0\r\n\r\nNEXT"])
    assert reader.parse_chunk_size(rest) == (0, None)
    assert rest.read() == b"NEXT"
    with pytest.raises(InvalidChunkSize):
        reader.parse_chunk_size(IterUnreader([b"x\r\n"]))
    with pytest.raises(NoMoreData):
        reader.parse_chunk_size(IterUnreader([b"5"]))
    assert list(reader.parse_chunked(IterUnreader([b"3\r\nabc\r\n", b"1\r\nd\r\n0\r\n\r\n"]))) == [
        b"abc",
        b"d",
    ]
    with pytest.raises(ChunkMissingTerminator):
        list(reader.parse_chunked(IterUnreader([b"3\r\nabcd\r\n"])))


@pytest.mark.parametrize("error", [NoMoreData, InvalidChunkSize, ChunkMissingTerminator])
def test_errors_of_a_body_keep_their_argument(error: Any) -> None:
    """gevent's server looks at the first argument of each OSError."""
    assert error(b"data").args == (b"data",)
