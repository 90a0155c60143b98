# SPDX-License-Identifier: MIT
"""The cases of ``-k asgi``: processor time for each request or message, beside uvicorn alone and Gunicorn 27.

All three serve at the same time and take turns. No head comes twice.
"""

from __future__ import annotations

import fnmatch
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks import machine, servers
from benchmarks.peers import OURS, Environments, title
from benchmarks.results import Measured, Row, make_row
from benchmarks.stats import Target, rotations

GROUP = "asgi"
UVICORN, GUNICORN = "uvicorn", "gunicorn27"

APPS = {
    "asgi-hello": """
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError(scope["type"])
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"13")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello, world!"})
""",
    "asgi-fastapi": """
from fastapi import FastAPI

app = FastAPI()

@app.get("/items/{item}")
async def item(item: int, q: str = "") -> dict[str, object]:
    return {"id": item, "name": q, "tags": ["a", "b"]}
""",
    "asgi-websocket": """
async def app(scope, receive, send):
    if scope["type"] != "websocket":
        raise RuntimeError(scope["type"])
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
""",
}


def requests(port: int, count: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for number in range(count):
            head = (
                f"GET /items/{number}?q=name{number} HTTP/1.1\r\nHost: localhost:{port}\r\nAccept: */*\r\n"
                f"User-Agent: benchmark/{number}\r\nCookie: session={number * 7919:x}\r\n\r\n"
            )
            sock.sendall(head.encode())
            data = sock.recv(65536)
            head_end = data.index(b"\r\n\r\n") + 4
            length = int(data.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            while len(data) < head_end + length:
                data += sock.recv(65536)


def messages(port: int, count: int) -> None:
    from websockets.sync.client import connect as connect_websocket

    with connect_websocket(f"ws://127.0.0.1:{port}/", compression=None, proxy=None) as ws:
        for number in range(count):
            ws.send(f"message {number}")
            ws.recv()


TITLES = {
    "asgi-hello": "asgi, an application of four lines, 1 keep-alive connection, 13 bytes",
    "asgi-fastapi": "asgi, a FastAPI view with two parameters, which answers with JSON",
    "asgi-websocket": "asgi, the echo of a short message over a WebSocket",
}
WORK: dict[str, tuple[Callable[[int, int], None], int]] = {
    "asgi-hello": (requests, 20_000),
    "asgi-fastapi": (requests, 5_000),
    "asgi-websocket": (messages, 10_000),
}


def chosen(patterns: Sequence[str]) -> list[str]:
    return [n for n in TITLES if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]


def run(name: str, environments: Environments, runs: int) -> Row:
    work, count = WORK[name]
    labels = [OURS, *environments.available([UVICORN, GUNICORN])]
    measured = {title(label): Measured() for label in labels}
    with ExitStack() as stack:
        ports = {label: servers.free_port() for label in labels}
        pids = {
            label: stack.enter_context(serving(environments, label, ports[label], APPS[name]))
            for label in labels
        }
        for turn, order in enumerate(rotations(labels, runs + 1)):
            for label in order:
                members = machine.descendants(pids[label])
                before = machine.cpu_seconds(members)
                work(ports[label], count)
                if turn:  # the first one warms up
                    spent = (machine.cpu_seconds(members) - before) / count * 1e6
                    measured[title(label)].values.append(spent)
    targets = {title(UVICORN): Target("<=", 1)}
    return make_row(GROUP, name, TITLES[name], "µs of CPU", measured, targets)


@contextmanager
def serving(environments: Environments, label: str, port: int, app: str) -> Iterator[int]:
    """Run the server of *label*, with one worker. Yields its pid once it answers."""
    program = "uvicorn" if label == UVICORN else "gunicorn"
    options = {
        "uvicorn": ["--port", str(port), "--no-access-log", "--log-level", "error"],
        "gunicorn": ["-k", "asgi", "--bind", f"127.0.0.1:{port}", "--log-level", "error"],
    }
    command = [str(environments.bin(label) / program), *options[program], "app:app"]
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        directory = Path(name)
        (directory / "app.py").write_text(app)
        env = {**servers.environment(directory), "PYTHONPATH": str(directory)}
        process = machine.start_process(command, directory, env)
        try:
            servers.wait_for_port(process, port, directory)
            machine.wait_until(lambda: responds(port), servers.BOOT_LIMIT, "a response")
            yield process.pid
        finally:
            machine.end_process(process)


def responds(port: int) -> bool:
    """Whether there is a response of any kind: an application of WebSockets has none for a request."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 30) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return bool(sock.recv(100))
    return False
