# SPDX-License-Identifier: MIT
"""Real servers with the threaded worker: slow clients, kept connections, bounds, deadlines, ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import Server, descriptors, is_alive, status_field, wait_until
from workertools import APP, Client, conf, connect, elapsed, get, tls

from gunicorn.workers.gthread import state_of_gil


@contextlib.contextmanager
def clients(server: Server, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server.connect()) for _ in range(count)]


# -- slow clients -----------------------------------------------------------------------------


def test_slow_clients_occupy_no_thread() -> None:
    with Server(APP, conf("gthread")) as server, clients(server, 50) as slow:
        for number, sock in enumerate(slow):
            if number % 3 == 1:
                sock.sendall(b"GET / HTTP/1.1\r\nHo")
            elif number % 3 == 2:
                sock.sendall(b"POST /length HTTP/1.1\r\n")
        stop = threading.Event()

        def dribble() -> None:
            while not stop.wait(0.02):
                for sock in slow[1:10:3]:
                    with contextlib.suppress(OSError):
                        sock.sendall(b"s")

        thread = threading.Thread(target=dribble)
        thread.start()
        try:
            assert max(elapsed(lambda: server.get("/")) for _ in range(10)) < 0.5
        finally:
            stop.set()
            thread.join()
        # Those that stalled are still served when they go on.
        slow[11].sendall(b"Content-Length: 3\r\nHost: x\r\n\r\nabc")
        assert Client(slow[11]).answer().body == b"3"


def test_dribbling_does_not_move_the_deadline() -> None:
    with Server(APP, conf("gthread", timeout=1)) as server, connect(server) as client:
        started = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in get("/" + "x" * 200):
                client.send(bytes([byte]))
                time.sleep(0.05)
                if time.monotonic() - started > 4:
                    break
        assert time.monotonic() - started < 4
        assert client.answer().status == 408


def test_the_head_of_a_second_request_has_its_own_deadline() -> None:
    with Server(APP, conf("gthread", timeout=1, keepalive=10)) as server, connect(server) as client:
        assert client.ask().status == 200
        time.sleep(1.2)
        client.send(b"GET / HTTP/1.1\r\n")
        started = time.monotonic()
        assert client.answer().status == 408
        assert 0.7 < time.monotonic() - started < 3


def test_hopeless_heads_are_refused_at_once() -> None:
    with Server(APP, conf("gthread")) as server:
        with connect(server) as client:
            client.send(b"GET /" + b"x" * 9000)
            assert client.answer().status == 414
        with connect(server) as client:
            client.send(b"GET / HTTP/1.1\nHost: x\n")
            assert client.answer().status == 400
        with connect(server) as client:
            client.send(b"\x16\x03\x01\x02\x00\x01\x00")
            assert client.answer().status == 400


# -- kept connections ---------------------------------------------------------------------------


def test_requests_follow_each_other_on_one_connection() -> None:
    with Server(APP, conf("gthread")) as server, connect(server) as client:
        for _ in range(5):
            answer = client.ask()
            assert answer.status == 200 and answer.headers["connection"] == "keep-alive"
        client.send(b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        assert client.answer().body == b"5"
        assert client.ask(close=True).closes and client.is_closed()


def test_pipelined_requests_are_answered_in_order() -> None:
    with Server(APP, conf("gthread")) as server, connect(server) as client:
        post = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
        client.send(b"".join(post % (len(text), text) for text in (b"one", b"", b"three")) + get("/flags"))
        assert [client.answer().body for _ in range(4)] == [b"one", b"", b"three", b"(True, False)"]
        # A request whose second half comes later than its first, behind another one.
        client.send(get() + b"GET /ech")
        assert client.answer().status == 200
        client.send(b"o HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.answer().status == 200


def test_byte_by_byte() -> None:
    with Server(APP, conf("gthread")) as server, connect(server) as client:
        for byte in b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + get("/flags"):
            client.send(bytes([byte]))
        assert client.answer().body == b"abc"
        assert client.answer().body == b"(True, False)"


def test_idle_connections_end_after_keepalive() -> None:
    with Server(APP, conf("gthread", keepalive=1)) as server, connect(server) as client:
        client.ask()
        started = time.monotonic()
        assert client.is_closed()
        assert 0.8 < time.monotonic() - started < 2.5


def test_without_keepalive_each_answer_closes() -> None:
    with Server(APP, conf("gthread", keepalive=0)) as server, connect(server) as client:
        assert client.ask().closes and client.is_closed()


def test_http_1_0_keeps_only_on_request() -> None:
    with Server(APP, conf("gthread")) as server:
        with connect(server) as client:
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert client.answer().closes and client.is_closed()
        with connect(server) as client:
            for _ in range(2):
                client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                assert client.answer().headers["connection"] == "keep-alive"


# -- bodies -------------------------------------------------------------------------------------


def test_an_unread_body_holds_no_thread_and_ends_the_connection_whole() -> None:
    with Server(APP, conf("gthread", threads=1)) as server, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(connect(server)) for _ in range(5)]
        for client in waiting:
            # 90 KB are announced, half of them come, and the application reads none.
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 92160\r\n\r\n" + b"x" * 45000)
        assert elapsed(lambda: server.get("/")) < 0.5
        for client in waiting:
            assert client.answer().status == 200
            with contextlib.suppress(OSError):
                client.send(b"x" * (92160 - 45000))
            assert client.is_closed()


def test_plain_text_on_a_tls_port_ends_cleanly(certificate: dict[str, str]) -> None:
    config = conf("gthread", **certificate)
    with Server(APP, config, ready="listen") as server:
        with connect(server) as client:
            client.send(get())
            client.sock.settimeout(3)
            with contextlib.suppress(ConnectionResetError):
                while client.sock.recv(4096):
                    pass
        with tls(server.connect()) as client:
            assert client.ask().status == 200


# -- bounds -------------------------------------------------------------------------------------


def test_worker_connections_under_churn_never_wedges() -> None:
    config = conf("gthread", threads=2, worker_connections=3, keepalive=5)
    with Server(APP, config) as server:

        def churn(number: int) -> list[int]:
            seen = []
            for turn in range(15):
                with connect(server) as client:
                    for _ in range(1 + (number + turn) % 3):
                        answer = client.ask()
                        seen.append(answer.status)
                        if answer.closes:
                            break
            return seen

        with ThreadPoolExecutor(8) as pool:
            statuses = [status for seen in pool.map(churn, range(8)) for status in seen]
        assert set(statuses) == {200} and len(statuses) >= 120


def test_idle_connections_make_room_for_new_ones() -> None:
    config = conf("gthread", threads=1, worker_connections=4, keepalive=60)
    with Server(APP, config) as server, contextlib.ExitStack() as stack:
        for _ in range(10):
            assert stack.enter_context(connect(server)).ask().status == 200


def test_silent_connections_fill_worker_connections_only_for_timeout() -> None:
    with (
        Server(APP, conf("gthread", threads=1, worker_connections=3, timeout=1)) as server,
        clients(server, 6),
    ):
        assert server.get("/", timeout=8).status == 200


# -- long requests, and the end ---------------------------------------------------------------------


def test_a_request_longer_than_timeout_completes() -> None:
    with Server(APP, conf("gthread", timeout=1)) as server:
        pid = server.get("/").text
        assert server.get("/sleep?2.5", timeout=8).text == pid
        assert server.get("/").text == pid


def test_a_request_in_flight_ends_before_the_worker_does() -> None:
    with Server(APP, conf("gthread", loglevel="debug")) as server, connect(server) as client:
        client.send(get("/until?go"))
        wait_until(lambda: server.log("until"))
        old = server.workers()
        server.signal(signal.SIGHUP)
        server.wait_log("retires with 1 connections")
        wait_until(lambda: server.get("/").text != str(old[0]))
        server.write("go", "")
        answer = client.answer()
        assert answer.status == 200 and answer.closes and int(answer.body) == old[0]


def test_workers_end_with_their_master() -> None:
    with Server(APP, conf("gthread", workers=2, keepalive=60)) as server, connect(server) as client:
        client.ask()
        workers = server.workers()
        server.kill()
        wait_until(lambda: not any(map(is_alive, workers)), 5, "workers gone")


def test_descriptors_and_threads_stay_as_many() -> None:
    with Server(APP, conf("gthread", keepalive=1)) as server:
        pid = server.workers()[0]

        def churn() -> None:
            for _ in range(50):
                with connect(server) as client:
                    client.ask()
                with connect(server) as client:
                    client.send(b"GET / H")
                with connect(server) as client:
                    client.send(b"nonsense\r\n\r\n")

        def counts() -> tuple[int, int]:
            return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))

        server.get("/")
        churn()
        # Lingering and kept connections end first.
        before = wait_until(lambda: [now for now in (counts(),) if now[0] < 20], 15, lambda: f"{counts()}")[0]
        churn()
        wait_until(lambda: counts() <= before, 15, lambda: f"{counts()} is {before}")


# -- requests that take too long -----------------------------------------------------------------


def test_clients_that_read_nothing_do_not_delay_heartbeats() -> None:
    """Their time for a head is up, and there is no room for the answer that says so."""
    hook = """
