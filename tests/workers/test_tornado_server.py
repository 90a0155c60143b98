# SPDX-License-Identifier: MIT
"""Real servers with Tornado's worker: its own applications and WSGI, bounds, TLS, ends."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import ssl
import time
from pathlib import Path

import pytest
from harness import Background, Server, wait_until
from test_every_class import dial
from test_nothing_lost import under_load
from workertools import APP, Client, connect, elapsed, get, make_certificate

pytest.importorskip("tornado", reason="tornado is not installed")

NATIVE = """
import asyncio, os
import tornado.web, tornado.websocket

HERE = os.path.dirname(os.path.abspath(__file__))

class Main(tornado.web.RequestHandler):
    async def get(self, path):
        if path == "until":
            with open(os.path.join(HERE, "until"), "a") as f:
                f.write("x\\n")
            while not os.path.exists(os.path.join(HERE, "done")):
                await asyncio.sleep(0.01)
        if path == "boom":
            raise RuntimeError("boom on purpose")
        self.write(self.request.protocol if path == "scheme" else str(os.getpid()))

    def post(self, path):
        self.write(self.request.body)

class Echo(tornado.websocket.WebSocketHandler):
    def on_message(self, message):
        self.write_message("echo " + message)

    def on_close(self):
        print("websocket closed", flush=True)

