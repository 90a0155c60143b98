# SPDX-License-Identifier: MIT
"""The class asgi against uvicorn alone: processor time of the worker for each request or message.

``python -m benchmarks.asgi [hello] [fastapi] [websocket]``. The two take turns, and no head comes twice.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from websockets.sync.client import connect as connect_websocket

ROUNDS = 7
_TICK = os.sysconf("SC_CLK_TCK")

APPS = {
    "hello": """
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError(scope["type"])
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"13")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello, world!"})
""",
    "fastapi": """
from fastapi import FastAPI

app = FastAPI()

@app.get("/items/{item}")
async def item(item: int, q: str = "") -> dict[str, object]:
    return {"id": item, "name": q, "tags": ["a", "b"]}
""",
    "websocket": """
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
    with connect_websocket(f"ws://127.0.0.1:{port}/", compression=None, proxy=None) as ws:
        for number in range(count):
            ws.send(f"message {number}")
            ws.recv()


CASES: dict[str, tuple[Callable[[int, int], None], int]] = {
    "hello": (requests, 20_000),
    "fastapi": (requests, 5_000),
    "websocket": (messages, 10_000),
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def serving(command: list[str], port: int, directory: str, forks: bool) -> Iterator[int]:
    """Run a server; yields the pid of the process that serves."""
    process = subprocess.Popen([sys.executable, "-m", *command, "app:app"], cwd=directory)
    try:
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        pid = process.pid
        if forks:
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        yield pid
    finally:
        process.terminate()
        process.wait()


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def compare(case: str) -> str:
    work, count = CASES[case]
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        Path(directory, "app.py").write_text(APPS[case])
        ports = {"asgi": free_port(), "uvicorn": free_port()}
        commands = {
            "asgi": ["gunicorn", "-k", "asgi", "--log-level", "error", "-b", f"127.0.0.1:{ports['asgi']}"],
            "uvicorn": [
                *("uvicorn", "--port", str(ports["uvicorn"]), "--no-access-log", "--log-level", "error")
            ],
        }
        pids = {
            name: stack.enter_context(serving(command, ports[name], directory, name == "asgi"))
            for name, command in commands.items()
        }
        spent: dict[str, list[float]] = {name: [] for name in ports}
        for turn in range(ROUNDS + 1):
            for name, port in ports.items():
                before = processor_seconds(pids[name])
                work(port, count)
                if turn:  # the first one warms up
                    spent[name].append((processor_seconds(pids[name]) - before) / count * 1e6)
    medians = {name: statistics.median(found) for name, found in spent.items()}
    return (
        f"{case:10} asgi {medians['asgi']:6.1f} us, uvicorn {medians['uvicorn']:6.1f} us, "
        f"ratio {medians['asgi'] / medians['uvicorn']:.2f}"
    )


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        print(compare(case), flush=True)
