# SPDX-License-Identifier: MIT
"""The control socket: its file, its framing, and clients of every kind; with real sockets."""

from __future__ import annotations

import gc
import json
import os
import resource
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from companiontools import answer_of

from gunicorn.companion import control
from gunicorn.companion.control import MAX_CONNECTIONS, MAX_LINE, ControlServer, LineReader, error
from gunicorn.unix.poller import Poller


class Log:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, msg: str, *args: Any) -> None:
        self.warnings.append(msg % args)

    def info(self, msg: str, *args: Any) -> None:
        pass

    debug = info


class Bench:
    """A control server whose loop runs while the test waits for something. Requests are echoed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.poller = Poller()
        self.log = Log()
        self.requests: list[dict[str, Any]] = []
        # With these the clients are answered that asked "later".
        self.later: list[Callable[[dict[str, Any]], Any]] = []
        self.server = self.make()
        self.clients: list[Client] = []

    def make(self, mode: int = 0o600, path: Path | None = None) -> ControlServer:
        return ControlServer(str(path or self.path), mode, self.dispatch, self.poller, self.log)

    def dispatch(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        if request.get("cmd") == "events":
            return {"ok": True, "subscribe": True}
        if request.get("cmd") == "later":
            return {"later": self.later.append}
        if request.get("cmd") == "broadcast":
            self.server.broadcast({"event": request["event"]})
        return {"ok": True, "echo": request, "filling": "x" * request.get("size", 0)}

    def pump(self, until: Callable[[], Any], timeout: float = 10.0) -> Any:
        """Run the loop until *until* gives something true."""
        deadline = time.monotonic() + timeout
        while not (found := until()):
            assert time.monotonic() < deadline, "nothing came of it"
            self.poller.wait(0.01)
        return found

    def settle(self) -> None:
        """Run the loop until it has nothing to do."""
        deadline = time.monotonic() + 10
        while self.poller.wait(0):
            assert time.monotonic() < deadline, "the loop never rests"

    def connect(self) -> Client:
        client = Client(self)
        self.clients.append(client)
        return client

    def close(self) -> None:
        for client in self.clients:
            client.sock.close()
        self.server.close()


class Client:
    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(bench.path))
        self.sock.setblocking(False)
        self.received = b""
        self.ended = False

    def send(self, data: bytes) -> None:
        """All of it, while the server's loop runs."""
        while data:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                self.bench.poller.wait(0.01)

    def receive(self) -> None:
        while not self.ended:
            try:
                data = self.sock.recv(65536)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            self.ended = not data
            self.received += data

    def line(self) -> bytes:
        def found() -> bool:
            self.receive()
            return b"\n" in self.received or self.ended

        self.bench.pump(found)
        line, _, self.received = self.received.partition(b"\n")
        return line

    def reply(self) -> dict[str, Any]:
        return json.loads(self.line())

    def ask(self, **request: Any) -> dict[str, Any]:
        self.send(json.dumps(request).encode() + b"\n")
        return self.reply()

    def alive(self) -> bool:
        return self.ask(cmd="ping")["echo"] == {"cmd": "ping"}


@pytest.fixture
def bench(short_dir) -> Iterator[Bench]:
    found = Bench(short_dir / "c.sock")
    yield found
    found.close()


@pytest.fixture
def served(bench) -> Bench:
    assert bench.server.open(0.0)
    return bench


# -- lines ---------------------------------------------------------------------------

LONG = b"x" * 20


