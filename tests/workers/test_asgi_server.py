# SPDX-License-Identifier: MIT
"""The asgi worker with applications of ASGI: lifespan, scopes, WebSockets, and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Server, free_port, read_until_closed, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_websocket
from workertools import Client, connect, get

APP = """
import asyncio, contextvars, json, os, time

HERE = os.path.dirname(os.path.abspath(__file__))
seen = contextvars.ContextVar("seen", default=0)

def note(text):
    with open(os.path.join(HERE, "notes"), "a") as f:
        f.write(text + "\\n")

async def lifespan(scope, receive, send):
    while True:
        kind = (await receive())["type"]
        if kind == "lifespan.startup" and os.path.exists(os.path.join(HERE, "broken")):
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            return
        note(f"{kind} {type(asyncio.get_running_loop()).__module__}")
        scope["state"]["pid"] = os.getpid()
        await send({"type": kind + ".complete"})
        if kind == "lifespan.shutdown":
            return

async def socket(scope, receive, send):
    await receive()
    path = scope["path"].removeprefix(scope["root_path"])
    if path == "/refuse":
        return await send({"type": "websocket.close"})
    if path == "/fail":
        raise RuntimeError("on purpose")
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": json.dumps([scope["scheme"], scope["client"]])})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return note(f"websocket {message['code']}")
        if message.get("text") == "bye":
            return await send({"type": "websocket.close", "code": 4001})
        await send({"type": "websocket.send", "text": message["text"]})

