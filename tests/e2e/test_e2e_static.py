# SPDX-License-Identifier: MIT
"""Static files from real workers: attacks on the wire, reloads, a file larger than memory should hold."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Server, conf, status_field, wait_until

APP = """
def app(environ, start_response):
    body = b"the application"
    start_response("404 Not Found", [("Content-Length", str(len(body)))])
    return [body]
"""
ASGI_APP = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"the application"})
"""
# A class of the user's own, and a note of each use of sendfile(2) and of each request that is done.
CONFIG = """
import os, socket
from gunicorn.workers.sync import SyncWorker

HERE = os.path.dirname(os.path.abspath(__file__))
original = socket.socket.sendfile

def noted(name, line):
    with open(os.path.join(HERE, name), "a") as file:
        file.write(line + "\\n")

def noted_sendfile(self, file, offset=0, count=None):
    noted("sendfile", f"{offset} {count}")
    return original(self, file, offset, count)

socket.socket.sendfile = noted_sendfile

def post_request(worker, req, environ, resp):
    noted("requests", f"{req.path} {getattr(resp, 'status_code', None)}")

class Own(SyncWorker):
    pass
"""
BIG = 2**31 + 12345

# As a client sends them, with what must come: nothing of a file.
ATTACKS = [
    b"/static/../secret.txt",
    b"/static/%2e%2e/secret.txt",
    b"/static/%2E%2E%2Fsecret.txt",
    b"/static/%252e%252e/secret.txt",
    b"/static/..%5csecret.txt",
    b"/static/..\\secret.txt",
    b"/static/app.js%00",
    b"/static/%00../secret.txt",
    b"/static/%c0%ae%c0%ae/secret.txt",
    b"/static//app.js",
    b"/static/%2fetc%2fpasswd",
    b"http://127.0.0.1/static/../secret.txt",
    b"//static/../secret.txt",
    b"/static/app.js/",
    b"/static/.env",
    b"/static/%2eenv",
    b"/static/link.txt",
    b"/static/" + b"a" * 100_000,
    b"/static/" + b"../" * 1000 + b"etc/passwd",
    b"/static",
    b"/static/",
]


def prepare(server: Server) -> Path:
    static = server.dir / "static"
    static.mkdir()
    server.write("secret.txt", "the secret")
    server.write("static/.env", "the secret")
    server.write("static/app.js", "let a = 1")
    (static / "link.txt").symlink_to("../secret.txt")
    with open(static / "big.bin", "wb") as file:
        file.truncate(BIG - 4)
        file.seek(0, 2)
        file.write(b"last")
    return static