@pytest.mark.parametrize(
    ("stream", "lines"),
    [
        (b"", []),
        (b"half", []),
        (b"one\ntwo\n", [b"one", b"two"]),
        (b"\n\n", [b"", b""]),
        (b"0123456789\n", [b"0123456789"]),
        (b"0123456789+\nnext\n", [None, b"next"]),
        (b"first\n" + LONG + b"\nnext\n", [b"first", None, b"next"]),
        (LONG * 5 + b"\n" + LONG + b"\nnext\nhalf", [None, None, b"next"]),
        (LONG, [None]),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_lines_however_they_come(stream, lines, step):
    reader = LineReader(limit=10)
    found: list[bytes | None] = []
    for start in range(0, len(stream), step):
        reader.feed(stream[start : start + step])
        found.extend(reader.lines())
    assert found == lines


def test_a_line_without_an_end_takes_no_memory():
    reader = LineReader(limit=10)
    for _ in range(1000):
        reader.feed(LONG)
        list(reader.lines())
    assert len(reader._buffer) == 0


# -- requests ------------------------------------------------------------------------


def test_a_request_and_its_answer(served):
    client = served.connect()
    assert client.ask(cmd="status", name="rq") == {
        "ok": True,
        "echo": {"cmd": "status", "name": "rq"},
        "filling": "",
    }
    assert client.alive()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"end",
        b"status",
        b"null",
        b"[]",
        b"3",
        b'"status"',
        b"{",
        b"{]",
        b"\xff\xfe\x00",
        b"\0" * 50,
        b"[" * 5000,
        b'{"a":' * 5000,
        b"GET / HTTP/1.1\r",
        b"1" * 5000,
    ],
)
def test_garbage_is_an_error_and_the_connection_stays(served, line):
    client = served.connect()
    client.send(line + b"\n")
    assert client.reply() == error("a request is one JSON object on a line")
    assert client.alive()
    assert served.requests == [{"cmd": "ping"}]


def test_what_a_client_sent_comes_back_as_json(served):
    client = served.connect()
    client.send(b'{"cmd": "\\ud800 \\u00fc \xc3\xbc"}\n')
    assert client.reply()["echo"] == {"cmd": "\ud800 ü ü"}


def test_a_line_of_64_kib_is_taken_and_one_byte_more_is_not(served):
    client = served.connect()
    head, tail = b'{"cmd": "', b'"}'
    text = b"x" * (MAX_LINE - len(head) - len(tail))
    client.send(head + text + tail + b"\n")
    assert client.reply()["echo"]["cmd"] == text.decode()
    client.send(head + text + b"x" + tail + b"\n")
    assert client.reply() == error("a request is at most 65536 bytes long")
    client.send(b"x" * 1_000_000 + b"\n")
    assert client.reply() == error("a request is at most 65536 bytes long")
    assert client.alive()


def test_pipelined_requests_are_answered_in_order(served):
    client = served.connect()
    count = 500
    lines = [json.dumps({"n": n}).encode() for n in range(count)]
    lines[7:7] = [b"", b"garbage", b"x" * (MAX_LINE + 1)]
    client.send(b"\n".join(lines) + b"\n")
    replies = [client.reply() for _ in lines]
    assert [reply["echo"]["n"] for reply in replies if reply["ok"]] == list(range(count))
    assert [reply["ok"] for reply in replies[:11]] == [True] * 7 + [False] * 3 + [True]


def test_a_request_may_come_in_pieces(served):
    client = served.connect()
    for byte in b'{"cmd": "ping"}':
        client.send(bytes([byte]))
        served.settle()
    assert served.requests == []
    client.send(b"\n")
    assert client.reply()["ok"]


def test_many_requests_of_one_client_leave_others_their_turn(served):
    greedy, modest = served.connect(), served.connect()
    served.settle()
    greedy.send(b'{"cmd":"a"}\n' * 3000)
    modest.send(b'{"cmd":"b"}\n')
    served.pump(lambda: {"cmd": "b"} in served.requests)
    assert len(served.requests) < 100
    for _ in range(3000):
        assert greedy.reply()["ok"]


def test_requests_before_a_half_close_are_answered(served):
    client = served.connect()
    client.send(b'{"n": 1}\n' * 100 + b'{"half')
    client.sock.shutdown(socket.SHUT_WR)
    for _ in range(100):
        assert client.reply()["ok"]
    assert client.line() == b""
    assert client.ended
    assert served.server.clients == {}


@pytest.mark.parametrize("before", [b"", b'{"n": 1}\n', b"x" * 200_000 + b"\n"], ids=len)
def test_the_last_request_needs_no_newline(served, before):
    client = served.connect()
    client.send(before + b'{"n": 2}')
    client.sock.shutdown(socket.SHUT_WR)
    if before:
        client.reply()
    assert client.reply()["ok"]
    assert served.requests[-1] == {"n": 2} and client.line() == b""


HALVES = [b'{"n": 2', b"12", b'"n', b"[" * 60_000, b'{"n": 1}' + b" " * 65_536]


@pytest.mark.parametrize("half", HALVES, ids=len)
def test_half_a_request_is_none(served, half):
    client = served.connect()
    client.send(half)
    client.sock.shutdown(socket.SHUT_WR)
    client.line()
    assert served.requests == []


