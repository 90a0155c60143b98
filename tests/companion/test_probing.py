# SPDX-License-Identifier: MIT
"""What the prober makes of answers and of output, in this process: nothing here forks."""

from __future__ import annotations

import _socket
import json
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from gunicorn.companion.probe import parse_url
from gunicorn.companion.probing.connections import Connection, Outcome, Request
from gunicorn.companion.probing.log import LogLines
from gunicorn.companion.probing.prober import LONGEST_OUTPUT, shown
from gunicorn.unix.poller import Poller


@pytest.fixture
def poller() -> Poller:
    return Poller()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def outcome_of(attempt: Connection, poller: Poller) -> Outcome:
    deadline = time.monotonic() + 10
    while attempt.outcome is None and time.monotonic() < deadline:
        poller.wait(0.05)
    attempt.close()
    attempt.close()
    assert not len(poller)
    assert attempt.outcome is not None
    return attempt.outcome


OK = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"
SOMETHING_ELSE = "answered something else than HTTP"
RESET = struct.pack("ii", 1, 0)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ([OK + b"fine"], Outcome(True, output="fine")),
        ([b"HTTP/1.0 200\r\n\r\n"], Outcome(True)),
        # It comes in pieces, and only the status counts.
        ([b"HT", b"TP/1.1 20", b"0 OK\r", b"\n"], Outcome(True)),
        (
            [b"HTTP/1.1 503 No\r\n\r\n", b"no ", b"database"],
            Outcome(False, "answered 503, wanted 200, 204", "no database"),
        ),
        ([b"HTTP/1.1 2000 OK\r\n\r\n"], Outcome(False, SOMETHING_ELSE)),
        ([b"HTTP/2 200 OK\r\n\r\n"], Outcome(False, SOMETHING_ELSE)),
        ([b"SSH-2.0-x\r\n"], Outcome(False, SOMETHING_ELSE)),
        ([b"x" * 20_000], Outcome(False, SOMETHING_ELSE)),
        ([], Outcome(False, "closed the connection without an answer")),
        ([b"HTTP/1.1 200"], Outcome(False, "closed the connection without an answer")),
    ],
)
def test_answers(answer: list[bytes], outcome: Outcome, listener: socket.socket, poller: Poller) -> None:
    url = parse_url(f"http://127.0.0.1:{listener.getsockname()[1]}/a?b")
    request = Request(url, (200, 204), poller)
    connection, _ = listener.accept()
    with connection:
        head = b""
        while not head:
            poller.wait(0.05)
            head = _received(connection)
        assert head.startswith(b"GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:")
        for piece in answer:
            connection.sendall(piece)
            poller.wait(0.05)
        connection.shutdown(socket.SHUT_WR)
        assert outcome_of(request, poller) == outcome


def _received(connection: socket.socket) -> bytes:
    connection.setblocking(False)
    try:
        return connection.recv(4096)
    except BlockingIOError:
        return b""
    finally:
        connection.setblocking(True)


def test_an_answer_that_does_not_end_is_one_when_its_time_is_over(
    listener: socket.socket, poller: Poller
) -> None:
    request = Request(parse_url(f"http://127.0.0.1:{listener.getsockname()[1]}/"), (200,), poller)
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 500 Oops\r\n\r\nwhy")
        while request.verdict is None:
            poller.wait(0.05)
        request.expire("no answer within 3s")
        assert outcome_of(request, poller) == Outcome(False, "answered 500, wanted 200", "why")


def test_a_connection_that_is_reset(listener: socket.socket, poller: Poller) -> None:
    request = Request(parse_url(f"http://127.0.0.1:{listener.getsockname()[1]}/"), (200,), poller)
    connection, _ = listener.accept()
    poller.wait(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()
    assert outcome_of(request, poller) == Outcome(False, "connection reset by peer")


def test_connections(listener: socket.socket, poller: Poller) -> None:
    address = listener.getsockname()
    assert outcome_of(Connection(address, poller), poller) == Outcome(True)
    listener.close()
    assert outcome_of(Connection(address, poller), poller) == Outcome(False, "connection refused")
    assert outcome_of(Connection("/nowhere/s", poller), poller) == Outcome(False, "no such file or directory")


def test_an_address_that_cannot_be_one_leaves_nothing(poller: Poller) -> None:
    with pytest.raises(OSError, match="AF_UNIX path too long"):
        Connection("/" + 200 * "x", poller)
    assert not len(poller)


def test_nobody_is_connected_to_himself(poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens, the kernel may take the port that is asked for as our own."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]

    class Bound(_socket.socket):
        def connect_ex(self, address: object, /) -> int:
            self.bind(("127.0.0.1", port))
            return super().connect_ex(address)

    monkeypatch.setattr("gunicorn.companion.probing.connections._socket.socket", Bound)
    assert outcome_of(Connection(("127.0.0.1", port), poller), poller) == Outcome(False, "connection refused")


# -- output --------------------------------------------------------------------------


@pytest.fixture
def follow(poller: Poller) -> Iterator[Callable[..., tuple[LogLines, list[int], Callable[..., None]]]]:
    """Lines of pid 7, since 100; how often something was told; and a function that sends a line."""
    ours, theirs = socket.socketpair()

    def make(pattern: str) -> tuple[LogLines, list[int], Callable[..., None]]:
        told: list[int] = []
        log = LogLines(pattern, 7, 100.0, poller, lambda: told.append(1))
        log.follow(theirs.detach())

        def send(line: str, pid: int = 7, moment: float = 100.0) -> None:
            ours.sendall(json.dumps({"pid": pid, "time": moment, "line": line}).encode() + b"\n")
            poller.wait(1)

        return log, told, send

    handler = signal.getsignal(signal.SIGVTALRM)
    yield make
    signal.signal(signal.SIGVTALRM, handler)
    ours.close()


def test_lines(follow: Callable[..., tuple[LogLines, list[int], Callable[..., None]]]) -> None:
    log, told, send = follow(r"ready at \d")
    for line, pid, moment in (("ready", 7, 101.0), ("ready at 1", 8, 101.0), ("ready at 2", 7, 99.0)):
        send(line, pid, moment)
    assert log.line is None
    send("now ready at 3")
    send("now ready at 4")
    assert (log.line, len(told)) == ("now ready at 3", 1)
    assert log.take(200.0) == "now ready at 3"
    send("ready at 5", moment=199.0)
    assert log.take(200.0) is None
    send("x" * 4096 + "ready at 6", moment=201.0)
    assert log.take(200.0) is None
    # The rest of a line that was too long may be anything.
    for rest in (b"[" * 20_000, b"5", b'"x'):
        log._look_at(rest)
    assert log.line is None
    log.close()
    assert not log.connected


def test_a_regular_expression_that_takes_too_long(
    follow: Callable[..., tuple[LogLines, list[int], Callable[..., None]]],
) -> None:
    log, told, send = follow("(a+)+$")
    send("a" * 60 + "!")
    assert (log.too_slow, log.connected, len(told)) == (True, False, 1)


def test_what_is_shown_of_output() -> None:
    assert shown("\x1b[1mred\x00 token=hush\nnext\n\n") == "[1mred token=***\nnext"
    assert shown("x" * 5000) == "x" * LONGEST_OUTPUT
