# SPDX-License-Identifier: MIT
"""The parts of captured output: rings, lines, files; and a keeper that is killed again and again."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from companiontools import run_python
from harness import wait_until

from gunicorn.companion.checks import OutputFile, check_output, check_stdout
from gunicorn.companion.output import files, ring
from gunicorn.companion.output.files import FileSink
from gunicorn.companion.output.lines import LONGEST, Cutter, Lines, lines_of, make_format
from gunicorn.companion.output.ring import CAPACITY, STDERR, STDOUT, Ring, RingFile, footprint
from gunicorn.companion.output.sinks import Channel, Piece, StreamSink, cut
from gunicorn.settings.companion import validate_log_format


@pytest.fixture
def rings() -> Iterator[RingFile]:
    file = RingFile()
    yield file
    file.close()


def put(to: Ring, data: bytes, kind: int = STDOUT, continues: bool = False) -> ring.Record:
    reading, writing = os.pipe()
    try:
        os.write(writing, data)
        record, read = to.read_from(reading, len(data), pid=7, kind=kind, continues=continues, now=1.5)
    finally:
        os.close(reading)
        os.close(writing)
    assert read == data
    return record


# -- rings ------------------------------------------------------------------------------------------------


def test_a_ring_keeps_the_newest_records(rings: RingFile) -> None:
    one = rings.map(rings.take())
    draw = random.Random(4)
    written = [draw.randbytes(draw.choice((1, 15, 16, 17, 900, 30_000))) for _ in range(400)]
    for number, data in enumerate(written):
        put(one, data, kind=number % 2)
    kept = [(one.data(record), record.kind, record.pid, record.time) for record in one.records()]
    expected = [(data, number % 2, 7, 1.5) for number, data in enumerate(written)][-len(kept) :]
    assert kept == expected
    assert CAPACITY - 2 * footprint(30_000) < one.head - one.tail <= CAPACITY
    assert rings.counters(0).bytes == sum(map(len, written))


@pytest.mark.parametrize("when", ["before the read", "after the read", "after the note"])
def test_a_reader_that_is_killed_loses_nothing(
    rings: RingFile, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    slot = rings.take()
    one = rings.map(slot)
    put(one, b"before\n")
    reading, writing = os.pipe()
    os.write(writing, b"at the kill\n")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if when == "before the read":
            patch.setattr(os, "readv", killed)
        elif when == "after the read":
            patch.setattr(Ring, "_finish", killed)
        else:
            patch.setattr(ring, "Record", killed)
        with pytest.raises(KeyboardInterrupt):
            one.read_from(reading, 12, pid=7, kind=STDERR, continues=False, now=2.0)
    successor = rings.map(slot)
    successor.recover()
    os.write(writing, b"!")
    length = 13 if when == "before the read" else 1
    successor.read_from(reading, length, pid=7, kind=STDERR, continues=False, now=2.0)
    data = b"".join(successor.data(record) for record in successor.records())
    assert data == b"before\nat the kill\n!"
    os.close(reading)
    os.close(writing)


def test_a_ring_gets_another_use(rings: RingFile) -> None:
    slot = rings.take()
    put(rings.map(slot), b"old\n")
    rings.give_back(slot)
    assert rings.take() == slot
    assert list(rings.map(slot).records()) == []


# -- lines ------------------------------------------------------------------------------------------------


def test_lines_are_passed_on_whole() -> None:
    cutter = Cutter()
    assert cutter.feed(b"one\ntw") == b"one\n"
    assert cutter.feed(b"o") == b""
    assert cutter.feed(b"\nthree\nfo") == b"two\nthree\n"
    assert cutter.end() == b"fo"
    assert cutter.end() == b""


def test_a_line_without_end_comes_in_pieces() -> None:
    cutter = Cutter()
    data = [b"x" * 30_000] * 20
    found = [cutter.feed(each) for each in data] + [cutter.end()]
    assert b"".join(found) == b"".join(data)
    assert max(map(len, found)) <= LONGEST + 30_000


def test_kept_lines_of_several_processes_are_not_mixed(rings: RingFile) -> None:
    one = rings.map(rings.take())
    for pid, data, continues in ((1, b"a", False), (2, b"lost\nB\nC", True), (1, b"b\n", True)):
        record = put(one, data, continues=continues)
        words = one._data[record.position % CAPACITY + 12 : record.position % CAPACITY + 16].cast("I")
        words[0] = pid << 2 | continues << 1
    records = [(record, one.data(record)) for record in one.records()]
    assert [(r.pid, line) for r, line in lines_of(records)] == [(2, b"B"), (1, b"ab"), (2, b"C")]
    assert [line for _, line in lines_of(records, unfinished=False)] == [b"B", b"ab"]


def lines(text: bytes, kind: int = STDOUT) -> Lines:
    return Lines(text, "rq:0", 41, kind, 1_700_000_000.25)


def test_formats() -> None:
    text = b"one\n\ntwo"
    assert make_format("%(name)s | %(message)s")(lines(text)) == b"rq:0 | one\nrq:0 | \nrq:0 | two\n"
    assert (
        make_format("[%(pid)d %(stream)s] %(message)s (%%)")(lines(b"x\n", STDERR)) == b"[41 stderr] x (%)\n"
    )
    assert make_format("raw")(lines(text)) == text
    stamped = make_format("%(asctime)s %(message)s")(lines(b"x\n")).decode()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,250 x\n", stamped)
    colored = make_format("%(name)s | %(message)s", colored=True)(lines(b"x\n"))
    assert re.fullmatch(rb"\x1b\[\d+mrq:0 \|\x1b\[0m x\n", colored)


def test_json_has_an_object_for_each_line() -> None:
    found = make_format("json")(lines(b'one "1"\n\xff\n')).splitlines()
    first, second = map(json.loads, found)
    assert (first["name"], first["pid"], first["stream"], first["message"]) == (
        "rq:0",
        41,
        "stdout",
        'one "1"',
    )
    assert second["message"] == "\\xff"
    assert first["time"].startswith("2023-11-14T") or first["time"].startswith("2023-11-15T")


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("%(nam)s %(message)s", "'nam' is none of"),
        ("%(name)s", "with %(message)s in it, once"),
        ("%(message)s %(message)s", "with %(message)s in it, once"),
        ("%(name)d %(message)s", "'name' is not a number"),
        ("100% %(message)s", "'%' stands neither"),
    ],
)
def test_wrong_formats(text: str, mistake: str) -> None:
    with pytest.raises(ValueError, match=re.escape(mistake)):
        validate_log_format(text)


def test_right_formats() -> None:
    for text in ("json", "raw", "%(name)s%%[%(pid)d] %(message)s"):
        assert validate_log_format(text) == text


def test_a_pipe_gets_lines_whole() -> None:
    text = b"".join(b"%d%s\n" % (n, b"x" * (n % 300)) for n in range(500)) + b"y" * 9000 + b"\nz\nend"
    parts = cut(text)
    assert b"".join(parts) == text
    assert all(part.endswith(b"\n") for part in parts[:-1])
    assert [part for part in parts if len(part) > 4096] == [b"y" * 9000 + b"\n"]


# -- files ------------------------------------------------------------------------------------------------


def test_the_dictionary_of_a_file() -> None:
    given = {"file": "rq-%(index)s.log", "max_bytes": "50M", "backups": 3, "compress": True}
    assert check_stdout(given) == OutputFile("rq-%(index)s.log", 50 * 2**20, 3, True, False)
    assert check_output("x.log") == "x.log"


@pytest.mark.parametrize(
    ("value", "mistake"),
    [
        ({"max_bytes": 1}, "'file' is missing"),
        ({"file": "x", "maxbytes": 1}, "unknown key maxbytes: did you mean max_bytes?"),
        ({"file": "x", "max_bytes": "5 apples"}, "max_bytes: '5 apples' is not a size"),
        ({"file": "x", "backups": -1}, "backups: -1 is not a whole number"),
        ({"file": "x", "stamp": "yes"}, "stamp: 'yes' is neither"),
    ],
)
def test_wrong_dictionaries(value: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ValueError, match=re.escape(mistake)):
        check_output(value)


class Files:
    """A channel that writes to a rotated file, and what the file and its predecessors hold."""

    def __init__(self, rings: RingFile, directory: Path, **options: Any) -> None:
        self.rings = rings
        self.slot = rings.take()
        self.path = directory / "rq.log"
        self.options = OutputFile(str(self.path), **options)
        self.woken, self.wake = os.pipe()
        os.set_blocking(self.wake, False)
        self.begin()

    def begin(self) -> None:
        """Begin anew, as a successor does."""
        self.losses: list[tuple[int, int]] = []
        self.ring = self.rings.map(self.slot)
        self.sink = FileSink(self.options, self.wake)
        self.channel = Channel(
            "rq", STDOUT, self.ring, lambda _, size, number: self.losses.append((size, number))
        )

    def piece(self, text: bytes) -> Piece:
        record = put(self.ring, text)
        return Piece(Lines(text, "rq", 7, STDOUT, 1.0), record.position, record.end)

    def write(self, *texts: bytes) -> None:
        self.channel.connect(self.sink)
        for piece in [self.piece(text) for text in texts]:
            self.channel.add(piece)

    def backups(self) -> list[bytes]:
        """From the oldest to the newest, the file itself last."""
        found = sorted(self.path.parent.glob("rq.log.*"), key=lambda path: -int(path.name.split(".")[2]))
        return [path.read_bytes() for path in [*found, self.path]]


@pytest.fixture
def rotated(rings: RingFile, tmp_path: Path) -> Callable[..., Files]:
    return lambda **options: Files(rings, tmp_path, **options)


def numbered(start: int, end: int) -> bytes:
    return b"".join(b"line %d %s\n" % (n, b"." * (n % 40)) for n in range(start, end))


def test_sizes_and_counts_are_exact(rotated: Callable[..., Files]) -> None:
    out = rotated(max_bytes=1000, backups=3)
    out.write(*(numbered(n, n + 7) for n in range(0, 350, 7)))
    kept = out.backups()
    assert len(kept) == 4
    assert all(1000 - 60 < len(each) <= 1000 for each in kept[:-1])
    assert numbered(0, 350).endswith(b"".join(kept))


def test_a_line_longer_than_a_file_has_one_of_its_own(rotated: Callable[..., Files]) -> None:
    out = rotated(max_bytes=100, backups=5)
    out.write(b"short\n", b"x" * 300 + b"\n", b"short\n")
    assert out.backups() == [b"short\n", b"x" * 300 + b"\n", b"short\n"]


def test_another_destination(rotated: Callable[..., Files]) -> None:
    """What is being written by then goes to the old one, and what follows to the new one."""
    out = rotated()
    reading, writing = os.pipe()
    old = StreamSink("a pipe", writing, make_format("raw"), out.wake)
    out.channel.connect(old)
    out.channel.add(out.piece(b"one\n"))
    out.channel.connect(out.sink)
    out.channel.add(out.piece(b"two\n"))

    def settled() -> bool:
        old.step()
        return old.idle

    wait_until(settled, 5, "the end of the turn")
    assert os.read(reading, 100) == b"one\n"
    assert out.path.read_bytes() == b"two\n"
    os.close(reading)


def test_no_backups(rotated: Callable[..., Files]) -> None:
    out = rotated(max_bytes=100, backups=0)
    out.write(numbered(0, 20))
    assert numbered(0, 20).endswith(out.path.read_bytes())
    assert os.listdir(out.path.parent) == ["rq.log"]


def test_reopen_after_a_rename(rotated: Callable[..., Files]) -> None:
    out = rotated()
    out.write(b"one\n")
    out.path.rename(out.path.with_suffix(".old"))
    out.write(b"two\n")
    out.sink.reopen()
    out.write(b"three\n")
    assert out.path.with_suffix(".old").read_bytes() == b"one\ntwo\n"
    assert out.path.read_bytes() == b"three\n"


def test_stamps(rotated: Callable[..., Files]) -> None:
    out = rotated(stamp=True)
    out.write(b"one\ntwo\n")
    assert re.fullmatch(rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (one|two)\n){2}", out.path.read_bytes())


def test_old_files_are_compressed(rotated: Callable[..., Files]) -> None:
    out = rotated(max_bytes=1000, backups=2, compress=True)
    out.write(numbered(0, 100))

    def settled() -> bool:
        out.sink.step()
        return out.sink.idle

    wait_until(settled, 10, "the compression")
    assert sorted(os.listdir(out.path.parent)) == ["rq.log", "rq.log.1.gz", "rq.log.2.gz"]
    kept = [gzip.decompress(Path(f"{out.path}.{n}.gz").read_bytes()) for n in (2, 1)]
    assert numbered(0, 100).endswith(b"".join([*kept, out.path.read_bytes()]))


@pytest.mark.parametrize("seed", range(30))
def test_a_killed_writer_neither_loses_nor_repeats(
    rotated: Callable[..., Files], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """It is killed in a system call that changes a file, before it, after it, or half way through a write."""
    out = rotated(max_bytes=500, backups=200)
    draw = random.Random(seed)
    at = draw.randrange(1, 60)
    calls = 0

    class Killed(BaseException):
        pass

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != at:
                return call(*args, **options)
            way = draw.choice(("before", "after", "half"))
            if way == "half" and call is real_write:
                call(args[0], args[1][: len(args[1]) // 2])
            elif way != "before":
                call(*args, **options)
            raise Killed

        return run

    real_write = os.write
    texts = [numbered(n, n + 5) for n in range(0, 200, 5)]
    pieces = [out.piece(text) for text in texts]
    for piece in pieces:
        out.channel.waiting.append(piece)
    with monkeypatch.context() as patch:
        for name in ("write", "rename", "unlink", "ftruncate"):
            patch.setattr(files.os, name, deadly(getattr(os, name)))
        try:
            out.channel.connect(out.sink)
        except Killed:
            pass
    # The successor begins at what the ring says was written.
    out.begin()
    done = out.ring.out(STDOUT)
    for piece in pieces:
        if piece.end > done:
            out.channel.waiting.append(piece)
    out.channel.sink = out.sink
    out.sink.resume(out.channel)
    assert b"".join(out.backups()) == numbered(0, 200)


def test_a_file_that_is_moved_away_while_its_writer_is_killed(
    rotated: Callable[..., Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines that were written are not repeated in the new file; the one that was cut is whole there."""
    out = rotated()
    piece = out.piece(numbered(0, 20))
    out.channel.waiting.append(piece)
    real = os.write

    def write(fd: int, data: Any) -> int:
        real(fd, data[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.os, "write", write)
        out.channel.connect(out.sink)
    moved = out.path.rename(out.path.parent / "rq-20261127.log")
    out.begin()
    out.channel.waiting.append(piece)
    out.channel.sink = out.sink
    out.sink.resume(out.channel)
    whole = numbered(0, 20)[:100].rfind(b"\n") + 1
    assert moved.read_bytes()[:whole] + out.path.read_bytes() == numbered(0, 20)


def test_a_full_disk_loses_whole_lines_and_says_so(
    rotated: Callable[..., Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = rotated()
    pieces = [out.piece(numbered(0, 20)), out.piece(numbered(20, 40))]
    out.channel.connect(out.sink)
    real, room = os.write, 100

    def write(fd: int, data: Any) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        part = data[:room]
        room -= len(part)
        return real(fd, part)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", write)
        for piece in pieces:
            out.channel.add(piece)
        assert out.sink.error is not None
        assert out.path.read_bytes().endswith(b"\n")
    out.write(b"again\n")
    assert out.sink.error is None
    kept, note, again = re.split(rb"(\[.*\]\n)", out.path.read_bytes())
    assert numbered(0, 40).startswith(kept)
    assert again == b"again\n"
    [(_, lost)] = out.losses
    assert f"{lost} lines".encode() in note
    assert lost == 40 - kept.count(b"\n")


def test_a_file_that_cannot_be_opened_is_tried_again(
    rotated: Callable[..., Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = rotated()
    out.path.mkdir()
    out.write(b"one\n")
    assert out.sink.error is not None
    out.path.rmdir()
    monkeypatch.setattr(files, "_RETRY", 0)
    out.sink._retry_at = 0.0
    out.write(b"two\n")
    assert out.path.read_bytes().endswith(b"could not be written here]\ntwo\n")


# -- the keeper, killed again and again -----------------------------------------------------------------

KILLED = """
import logging, os, random, signal, subprocess, sys, time
from types import SimpleNamespace
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.output.capture import Capture
from gunicorn.unix.poller import Poller

directory, rotated, count, kills = sys.argv[1], sys.argv[2] == "files", int(sys.argv[3]), int(sys.argv[4])
# A pipe takes each part as a whole; a kill in the middle of a write(2) to a file leaves a part of it there.
with open(f"{directory}/output", "wb") as output:
    reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output)
os.dup2(reader.stdin.fileno(), 1)
reader.stdin.close()
told = open(f"{directory}/kills", "wb", buffering=0)
poller = Poller()
capture = Capture(logging.getLogger(), poller, line_format="%(name)s | %(message)s", most_lines=10)
capture.start()
writers = set()
for index in range(4):
    to = {"file": f"{directory}/out-{index}", "max_bytes": 50_000, "backups": 999} if rotated else None
    from gunicorn.companion.checks import check_output
    config = CompanionConfig(f"rq:{index}", "a:b", stdout=check_output(to), stderr="stdout", index=index)
    pipes = capture.open(config)
    pid = os.fork()
    if pid == 0:
        for fd in set(capture.descriptors()) - set(pipes.values()):
            os.close(fd)
        text = b""
        for number in range(count):
            # So many kills have come before so many lines, however fast they are written.
            while not number % 100 and os.fstat(told.fileno()).st_size < -(-number * kills // count):
                time.sleep(0.001)
            text += b"line %d %s\\n" % (number, b"." * (number % 90))
            while len(text) > 3000 or (text and number == count - 1):
                text = text[os.write(pipes[1], text[: random.randrange(1, 3000)]):]
        os._exit(0)
    capture.started(config, pid, pipes)
    writers.add(pid)
next_kill = 0
while writers or capture._feeds:
    poller.wait(0.01)
    capture._started_at = -1e9
    capture.tick(time.monotonic())
    if kills and capture.pid and time.monotonic() > next_kill:
        os.kill(capture.pid, signal.SIGKILL)
        kills -= 1
        told.write(b".")
        next_kill = time.monotonic() + random.random() * 0.04
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if not pid:
            break
        if not capture.reaped(pid, status):
            writers.discard(pid)
capture.end()
os.close(1)
assert reader.wait() == 0
assert not kills, kills
"""


@pytest.mark.parametrize("where", ["files", "server"])
def test_a_keeper_that_is_killed_loses_no_line(tmp_path: Path, where: str) -> None:
    count = 60_000
    result = run_python(KILLED, str(tmp_path), where, str(count), "15", timeout=60)
    assert result.returncode == 0, result.stderr
    expected = [b"line %d %s" % (n, b"." * (n % 90)) for n in range(count)]
    output = (tmp_path / "output").read_bytes().splitlines()
    for index in range(4):
        if where == "files":
            found = sorted(tmp_path.glob(f"out-{index}.*"), key=lambda path: -int(path.suffix[1:]))
            text = b"".join(path.read_bytes() for path in [*found, tmp_path / f"out-{index}"])
            assert text.splitlines() == expected
        else:
            prefix = b"rq:%d | " % index
            mine = [line.removeprefix(prefix) for line in output if line.startswith(prefix)]
            # Some may come again; none is missing, and none is torn.
            assert set(mine) == set(expected)
    assert where == "files" or all(re.match(rb"rq:\d \| line \d", line) for line in output)