def test_a_command_of_a_client_that_went_at_once_is_obeyed(served):
    client = served.connect()
    client.send(b'{"cmd": "stop"}\n')
    client.sock.close()
    served.pump(lambda: served.requests == [{"cmd": "stop"}])
    served.pump(lambda: not served.server.clients)


# -- clients that are trouble ----------------------------------------------------------


def test_a_client_that_never_reads_costs_a_bounded_memory_and_nobody_else(served):
    deaf, other = served.connect(), served.connect()
    line = json.dumps({"size": 1000}).encode() + b"\n"
    sent = 0
    while sent < 4_000_000:
        try:
            sent += deaf.sock.send(line * 100)
        except BlockingIOError:
            if not served.poller.wait(0):
                break  # it is not listened to any more
    assert sent < 4_000_000
    assert other.alive()
    kept = sum(len(each.output) + len(each.reader._buffer) for each in served.server.clients.values())
    assert kept < control.OUTPUT_HIGH_WATER + 2 * control.MAX_LINE
    # An idle loop, though this client could be read from all the time.
    assert served.poller.wait(0) == 0
    # Once it reads it gets the rest, whole.
    answered = len(served.requests)
    assert deaf.reply()["ok"]
    served.pump(lambda: (deaf.receive(), len(served.requests) > answered)[1])


def test_a_client_that_goes_without_reading_is_dropped(served):
    deaf = served.connect()
    deaf.send(json.dumps({"size": 200_000}).encode() + b"\n")
    deaf.send(json.dumps({"size": 200_000}).encode() + b"\n")
    served.pump(lambda: len(served.requests) == 2)
    served.settle()
    assert len(served.server.clients) == 1
    deaf.sock.close()
    served.pump(lambda: not served.server.clients)


def test_a_half_line_held_open_costs_no_wake_up(served):
    client = served.connect()
    client.send(b'{"cmd": ')
    served.settle()
    assert served.connect().alive()
    assert served.poller.wait(0) == 0
    client.send(b'"late"}\n')
    assert client.reply()["echo"] == {"cmd": "late"}


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MAX_CONNECTIONS
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, wanted)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_two_hundred_connections_are_served_at_once(served, many_descriptors):
    clients = [served.connect() for _ in range(200)]
    for number, client in enumerate(clients):
        client.send(json.dumps({"n": number}).encode() + b"\n")
    assert [client.reply()["echo"]["n"] for client in clients] == list(range(200))


def test_a_connection_beyond_the_limit_is_told_so_and_closed(served, many_descriptors):
    clients = []
    for _ in range(MAX_CONNECTIONS):
        clients.append(served.connect())
        served.settle()
    extra = served.connect()
    extra.send(b'{"cmd": "status"}\n')
    assert extra.reply() == error("too many connections (the limit is 256)")
    assert extra.line() == b"" and extra.ended
    assert clients[0].alive() and clients[-1].alive()
    # One that ends makes room.
    clients[7].sock.close()
    served.pump(lambda: len(served.server.clients) < MAX_CONNECTIONS)
    assert served.connect().alive()


