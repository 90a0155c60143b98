# SPDX-License-Identifier: MIT
"""Worker classes from elsewhere: unmodified ones of ASGI servers, and subclasses as users write them."""

from __future__ import annotations

import contextlib
import http.client
import signal

import pytest
from harness import Background, Server, conf, is_alive, load, read_until_closed, wait_until
from workertools import connect, elapsed

ASGI = """
import asyncio, os

HERE = os.path.dirname(os.path.abspath(__file__))

async def lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return

async def websocket(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": "echo " + message["text"]})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    if scope["type"] == "websocket":
        return await websocket(receive, send)
    body = str(os.getpid()).encode()
    if scope["path"] == "/until":
        open(os.path.join(HERE, "until"), "w").write("x")
        while not os.path.exists(os.path.join(HERE, "done")):
            await asyncio.sleep(0.01)
    elif scope["path"] == "/scheme":
        body = scope["scheme"].encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""

AIOHTTP = """
import asyncio, os
from aiohttp import web

HERE = os.path.dirname(os.path.abspath(__file__))

async def answer(request):
    if request.path == "/until":
        open(os.path.join(HERE, "until"), "w").write("x")
        while not os.path.exists(os.path.join(HERE, "done")):
            await asyncio.sleep(0.01)
    return web.Response(text=request.scheme if request.path == "/scheme" else str(os.getpid()))

async def socket(request):
    found = web.WebSocketResponse()
    await found.prepare(request)
    async for message in found:
        await found.send_str("echo " + message.data)
    return found

async def app():
    application = web.Application()
    application.add_routes([web.get("/socket", socket), web.get("/{path:.*}", answer)])
    return application
"""

#: Class, what has to be installed, application.
FOREIGN = pytest.mark.parametrize(
    ("kind", "needed", "app"),
    [
        ("uvicorn_worker.UvicornWorker", "uvicorn_worker", ASGI),
        ("aiohttp.GunicornWebWorker", "aiohttp", AIOHTTP),
        ("aiohttp.GunicornUVLoopWebWorker", "aiohttp uvloop", AIOHTTP),
    ],
    ids=["uvicorn", "aiohttp", "aiohttp-uvloop"],
)


def require(names: str) -> None:
    for name in names.split():
        pytest.importorskip(name, reason=f"{name} is not installed")


COMPANION = """
def wait():
    import time
    while True:
        time.sleep(60)
companion_workers = [{"name": "one", "target": wait}]
"""


@FOREIGN
def test_an_unmodified_class_from_elsewhere(kind: str, needed: str, app: str) -> None:
    require(needed)
    config = conf(
        worker_class=kind, accesslog="access.log", keepalive=30, graceful_timeout=5, max_requests=20
    )
    with Server(app, config + COMPANION) as server:
        companion = server.wait_companion("one")["pid"]
        (first,) = server.workers()
        with connect(server) as client:
            assert [client.ask().body for _ in range(3)] == [str(first).encode()] * 3
        wait_until(lambda: server.log("access.log").count("GET / HTTP/1.1") >= 3)
        echo(server)
        if "uvloop" in needed:
            return  # the same class on another loop
        # A request in the hands of a worker that is replaced.
        long = Background(server, "/until")
        wait_until(lambda: server.log("until"))
        server.signal(signal.SIGHUP)
        wait_until(lambda: ask(server) not in ("", str(first)))
        server.write("done", "")
        assert long.result().status == 200
        server.wait_workers(1, without=[first])
        # Each worker is replaced after max_requests, which this class checks now and then.
        lost: list[str] = []
        seen: set[str] = set()
        wait_until(lambda: seen.add(ask(server, lost)) or len(seen - {""}) > 2, 20)
        # Such a class may drop a connection that it accepts while it ends.
        assert len(lost) <= 2, lost
        server.signal(signal.SIGUSR1)
        with connect(server) as idle:
            assert not idle.ask().closes
            assert elapsed(server.stop) < 3.5
        assert server.exit_code == 0 and not is_alive(companion)
        assert "SIGKILL" not in server.log() and "has not answered" not in server.log()


def ask(server: Server, lost: list[str] | None = None) -> str:
    """What a request on a new connection answers; "" if it gets no answer."""
    try:
        reply = server.get("/")
    except (OSError, http.client.HTTPException) as error:
        if lost is not None:
            lost.append(repr(error))
        return ""
    assert reply.status == 200 and reply.text
    return reply.text


def echo(server: Server) -> None:
    client = pytest.importorskip("websockets.sync.client", reason="websockets is not installed")
    with client.connect(f"ws://127.0.0.1:{server.port}/socket") as socket:
        for text in ("one", "two"):
            socket.send(text)
            assert socket.recv(timeout=5) == "echo " + text


def test_a_quick_stop_of_a_class_from_elsewhere() -> None:
    """Its loop calls one handler for both ways to end."""
    require("uvicorn_worker")
    with Server(ASGI, conf(worker_class="uvicorn_worker.UvicornWorker")) as server:
        long = Background(server, "/until")
        wait_until(lambda: server.log("until"))
        server.signal(signal.SIGINT)
        assert elapsed(server.wait_exit) < 3
        assert server.exit_code == 0
        long.thread.join(5)


#: Subclasses as users write them.
SPECIAL = """
import contextlib, select, socket, threading

