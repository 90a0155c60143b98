# SPDX-License-Identifier: MIT
"""Stores that answer nonsense, and directories that somebody else may write to."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import resource
import socketserver
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import wait_until
from storeservers import has_psycopg

from gunicorn.companion.helpers.wire import Wire
from gunicorn.companion.leasing import store
from gunicorn.companion.leasing.keeper import Desk, Keeper
from gunicorn.companion.leasing.store import LONGEST_NOTE, Answer, LeaseError, StoreError, checked
from gunicorn.companion.leasing.words import LeaseMemory

A, B = "web-1 (pid 1) aa", "web-2 (pid 2) bb"
TTL = 60.0
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="it is root that must not be misled")


# -- files ---------------------------------------------------------------------------


@pytest.fixture
def leases(short_dir: Path) -> Path:
    path = short_dir / "leases"
    path.mkdir()
    return path


def connect(directory: Path) -> store.Store:
    return store.connect(f"file://{directory}", 0.05)


@pytest.mark.parametrize(
    "body",
    [
        "[" * 16000,
        "{}",
        "5",
        "[1]",
        '[1, "a", 1, 1, "", 2]',
        '["x", "a", 1, 1, ""]',
        '[1, null, 1, 1, ""]',
        '[1, "a", -5, 1, ""]',
        '[1, "a", 18446744073709551616, 1, ""]',
        '[1, "a", NaN, NaN, ""]',
        '[1, "a", 1, 1e400, ""]',
        '[1, "a", 1, 1, {"a": 1, "a": 2}]',
        f'[{"9" * 5000}, "a", 1, 1, ""]',
    ],
    ids=lambda body: body[:20],
)
def test_a_record_that_is_none_of_ours_is_none(leases: Path, body: str) -> None:
    data = body.encode()
    (leases / "a.lease").write_bytes(b"%08x %s\n" % (zlib.crc32(data), data))
    woken, wake = os.pipe()
    connect(leases).wait(["a"], TTL, woken)
    assert connect(leases).acquire("a", A, TTL) == Answer(True, A, 1, TTL, "")
    for fd in (woken, wake):
        os.close(fd)


def symbolic(path: Path, victim: Path) -> None:
    path.symlink_to(victim)
    os.lchown(path, NOBODY, NOBODY)


def of_another(path: Path, victim: Path) -> None:
    path.touch()
    os.chown(path, NOBODY, NOBODY)


@as_root
@pytest.mark.parametrize(
    ("put", "why"),
    [
        (symbolic, "a link of user 65534 leads to something that user does not own"),
        (lambda path, victim: os.link(victim, path), "it has a hard link"),
        (lambda path, victim: os.mkfifo(path), "it is not a file"),
        (lambda path, victim: path.mkdir(), "Is a directory"),
        (lambda path, victim: os.mknod(path, 0o20666, os.makedev(1, 5)), "it is not a file"),
        (of_another, "everybody may create files in its directory"),
    ],
    ids=["symbolic link", "hard link", "pipe", "directory", "device", "file of another"],
)
def test_root_is_not_misled_in_a_directory_of_others(
    leases: Path, put: Callable[[Path, Path], None], why: str
) -> None:
    leases.chmod(0o1777)
    victim = leases.parent / "victim"
    victim.write_text("precious")
    put(leases / "a.lease", victim)
    files = connect(leases)
    with pytest.raises(LeaseError, match=why) as caught:
        files.acquire("a", A, TTL)
    assert str(caught.value).startswith(f"{leases}/a.lease: ")
    woken, wake = os.pipe()
    # Nobody waits for a pipe here.
    files.wait(["a"], TTL, woken)
    for fd in (woken, wake):
        os.close(fd)
    assert victim.read_text() == "precious"
    assert files.acquire("b", A, TTL).mine


def test_a_file_that_is_a_link_or_a_pipe_is_refused(leases: Path) -> None:
    (leases / "a.lease").symlink_to("b.lease")
    os.mkfifo(leases / "c.lease")
    pid = os.fork()
    if pid == 0:
        # As a user for whom there is no other check than ours.
        why = []
        if os.geteuid() == 0:
            leases.parent.chmod(0o711)
            for path in (leases, leases / "c.lease"):
                os.chown(path, NOBODY, NOBODY)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        for name in ("a", "c"):
            try:
                connect(leases).acquire(name, A, TTL)
            except LeaseError as exc:
                why.append(str(exc).rpartition(": ")[2])
        os._exit(why != ["it is a symbolic link", "it is not a file"])
    assert os.waitpid(pid, 0)[1] == 0
    assert not (leases / "b.lease").exists()


@as_root
def test_root_makes_no_directory_through_a_link_of_others(leases: Path) -> None:
    connect(leases / "new" / "deeper").acquire("a", A, TTL)
    leases.chmod(0o777)
    symbolic(leases / "way", leases.parent)
    with pytest.raises(StoreError, match="root does not use it: a link of user"):
        connect(leases / "way" / "more" / "leases").acquire("a", A, TTL)
    assert os.listdir(leases.parent) == ["leases"]


def spoil(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def test_a_disk_that_is_full_is_told_and_spoils_nothing(leases: Path) -> None:
    files = connect(leases)
    files.acquire("a", A, TTL)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((leases / "a.lease").stat().st_size, before[1]))
    try:
        with pytest.raises(LeaseError, match=r"a\.lease: (File too large|No space left on device)"):
            files.renew("a", A, 1, TTL, "x" * LONGEST_NOTE)
            files.renew("a", A, 1, TTL, "y" * LONGEST_NOTE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files.renew("a", A, 1, TTL, None)
    assert connect(leases).acquire("a", B, TTL).owner == A


def test_a_disk_that_becomes_full_later_has_room_for_what_is_held(leases: Path) -> None:
    files = connect(leases)
    files.acquire("a", A, TTL)
    fd = os.open(leases / "a.lease", os.O_RDWR)
    places = [os.pread(fd, 8, place) for place in (0, 8 * LONGEST_NOTE)]
    os.close(fd)
    # Neither is a hole.
    assert all(place.strip(b"\0") for place in places)


@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: path.write_bytes(b""), spoil], ids=["removed", "emptied", "spoilt"]
)
def test_a_file_that_is_removed_frees_no_lease(leases: Path, spoil: Callable[[Path], object]) -> None:
    one, other = connect(leases), connect(leases)
    assert one.acquire("a", A, TTL).token == 1
    assert other.acquire("a", B, TTL).owner == A
    spoil(leases / "a.lease")
    assert other.acquire("a", B, TTL).owner == A
    assert one.renew("a", A, 1, TTL, "note")
    spoil(leases / "a.lease")
    one.release("a", A, 1, None)
    spoil(leases / "a.lease")
    # Only one of them knows that it is free.
    assert other.acquire("a", B, TTL).owner == A
    spoil(leases / "a.lease")
    assert one.acquire("a", A, TTL) == Answer(True, A, 2, TTL, "note")


def test_a_path_with_a_zero_byte_is_none() -> None:
    with pytest.raises(ValueError, match="names no directory"):
        store.check_url("file:///tmp/%00")


# -- servers -------------------------------------------------------------------------


@contextlib.contextmanager
def nonsense(answer: bytes) -> Iterator[int]:
    """The port of a server that sends *answer* whenever it is asked something."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while self.request.recv(65536):
                    self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def http(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def held(revision: str, owner: str = "YQ==") -> str:
    pair = f'{{"value": "{owner}", "create_revision": {revision}, "lease": "5"}}'
    return f'{{"responses": [{{"response_range": {{"kvs": [{pair}]}}}}, {{}}], "TTL": 1e400}}'


def lease(spec: str, metadata: str = "{}") -> str:
    return f'{{"metadata": {metadata}, "spec": {spec}}}'


ETCD, KUBERNETES = "etcd://127.0.0.1:{}", "kubernetes://shop?server=http://127.0.0.1:{}&account=/none"
REDIS, POSTGRESQL = "redis://127.0.0.1:{}/0", "postgresql://a:secret@127.0.0.1:{}/b"


@pytest.mark.parametrize(
    ("url", "answer", "why"),
    [
        (ETCD, http("[" * 100_000), "its answer is no JSON"),
        (ETCD, http('{"a":' * 100_000), "its answer is no JSON"),
        (ETCD, http("[]"), "makes no sense: KeyError"),
        (ETCD, http(held("1e400")), "makes no sense: OverflowError"),
        (ETCD, http(held("NaN")), "makes no sense: ValueError"),
        (ETCD, http(held("5", "/w==")), "makes no sense: UnicodeDecodeError"),
        (ETCD, http('{"error": "a\\nb\\u001b[31m' + "x" * 1_000_000 + '"}'), r"etcd said 200: a b\?\[31mxx"),
        (ETCD, b"SSH-2.0-OpenSSH\r\n", "its answer is no HTTP: BadStatusLine"),
        (KUBERNETES, http("[" * 100_000), "its answer is no JSON"),
        # As a proxy may that says so to everything.
        (KUBERNETES, http("{}"), "what the API server answers is no lease"),
        (KUBERNETES, http(lease("{}")), "another lease than the one that it was given"),
        (KUBERNETES, http(lease("5")), "what the API server answers is no lease"),
        (KUBERNETES, http(lease('{"holderIdentity": "b", "leaseTransitions": 1e400}')), "OverflowError"),
        (
            KUBERNETES,
            http(lease('{"holderIdentity": ["b"]}')),
            r"makes no sense: Answer\(.*owner=\['b'\]",
        ),
        (REDIS, b"*1\r\n" * 100_000, "makes no sense: RecursionError"),
        (REDIS, b"+OK\r\n", "makes no sense: ValueError"),
        (REDIS, b"*5\r\n:1\r\n$1\r\n\xff\r\n:1\r\n:1\r\n+\r\n", "makes no sense: UnicodeDecodeError"),
        (REDIS, http("{}"), "Protocol Error"),
        (POSTGRESQL, http("{}"), "received invalid response to SSL negotiation"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_an_answer_that_makes_no_sense_is_one_line(url: str, answer: bytes, why: str) -> None:
    if url is POSTGRESQL and not has_psycopg():
        pytest.skip("psycopg finds no libpq")
    with nonsense(answer) as port:
        client = store.connect(url.format(port), 5)
        with pytest.raises(StoreError) as caught:
            checked(client.acquire("a", A, TTL), 0)
        client.close()
    text = store.shorten(str(caught.value))
    assert re.search(why, text)
    assert text.isprintable() and len(text) < 400
    assert "secret" not in text


def test_a_token_of_an_account_does_not_get_into_an_error(short_dir: Path) -> None:
    (short_dir / "token").write_text("very\nsecret")
    client = store.connect(f"kubernetes://shop?server=http://127.0.0.1:1&account={short_dir}", 1)
    with pytest.raises(StoreError, match="has forbidden characters") as caught:
        client.acquire("a", A, TTL)
    assert "secret" not in str(caught.value)
    client.close()


def test_a_host_that_no_resolver_takes_is_a_mistake_of_the_url() -> None:
    for url in ("redis://{}/0", "etcd://{}", "kubernetes://?server=http://{}"):
        with pytest.raises(ValueError, match="is no valid URL"):
            store.check_url(url.format("x" * 70))


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (None, "its answer makes no sense: None"),
        (Answer(True, A, -1), "it gave token -1, and not a new one from 1 to"),
        (Answer(True, A, 0), "it gave token 0"),
        (Answer(True, A, 7), "it gave token 7"),
        (Answer(True, A, 2**63), "it gave token 9223372036854775808"),
        # It has lost its data.
        (Answer(True, A, 6), None),
        (Answer(True, A, 8.5), "makes no sense"),  # type: ignore[arg-type]
        (Answer(False, A, 1, "soon"), "makes no sense"),  # type: ignore[arg-type]
        (Answer(False, A, 1, 1.0, b"note"), "makes no sense"),  # type: ignore[arg-type]
        (Answer(False, A, 1, 1.0, "x" * 100_000), "makes no sense"),
        (Answer(True, A, 2**63 - 1), None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_an_answer_may_be(found: Any, why: str | None) -> None:
    if why is None:
        assert checked(found, 7).token == found.token
    else:
        with pytest.raises(LeaseError, match=why):
            checked(found, 7)


@pytest.mark.parametrize(
    ("left", "shown"), [(float("inf"), 1e9), (float("nan"), 0), (-1e300, 0), (5, 5), (None, None)]
)
def test_a_time_can_be_told(left: float | None, shown: float | None) -> None:
    assert checked(Answer(False, "\x1b[31mevil\n", 1, left), 0) == Answer(False, "?[31mevil", 1, shown)


# -- in the keeper -------------------------------------------------------------------


class Keeping:
    """A desk of the keeper, and what it has told the manager."""

    def __init__(self, url: str) -> None:
        self.told: list[dict[str, Any]] = []
        self.memory = LeaseMemory()
        ended = threading.Event()
        self.desk = Desk(url, A, self.memory, self.told.append, ended.set)
        self.end = ended.wait
        threading.Thread(target=self.desk.run, daemon=True).start()

    def want(self, serial: int, name: str, ttl: float = 1.5) -> None:
        want = {"want": serial, "name": name, "slot": serial, "token": 0, "above": 0}
        self.desk.put({**want, "ttl": ttl, "store": ""})

    def heard(self, word: str, value: object) -> bool:
        return any(message.get(word) == value for message in self.told)


@pytest.fixture
def keep() -> Iterator[Callable[[str], Keeping]]:
    made: list[Keeping] = []

    def make(url: str) -> Keeping:
        made.append(Keeping(url))
        return made[-1]

    yield make
    for each in made:
        each.desk.put({"end": True})
        assert each.end(10)
        # A desk that fails ends the keeper.
        assert not any("failed" in message for message in each.told), each.told


def test_one_lease_that_cannot_be_had_holds_up_no_other(leases: Path, keep: Callable[[str], Keeping]) -> None:
    (leases / "bad.lease").mkdir()
    keeping = keep(f"file://{leases}")
    for serial, name in enumerate(("bad", "good", "fine"), 1):
        keeping.want(serial, name)
    for serial in (2, 3):
        wait_until(lambda serial=serial: keeping.heard("held", serial), 10, lambda: str(keeping.told))
    wait_until(lambda: keeping.heard("wrong", 1), 10, lambda: str(keeping.told))
    began = keeping.memory.slot(3).until
    # They are renewed, while the first one is tried again and again.
    wait_until(lambda: keeping.memory.slot(3).until > began, 10, "a renewal")
    (leases / "bad.lease").rmdir()
    wait_until(lambda: keeping.heard("right", 1), 10, lambda: str(keeping.told))
    assert keeping.heard("held", 1)
    assert [message for message in keeping.told if "down" in message or "up" in message] == []
    assert sum("wrong" in message for message in keeping.told) == 1


def test_the_longest_ttl(leases: Path, keep: Callable[[str], Keeping]) -> None:
    keeping = keep(f"file://{leases}")
    keeping.want(1, "a", 1e10)
    wait_until(lambda: keeping.heard("held", 1), 10, lambda: str(keeping.told))
    keeping.want(2, "b")
    wait_until(lambda: keeping.heard("held", 2), 10, lambda: str(keeping.told))


class Hasty:
    """A store that a user has written, which always finds a lease to be free, and waits for nothing."""

    calls: list[str]

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout

    def acquire(self, name: str, owner: str, ttl: float) -> Answer:
        self.calls.append(name)
        if name.startswith("bad"):
            raise LeaseError("no")
        return Answer(False, B, 1, ttl)

    def wait(self, names: list[str], seconds: float, wake: int) -> None:
        self.calls.append("wait " + " ".join(names))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of a `Hasty`, as the keeper imports it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    made: list[str] = []
    importlib.import_module("test_leasing_hostile").Hasty.calls = made
    return made


def test_a_store_that_waits_for_nothing_is_not_asked_in_a_tight_loop(
    keep: Callable[[str], Keeping], calls: list[str]
) -> None:
    keeping = keep("test_leasing_hostile:Hasty")
    keeping.want(1, "bad", 60)
    keeping.want(2, "good", 60)
    wait_until(lambda: calls.count("good") > 4, 10, lambda: str(calls))
    found = calls[:]
    assert sum(call.startswith("wait") for call in found) < 3 * found.count("good")
    # What is wrong is not waited for, only tried again after a second.
    assert found.count("bad") < found.count("good") and "wait bad good" not in found


def test_of_what_was_refused_one_is_tried_in_each_round(
    keep: Callable[[str], Keeping], calls: list[str]
) -> None:
    keeping = keep("test_leasing_hostile:Hasty")
    for serial, name in enumerate(("good", "bad1", "bad2", "bad3"), 1):
        keeping.want(serial, name)
    wait_until(lambda: all(calls.count(f"bad{each}") > 3 for each in (1, 2, 3)), 10, lambda: str(calls))
    first = max(calls.index(f"bad{each}") for each in (1, 2, 3))
    rounds = " ".join(calls[first + 1 :]).split("wait")
    assert all(each.count("bad") <= 1 for each in rounds), rounds


def test_nonsense_ends_no_keeper(keep: Callable[[str], Keeping]) -> None:
    with nonsense(http("{}")) as port:
        keeping = keep(ETCD.format(port))
        keeping.want(1, "a")
        wait_until(lambda: keeping.heard("wrong", 1), 10, lambda: str(keeping.told))


def test_who_comes_later_is_told_that_the_store_is_down(keep: Callable[[str], Keeping]) -> None:
    keeping = keep("etcd://127.0.0.1:1")
    keeping.want(1, "a")
    wait_until(lambda: len(keeping.told) == 1, 10, "down")
    keeping.want(2, "b")
    wait_until(lambda: len(keeping.told) == 2, 10, "down for the second one")
    assert [message["why"] for message in keeping.told] == ["connection refused"] * 2


def test_the_messages_can_be_sent(leases: Path, keep: Callable[[str], Keeping]) -> None:
    body = json.dumps([1, "\ud800\x1b", 3, 1e300, "\ud800"]).encode()
    (leases / "a.lease").write_bytes(b"%08x %s\n" % (zlib.crc32(body), body))
    keeping = keep(f"file://{leases}")
    keeping.want(1, "a")
    wait_until(lambda: keeping.heard("refused", 1), 10, lambda: str(keeping.told))
    assert keeping.told[0]["owner"] == "??"


def test_what_is_held_by_one_url_is_not_taken_by_another_one(leases: Path) -> None:
    ours, theirs = Wire.pair()
    keeper = Keeper(theirs, LeaseMemory(), A)
    thread = threading.Thread(target=keeper.run, daemon=True)
    thread.start()
    told: list[dict[str, Any]] = []

    def heard(word: str) -> bool:
        told.extend(message for message, _ in ours.receive())
        ours.flush()
        return any(word in message for message in told)

    for serial, url in enumerate((f"file://{leases}", f"file://localhost{leases}/"), 1):
        want = {"want": serial, "name": "a", "slot": serial, "token": 0, "above": 0, "ttl": 15}
        ours.send({**want, "store": url})
        wait_until(lambda serial=serial: heard("held" if serial == 1 else "refused"), 10, lambda: str(told))
    ours.send({"end": True})
    thread.join(10)
    ours.close()
    theirs.close()