def test_without_a_free_descriptor_it_serves_from_its_reserve_then_pauses_and_goes_on(served, monkeypatch):
    monkeypatch.setattr(control, "PAUSE", 0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept_back = [served.connect() for _ in range(control.RESERVE)]
    waiting = served.connect()
    for each in (*kept_back, waiting):
        each.send(b'{"cmd": "ping"}\n')
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        served.settle()
        assert all(each.reply()["ok"] for each in kept_back)
        # One that goes gives back what it had, and the next one gets it: not somebody else.
        kept_back.pop().sock.close()
        served.pump(lambda: len(served.server.clients) < control.RESERVE)
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        served.settle()
        assert waiting.reply()["ok"]
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        waiting = served.connect()
        waiting.send(b'{"cmd": "ping"}\n')
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        assert served.poller.wait(0) == 1
        # The listener is readable and cannot be served: no loop may turn on it.
        assert served.poller.wait(0) == 0
        assert served.server.next_attempt is not None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    served.server.tick(served.server.next_attempt)
    assert waiting.reply()["ok"]
    assert served.server.next_attempt is None


# -- answers that come later --------------------------------------------------------------


def test_an_answer_may_come_later_and_the_next_request_waits_for_it(served):
    client, other = served.connect(), served.connect()
    client.send(b'{"cmd": "later"}\n{"n": 2}\n')
    served.pump(lambda: served.later)
    assert other.alive()
    served.settle()
    client.receive()
    assert client.received == b"" and {"n": 2} not in served.requests
    served.later.pop()({"ok": True, "late": 1})
    assert client.reply() == {"ok": True, "late": 1}
    assert client.reply()["echo"] == {"n": 2}


@pytest.mark.parametrize("half", [True, False])
def test_a_client_that_is_gone_before_its_answer(served, half):
    client = served.connect()
    client.send(b'{"cmd": "later"}\n')
    if half:
        # It has only finished asking.
        client.sock.shutdown(socket.SHUT_WR)
        served.pump(lambda: served.later)
        served.settle()
        served.later.pop()({"ok": True})
        assert client.reply() == {"ok": True} and client.line() == b""
    else:
        served.pump(lambda: served.later)
        client.sock.close()
        served.pump(lambda: not served.server.clients)
        served.later.pop()({"ok": True})
    assert not served.server.clients


# -- subscribers ------------------------------------------------------------------------


@pytest.fixture
def subscriber(served) -> Client:
    client = served.connect()
    assert client.ask(cmd="events") == {"ok": True}
    return client


def test_a_subscriber_gets_what_is_broadcast_and_nobody_else_does(served, subscriber):
    other = served.connect()
    assert other.alive()
    assert served.server.has_subscribers
    for number in range(3):
        served.server.broadcast({"event": "state", "n": number})
    assert [subscriber.reply() for _ in range(3)] == [{"event": "state", "n": n} for n in range(3)]
    # It may go on asking.
    assert subscriber.ask(cmd="status")["echo"] == {"cmd": "status"}
    assert subscriber.ask(cmd="events") == {"ok": True}
    served.server.broadcast({"event": "once"})
    assert subscriber.reply() == {"event": "once"}
    served.settle()
    subscriber.receive(), other.receive()
    assert (subscriber.received, other.received) == (b"", b"")


def test_without_a_subscriber_a_broadcast_is_nothing(served):
    client = served.connect()
    assert client.alive()
    assert not served.server.has_subscribers
    served.server.broadcast({"event": "state"})
    client.receive()
    assert client.received == b""


def test_a_broadcast_in_the_middle_of_an_answer(served, subscriber):
    """What a subscriber's own commands bring about, too: whole lines, in the order of events."""
    subscriber.send(
        b"".join(json.dumps({"cmd": "broadcast", "event": n}).encode() + b"\n" for n in range(50))
    )
    lines = [subscriber.reply() for _ in range(100)]
    assert [line["event"] for line in lines if "event" in line] == list(range(50))
    assert sum("ok" in line for line in lines) == 50


def test_a_subscriber_that_half_closes_listens_on(served):
    """As ``socat`` and ``nc`` do at the end of their input."""
    client = served.connect()
    client.send(b'{"cmd": "events"}\n')
    client.sock.shutdown(socket.SHUT_WR)
    assert client.reply() == {"ok": True}
    served.settle()
    assert served.poller.wait(0) == 0
    served.server.broadcast({"event": "state"})
    assert client.reply() == {"event": "state"}
    client.sock.close()
    served.pump(lambda: not served.server.clients)
    served.settle()


def test_a_subscriber_that_goes_is_forgotten(served, subscriber):
    subscriber.sock.close()
    # Before the loop has seen it, and after.
    served.server.broadcast({"event": "state"})
    served.pump(lambda: not served.server.clients)
    assert not served.server.has_subscribers
    served.server.broadcast({"event": "state"})


def test_a_subscriber_that_does_not_read_is_dropped_at_a_bound(served, subscriber):
    reader = served.connect()
    assert reader.ask(cmd="events") == {"ok": True}
    message = {"event": "state", "filling": "x" * 1000}
    count = 0
    deadline = time.monotonic() + 30
    while len(served.server.clients) == 2:
        assert time.monotonic() < deadline
        served.server.broadcast(message)
        count += 1
        assert len(reader.line()) > 1000
        assert served.poller.wait(0) <= 1
    assert count * 1000 > control.SUBSCRIBER_LIMIT
    kept = sum(len(each.output) for each in served.server.clients.values())
    assert kept < control.SUBSCRIBER_LIMIT
    # The one that reads goes on; the other finds what it was sent in time, and the end.
    assert reader.alive()
    served.pump(lambda: (subscriber.receive(), subscriber.ended)[1])


def test_a_subscriber_that_reads_late_gets_everything(served, subscriber):
    message = {"event": "state", "filling": "x" * 1000}
    for number in range(800):
        served.server.broadcast({**message, "n": number})
    served.settle()
    (client,) = served.server.clients.values()
    assert client.output
    # An idle loop meanwhile.
    assert served.poller.wait(0) == 0
    assert [subscriber.reply()["n"] for _ in range(800)] == list(range(800))
    assert subscriber.alive()


def test_a_close_sends_subscribers_what_they_are_owed(served, subscriber):
    served.server.broadcast({"event": "last"})
    served.server.close()
    assert subscriber.reply() == {"event": "last"}
    assert subscriber.line() == b"" and subscriber.ended


# -- the socket file -------------------------------------------------------------------


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o700, 0o777, 0o622])
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000, 0o777])
def test_the_mode_is_what_is_asked_whatever_the_umask(bench, mode, umask):
    server = bench.make(mode)
    before = os.umask(umask)
    try:
        assert server.open(0.0)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert mode_of(bench.path) == mode
    server.close()


