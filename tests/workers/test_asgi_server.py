# SPDX-License-Identifier: MIT
"""The asgi worker with applications of ASGI: lifespan, scopes, WebSockets, and ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgitools import APP, IDLE, conf, websocket
from harness import Server, free_port, read_until_closed, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_websocket
from workertools import Client, connect, get

from gunicorn.companion.checks import check_target, describe_target
from gunicorn.workers.asgi import companion
from gunicorn.workers.asgiwebsocket import WebSocket


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
    # The hook is the last one.
    log = served.wait_log("after a=b 200 OK")
    assert "before GET /scope ?" in log
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


def test_what_follows_a_request_is_read_when_that_is_answered(served: Server) -> None:
    """A client that waits for no answer does not fill the memory with requests."""
    padding = "X-Padding: " + "x" * 8000 + "\r\n"
    start = len(served.log())
    with connect(served) as client:
        client.send(get("/length", more=padding) * 299 + get("/length?last", more=padding, close=True))
        data = client.buffer + read_until_closed(client.sock)
    assert data.count(b"HTTP/1.1 200 OK\r\n") == 300
    lines = served.wait_log("after last 200 OK")[start:].splitlines()
    kinds = [kind for line in lines for kind in ("before", "after") if f"] {kind} " in line]
    assert kinds.count("before") == 300
    # A few of them come with what was read last.
    last = len(kinds) - 1 - kinds[::-1].index("before")
    assert kinds[:last].count("after") > 150


CHUNKED = b"POST /%b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"


def test_trailers_are_no_fields(served: Server) -> None:
    with connect(served) as client:
        client.send(CHUNKED % b"scope" + b"X-User: admin\r\nA_B: c\r\n\r\n")
        assert json.loads(client.answer().body)["headers"] == [
            ["host", "x"],
            ["transfer-encoding", "chunked"],
        ]
        assert client.ask("/scope").status == 200


def test_what_is_behind_the_content_has_a_limit(served: Server) -> None:
    endless = b"X: " + b"x" * 1_200_000
    with connect(served) as client:
        client.send(CHUNKED % b"length" + endless)
        assert client.answer().status == 431
    with connect(served) as client:
        # The first one has its answer before.
        client.send(get("/pieces") + b"GET / HTTP/1.1\r\n" + endless)
        data = client.buffer + read_until_closed(client.sock)
        assert data.startswith(b"HTTP/1.1 200 ") and b"\r\n0\r\n\r\nHTTP/1.1 431 " in data


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
    if code == 1007:
        # In a line: it is the client's mistake.
        assert "UnicodeDecodeError" not in served.wait_log("[WARNING] Invalid UTF-8")


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


def test_a_client_that_takes_nothing_gets_one_answer_to_its_pings() -> None:
    written: list[bytes] = []
    ws = WebSocket.__new__(WebSocket)
    ws.conn, ws.writable = ServerProtocol(state=OPEN), asyncio.Event()
    ws.transport = SimpleNamespace(write=written.append)
    ws.resume_writing()
    ws.data_received(frame(PING, b"1"))
    ws.pause_writing()
    for text in (b"2", b"3"):
        ws.data_received(frame(PING, text + b"a") + frame(PING, text + b"b"))
    assert written == [b"\x8a\x011"]
    ws.resume_writing()
    ws.resume_writing()
    assert written[1:] == [b"\x8a\x023b"]


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


@pytest.mark.parametrize(
    ("request_", "note"),
    [
        (get("/deaf"), "no longer deaf"),
        (get("/endless"), "GET has ended"),
        (get("/endless").replace(b"GET", b"HEAD"), "HEAD has ended"),
    ],
)
def test_an_application_that_waits_for_nothing_else_lets_others_run(
    served: Server, request_: bytes, note: str
) -> None:
    with connect(served) as client:
        client.send(request_)
        if b"/endless" in request_:
            assert client.sock.recv(100)
        with connect(served) as other:
            assert other.ask("/").status == 200
    # It is cancelled when its client has gone.
    served.wait_log(note, name="notes")


def test_what_fails_behind_its_answer_does_not_end_the_connection(served: Server) -> None:
    with connect(served) as client:
        assert client.ask("/fails-later").body == b"now"
        # This one is under way when the first one sends something behind its end.
        assert client.ask("/second").body == b"second"
    served.wait_log("The application failed on 'GET /fails-later'")


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
    """A stream goes on, WebSockets are closed, and the lifespan ends after what goes on behind an answer."""
    config = conf(workers=1, loglevel="debug")
    with Server(APP, config) as server, connect(server) as stream, websocket(server) as ws:
        ws.recv()
        stream.send(get("/stream"))
        server.wait_log("streaming", name="notes")
        with connect(server) as client, connect(server) as idle, websocket(server, "/push") as pushed:
            assert client.ask("/later").body == b"now"
            assert not idle.ask().closes
            first = server.get("/").text
            server.signal(signal.SIGHUP)
            assert close_code(ws) == 1012 and close_code(pushed) == 1012
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
        server.wait_log(
            "refused, the old configuration stays: the lifespan startup failed: no database\nTraceback"
        )
        assert server.get("/").text == second
        assert server.stop() == 0
        server.ready = None
        server.start()
        assert server.wait_exit() == 4
        server.wait_log(
            "The application cannot be loaded: the lifespan startup failed: no database\nTraceback"
        )
        assert server.log("notes").count("lifespan.shutdown") == 2
        log = server.log()
        assert "went away during 'GET /push'" in log
        assert "The application failed" not in log and "news" not in log


def test_what_hangs_is_shown_and_its_worker_replaced() -> None:
    """A loop that is blocked, and a startup and a shutdown that do not end."""
    with Server(APP, conf(timeout=1, graceful_timeout=1)) as server, connect(server) as client:
        first = server.get("/").text
        client.send(get("/block"))
        log = server.wait_log("The event loop hangs for")
        assert "time.sleep(3600)" in server.wait_log("time.sleep(3600)")
        wait_until(lambda: server.get("/").text != first)
        log = server.log()
        assert log.index("The event loop hangs for") < log.index("has sent no heartbeat")
        assert "The application" not in log and "ASGI callable" not in log
        second = server.get("/").text
        server.write("not yet", "")
        server.signal(signal.SIGHUP)
        server.wait_log("The lifespan startup has not ended after 0.75 s")
        server.wait_log("in lifespan\n    await asyncio.sleep(0.02)")
        assert server.get("/").text == second
        server.write("not over", "")
        assert server.stop() == 0
        server.wait_log("The lifespan shutdown has not ended after")
        server.wait_log("in lifespan\n    await asyncio.sleep(0.03)")


@pytest.mark.parametrize("loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.matrix)])
def test_clients_that_stop_sending_or_reading_are_cut_off(loop: str) -> None:
    settings = {"timeout": 1, "keepalive": 1, "companion_workers": IDLE}
    with Server(APP, conf(asgi_loop=loop, **settings), ready="listen") as server:
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


def test_a_companion_whose_target_is_a_call() -> None:
    target = companion("live:app", accesslog="-")
    assert check_target(target) is target
    assert describe_target(target) == "gunicorn.workers.asgi:serve(*('live:app',), **{'accesslog': '-'})"
    with pytest.raises(AttributeError, match="accesslgo"):
        companion("live:app", accesslgo="-")


def test_the_same_in_a_companion() -> None:
    """On its own sockets: it is ready after its lifespan, drains at a restart, and closes WebSockets."""
    config = """
companion_workers = [{"name": "live", "target": "gunicorn.workers.asgi:companion('live:app', accesslog='-')",
    "ready": "notify", "bind": "127.0.0.1:%d", "watchdog": 20}]
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


# -- processes that the application forks -----------------------------------------------------------------

FORKS = """
import os, sys

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    end, body = scope["query_string"].decode(), str(os.getpid())
    if end:
        pid = os.fork()
        if pid == 0 and end == "exit":
            sys.exit(3)
        if pid == 0 and end == "raise":
            raise RuntimeError("in the fork")
        body = str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) if pid else "the fork"
    size = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", size)]})
    await send({"type": "http.response.body", "body": body.encode()})
"""


def test_a_process_that_the_application_forks_is_no_second_worker() -> None:
    with Server(FORKS, conf()) as server:
        worker = server.get("/").text
        ends = {end: server.get(f"/?{end}").text for end in ("exit", "raise", "return")}
        assert ends == {"exit": "3", "raise": "1", "return": "1"}
        assert {server.get("/").text for _ in range(5)} == {worker}
        assert server.log().count("has forked this process") == 2
