# SPDX-License-Identifier: MIT
"""Frameworks under the asgi worker: routes, streams, uploads, background tasks, lifespan, WebSockets.

FastAPI and Starlette also run in ``tests/examples/test_asgi_example.py``, which is not part of the matrix.
"""

from __future__ import annotations

import importlib.util
import signal

import pytest
from harness import Server, read_until_closed, wait_until
from websockets.sync.client import connect as connect_websocket
from workertools import connect, get

NOTE = """
import asyncio, os

HERE = os.path.dirname(os.path.abspath(__file__))

def note(text):
    with open(os.path.join(HERE, "notes"), "a") as f:
        f.write(text + "\\n")

async def events():
    for number in range(3):
        yield f"data: {number}\\n\\n".encode()
        await asyncio.sleep(0.01)
"""

LIFESPAN = """
from contextlib import asynccontextmanager

@asynccontextmanager
async def lifespan(app):
    note("started")
    yield
    note("ended")
"""

FASTAPI = (
    NOTE
    + LIFESPAN
    + """
from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

app = FastAPI(lifespan=lifespan)

@app.get("/items/{item}")
def item(item: int, tasks: BackgroundTasks):
    tasks.add_task(note, f"item {item}")
    return {"item": item}

@app.post("/upload")
async def upload(request: Request):
    return {"size": len(await request.body())}

@app.get("/events")
async def stream():
    return StreamingResponse(events(), media_type="text/event-stream")

@app.get("/fail")
async def fail():
    raise RuntimeError("on purpose")

@app.websocket("/echo")
async def echo(websocket: WebSocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)
"""
)

STARLETTE = (
    NOTE
    + LIFESPAN
    + """
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

async def item(request):
    number = int(request.path_params["item"])
    return JSONResponse({"item": number}, background=BackgroundTask(note, f"item {number}"))

async def upload(request):
    size = 0
    async for part in request.stream():
        size += len(part)
    return JSONResponse({"size": size})

async def stream(request):
    return StreamingResponse(events(), media_type="text/event-stream")

async def fail(request):
    raise RuntimeError("on purpose")

async def echo(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)

app = Starlette(lifespan=lifespan, routes=[
    Route("/items/{item}", item), Route("/upload", upload, methods=["POST"]), Route("/events", stream),
    Route("/fail", fail), WebSocketRoute("/echo", echo),
])
"""
)

LITESTAR = (
    NOTE
    + LIFESPAN
    + """
from litestar import Litestar, Request, Response, WebSocket, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream

@get("/items/{item:int}")
async def item(item: int) -> Response[dict]:
    return Response({"item": item}, background=BackgroundTask(note, f"item {item}"))

@post("/upload", request_max_body_size=None)
async def upload(request: Request) -> dict:
    return {"size": len(await request.body())}

@get("/events")
async def stream() -> Stream:
    return Stream(events(), media_type="text/event-stream")

@get("/fail")
async def fail() -> None:
    raise RuntimeError("on purpose")

@websocket("/echo")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_data():
        await socket.send_text(text)

app = Litestar([item, upload, stream, fail, echo], lifespan=[lifespan])
"""
)

QUART = (
    NOTE
    + """
from quart import Quart, request, websocket

app = Quart(__name__)
app.config["MAX_CONTENT_LENGTH"] = None

@app.before_serving
async def begin():
    note("started")

@app.after_serving
async def end():
    note("ended")

@app.get("/items/<int:item>")
async def item(item):
    app.add_background_task(note, f"item {item}")
    return {"item": item}

@app.post("/upload")
async def upload():
    return {"size": len(await request.get_data())}

@app.get("/events")
async def stream():
    return events(), {"Content-Type": "text/event-stream"}

@app.get("/fail")
async def fail():
    raise RuntimeError("on purpose")

@app.websocket("/echo")
async def echo():
    while True:
        await websocket.send(await websocket.receive())
"""
)

BLACKSHEEP = (
    NOTE
    + """
from blacksheep import Application, Content, Request, Response, WebSocket, get, post, ws

app = Application()

@app.on_start
async def begin(app):
    note("started")

@app.on_stop
async def end(app):
    note("ended")

@get("/items/{item}")
async def item(item: int):
    asyncio.get_running_loop().call_soon(note, f"item {item}")
    return {"item": item}

@post("/upload")
async def upload(request: Request):
    return {"size": len(await request.read())}

@get("/events")
async def stream():
    from blacksheep import StreamedContent
    return Response(200, content=StreamedContent(b"text/event-stream", events))

@get("/fail")
async def fail():
    raise RuntimeError("on purpose")

@ws("/echo")
async def echo(websocket: WebSocket):
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())
"""
)

DJANGO = (
    NOTE
    + """
import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import path

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], DATA_UPLOAD_MAX_MEMORY_SIZE=None, DEBUG=False)

async def item(request, item):
    note(f"item {item}")
    return JsonResponse({"item": item})

def upload(request):
    return JsonResponse({"size": len(request.body)})

async def stream(request):
    return StreamingHttpResponse(events(), content_type="text/event-stream")

async def fail(request):
    raise RuntimeError("on purpose")

urlpatterns = [path("items/<int:item>", item), path("upload", upload)]
urlpatterns += [path("events", stream), path("fail", fail)]
app = get_asgi_application()
"""
)

FRAMEWORKS = {
    "fastapi": FASTAPI,
    "starlette": STARLETTE,
    "litestar": LITESTAR,
    "quart": QUART,
    "blacksheep": BLACKSHEEP,
    "django": DJANGO,
}


@pytest.mark.matrix
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_framework(name: str, loop: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.fail(f"{name} is not installed: pip install -e '.[frameworks]'")
    config = f"worker_class = 'asgi'\nworkers = 1\ngraceful_timeout = 10\nasgi_loop = {loop!r}\n"
    with Server(FRAMEWORKS[name], config, ready_path="/items/1") as server:
        assert server.get("/items/7").json() == {"item": 7}
        server.wait_log("item 7", name="notes")
        with connect(server) as client:
            size = 3_000_000
            head = f"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
            client.send(head.encode() + b"x" * size)
            assert b'"size":3000000' in read_until_closed(client.sock).replace(b" ", b"")
        with connect(server) as client:
            client.send(get("/events", close=True))
            data = read_until_closed(client.sock)
            assert b"text/event-stream" in data and data.endswith(b"0\r\n\r\n")
            assert all(b"data: %d\n\n" % number in data for number in range(3))
        assert server.get("/fail").status == 500 and server.get("/nowhere").status == 404
        old = server.workers()
        if name != "django":
            url = f"ws://{server.address}/echo"
            with connect_websocket(url, proxy=None) as ws:
                for text in ("hello", "x" * 100_000):
                    ws.send(text)
                    assert ws.recv(10) == text
        server.signal(signal.SIGHUP)
        server.wait_workers(1, without=old)
        if name != "django":
            wait_until(lambda: server.log("notes").count("started") == 2)
            server.wait_log("ended", name="notes")
        assert server.get("/items/8").json() == {"item": 8}
        assert server.stop() == 0
        assert "SIGKILL" not in server.log()
