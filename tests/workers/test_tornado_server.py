# SPDX-License-Identifier: MIT
"""Real servers with Tornado's worker: its own applications and WSGI, bounds, TLS, ends."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import time

import pytest
from harness import Background, Server, wait_until
from workertools import APP, Client, conf, connect, elapsed, get

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


def test_an_application_of_its_own() -> None:
    config = conf("tornado", keepalive=1, accesslog="-") + (
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
    with Server(APP, conf("tornado", threads=4, timeout=2)) as server:
        with connect(server) as client:
            client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde")
            assert client.answer().body == b"abcde"
            assert client.ask("/flags").body == b"(True, False)"
            failed = client.ask("/boom")
            assert failed.status == 500 and b"boom" not in failed.body
        assert "boom on purpose" in server.log()
        # In threads beside the loop: at the same time, and longer than heartbeats may pause.
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
    with Server(NATIVE, conf("tornado", keepalive=30)) as server, contextlib.ExitStack() as stack:
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


def test_a_request_that_comes_at_a_hang_up_is_answered_with_close() -> None:
    """To make room, while its next request is on the way."""
    with (
        Server(NATIVE, conf("tornado", worker_connections=1, keepalive=30)) as server,
        connect(server) as first,
    ):
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
        # By chance it was read first.
        assert first.answer().closes or first.is_closed()


def test_an_application_of_its_own_is_asked_for_what_is_a_request_alone() -> None:
    with Server(NATIVE, conf("tornado")) as server:
        with connect(server) as client:
            client.send(b"GET http://b/scheme?x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.answer().body == b"http"
        for headers in ("Host: a:b", "Host: a\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Ssl: on"):
            with connect(server) as client:
                client.send(f"GET / HTTP/1.1\r\n{headers}\r\n\r\n".encode())
                answer = client.answer()
                assert answer.status == 400 and answer.closes and client.is_closed()
        assert "Traceback" not in server.log()


def test_a_quick_stop_of_an_application_of_its_own() -> None:
    with Server(NATIVE, conf("tornado")) as server, connect(server) as client:
        client.send(get("/until?done"))
        wait_until(lambda: server.log("until"))
        started = time.monotonic()
        server.signal(signal.SIGINT)
        assert server.wait_exit() == 0
        assert time.monotonic() - started < 2
