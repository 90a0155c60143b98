# SPDX-License-Identifier: MIT
"""A worker class ``asgi`` for the applications of the tests of every class, which are WSGI."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote_to_bytes

from gunicorn.workers.asgi import ASGIWorker


class Input(io.RawIOBase):
    """What the client sends, asked for when the application reads."""

    def __init__(self, ask: Any) -> None:
        self.ask, self.data, self.more = ask, b"", True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.data and self.more:
            message = self.ask()
            if message["type"] == "http.disconnect":
                raise OSError("the client has gone")
            self.data, self.more = message["body"], message["more_body"]
        count = min(len(buffer), len(self.data))
        buffer[:count], self.data = self.data[:count], self.data[count:]
        return count


def environ_of(scope: dict[str, Any], read: Any, proxy: dict[str, Any] | None) -> dict[str, Any]:
    client = scope["client"] or ("", "")
    environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": scope["root_path"],
        "PATH_INFO": unquote_to_bytes(scope["path"]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.input": io.BufferedReader(read),
        "wsgi.file_wrapper": lambda file: iter(lambda: file.read(8192), b""),
    }
    for name, value in scope["headers"]:
        key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
        environ[key] = value.decode("latin-1")
    return environ


def adapted(app: Any) -> Any:
    threads = ThreadPoolExecutor(32)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError("HTTP only")
        loop = asyncio.get_running_loop()

        def wait_for(work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result()

        def run() -> None:
            begun: list[Any] = []

            def start_response(status: str, headers: Any, exc_info: Any = None) -> None:
                fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
                begun[:] = [int(status[:3]), fields]

            def begin() -> None:
                if begun:
                    start = {"type": "http.response.start", "status": begun[0], "headers": begun[1]}
                    begun.clear()
                    wait_for(send(start))

            environ = environ_of(scope, Input(lambda: wait_for(receive())), None)
            result = app(environ, start_response)
            try:
                for part in result:
                    begin()
                    wait_for(send({"type": "http.response.body", "body": part, "more_body": True}))
                begin()
                wait_for(send({"type": "http.response.body"}))
            finally:
                if hasattr(result, "close"):
                    result.close()

        await loop.run_in_executor(threads, run)

    return serve


class AdaptingWorker(ASGIWorker):
    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.wsgi = adapted(self.wsgi)