import socket, time
def post_request(worker, req, environ, resp):
    sock = environ["gunicorn.socket"]
    full = 0
    while full < 5:
        # What the client's side still takes leaves room again.
        full += 1
        try:
            while sock.send(b"x" * 65536, socket.MSG_DONTWAIT):
                full = 0
        except BlockingIOError:
            time.sleep(0.05)
"""
    config = conf("gthread", timeout=1, threads=5) + hook
    with Server(APP, config, ready="listen") as server, clients(server, 5) as slow:
        server.wait_workers(1)
        workers = server.workers()
        for sock in slow:
            sock.sendall(get() + b"GET / HT")

        def all_refused() -> bool:
            return "has not answered" in server.log() or server.log().count("RequestTimeout") == 5

        wait_until(all_refused)
        assert "has not answered" not in server.log() and server.workers() == workers


def test_a_request_that_has_come_is_not_dropped_to_make_room() -> None:
    config = conf("gthread", threads=1, worker_connections=2, keepalive=60)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(APP, config, ready="listen"))
        old = stack.enter_context(connect(server))
        assert not old.ask().closes
        (worker,) = server.workers()
        stack.enter_context(connect(server))
        wait_until(lambda: str(descriptors(worker)).count("socket:") == 3)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 1.1)
        os.kill(worker, signal.SIGSTOP)
        wait_until(lambda: status_field(worker, "State").startswith("T"))
        with connect(server) as new:
            # The worker finds them in this order.
            new.send(get())
            old.send(get())
            os.kill(worker, signal.SIGCONT)
            # The place is free when one of them has been answered for the last time.
            assert old.answer().closes and new.answer().status == 200


# Not "d", a debug build; nor any build before Python 3.13, which cannot be asked.
@pytest.mark.parametrize(
    "flags, enabled, said",
    [
        ("", None, None),
        ("d", None, None),
        (
            "t",
            True,
            "The GIL is on: an extension module that needs it has turned it on, or PYTHON_GIL or -X gil",
        ),
        ("td", False, "The GIL is off: threads run in parallel"),
    ],
)
def test_the_state_of_the_gil(
    flags: str, enabled: bool | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "abiflags", flags)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: enabled, raising=False)
    assert state_of_gil() == said


def test_all_threads_of_a_free_threaded_build_serve_in_parallel() -> None:
    build = "import sys\nsys.abiflags, sys._is_gil_enabled = 't', lambda: False\n"
    hook = "def pre_request(worker, request): worker.log.info('parallel: %s', worker.team.turns.parallel)\n"
    with Server(config=build + conf("gthread", threads=2) + hook) as server:
        assert server.get("/").status == 200
        assert "The GIL is off" in server.log()
        assert "parallel: inf" in server.log()
