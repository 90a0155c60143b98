# SPDX-License-Identifier: MIT
"""Applications, certificates and raw clients for the tests of the workers."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import Server, wait_until

#: Routes that hold the worker, read or leave bodies, and answer with the pid of the worker.
APP = """
import os, threading, time

HERE = os.path.dirname(os.path.abspath(__file__))

def mark(name):
    with open(os.path.join(HERE, name), "a") as f:
        f.write(f"{os.getpid()} {threading.get_ident()}\\n")

def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    body = str(os.getpid()).encode()
    if path == "/sleep":
        mark("sleeping")
        time.sleep(float(query))
    elif path == "/until":
        mark("until")
        while not os.path.exists(os.path.join(HERE, query)):
            time.sleep(0.01)
    elif path == "/length":
        body = str(len(environ["wsgi.input"].read())).encode()
    elif path == "/echo":
        body = environ["wsgi.input"].read()
    elif path == "/big":
        body = b"x" * int(query)
    elif path == "/boom":
        raise RuntimeError("boom on purpose")
    elif path == "/exit":
        raise SystemExit(3)
    elif path == "/scheme":
        body = environ["wsgi.url_scheme"].encode()
    elif path == "/flags":
        body = repr((environ["wsgi.multithread"], environ["wsgi.multiprocess"])).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


#: For tests of every class that take long.
ASGI_TOO = pytest.param("asgi", marks=pytest.mark.matrix)


def side_by_side(*kinds: str, asgi: bool = True) -> Callable[[Callable[..., None]], Any]:
    """Run a test with each of these classes at the same time: for tests that wait more than they compute.

    The test has a parameter *kind*. `-m matrix` runs it under asgi too, unless *asgi* is false.
    """

    def decorate(test: Callable[..., None]) -> Any:
        @functools.wraps(test)
        def together(kinds: tuple[str, ...], **fixtures: Any) -> None:
            with ThreadPoolExecutor(len(kinds)) as pool:
                runs = {kind: pool.submit(test, kind=kind, **fixtures) for kind in kinds}
            errors = {kind: error for kind, run in runs.items() if (error := run.exception())}
            # A class whose library is not installed hides no failure of another one.
            for kind, error in sorted(
                errors.items(), key=lambda item: isinstance(item[1], pytest.skip.Exception)
            ):
                print("under", kind)
                raise error

        signature = inspect.signature(test)
        names = ["kinds", *(name for name in signature.parameters if name != "kind")]
        parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        together.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        cases = [kinds, *([pytest.param(("asgi",), marks=pytest.mark.matrix)] if asgi else [])]
        return pytest.mark.parametrize("kinds", cases, ids="+".join)(together)

    return decorate


#: The settings with which a WSGI application runs under asgi.
ADAPTED = {"worker_class": "wsgi_in_asgi.AdaptingWorker", "pythonpath": os.path.dirname(__file__)}


def make_certificate(directory: Path) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}".split(),
        check=True,
        capture_output=True,
    )
    return str(cert), str(key)


def get(path: str = "/", *, close: bool = False, more: str = "") -> bytes:
    """A GET request as it goes over the wire."""
    end = "Connection: close\r\n" if close else ""
    return f"GET {path} HTTP/1.1\r\nHost: test\r\n{end}{more}\r\n".encode()


class Answer:
    """One response as it came."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


class Client:
    """A raw connection that reads responses with a Content-Length."""

    def __init__(self, sock: socket.socket, timeout: float = 10.0) -> None:
        self.sock = sock
        self.sock.settimeout(timeout)
        self.buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError(f"closed after {self.buffer[:200]!r}")
        self.buffer += data

    def answer(self) -> Answer:
        """The next response. EOFError if the connection ends before it is whole."""
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0))
        while len(self.buffer) < length:
            self._more()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return Answer(int(lines[0].split()[1]), headers, body)

    def ask(self, path: str = "/", **options: Any) -> Answer:
        self.send(get(path, **options))
        return self.answer()

    def is_closed(self, timeout: float = 5.0) -> bool:
        """Whether the server ends the connection within *timeout*, with nothing more said."""
        self.sock.settimeout(timeout)
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


def conf(kind: str, **settings: object) -> str:
    """The configuration of a server whose workers are of *kind*."""
    library = kind.partition("_")[0]
    if library in ("gevent", "tornado") and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    more = ADAPTED if kind == "asgi" else {"worker_class": kind}
    settings = {"graceful_timeout": 10, **more, **settings}
    if kind == "gthread":
        settings.setdefault("threads", 2)
    # Tests ask a server for its kind.
    return f"# {kind!r}\n" + "\n".join(f"{name} = {value!r}" for name, value in settings.items()) + "\n"


def connect(server: Server, timeout: float = 10.0) -> Client:
    return Client(server.connect(timeout), timeout)


def tls(sock: socket.socket) -> Client:
    """A client that trusts any certificate on *sock*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return Client(context.wrap_socket(sock))


def dial(server: Server, secure: bool) -> Client:
    return tls(server.connect()) if secure else connect(server)


def silence(seconds: float) -> None:
    """Let *seconds* pass in which nothing is sent."""
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + seconds)


def elapsed(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started
