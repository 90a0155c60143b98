# SPDX-License-Identifier: MIT
"""What a batch says of times; and real servers that find several requests at once."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Server, readable, wait_until
from workertools import Client, conf, get

from gunicorn.workers.threads.batch import CAUTIOUS_FOR, LONGEST_HOLD, Batch
from gunicorn.workers.threads.team import Team

QUICK, SLOW = LONGEST_HOLD / 2, LONGEST_HOLD * 2


class Sent(list[str]):
    def batch(self) -> Batch:
        return Batch(self.append)


def test_answers_are_sent_together() -> None:
    sent = Sent()
    batch = sent.batch()
    batch.start(10)
    for name in "abc":
        assert batch.begin(10)
        batch.hold(name, True)
    assert batch.send_overdue(10 + QUICK) and not sent
    batch.send()
    assert sent == ["a", "b", "c"]
    assert not batch.send_overdue(20)


def test_no_answer_is_held_for_longer_than_allowed() -> None:
    sent = Sent()
    batch = sent.batch()
    batch.start(10)
    assert batch.begin(10)
    batch.hold("a", True)
    assert batch.begin(10 + QUICK)
    batch.hold("b", True)
    # The time counts from the first of them, also for the main thread.
    assert batch.begin(10 + QUICK + LONGEST_HOLD)
    assert sent == ["a", "b"]
    batch.hold("c", True)
    assert batch.send_overdue(10 + QUICK + LONGEST_HOLD)
    assert not batch.send_overdue(10 + QUICK + LONGEST_HOLD + SLOW)
    assert sent == ["a", "b", "c"]


def test_after_a_slow_view_answers_are_sent_at_once_for_a_while() -> None:
    batch = Sent().batch()
    now = 10.0
    batch.start(now)
    assert batch.begin(now)
    now += SLOW
    for _ in range(CAUTIOUS_FOR):
        assert not batch.begin(now)
    assert batch.begin(now)
    # Time that passed before the next batch is not its last view's.
    now += 5
    batch.start(now)
    assert batch.begin(now)


def test_an_answer_that_may_not_wait_takes_those_before_it_along() -> None:
    sent = Sent()
    batch = sent.batch()
    batch.hold("a", True)
    assert not sent
    batch.hold("b", False)
    assert sent == ["a", "b"]


def test_an_answer_that_nobody_would_send_in_time_is_sent_at_once() -> None:
    sent, leads = Sent(), [True, False]
    batch = Batch(sent.append, lambda: leads.pop(0))
    batch.hold("a", True)
    assert not sent
    batch.hold("b", True)
    assert sent == ["a", "b"]


def test_the_main_thread_is_quick_to_send_what_is_held_while_others_compute() -> None:
    before, seen = sys.getswitchinterval(), []
    team = object.__new__(Team)
    team.batch = Batch(lambda conn: seen.append(sys.getswitchinterval()))
    for name in "ab":
        team.batch.hold(name, True)
    assert not team._send_overdue(10)
    assert len(seen) == 2 and max(seen) < before / 10
    assert sys.getswitchinterval() == before


APP = """
import os
import socket
import time

def wait_for(name):
    open(name + ".begun", "w").close()
    while not os.path.exists(name):
        time.sleep(0.005)

class Closing(list):
    def __init__(self, items, name):
        super().__init__(items)
        self.name = name
    def close(self):
        wait_for(self.name)

def app(environ, start_response):
    path = environ["PATH_INFO"]
    status, headers, body = "200 OK", [], [path.encode()]
    if path.startswith("/wait/"):
        wait_for(path[6:])
    elif path.startswith("/after/"):
        body = Closing(body, path[7:])
    elif path.startswith("/both/"):
        wait_for(path[6:])
        body = Closing(body, path[6:] + ".end")
    elif path == "/large":
        body = [b"x" * 15000]
    elif path == "/buffer":
        environ["gunicorn.socket"].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    elif path == "/empty":
        status, body = "204 No Content", []
    elif path == "/parts":
        body = [b"a", b"b", b"c"]
    elif path == "/boom":
        raise RuntimeError("boom on purpose")
    elif path == "/late-boom":
        def late():
            yield b"whole"
            raise RuntimeError("boom on purpose")
        start_response("200 OK", [("Content-Length", "5")])
        return late()
    elif path == "/close":
        headers.append(("Connection", "close"))
    elif path == "/length":
        body = [environ["wsgi.input"].read()]
    if path != "/empty":
        headers.append(("Content-Length", str(sum(map(len, body)))))
    start_response(status, headers)
    return body
