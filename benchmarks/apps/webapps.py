# SPDX-License-Identifier: MIT
"""The WSGI applications that are measured. A server imports this file as ``webapps``, from its directory."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

HELLO = b"Hello, world!\n"
MEGABYTE = 1 << 20
BLOCK = 64 * 1024


def hello(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Fourteen bytes."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
    return [HELLO]


def sleep(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Wait for 5 ms, as for a database: other threads can go on."""
    time.sleep(0.005)
    return hello(environ, start_response)


def query(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Wait for 1 ms, as for a query that a database answers from memory."""
    time.sleep(0.001)
    return hello(environ, start_response)


def compute(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Use the processor for 2 ms."""
    end = time.thread_time() + 0.002
    while time.thread_time() < end:
        sum(range(500))
    return hello(environ, start_response)


def mixture(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer at once, but for paths that ask for 50 ms."""
    if environ["PATH_INFO"].startswith("/slow/"):
        time.sleep(0.05)
    return hello(environ, start_response)


def form(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Read a JSON body and answer with a JSON body, as an endpoint of an API does."""
    sent = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    cookies = environ["HTTP_COOKIE"].count(";") + 1
    headers = sum(name.startswith("HTTP_") for name in environ)
    body = json.dumps({"items": len(sent["items"]), "cookies": cookies, "headers": headers}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def send_file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """10 MB by the server's file wrapper, where it has one."""
    file = open(os.environ["BENCHMARK_FILE"], "rb")  # noqa: SIM115 - the server closes it
    start_response(
        "200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(10 * MEGABYTE))]
    )
    wrapper = environ.get("wsgi.file_wrapper")
    return wrapper(file, BLOCK) if wrapper is not None else iter(lambda: file.read(BLOCK), b"")


def upload(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Read the whole body in blocks; answer with its length."""
    stream, length = environ["wsgi.input"], 0
    remaining = int(environ["CONTENT_LENGTH"])
    while remaining:
        block = stream.read(min(BLOCK, remaining))
        if not block:
            break
        length += len(block)
        remaining -= len(block)
    body = str(length).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def echo(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Read a body of unknown length and send as much back in 64 blocks, its length unknown as well."""
    stream, length = environ["wsgi.input"], 0
    while block := stream.read(BLOCK):
        length += len(block)
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    block = b"x" * (length // 64)
    for _ in range(64):
        yield block


def pause() -> None:
    """A companion that does nothing."""
    signal.pause()


def report(before: int = 0) -> None:
    """A companion that says that it runs, with a moment that it was told, and does nothing."""
    fd = os.open(os.environ["BENCHMARK_FIFO"], os.O_WRONLY)
    os.write(fd, b"%d %d\n" % (os.getpid(), before))
    signal.pause()


def fork_bare() -> None:
    """The least that a supervisor can do: fork children that report, and each again that dies.

    As a companion it is a copy of the manager, so that a fork of it costs what a fork of the manager does.
    """
    for _ in range(int(os.environ["BENCHMARK_COUNT"])):
        _fork_reporting()
    while True:
        os.wait()
        _fork_reporting()


def _fork_reporting() -> None:
    before = time.monotonic_ns()
    if os.fork() == 0:
        report(before)
        os._exit(0)