def attack(server: Server) -> None:
    for path in ATTACKS:
        answer = server.raw(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        # A request that is no good is refused before any application sees it.
        assert answer[9:12] in (b"404", b"400", b"414"), (path[:80], answer[:80])
        assert b"the secret" not in answer and b"let a" not in answer and b"root:" not in answer, path[:80]


def peak(server: Server) -> int:
    """The most memory in KiB that a worker has held."""
    return max(int(status_field(pid, "VmHWM").split()[0]) for pid in server.workers())


def download(server: Server, path: str) -> int:
    """The size of what the server sends."""
    size = 0
    with server.connect(60) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        buffer = bytearray(1 << 20)
        head = b""
        while count := sock.recv_into(buffer):
            if b"\r\n\r\n" not in head:
                head += buffer[:count]
            size += count
    assert head.startswith(b"HTTP/1.1 200")
    return size - head.index(b"\r\n\r\n") - 4


def check_config(server: Server, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gunicorn", "--check-config", *flags, "app:app"]
    return subprocess.run(command, cwd=server.dir, env=server.env, capture_output=True, text=True)


def test_static_files_over_reloads() -> None:
    settings: dict[str, Any] = {
        "worker_class": "gthread",
        "preload_app": True,
        "accesslog": "access.log",
        "static": {"/static": "static"},
    }
    server = Server(APP, CONFIG + conf(**settings))
    static = prepare(server)
    with server:
        attack(server)
        answer = server.get("/static/app.js")
        assert (answer.status, answer.body) == (200, b"let a = 1")
        assert answer.headers["Cache-Control"] == "max-age=60, public"
        assert server.post("/static/app.js", b"x").status == 405
        tag = answer.headers["ETag"]
        assert server.get("/static/app.js", headers={"If-None-Match": f"W/{tag}"}).status == 304
        # In the log, the hooks and by the system as any answer of the application.
        wait_until(lambda: '"GET /static/app.js HTTP/1.1" 200 9' in server.log("access.log"))
        wait_until(
            lambda: {"/static/app.js 200", "/static/app.js 405"} <= set(server.log("requests").splitlines())
        )
        assert "0 9\n" in server.log("sendfile")
        answer = server.get("/static/big.bin", headers={"Range": "bytes=-4"})
        assert (answer.status, answer.body) == (206, b"last")
        assert answer.headers["Content-Range"] == f"bytes {BIG - 4}-{BIG - 1}/{BIG}"
        assert f"{BIG - 4} 4\n" in server.log("sendfile")
        head = server.request("HEAD", "/static/big.bin")
        assert (head.headers["Content-Length"], head.body) == (str(BIG), b"")

        # A reload finds new files and settings, though the application stays.
        (static / "new.js").write_text("let b = 2")
        assert server.get("/static/new.js").status == 404
        server.write("gunicorn.conf.py", CONFIG + conf(**settings, static_max_age=7))
        (old,) = server.workers()
        server.signal(signal.SIGHUP)
        # Until the old worker is gone, it answers too.
        server.wait_workers(1, without=[old])
        assert server.get("/static/new.js").status == 200
        assert server.get("/static/new.js").headers["Cache-Control"] == "max-age=7, public"

        # A missing directory is named, and nothing changes.
        missing = {**settings, "static": {"/static": "static", "/media": "media"}}
        server.write("gunicorn.conf.py", CONFIG + conf(**missing))
        said = "static: /media: cannot read the directory media: No such file or directory"
        server.signal(signal.SIGHUP)
        server.wait_log(said)
        assert server.get("/static/new.js").headers["Cache-Control"] == "max-age=7, public"
        checked = check_config(server)
        assert (checked.returncode, checked.stderr.strip()) == (1, f"Error: {said}")
        # Without the library, the error names the extra.
        server.write("whitenoise.py", "raise ModuleNotFoundError('No module named whitenoise')")
        checked = check_config(server, "--static", "/static=static")
        assert checked.returncode == 1
        assert "static needs the library whitenoise: pip install 'gunicorn[static]'" in checked.stderr
        (server.dir / "whitenoise.py").unlink()
        checked = check_config(server, "--static", "/static=static", "--static", "/m=static")
        assert (checked.returncode, checked.stderr) == (0, "")


def serves(kind: str) -> Server:
    """A server with workers of that class, not started yet."""
    settings: dict[str, Any] = {"worker_class": kind, "static": {"/static": "static"}, "timeout": 60}
    text = CONFIG + conf(**settings)
    if kind == "own":
        text += "worker_class = Own\n"
    server = Server(ASGI_APP if kind == "asgi" else APP, text)
    prepare(server)
    return server


def look(server: Server) -> None:
    attack(server)
    assert server.get("/static/app.js").body == b"let a = 1"
    assert server.request("HEAD", "/static/app.js").headers["Content-Length"] == "9"
    assert server.post("/static/app.js", b"x").status == 405
    assert server.get("/static/app.js", headers={"Range": "bytes=0-2"}).body == b"let"
    assert server.get("/static/app.js", headers={"Range": "bytes=4-"}).body == b"a = 1"
    tag = server.get("/static/app.js").headers["ETag"]
    assert server.get("/static/app.js", headers={"If-None-Match": tag}).status == 304


def test_an_event_loop() -> None:
    pytest.importorskip("httptools", reason="gunicorn[asgi] is not installed")
    with serves("asgi") as server:
        look(server)
        wait_until(lambda: "/static/app.js 206" in server.log("requests"))
        # Refused without preloading, too.
        workers = server.workers()
        server.write("gunicorn.conf.py", conf(worker_class="asgi", static={"/static": "missing"}))
        server.signal(signal.SIGHUP)
        server.wait_log("Reload refused, the old configuration stays: static: /static: cannot read")
        assert server.workers() == workers


@pytest.mark.matrix
@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent", "tornado", "own", "asgi"])
def test_every_worker_class(kind: str) -> None:
    if library := {"gevent": "gevent", "tornado": "tornado", "asgi": "httptools"}.get(kind):
        pytest.importorskip(library, reason=f"{kind} needs it")
    with serves(kind) as server:
        look(server)
        if kind == "tornado":
            return  # it keeps an answer in memory until it is whole
        before = peak(server)
        assert download(server, "/static/big.bin") == BIG
        assert peak(server) < before + 8192
        # Cooperative sockets and event loops send with methods of their own.
        if kind not in ("gevent", "asgi"):
            assert f"0 {BIG}\n" in server.log("sendfile")