def test_the_mode_is_right_in_the_moment_of_bind(bench, monkeypatch):
    seen: list[int] = []
    bind = socket.socket.bind

    def spy(sock: socket.socket, path: str) -> None:
        bind(sock, path)
        seen.append(mode_of(Path(path)))

    monkeypatch.setattr(socket.socket, "bind", spy)
    assert bench.make(0o640).open(0.0)
    assert seen == [0o640]


def test_a_stale_file_is_replaced(bench):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(bench.path))
    assert bench.path.is_socket()
    assert bench.server.open(0.0)
    assert bench.connect().alive()
    assert bench.log.warnings == []


def test_sockets_of_killed_servers_are_removed(short_dir: Path, dead_pid: int) -> None:
    def leave(name: str, listen: bool = False) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(short_dir / name))
        if listen:
            sock.listen(1)
        else:
            sock.close()
        return sock

    left = f"companion-{dead_pid}.sock"
    # The last one serves in another pid namespace, say.
    keep = [f"companion-{os.getppid()}.sock", "companion-x.sock", "web.sock", f"companion-0{dead_pid}.sock"]
    elsewhere = f"companion-{dead_pid + 1}.sock"
    for name in [left, *keep]:
        leave(name)
    with leave(elsewhere, listen=True):
        control.remove_abandoned(str(short_dir / "ctl.sock"))
        assert (short_dir / left).exists(), "not where the path is one of the user's own choice"
        control.remove_abandoned(str(short_dir / "companion-1.sock"))
        assert {path.name for path in short_dir.iterdir()} == {*keep, elsewhere}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_sockets_of_other_users_are_left_alone(short_dir: Path, dead_pid: int) -> None:
    path = short_dir / f"companion-{dead_pid}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
    os.chown(path, 65534, 65534)
    control.remove_abandoned(str(short_dir / "companion-1.sock"))
    assert path.exists()


@pytest.fixture
def dead_pid() -> int:
    """The number of no process, nor is the next one likely to be one's."""
    return 2**22 - 2


def test_a_live_one_is_left_alone_and_tried_again(bench):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(bench.path))
        other.listen(1)
        before = bench.path.stat().st_ino
        assert bench.server.open(100.0) is False
        assert bench.path.stat().st_ino == before
        assert bench.server.next_attempt == 100.0 + control.RETRY_INTERVAL
        bench.server.tick(105.0)
        # A full backlog is life, too.
        fillers = []
        for _ in range(5):
            fillers.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            fillers[-1].setblocking(False)
            fillers[-1].connect_ex(str(bench.path))
        bench.server.tick(110.0)
        assert bench.path.stat().st_ino == before
        for filler in fillers:
            filler.close()
    # Said once, however often it was tried.
    (warning,) = bench.log.warnings
    assert str(bench.path) in warning and "another server is listening there" in warning
    bench.server.close_listener()
    assert bench.path.is_socket()
    assert bench.server.next_attempt is None
    assert bench.server.open(120.0)
    assert bench.connect().alive()