"""


@contextlib.contextmanager
def batching(
    threads: int, count: int, bind: str = "tcp", **settings: Any
) -> Iterator[tuple[Server, list[Client]]]:
    """A server with one worker, and *count* connections that it has accepted."""
    with (
        Server(
            APP, conf("gthread", **{"threads": threads, "keepalive": 60, **settings}), bind=bind
        ) as server,
        contextlib.ExitStack() as stack,
    ):
        clients = [Client(stack.enter_context(server.connect())) for _ in range(count)]
        for client in clients:
            assert client.ask().status == 200
        # The first view of a worker is often slow, and no answer is held for a while after one.
        for _ in range(CAUTIOUS_FOR):
            with at_once(server):
                for client in clients[:2]:
                    client.send(get("/quick"))
            assert [client.answer().status for client in clients[:2]] == [200, 200]
        yield server, clients


@contextlib.contextmanager
def at_once(server: Server) -> Iterator[None]:
    """The worker finds all that is sent meanwhile, in that order."""
    (worker,) = server.workers()
    server.signal(signal.SIGSTOP, worker)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT, worker)


def has_connection(server: Server, count: int) -> bool:
    """Whether the worker still has *count* connections; its listener is one more socket of that path."""
    found = Path("/proc/net/unix").read_text().count(str(server.unix_path))
    return found > count


def release(server: Server, name: str) -> None:
    (server.dir / name).touch()


@pytest.mark.parametrize("threads", [1, 4])
def test_an_answer_leaves_though_the_next_view_blocks(threads: int) -> None:
    with batching(threads, 3) as (server, (first, second, third)):
        with at_once(server):
            first.send(get("/quick"))
            second.send(get("/wait/slow"))
            third.send(get("/last"))
        assert first.answer().body == b"/quick"
        if threads > 1:
            # What was received belongs to the next leader.
            assert third.answer().body == b"/last"
        assert not readable(second.sock, 0)
        release(server, "slow")
        assert second.answer().body == b"/wait/slow"
        if threads == 1:
            assert third.answer().body == b"/last"
        # All of them go on.
        assert [client.ask().status for client in (first, second, third)] == [200] * 3


def test_a_new_connection_is_not_served_before_those_that_were_first() -> None:
    with batching(1, 2) as (server, (first, second)):
        with at_once(server):
            first.send(get("/quick"))
            new = server.connect()
            new.sendall(get("/wait/slow"))
            second.send(get("/last"))
        with new:
            assert first.answer().body == b"/quick"
            release(server, "slow")
            assert Client(new).answer().body == b"/wait/slow"
            assert second.answer().body == b"/last"


@pytest.mark.parametrize("threads", [1, 2])
def test_an_answer_of_a_slow_view_leaves_once_it_is_made(threads: int) -> None:
    with batching(threads, 2) as (server, (first, second)):
        with at_once(server):
            first.send(get("/quick"))
            second.send(get("/both/slow"))
        assert first.answer().body == b"/quick"
        # Meanwhile the main thread has ended its checks, and another thread, if there is one, waits.
        assert not readable(second.sock, 0.1)
        release(server, "slow")
        assert second.answer().body == b"/both/slow"
        release(server, "slow.end")
        assert [client.ask().status for client in (first, second)] == [200] * 2


def test_an_answer_leaves_though_its_own_request_goes_on() -> None:
    with batching(2, 2) as (server, (first, second)):
        with at_once(server):
            first.send(get("/after/done") + get("/next"))
            second.send(get("/other"))
        assert first.answer().body == b"/after/done"
        assert second.answer().body == b"/other"
        assert not readable(first.sock, 0.05)
        release(server, "done")
        assert first.answer().body == b"/next"


def test_each_kind_of_answer() -> None:
    kinds = {
        # First: to log an error takes long enough for answers to be sent at once from then on.
        get("/late-boom"): (200, b"whole"),
        get("/plain"): (200, b"/plain"),
        get("/empty"): (204, b""),
        get("/parts"): (200, b"abc"),
        get("/boom"): (500, None),
        get("/close"): (200, b"/close"),
        get("/large"): (200, b"x" * 15000),
        b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc": (200, b"abc"),
        b"GET /old HTTP/1.0\r\n\r\n": (200, b"/old"),
        b"no request\r\n\r\n": (400, None),
    }
    with batching(2, len(kinds)) as (server, clients):
        with at_once(server):
            for client, request in zip(clients, kinds, strict=True):
                client.send(request)
        for client, (request, (status, body)) in zip(clients, kinds.items(), strict=True):
            answer = client.answer()
            assert (answer.status, answer.body if body is not None else None) == (status, body), request
            ends = request.startswith((b"GET /boom", b"GET /close", b"GET /late", b"GET /old", b"no"))
            assert client.is_closed() if ends else client.ask().status == 200, request
        log = server.log()
        assert log.count("Traceback") == log.count("RuntimeError: boom on purpose") == 2


def test_requests_that_follow_each_other_keep_their_order() -> None:
    with batching(4, 8) as (server, clients):
        with at_once(server):
            for number, client in enumerate(clients):
                client.send(b"".join(get(f"/{number}/{n}") for n in range(50)))
        for number, client in enumerate(clients):
            assert [client.answer().body for _ in range(50)] == [b"/%d/%d" % (number, n) for n in range(50)]


def test_clients_that_do_not_read_or_have_left_hold_up_nobody() -> None:
    # The buffer of a Unix socket does not grow by itself.
    with batching(1, 4, bind="unix") as (server, (silent, mute, gone, reading)):
        assert silent.ask("/buffer").status == 200
        with at_once(server):
            for client in (silent, mute):
                client.send(get("/large") + get("/next"))
            gone.send(get("/quick"))
            gone.sock.close()
            reading.send(get("/quick"))
        # The only thread waits for none of them, in a batch or not.
        silent.send(get("/large"))
        assert reading.answer().body == b"/quick"
        assert reading.ask().status == 200
        for client in (silent, mute):
            assert client.answer().body == b"x" * 15000
            assert client.answer().body == b"/next"
        assert silent.answer().body == b"x" * 15000
        assert "Traceback" not in server.log()


def test_a_client_that_never_reads_its_answer_is_cut_off() -> None:
    with batching(1, 2, bind="unix", timeout=1) as (server, (silent, reading)):
        assert silent.ask("/buffer").status == 200
        with at_once(server):
            silent.send(get("/large"))
            reading.send(get("/quick"))
        assert reading.answer().body == b"/quick"
        # That it sends the next request is no sign that it reads. On a busy machine it is cut off already.
        with contextlib.suppress(BrokenPipeError):
            silent.send(get("/next"))
        # It is closed, though the client has read nothing.
        wait_until(lambda: not has_connection(server, 2), 10, "its connection is closed")
        with pytest.raises((EOFError, ConnectionResetError)):
            silent.answer()


def test_a_graceful_stop_answers_what_was_received() -> None:
    with batching(2, 6) as (server, clients):
        with at_once(server):
            for number, client in enumerate(clients):
                client.send(get("/wait/slow") if number == 2 else get("/quick"))
        wait_until(Path(server.dir, "slow.begun").exists, 5, "the slow view runs")
        server.signal(signal.SIGTERM)
        release(server, "slow")
        assert [client.answer().status for client in clients] == [200] * 6
        assert server.wait_exit() == 0