app = tornado.web.Application([("/socket", Echo), ("/(.*)", Main)])
"""


def conf(**settings: object) -> str:
    settings = {"worker_class": "tornado", "graceful_timeout": 10, **settings}
    return "\n".join(f"{name} = {value!r}" for name, value in settings.items()) + "\n"


def test_an_application_of_its_own() -> None:
    config = conf(keepalive=1, accesslog="-") + (
        "def pre_request(worker, req):\n    worker.log.info('before %s', req.path)\n"
        "def post_request(worker, req, environ, resp):\n    worker.log.info('after %s', resp.status)\n"
    )
    with Server(NATIVE, config) as server:
        with connect(server) as client:
            client.send(get("/") + get("/scheme", more="X-Forwarded-Proto: https\r\n"))
            assert client.answer().body == str(server.workers()[0]).encode()
            assert client.answer().body == b"https"
            assert client.ask("/scheme").body == b"http"
            client.send(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde")
            assert client.answer().body == b"abcde"
            assert 0.5 < elapsed(client.is_closed) < 3
        assert server.get("/boom").status == 500
        log = server.wait_log('"GET /boom HTTP/1.1" 500')
        assert "before /scheme" in log and "after 200 OK" in log


def test_a_wsgi_application() -> None:
    with Server(APP, conf(threads=4, timeout=2)) as server:
        with connect(server) as client:
            client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde")
            assert client.answer().body == b"abcde"
            assert client.ask("/flags").body == b"(True, False)"
            failed = client.ask("/boom")
            assert failed.status == 500 and b"boom" not in failed.body
        assert "boom on purpose" in server.log()
        # In threads beside the loop: at the same time, and longer than the heart may pause.
        slow = [Background(server, "/sleep?2.5") for _ in range(3)]
        assert [one.result().status for one in slow] == [200] * 3
        assert max(one.seconds for one in slow) < 5
        assert "has not answered" not in server.log()


def open_websocket(server: Server) -> Client:
    client = connect(server)
    key = base64.b64encode(os.urandom(16)).decode()
    wish = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    client.send(get("/socket", more=f"{wish}Sec-WebSocket-Key: {key}\r\n"))
    assert client.answer().status == 101
    return client


def test_open_connections_do_not_delay_a_stop() -> None:
    with Server(NATIVE, conf(keepalive=30)) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(4)]
        assert [client.ask().closes for client in clients] == [False] * 4
        silent = stack.enter_context(connect(server))
        websocket = stack.enter_context(open_websocket(server))
        websocket.send(b"\x81\x82\0\0\0\0hi")  # a masked text frame
        assert websocket.sock.recv(100) == b"\x81\x07echo hi"
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        time.sleep(0.2)
        answer = clients[0].ask()
        assert answer.status == 200 and answer.closes
        assert server.wait_exit() == 0
        assert time.monotonic() - started < 3
        assert all(client.is_closed() for client in [*clients, silent])
        assert "websocket closed" in server.log()


def test_a_long_request_outlives_the_retirement_and_nobody_waits() -> None:
    with Server(NATIVE, conf(max_requests=1, timeout=2, keepalive=30), ready="listen") as server:
        wait_until(lambda: len(server.workers()) == 1)
        with connect(server) as client:
            client.send(get("/until"))
            wait_until(lambda: server.log("until"))
            assert elapsed(lambda: server.get("/")) < 1.5
            began = time.monotonic()
            wait_until(lambda: time.monotonic() > began + 2.5)
            assert elapsed(lambda: server.get("/")) < 1
            server.write("done", "")
            answer = client.answer()
            assert answer.status == 200 and answer.closes and client.is_closed()
        assert "SIGKILL" not in server.log() and "has not answered" not in server.log()


@pytest.mark.parametrize("secure", [False, True])
def test_a_pause_of_the_process_loses_no_request(secure: bool, tmp_path: Path) -> None:
    """Longer than `keepalive`: what came meanwhile was not looked at, and its sender has not idled."""
    settings: dict[str, object] = {"keepalive": 1}
    if secure:
        settings["certfile"], settings["keyfile"] = make_certificate(tmp_path)
    with Server(NATIVE, conf(**settings), ready="listen") as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server, secure)) for _ in range(8)]
        assert not any(client.ask().closes for client in clients)
        worker = server.workers()[0]
        os.kill(worker, signal.SIGSTOP)
        try:
            for client in clients:
                client.send(get())
            began = time.monotonic()
            wait_until(lambda: time.monotonic() > began + 1.6)
        finally:
            os.kill(worker, signal.SIGCONT)
        for client in clients:
            # Either the connection goes on, or its answer says that it does not.
            assert client.answer().closes or client.ask().status == 200


def test_who_is_hung_up_hears_of_it_in_the_answer_to_what_had_come() -> None:
    """To make room, while its next request is on the way."""
    with Server(NATIVE, conf(worker_connections=1, keepalive=30)) as server, connect(server) as first:
        first.ask()
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 1.2)
        worker = server.workers()[0]
        os.kill(worker, signal.SIGSTOP)
        with connect(server) as second:
            second.send(get())
            first.send(get())
            os.kill(worker, signal.SIGCONT)
            assert second.answer().status == 200
        # By chance it was looked at first.
        assert first.answer().closes or first.is_closed()


def test_a_head_that_does_not_come_in_time_is_a_408() -> None:
    with Server(NATIVE, conf(timeout=1)) as server, connect(server) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert client.answer().status == 408 and client.is_closed()


def test_an_application_of_its_own_is_asked_for_what_is_a_request_alone() -> None:
    with Server(NATIVE, conf()) as server:
        with connect(server) as client:
            client.send(b"GET http://b/scheme?x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.answer().body == b"http"
        for headers in ("Host: a:b", "Host: a\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Ssl: on"):
            with connect(server) as client:
                client.send(f"GET / HTTP/1.1\r\n{headers}\r\n\r\n".encode())
                answer = client.answer()
                assert answer.status == 400 and answer.closes and client.is_closed()
        assert "Traceback" not in server.log()


def test_no_more_connections_than_configured() -> None:
    with Server(NATIVE, conf(worker_connections=3, keepalive=30, timeout=30), ready="listen") as server:
        busy = [Background(server, "/until") for _ in range(3)]
        wait_until(lambda: server.log("until").count("\n") == 3)
        with connect(server) as client:
            client.send(get())
            assert not client.is_closed(0.3)
            server.write("done", "")
            assert [one.result().status for one in busy] == [200] * 3
            client.sock.settimeout(5)
            assert client.answer().status == 200
        with connect(server) as one, connect(server) as two:
            assert not one.ask().closes and not two.ask().closes
            with connect(server), connect(server) as new:
                assert elapsed(new.ask) < 3
            assert one.is_closed() and not two.is_closed(0.1)


def test_tls(tmp_path_factory: pytest.TempPathFactory) -> None:
    cert, key = make_certificate(tmp_path_factory.mktemp("tls"))
    config = conf(certfile=cert, keyfile=key, timeout=2, keepalive=30)
    with Server(NATIVE, config, ready="listen") as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(server)) for _ in range(10)]
        for client in silent[::2]:
            client.send(b"\x16\x03\x01\x02\x00\x01\x00")  # the start of a hello
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with Client(context.wrap_socket(server.connect())) as client:
            assert elapsed(lambda: client.ask("/")) < 1
            assert client.ask("/scheme").body == b"https"
            for size in (200_000, 3):
                head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
                client.send(head + b"y" * size)
                assert client.answer().body == b"y" * size
            assert all(one.is_closed() for one in silent)
            assert client.ask("/").status == 200
            server.signal(signal.SIGTERM)
            assert server.wait_exit() == 0
            assert client.sock.recv(10) == b""


def test_the_end_of_patience() -> None:
    # It ends a fourth of that before its master would lose patience, at most a second.
    with Server(NATIVE, conf(graceful_timeout=4)) as server, connect(server) as client:
        client.send(get("/until"))
        wait_until(lambda: server.log("until"))
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 6
        assert client.is_closed()
        assert "1 requests unfinished" in server.log() and "SIGKILL" not in server.log()


@pytest.mark.parametrize(("app", "threads"), [(NATIVE, 1), (APP, 2)], ids=["native", "wsgi"])
def test_a_quick_stop(app: str, threads: int) -> None:
    with Server(app, conf(threads=threads)) as server, connect(server) as client:
        client.send(get("/until?done"))
        wait_until(lambda: server.log("until"))
        started = time.monotonic()
        server.signal(signal.SIGINT)
        assert server.wait_exit() == 0
        assert time.monotonic() - started < 2


def test_nothing_is_lost() -> None:
    config = conf(workers=2, max_requests=60, max_requests_jitter=20)
    with Server(NATIVE, config) as server, under_load(server) as load:
        old = server.workers()
        server.signal(signal.SIGHUP)
        server.wait_workers(2, without=old)
        os.kill(server.workers()[0], signal.SIGTERM)
        for sig, count in ((signal.SIGTTIN, 3), (signal.SIGTTOU, 2)):
            server.signal(sig)
            server.wait_workers(count)
        wait_until(lambda: len(load.pids) > 5, 30)