def answer_in_thread(send, loop):
    def wait_for(message):
        asyncio.run_coroutine_threadsafe(send(message), loop).result()
    wait_for({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    wait_for({"type": "http.response.body", "body": b"thread"})

async def answer(send, body, status=200, **more):
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(scope, receive, send)
    if scope["type"] == "websocket":
        return await socket(scope, receive, send)
    path = scope["path"].removeprefix(scope["root_path"])
    if path == "/scope":
        found = {key: value for key, value in scope.items() if key in
            ("scheme", "client", "root_path", "path", "state", "http_version", "method")}
        found["headers"] = [[name.decode(), value.decode()] for name, value in scope["headers"]]
        await answer(send, json.dumps(found).encode())
    elif path == "/context":
        body = str(seen.get()).encode()
        seen.set(seen.get() + 1)
        await answer(send, body)
    elif path == "/forget":
        try:
            await receive()
            while (await receive())["type"] != "http.disconnect":
                pass
            note("told")
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            note("cancelled")
            raise
    elif path == "/stream":
        await send({"type": "http.response.start", "status": 200})
        note("streaming")
        while not os.path.exists(os.path.join(HERE, "enough")):
            await send({"type": "http.response.body", "body": b"more\\n", "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"done\\n"})
    elif path == "/pieces":
        await send({"type": "http.response.start", "status": 200})
        for _ in range(10):
            await send({"type": "http.response.body", "body": b"piece", "more_body": True})
            await asyncio.sleep(0.02)
        await send({"type": "http.response.body"})
    elif path == "/later":
        await answer(send, b"now")
        while not os.path.exists(os.path.join(HERE, "enough")):
            await asyncio.sleep(0.05)
        note("later")
    elif path == "/block":
        time.sleep(3600)
    elif path == "/hang":
        await asyncio.sleep(3600)
    elif path == "/thread":
        await asyncio.to_thread(answer_in_thread, send, asyncio.get_running_loop())
    elif path == "/task":
        headers = [(b"content-length", b"4")]
        await asyncio.create_task(send({"type": "http.response.start", "status": 200, "headers": headers}))
        await asyncio.create_task(send({"type": "http.response.body", "body": b"task"}))
    elif path == "/never-awaited":
        send({"type": "http.response.start", "status": 500}).close()
        await answer(send, b"fine")
    elif path == "/big":
        await answer(send, b"x" * 30_000_000)
    elif path == "/length":
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await answer(send, str(size).encode())
    elif path == "/nothing":
        pass
    else:
        await answer(send, str(os.getpid()).encode())
"""


#: For what the command tells of the web workers.
IDLE = [{"name": "idle", "command": ["sleep", "1000"]}]


def conf(**settings: Any) -> str:
    settings = {"worker_class": "asgi", "graceful_timeout": 10, **settings}
    return "\n".join(f"{name} = {value!r}" for name, value in settings.items()) + "\n"


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def served(request: pytest.FixtureRequest) -> Iterator[Server]:
    hooks = """
def pre_request(worker, req):
    worker.log.info("before %s %s %s", req.method, req.path, dict(req.headers).get("X-QUESTION"))
def post_request(worker, req, environ, resp):
    worker.log.info("after %s %s", environ["QUERY_STRING"], resp.status)
"""
    more = {
        "accesslog": "-",
        "access_log_format": "%(h)s|%(r)s|%(s)s|%(b)s|%(U)s|%(q)s|%({x-question}i)s|%({content-length}o)s",
        "root_path": "/shop/",
        "websocket_max_message_size": 1000,
        "asgi_disconnect_grace_period": 0.2,
    }
    with Server(APP, conf(asgi_loop=request.param, **more) + hooks) as server:
        server.wait_log(f"lifespan.startup {request.param}", name="notes")
        yield server


def websocket(server: Server, path: str = "/echo", **options: Any) -> ClientConnection:
    return connect_websocket(f"ws://{server.address}{path}", proxy=None, **options)


def scope_of(server: Server, fields: str = "", path: str = "/scope") -> dict[str, Any]:
    with connect(server) as client:
        answer = client.ask(path, more=fields)
        assert answer.status == 200
        found: dict[str, Any] = json.loads(answer.body)
        return found


def close_code(ws: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        while True:
            ws.recv(10)
    return ws.close_code


def test_the_scope(served: Server) -> None:
    scope = scope_of(served, "X-Question: ?\r\nX_Hidden: 1\r\n", path="/scope?a=b")
    assert scope["root_path"] == "/shop" and scope["path"] == "/shop/scope"
    assert (scope["http_version"], scope["method"], scope["scheme"]) == ("1.1", "GET", "http")
    assert scope["client"][0] == "127.0.0.1" and scope["state"]["pid"] in served.workers()
    assert scope["headers"] == [["host", "test"], ["x-question", "?"]]
    log = served.wait_log("|?|")
    assert "before GET /scope ?" in log and "after a=b 200 OK" in log
    length = log.partition("|a=b|?|")[2].partition("\n")[0]
    assert f"127.0.0.1|GET /scope?a=b HTTP/1.1|200|{length}|/scope|a=b|" in log


def test_what_a_proxy_says_of_its_client(served: Server) -> None:
    fields = "X-Forwarded-Proto: https\r\nX-Forwarded-For: 6.6.6.6, 192.0.2.7:55, 127.0.0.1\r\n"
    scope = scope_of(served, fields)
    assert (scope["scheme"], scope["client"]) == ("https", ["192.0.2.7", 55])
    fields = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: [2001:db8::1]:5\r\n"
    assert scope_of(served, fields)["client"] == ["2001:db8::1", 5]
    with websocket(
        served, additional_headers={"X-Forwarded-Proto": "https", "X-Forwarded-For": "1.2.3.4"}
    ) as ws:
        assert json.loads(ws.recv()) == ["wss", ["1.2.3.4", 0]]


def test_each_request_has_a_context_of_its_own(served: Server) -> None:
    with connect(served) as client:
        assert [client.ask("/context").body for _ in range(3)] == [b"0"] * 3
        client.send(get("/context") * 3)
        assert [client.answer().body for _ in range(3)] == [b"0"] * 3


def test_a_malformed_request_behind_another_waits_for_its_answer(served: Server) -> None:
    with connect(served) as client:
        client.send(get("/scope") + b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        assert [client.answer().status for _ in range(2)] == [200, 400]
        assert client.is_closed()


def test_websockets(served: Server) -> None:
    with websocket(served) as ws:
        ws.recv()
        ws.send("x" * 1000)
        assert ws.recv() == "x" * 1000
        ws.send("bye")
        assert close_code(ws) == 4001
    with websocket(served) as ws:
        ws.send("x" * 1001)
        assert close_code(ws) == 1009
    for path, status in (("/refuse", 403), ("/fail", 500)):
        with pytest.raises(InvalidStatus, match=f"HTTP {status}"), websocket(served, path):
            pass
        served.wait_log(f"GET {path} HTTP/1.1|{status}|")
    assert "The application failed on 'GET /fail'" in served.wait_log("RuntimeError: on purpose")
    served.wait_log("GET /echo HTTP/1.1|101|")


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, bits: int = 0
) -> bytes:
    """A frame of a client, masked by zeros; *bits* are the reserved ones."""
    size = len(payload)
    first = bytes([fin << 7 | bits << 4 | opcode])
    length = (
        bytes([masked << 7 | size]) if size < 126 else bytes([masked << 7 | 126, *size.to_bytes(2, "big")])
    )
    return first + length + bytes(4 * masked) + payload


TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, b"a", masked=False), 1002),
        (frame(TEXT, b"a", bits=4), 1002),
        (frame(3, b"a"), 1002),
        (frame(11), 1002),
        (frame(0, b"a"), 1002),
        (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
        (frame(PING, b"a" * 126), 1002),
        (frame(PING, fin=False), 1002),
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(TEXT, b"\xce", fin=False) + frame(0, b"x"), 1007),
        (frame(CLOSE, b"a"), 1002),
        (frame(CLOSE, (999).to_bytes(2, "big")), 1002),
        (frame(CLOSE, (1005).to_bytes(2, "big")), 1002),
        (frame(CLOSE, (1000).to_bytes(2, "big")), 1000),
        (frame(CLOSE, (3999).to_bytes(2, "big") + b"why"), 3999),
        (frame(CLOSE), None),
        (frame(BINARY, b"x" * 600, fin=False) + frame(0, b"x" * 600), 1009),
    ],
    ids=repr,
)
def test_frames_that_end_a_websocket(served: Server, sent: bytes, code: int | None) -> None:
    with raw_websocket(served) as client:
        client.send(sent)
        data = client.buffer + read_until_closed(client.sock)
    assert data[:1] == b"\x88"
    assert (int.from_bytes(data[2:4], "big") if data[1] else None) == code


def test_frames_in_pieces(served: Server) -> None:
    with raw_websocket(served) as client:
        # A ping between two fragments, and a character cut in two.
        sent = frame(TEXT, b"\xce", fin=False) + frame(PING, b"?") + frame(0, b"\xb1") + frame(PONG)
        for byte in sent:
            client.send(bytes([byte]))
        while len(client.buffer) < 7:
            client.buffer += client.sock.recv(100)
        client.send(frame(CLOSE, b"\x03\xe8"))
        data = client.buffer + read_until_closed(client.sock)
    assert data == b"\x8a\x01?" + b"\x81\x02\xce\xb1" + b"\x88\x02\x03\xe8"


def raw_websocket(server: Server) -> Client:
    """A connection after the handshake, and the greeting of the application."""
    client = connect(server)
    fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    client.send(get("/echo", more=fields + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"))
    assert client.answer().status == 101
    while not client.buffer.endswith(b"]]"):
        client.buffer += client.sock.recv(1000)
    client.buffer = b""
    return client


def test_an_application_without_an_answer_is_a_500(served: Server) -> None:
    with connect(served) as client:
        assert client.ask("/nothing").status == 500
    served.wait_log("The application has not answered 'GET /nothing'")


def test_send_does_its_work_in_the_loop_when_it_is_awaited(served: Server) -> None:
    """Threads and tasks may call it; in another thread than the loop's, uvloop's transports crash."""
    with connect(served) as client:
        for path, body in (("/thread", b"thread"), ("/task", b"task"), ("/never-awaited", b"fine")):
            answer = client.ask(path)
            assert (answer.status, answer.body) == (200, body)


def test_a_client_that_goes_is_told_of_and_its_task_cancelled(served: Server) -> None:
    with connect(served) as client:
        client.send(get("/forget"))
    assert served.wait_log("cancelled", name="notes").index("told") >= 0


def test_a_graceful_end() -> None:
    """A stream goes on, a WebSocket is closed, and the lifespan ends after what goes on behind an answer."""
    with Server(APP, conf(workers=1)) as server, connect(server) as stream, websocket(server) as ws:
        ws.recv()
        stream.send(get("/stream"))
        server.wait_log("streaming", name="notes")
        with connect(server) as client, connect(server) as idle:
            assert client.ask("/later").body == b"now"
            assert not idle.ask().closes
            first = server.get("/").text
            server.signal(signal.SIGHUP)
            assert close_code(ws) == 1012
            assert idle.is_closed() and client.is_closed()
        wait_until(lambda: server.get("/").text != first)
        assert "lifespan.shutdown" not in server.log("notes")
        server.write("enough", "")
        data = b""
        while not data.endswith(b"done\n\r\n0\r\n\r\n"):
            data += stream.sock.recv(65536)
        notes = server.wait_log("lifespan.shutdown", name="notes")
        assert notes.index("websocket 1012") < notes.index("later") < notes.index("lifespan.shutdown")
        server.write("broken", "")
        second = server.get("/").text
        server.signal(signal.SIGHUP)
        server.wait_log("the lifespan startup failed: no database")
        assert server.get("/").text == second
        assert server.stop() == 0
        assert server.log("notes").count("lifespan.shutdown") == 2


def test_a_blocked_loop_is_seen_and_its_worker_replaced() -> None:
    with Server(APP, conf(timeout=1)) as server, connect(server) as client:
        first = server.get("/").text
        client.send(get("/block"))
        log = server.wait_log("The event loop hangs for")
        assert "time.sleep(3600)" in server.wait_log("time.sleep(3600)")
        wait_until(lambda: server.get("/").text != first)
        log = server.log()
        assert log.index("The event loop hangs for") < log.index("has sent no heartbeat")
        assert "The application" not in log and "ASGI callable" not in log


@pytest.mark.parametrize("loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.matrix)])
def test_clients_that_stop_sending_or_reading_are_cut_off(loop: str) -> None:
    with Server(APP, conf(timeout=1, asgi_loop=loop, companion_workers=IDLE), ready="listen") as server:
        with connect(server) as sending, connect(server) as reading, connect(server) as last:
            sending.send(b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst")
            reading.send(get("/big"))
            last.send(get("/big", close=True))
            assert sending.answer().status == 408
            wait_until(lambda: server.ask("web")["web"]["totals"]["connections"] == 0)
        assert "CRITICAL" not in server.log() and "Traceback" not in server.log()


def test_what_takes_long_is_dumped_and_cancelled() -> None:
    settings = {"request_timeout": 2, "companion_workers": IDLE}
    with Server(APP, conf(**settings), ready="listen") as server, connect(server) as client:
        wait_until(lambda: server.ask("web")["ok"])
        client.send(get("/hang?x"))
        wait_until(lambda: server.ask("web")["web"]["totals"]["running"] == 1)
        shown = server.ask("web")["web"]["workers"][0]
        assert shown["oldest"]["path"] == "/hang" and shown["connections"] == 1
        (dump,) = server.ask("dump", what=shown["pid"])["dumps"]
        assert "Task (most recent call first):" in dump["stacks"] and " in app\n" in dump["stacks"]
        answer = client.answer()
        assert answer.status == 503 and answer.closes
        assert "asyncio.sleep(3600)" in server.wait_log(
            "'GET /hang?x' takes longer than 2 s and is cancelled"
        )
        assert server.get("/").text == server.get("/").text
        wait_until(lambda: server.ask("web")["web"]["totals"]["answers"]["5xx"] == 1)


def gunicorn(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gunicorn", *args]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=30)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "async def app(scope, receive, send): raise RuntimeError(scope['type'])\n"
    )
    (tmp_path / "uvicorn.py").write_text("raise ImportError('no uvicorn here')\n")
    done = gunicorn(tmp_path, "--check-config", "-k", "asgi", "app:app")
    assert done.returncode == 1 and "gunicorn[asgi]" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "uvicorn.py").unlink()
    done = gunicorn(tmp_path, "-k", "asgi", "--asgi-lifespan", "on", "-b", "127.0.0.1:0", "app:app")
    assert done.returncode == 4
    assert "has no lifespan, and asgi_lifespan is on: RuntimeError: lifespan" in done.stderr


class Listeners:
    """Clients with WebSockets and with streams, who note each end that is not in order."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.problems: list[str] = []
        self.ends: Counter[str] = Counter()
        self._done = threading.Event()
        turns = [self._talk] * 3 + [self._read] * 3
        self._threads = [threading.Thread(target=self._run, args=(turn,)) for turn in turns]

    def __enter__(self) -> Listeners:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, turn: Callable[[], str]) -> None:
        while not self._done.is_set():
            try:
                self.ends[turn()] += 1
            except Exception as error:
                self.problems.append(repr(error))

    def _talk(self) -> str:
        with websocket(self.server) as ws:
            try:
                ws.recv(10)
                while not self._done.is_set():
                    ws.send("hello")
                    assert ws.recv(10) == "hello"
                    time.sleep(0.01)
            except ConnectionClosed:
                assert ws.close_code == 1012, ws.close_code
                return "websocket"
        return ""

    def _read(self) -> str:
        with connect(self.server) as client:
            client.send(get("/pieces", close=True))
            data = read_until_closed(client.sock)
        assert data.count(b"piece") == 10 and data.endswith(b"0\r\n\r\n"), data[-50:]
        return "stream"


@pytest.mark.matrix
def test_no_stream_and_no_websocket_is_lost() -> None:
    rounds = int(os.environ.get("NOTHING_LOST_ROUNDS", "5"))
    with Server(APP, conf(workers=2, graceful_timeout=20)) as server, Listeners(server) as listeners:
        for _ in range(rounds):
            old = server.workers()
            server.signal(signal.SIGHUP)
            server.wait_workers(2, without=old, timeout=60)
        for count, signum in ((3, signal.SIGTTIN), (2, signal.SIGTTOU)):
            server.signal(signum)
            server.wait_workers(count, timeout=60)
        wait_until(lambda: listeners.ends["websocket"] >= 3, 30)
        assert listeners.problems == []
    assert listeners.problems == [] and listeners.ends["stream"] > rounds


def test_the_same_in_a_companion() -> None:
    """On its own sockets: it is ready after its lifespan, drains at a restart, and closes WebSockets."""
    config = """
from gunicorn.workers.asgi import companion
companion_workers = [{"name": "live", "target": companion("live:app", accesslog="-"), "ready": "notify",
    "bind": "127.0.0.1:%d", "watchdog": 20}]
"""
    port = free_port()
    with Server(config=config % port, files={"live.py": APP}) as server:
        first = server.wait_companion("live")["pid"]
        assert "lifespan.startup" in server.log("notes")
        with connect_websocket(f"ws://127.0.0.1:{port}/echo", proxy=None) as ws:
            ws.recv()
            with Client(socket.create_connection(("127.0.0.1", port), 10)) as client:
                assert client.ask().body == str(first).encode()
                server.ask("restart", "live")
                assert close_code(ws) == 1012
        wait_until(lambda: server.companion("live")["pid"] not in (first, None))
        with Client(socket.create_connection(("127.0.0.1", port), 10)) as client:
            assert client.ask().body == str(server.companion("live")["pid"]).encode()
        notes = server.wait_log("lifespan.shutdown", name="notes")
        assert notes.index("websocket 1012") < notes.index("lifespan.shutdown")
        server.wait_log('"GET / HTTP/1.1" 200')
        assert server.stop() == 0
        assert server.log("notes").count("lifespan.shutdown") == 2 and "SIGKILL" not in server.log()
