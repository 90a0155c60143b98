# SPDX-License-Identifier: MIT
"""An ASGI application with everything that the tests of the asgi worker ask for, and its clients."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from harness import Server, read_until_closed
from load import Clients
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_websocket
from workertools import connect, get

APP = """
import asyncio, contextvars, json, os, time

HERE = os.path.dirname(os.path.abspath(__file__))
seen = contextvars.ContextVar("seen", default=0)
second = asyncio.Event()

def note(text):
    with open(os.path.join(HERE, "notes"), "a") as f:
        f.write(text + "\\n")

async def lifespan(scope, receive, send):
    while True:
        kind = (await receive())["type"]
        if kind == "lifespan.startup" and os.path.exists(os.path.join(HERE, "broken")):
            await send({"type": "lifespan.startup.failed", "message": "Traceback …\\nno database"})
            return
        while kind == "lifespan.startup" and os.path.exists(os.path.join(HERE, "not yet")):
            await asyncio.sleep(0.02)
        while kind == "lifespan.shutdown" and os.path.exists(os.path.join(HERE, "not over")):
            await asyncio.sleep(0.03)
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
    while path == "/push":
        await send({"type": "websocket.send", "text": "news"})
        await asyncio.sleep(0.01)
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
    elif path == "/deaf":
        try:
            while True:
                await receive()
        finally:
            note("no longer deaf")
    elif path == "/endless":
        await send({"type": "http.response.start", "status": 200})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
        finally:
            note(f"{scope['method']} has ended")
    elif path == "/fails-later":
        await answer(send, b"now")
        await second.wait()
        await send({"type": "http.response.body"})
    elif path == "/second":
        second.set()
        for _ in range(10):
            await asyncio.sleep(0)
        await answer(send, b"second")
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


def websocket(server: Server, path: str = "/echo", **options: Any) -> ClientConnection:
    return connect_websocket(f"ws://{server.address}{path}", proxy=None, **options)


class Listeners(Clients):
    """Clients with WebSockets and with streams, who note each end that is not in order."""

    def __init__(self, server: Server) -> None:
        self.ends: Counter[str] = Counter()
        turns = [self._talk] * 3 + [self._read] * 3
        super().__init__(server, [partial(self._run, turn) for turn in turns])

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