def test_a_deleted_file_is_made_again_and_connections_go_on(served):
    client = served.connect()
    assert client.alive()
    served.server.check(0.0)
    listener = served.server.listener
    served.server.check(0.0)
    assert served.server.listener is listener
    served.path.unlink()
    served.server.check(0.0)
    assert served.connect().alive()
    assert client.alive()
    assert served.server.file_is_ours


def test_a_file_that_somebody_else_put_there_is_not_ours_to_remove(served):
    served.path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(served.path))
        other.listen(1)
        served.server.check(50.0)
        assert served.server.listener is None
        assert served.server.next_attempt == 60.0
        served.server.close()
        assert served.path.is_socket()


def test_a_close_removes_only_its_own_file(served):
    served.server.close()
    assert not served.path.exists()
    assert served.server.open(0.0)
    served.path.unlink()
    served.path.write_text("mine")
    served.server.close()
    assert served.path.read_text() == "mine"


def test_a_close_sends_what_is_owed(served):
    client = served.connect()
    served.settle()
    client.send(b'{"n": 1}\n' * 3)
    served.pump(lambda: len(served.requests) == 3)
    served.server.close()
    client.receive()
    assert client.received.count(b"\n") == 3
    assert client.ended
    assert len(served.poller) == 0


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda path: path.write_text("text"), "something that is not a socket is there"),
        (lambda path: path.mkdir(), "something that is not a socket is there"),
        (lambda path: path.symlink_to("/dev/null"), "something that is not a socket is there"),
        (lambda path: (path.parent.rmdir(), path.parent.symlink_to("nowhere")), "No such file or directory"),
        (lambda path: (path.parent.rmdir(), path.parent.write_text("")), "Not a directory"),
    ],
)
def test_what_is_in_the_way_is_one_warning_and_stays(short_dir, prepare, reason):
    (short_dir / "d").mkdir()
    bench = Bench(short_dir / "d" / "c.sock")
    prepare(bench.path)
    assert bench.server.open(0.0) is False
    bench.server.tick(10.0)
    bench.server.check(11.0)
    (warning,) = bench.log.warnings
    assert warning == f"No control socket for companions at {bench.path}: {reason}"
    assert bench.server.next_attempt == 21.0
    assert bench.server.descriptors() == bench.server.reserve.fds
    bench.server.close()


def test_what_cannot_be_made_now_is_made_later(short_dir):
    bench = Bench(short_dir / "d" / "e" / "c.sock")
    assert bench.server.open(0.0) is False
    (short_dir / "d").mkdir()
    bench.server.tick(9.9)
    assert not bench.path.exists()
    bench.server.tick(10.0)
    assert bench.connect().alive()
    bench.close()


def test_a_path_that_is_too_long_is_said_so(tmp_path):
    bench = Bench(tmp_path / ("x" * 120))
    assert bench.server.open(0.0) is False
    assert bench.log.warnings[0].endswith("the path is too long for a Unix socket")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_a_directory_that_went_with_the_socket_is_made_again_for_its_user_alone(short_dir, mode):
    bench = Bench(short_dir / "d" / "c.sock")
    server = bench.make(mode)
    for _ in range(2):
        server.check(0.0)
        assert (mode_of(bench.path.parent), mode_of(bench.path)) == (0o700, mode)
        bench.path.unlink()
        bench.path.parent.rmdir()
    server.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="has to become another user")
def test_a_directory_that_is_not_writable_is_said_so(short_dir):
    found = answer_of(
        """
        import json, os, sys
        from pathlib import Path
        from test_companion_control import Bench
        os.setgid(65534)
        os.setuid(65534)
        bench = Bench(Path(sys.argv[1]) / "c.sock")
        print(json.dumps([bench.server.open(0.0), bench.log.warnings]))
        """,
        str(short_dir),
    )
    path = short_dir / "c.sock"
    assert found == [False, [f"No control socket for companions at {path}: Permission denied"]]


def test_the_descriptors_are_all_told(served):
    # Close what other tests have left.
    gc.collect()
    before = set(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else set()
    clients = [served.connect() for _ in range(3)]
    served.settle()
    fds = served.server.descriptors()
    assert len(fds) == 4 + control.RESERVE
    assert all(not os.get_inheritable(fd) for fd in fds)
    for client in clients:
        client.sock.close()
    served.server.close()
    if before:
        # The listener and the reserve, too, were open before.
        assert len(set(os.listdir("/proc/self/fd"))) == len(before) - 1 - control.RESERVE