from gunicorn.http import RequestParser
from gunicorn.http.errors import NoMoreData
from gunicorn.http.wsgi import create
from gunicorn.workers.base import Worker
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker

class Sync(SyncWorker):
    def handle_request(self, listener, req, client, addr):
        req.headers.append(("X-SEEN", "sync"))
        return super().handle_request(listener, req, client, addr)

class Threads(ThreadWorker):
    def init_process(self):
        self.log.info("my own start")
        super().init_process()

    def handle_request(self, req, conn):
        req.headers.append(("X-SEEN", "threads"))
        return super().handle_request(req, conn)

class Async(AsyncWorker):
    def timeout_ctx(self):
        return contextlib.nullcontext()

    def is_already_handled(self, result):
        return result == "mine" or super().is_already_handled(result)

    def run(self):
        (listener,) = self.sockets
        threads = []
        while self.alive:
            self.notify()
            select.select([listener, self.PIPE[0]], [], [], 0.5)
            with contextlib.suppress(BlockingIOError):
                client, addr = listener.accept()
                client.settimeout(5)
                threads.append(threading.Thread(target=self.handle, args=(listener, client, addr)))
                threads[-1].start()
        for thread in threads:
            thread.join()

    def handle_request(self, listener_name, req, sock, addr):
        req.headers.append(("X-SEEN", "async"))
        return super().handle_request(listener_name, req, sock, addr)

class Bare(Worker):
    def run(self):
        (listener,) = self.sockets
        listener.settimeout(0.2)
        while self.alive and self.ppid == __import__("os").getppid():
            self.notify()
            try:
                client, addr = listener.accept()
            except TimeoutError:
                continue
            with client:
                client.settimeout(2)
                try:
                    req = next(RequestParser(self.cfg, client, addr))
                except (NoMoreData, StopIteration):
                    continue
                except Exception as error:
                    self.handle_error(None, client, addr, error)
                    continue
                self.nr += 1
                if self.nr >= self.max_requests:
                    self.alive = False
                req.headers.append(("X-SEEN", "bare"))
                resp, environ = create(req, client, addr, listener.getsockname(), self.cfg)
                resp.force_close()
                for item in self.wsgi(environ, resp.start_response):
                    resp.write(item)
                resp.close()
"""

SPECIAL_APP = """
import os

def app(environ, start_response):
    if environ["PATH_INFO"] == "/mine":
        environ["gunicorn.socket"].sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\n\\r\\nmine")
        return "mine"
    body = f"{environ.get('HTTP_X_SEEN')} {os.getpid()}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize("kind", ["Sync", "Threads", "Async", "Bare"])
def test_a_subclass_as_users_write_them(kind: str) -> None:
    config = conf(worker_class=f"special.{kind}", max_requests=10)
    with Server(SPECIAL_APP, config, files={"special.py": SPECIAL}) as server:
        pids = set()

        def ask() -> bool:
            seen, pid = server.get("/").text.split()
            assert seen == kind.lower()
            pids.add(pid)
            return len(pids) > 1

        with load(server) as problems:
            # A worker serves more requests than max_requests until its replacement has booted.
            wait_until(ask)
            old = server.workers()
            server.signal(signal.SIGHUP)
            # Not until there is one: some are always about to be replaced.
            wait_until(lambda: not {*old} & {*server.workers()})
        assert problems == []
        assert server.raw(b"GET / HT/1\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        if kind == "Async":
            with connect(server) as client:
                assert client.ask("/mine").body == b"mine"
        assert elapsed(lambda: server.stop()) < 3
        assert server.exit_code == 0
        assert kind != "Threads" or "my own start" in server.log()


PATCH = "from gevent import monkey\nmonkey.patch_all()\n"
#: Its threads need each other, or the loop of gevent.
PATCHED = """
import queue, threading, time

def app(environ, start_response):
    done = queue.Queue()
    threading.Thread(target=lambda: done.put(time.sleep(0.01))).start()
    done.get(timeout=5)
    size = str(len(environ["wsgi.input"].read())).encode()
    start_response("200 OK", [("Content-Length", str(len(size)))])
    return [size]
"""


@pytest.mark.parametrize(
    ("kind", "where"), [("sync", "configuration"), ("gthread", "configuration"), ("gthread", "application")]
)
def test_what_gevent_has_patched_is_served_in_every_class(kind: str, where: str) -> None:
    pytest.importorskip("gevent")
    app, text = (PATCHED, PATCH) if where == "configuration" else (PATCH + PATCHED, "")
    threads = 2 if kind == "gthread" else 1
    with Server(app, text + conf(worker_class=kind, threads=threads), ready="listen") as server:
        with contextlib.ExitStack() as stack:
            if kind == "gthread":
                # Clients that send nothing, or half of a head, hold no thread.
                silent = [stack.enter_context(server.connect()) for _ in range(4)]
                for sock in silent[:2]:
                    sock.sendall(b"GET / HTTP/1.1\r\n")
            assert [server.get("/").text for _ in range(3)] == ["0"] * 3
            client = stack.enter_context(server.connect())
            client.sendall(b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\n")
            assert kind == "sync" or server.get("/").status == 200
            client.sendall(b"abc")
            assert read_until_closed(client).endswith(b"3")
        assert server.stop() == 0
        assert "Traceback" not in server.log() and "Error" not in server.log()
        assert server.log().count("monkey.patch_all() was called") == (kind == "gthread")
