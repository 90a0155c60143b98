# SPDX-License-Identifier: MIT
"""Real servers with gevent's workers: what is patched, bounds, deadlines, TLS, ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time

import pytest
from harness import Background, Server, read_until_closed, wait_until
from workertools import APP, conf, connect, elapsed, get, tls

pytest.importorskip("gevent", reason="gevent is not installed")

BOTH = pytest.mark.parametrize("kind", ["gevent", "gevent_pywsgi"])

#: What only greenlets can do, beside the routes of APP.
MORE = (
    APP.replace("def app(", "def base(")
    + """
import socket, subprocess

from gunicorn.workers.base_async import ALREADY_HANDLED

def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/patched":
        body = socket.socket.__module__.encode()
    elif path == "/program":
        body = subprocess.check_output(["echo", "hello"])
    elif path == "/file":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return environ["wsgi.file_wrapper"](open(__file__, "rb"))
    elif path == "/handled":
        environ["gunicorn.socket"].sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\n\\r\\nmine")
        return ALREADY_HANDLED
    elif path == "/switch":
        sock = environ["gunicorn.socket"]
        sock.sendall(b"HTTP/1.1 101 Switching\\r\\nConnection: upgrade\\r\\nUpgrade: echo\\r\\n\\r\\n")
        while data := sock.recv(100):
            sock.sendall(data)
        return ALREADY_HANDLED
    elif path == "/stubborn":
        import gevent
        mark("sleeping")
        while True:
            try:
                gevent.sleep(30)
            except BaseException:
                pass
    elif path == "/impatient":
        import gevent
        with gevent.Timeout(0.05):
            gevent.sleep(5)
    else:
        return base(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
)


@BOTH
def test_serving(kind: str) -> None:
    hooks = """
    def pre_request(worker, req):
        worker.log.info("before %s %s", req.method, req.path)
    def post_request(worker, req, environ, resp):
        worker.log.info("after %s", resp.status)
    """
    import textwrap

    config = conf(kind, keepalive=1, accesslog="-") + textwrap.dedent(hooks)
    with Server(MORE, config) as server:
        with connect(server) as client:
            assert client.ask("/patched").body.startswith(b"gevent")
            assert client.ask("/program").body == b"hello\n"
            # Both at once.
            client.send(get("/flags") + get("/"))
            assert client.answer().body == b"(True, False)"
            assert client.answer().status == 200
            client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde")
            assert client.answer().body == b"abcde"
            assert 0.5 < elapsed(client.is_closed) < 3
        assert server.get("/file").text == server.log("app.py")
        # Many wait at the same time in one thread.
        slow = [Background(server, "/sleep?0.4") for _ in range(5)]
        assert [one.result().status for one in slow] == [200] * 5
        assert sum(one.seconds for one in slow) < 5
        for path in ("/boom", "/impatient"):
            reply = server.get(path)
            assert reply.status == 500 and b"boom" not in reply.body
        with connect(server) as client:
            assert client.ask(close=True).closes and client.is_closed()
        log = server.wait_log("boom on purpose")
        assert "before POST /echo" in log and "after 200 OK" in log
        assert '"POST /echo HTTP/1.1" 200' in log
        server.signal(signal.SIGUSR1)
        assert server.get("/").status == 200


def test_the_master_and_companions_are_not_patched() -> None:
    config = (
        conf("gevent")
        + """
import os
def write(name):
    import gevent.monkey
    with open(name, "w") as f:
        f.write(str(gevent.monkey.is_module_patched("socket")))
def companion():
    import time
    write("companion")
    while True:
        time.sleep(60)
def child_exit(server, worker):
    write("master")
def post_worker_init(worker):
    write("worker")
companion_workers = [{"name": "one", "target": companion}]
"""
    )
    with Server("from gevent import monkey; monkey.patch_all()\n" + MORE, config) as server:
        server.wait_companion("one")
        wait_until(lambda: server.log("companion"))
        assert server.get("/patched").text.startswith("gevent")
        (worker,) = server.workers()
        os.kill(worker, signal.SIGTERM)
        server.wait_workers(1, without=[worker])
        assert server.get("/").status == 200
        found = {
            name: wait_until(lambda name=name: server.log(name)) for name in ("master", "worker", "companion")
        }
        assert found == {"master": "False", "worker": "True", "companion": "False"}
        assert "gevent could patch" not in server.log()


def test_a_preloaded_application_may_have_started_programs() -> None:
    # The library heard of their ends by a handler, which no child has any more.
    config = "from gevent import monkey; monkey.patch_all()\n" + conf("gevent", preload_app=True)
    config += """
import subprocess
def hello():
    return subprocess.check_output(["echo", "hello"])
def companion():
    import time
    found = hello()
    with open("companion", "wb") as f:
        f.write(found)
    time.sleep(60)
companion_workers = [{"name": "one", "target": companion}]
"""
    with Server(MORE + "subprocess.check_output(['echo'])\n", config) as server:
        assert server.get("/program").text == "hello\n"
        assert wait_until(lambda: server.log("companion")) == "hello\n"


def test_a_late_patch_is_logged() -> None:
    with Server(APP, conf("gevent", preload_app=True)) as server:
        assert "preloaded before gevent could patch" in server.log()


def test_answers_that_are_larger_than_the_buffers() -> None:
    size = 20_000_000
    with Server(APP, conf("gevent", timeout=2)) as server, connect(server) as slow, connect(server) as gone:
        gone.send(get(f"/big?{size}"))
        slow.send(get(f"/big?{size}"))
        # Each waits for its own client alone.
        assert elapsed(lambda: server.get("/")) < 2
        assert slow.sock.recv(1000, socket.MSG_PEEK)
        whole = bytearray()
        while not whole.endswith(b"x" * size):
            whole += slow.sock.recv(1 << 20)
        assert slow.ask().status == 200
        log = server.wait_log("failed: timed out")
        assert f"'GET /big?{size}'" in log and "The application failed" not in log
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while data := gone.sock.recv(1 << 20):
                received += len(data)
        assert received < size


def test_a_client_that_leaves_before_the_answer_is_no_error() -> None:
    with Server(APP, conf("gevent", loglevel="debug")) as server:
        with connect(server) as client:
            client.send(get("/sleep?0.5"))
            wait_until(lambda: server.log("sleeping"))
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        log = server.wait_log("went away during 'GET /sleep?0.5'")
        assert "ERROR" not in log and "Traceback" not in log


def test_requests_that_come_together_or_in_pieces() -> None:
    with Server(APP, conf("gevent", keepalive=1)) as server, connect(server) as client:
        for _ in range(2):
            client.send(get() * 3)
            assert [client.answer().status for _ in range(3)] == [200] * 3
            for piece in (b"GET / HT", b"TP/1.1\r\n", b"Host: x\r\n\r\n" + get()[:9], get()[9:]):
                client.send(piece)
                time.sleep(0.05)
            assert [client.answer().status for _ in range(2)] == [200] * 2
        assert 0.5 < elapsed(client.is_closed) < 4


@BOTH
def test_handshakes_that_never_end_disturb_no_stop(kind: str, certificate: dict[str, str]) -> None:
    config = conf(kind, **certificate)
    with (
        Server(APP, config, ready="listen") as server,
        tls(server.connect()) as client,
        connect(server) as silent,
    ):
        client.send(get("/until?done"))
        wait_until(lambda: server.log("until"))
        server.signal(signal.SIGTERM)
        silent.sock.settimeout(5)
        read_until_closed(silent.sock)
        server.write("done", "")
        assert client.answer().status == 200
        assert server.wait_exit() == 0
        assert "failed" not in server.log()


def test_an_application_that_answers_itself() -> None:
    with Server(MORE, conf("gevent", timeout=1)) as server:
        with connect(server) as client:
            assert client.ask("/handled").body == b"mine"
            assert client.is_closed()
        with connect(server) as client:
            client.send(get("/switch", more="Connection: upgrade\r\nUpgrade: echo\r\n"))
            assert client.answer().status == 101
            # No deadline is left over from HTTP.
            time.sleep(1.5)
            client.send(b"ping")
            assert client.sock.recv(10) == b"ping"
        assert "ERROR" not in server.log()


def test_a_request_that_does_not_let_itself_be_ended() -> None:
    with Server(MORE, conf("gevent", graceful_timeout=2)) as server, connect(server) as client:
        client.send(get("/stubborn"))
        wait_until(lambda: server.log("sleeping"))
        assert server.stop() == 0
        assert "1 requests unfinished" in server.log()
        assert "Traceback" not in server.log() and "failed" not in server.log()


def test_a_foreign_handler() -> None:
    """A subclass with a handler for gevent's server, as packages for WebSocket have it."""
    files = {
        "special.py": """
        from gevent.pywsgi import WSGIHandler
        from gunicorn.workers.ggevent import GeventPyWSGIWorker, GeventWorker

        class Handler(WSGIHandler):
            def get_environ(self):
                environ = super().get_environ()
                environ["QUERY_STRING"] = "5"
                return environ

        class Special(GeventPyWSGIWorker):
            wsgi_handler = Handler
        """
    }
    with Server(APP, conf("special.Special", keepalive=30), files=files) as server, connect(server) as client:
        assert client.ask("/big").body == b"xxxxx"
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 2.5


@BOTH
def test_the_end_of_a_fork_is_noticed_however_soon_it_comes(kind: str) -> None:
    app = """
    import os

    # It has ended before the library begins to watch for it.
    os.register_at_fork(after_in_parent=lambda: os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT))

    def app(environ, start_response):
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        body = str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    """
    with Server(app, conf(kind), ready="listen") as server:
        assert [server.get("/").text for _ in range(2)] == ["7", "7"]
