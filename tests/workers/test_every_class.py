# SPDX-License-Identifier: MIT
"""What holds under each worker class alike, as far as the tests of one class do not show it for that."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import time

import pytest
from harness import Background, Server, wait_until
from workertools import APP, connect, elapsed, get


def conf(kind: str, **settings: object) -> str:
    library = kind.partition("_")[0]
    if library in ("gevent", "tornado") and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    settings = {"worker_class": kind, "graceful_timeout": 10, **settings}
    if kind == "gthread":
        settings.setdefault("threads", 2)
    return "\n".join(f"{name} = {value!r}" for name, value in settings.items()) + "\n"


@pytest.mark.parametrize("kind", ["gevent_pywsgi", "tornado"])
def test_max_requests_with_idle_connections_delays_nobody(kind: str) -> None:
    """One worker, and clients that keep their connections: its successor is there before it has gone."""
    with Server(APP, conf(kind, max_requests=5, keepalive=60)) as server, contextlib.ExitStack() as stack:
        pids: set[bytes] = set()
        until = time.monotonic() + 15
        while len(pids) < 3 and time.monotonic() < until:
            client = stack.enter_context(connect(server))
            started = time.monotonic()
            pids.add(client.ask().body)
            assert time.monotonic() - started < 1.5
        assert len(pids) == 3


@pytest.mark.parametrize("kind", ["gevent_pywsgi"])
def test_a_long_request_outlives_the_retirement(kind: str) -> None:
    """It is longer than `timeout`: who drains still beats its heart."""
    with Server(APP, conf(kind, max_requests=1, timeout=2, graceful_timeout=20), ready="listen") as server:
        long = Background(server, "/until?done")
        wait_until(lambda: server.log("until"))
        first = server.log("until").split()[0]
        wait_until(lambda: server.get("/").text != first)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 2.5)
        server.write("done", "")
        assert long.result().status == 200 and long.reply is not None and long.reply.text == first
        assert "SIGKILL" not in server.log() and "has not answered" not in server.log()


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent", "gevent_pywsgi", "tornado"])
def test_a_body_that_nobody_reads(kind: str) -> None:
    """The connection goes on behind it, or is closed; neither the answer nor anybody else suffers."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 92160\r\n\r\n"
    with Server(APP, conf(kind)) as server, contextlib.ExitStack() as stack:
        for sent in (92160, 92160, 45000):
            client = stack.enter_context(connect(server))
            client.send(head + b"x" * sent)
            if kind != "tornado" or sent == 92160:
                # Tornado's server reads a body before it asks the application.
                answer = client.answer()
                assert answer.status == 200 and answer.body == str(server.workers()[0]).encode()
                with contextlib.suppress(OSError, EOFError):
                    client.send(b"x" * (92160 - sent) + get("/flags"))
                    assert client.answer().body.startswith(b"(")
            # A plain worker is there for one client alone, but not for long if that one has its answer.
            assert elapsed(lambda: server.get("/")) < (4 if kind == "sync" else 2)


#: After /full no descriptor is left, for a while.
FULL = """
import os, resource, threading

held = []

def fill():
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass

def fill_again():
    # That of a connection that has ended.
    fill()
    print("all are taken", flush=True)
    threading.Timer(0.6, lambda: [os.close(fd) for fd in held]).start()

def app(environ, start_response):
    if environ["PATH_INFO"] == "/full":
        resource.setrlimit(resource.RLIMIT_NOFILE, (90, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        fill()
        threading.Timer(0.1, fill_again).start()
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent", "tornado"])
def test_without_descriptors_clients_wait_and_the_log_hears_of_it_once(kind: str) -> None:
    with Server(FULL, conf(kind)) as server, connect(server) as first:
        assert first.ask("/full").status == 200
        server.wait_log("all are taken")
        with connect(server) as one, connect(server) as other:
            one.send(get())
            other.send(get())
            assert one.answer().status == other.answer().status == 200
        assert server.log().count("No connection can be accepted") == 1


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent", "tornado"])
def test_nothing_is_logged_in_a_signal_handler(kind: str) -> None:
    """It may have interrupted the very log call that holds the lock."""
    watch = """
import logging, os, signal, sys

def watch(record):
    codes = {getattr(getattr(signal.getsignal(n), "__func__", signal.getsignal(n)), "__code__", None)
             for n in signal.valid_signals()} - {None}
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code in codes:
            with open("in_handlers", "a") as notes:
                notes.write(f"{frame.f_code.co_name}: {record.getMessage()}\\n")
        frame = frame.f_back
    return True

def on_starting(server):
    server.log.error_log.addFilter(watch)
    # That it sees what it is to see.
    before = signal.signal(signal.SIGURG, lambda sig, frame: server.log.info("from a handler"))
    os.kill(os.getpid(), signal.SIGURG)
    signal.signal(signal.SIGURG, before)
"""
    with Server(APP, conf(kind, workers=2, loglevel="debug", errorlog="error.log") + watch) as server:
        # One worker more and one less, each waited for: who is told to end later must still be there.
        for sig, count in ((signal.SIGTTIN, 3), (signal.SIGTTOU, 2)):
            server.signal(sig)
            server.wait_workers(count)
        for sig in (signal.SIGUSR1, signal.SIGWINCH, signal.SIGCHLD):
            server.signal(sig)
        for sig in (signal.SIGUSR1, signal.SIGTERM, signal.SIGQUIT, signal.SIGABRT):
            worker = server.workers()[0]
            os.kill(worker, sig)
            if sig != signal.SIGUSR1:
                server.wait_workers(2, without=[worker])
        old = server.workers()
        server.signal(signal.SIGHUP)
        server.wait_workers(2, without=old)
        assert server.get("/").status == 200
        assert server.stop() == 0
        assert server.log("in_handlers").splitlines() == ["<lambda>: from a handler"]


@pytest.mark.parametrize("sent", [b"", b"GET / HT"], ids=["silent", "stalled"])
def test_a_plain_worker_does_not_wait_at_its_end_for_a_request_that_may_never_come(sent: bytes) -> None:
    with Server(APP, conf("sync", graceful_timeout=30)) as server, connect(server) as first:
        first.send(sent)
        with connect(server) as second:
            # In the queue behind it, and served as well.
            second.send(get())
            server.signal(signal.SIGTERM)
            assert second.answer().status == 200
        assert elapsed(server.wait_exit) < 5
        assert "SIGKILL" not in server.log()


def test_a_plain_worker_lets_a_request_come_whole_at_its_end() -> None:
    with Server(APP, conf("sync", graceful_timeout=30)) as server, connect(server) as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        server.signal(signal.SIGTERM)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 1.5)
        client.send(b"abc")
        assert client.answer().body == b"abc"
        assert server.wait_exit() == 0


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent", "gevent_pywsgi", "tornado"])
def test_a_signal_at_any_import_of_a_booting_worker_harms_nobody(kind: str) -> None:
    """It may come in the midst of an import, and its handler must need none."""
    hook = """
import os, signal, sys
class Finder:
    seen = set()
    def find_spec(self, name, path=None, target=None):
        if name not in self.seen:
            self.seen.add(name)
            os.kill(os.getpid(), signal.SIGUSR1)
def post_fork(server, worker):
    if worker.age == 2:
        sys.meta_path.insert(0, Finder())
def post_worker_init(worker):
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
"""
    with Server(APP, conf(kind) + hook) as server:
        old = server.workers()
        server.signal(signal.SIGHUP)
        server.wait_workers(1, without=old)
        wait_until(lambda: server.get("/").text == str(server.workers()[0]))
        assert "Traceback" not in server.log() and "failed" not in server.log()


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent", "gevent_pywsgi", "tornado"])
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
def test_signals_to_the_whole_process_group_let_workers_end_in_order(kind: str, sig: int) -> None:
    """Ctrl-C: the master's own signal comes on top."""
    app = """
import atexit, time

def at_exit():
    print("exit handler begins", flush=True)
    time.sleep(0.2)
    print("exit handler ends", flush=True)

atexit.register(at_exit)
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""
    hooks = """
import time

def post_worker_init(worker):
    print("worker ready", flush=True)
def worker_int(worker):
    print("worker interrupted", flush=True)
def worker_exit(server, worker):
    print("hook begins", flush=True)
    time.sleep(0.2)
    print("hook ends", flush=True)
"""
    with Server(app, conf(kind, workers=2) + hooks) as server:
        wait_until(lambda: server.log().count("worker ready") == 2)
        workers = server.workers()
        os.killpg(server.pid, sig)
        for moment in ("hook begins", "exit handler begins"):
            wait_until(lambda moment=moment: server.log().count(moment) == 2)
            for pid in workers:
                # Again, and all the others. Twice told, the master itself would end them at once.
                for again in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGABRT, signal.SIGUSR1):
                    os.kill(pid, again)
        assert server.wait_exit() == 0
        log = server.log()
        assert "Traceback" not in log and "ignored in" not in log
        stages = ("hook begins", "hook ends", "exit handler begins", "exit handler ends")
        assert [log.count(stage) for stage in stages] == [2, 2, 2, 2]
        assert log.count("worker interrupted") == (0 if sig == signal.SIGTERM else 2)


@pytest.mark.parametrize("kind", ["sync", "gevent", "gevent_pywsgi", "tornado"])
def test_an_abort_ends_the_worker_whatever_its_application_does(kind: str) -> None:
    """It is raised within the request, which must not take it for a failure of its own."""
    with Server(APP, conf(kind)) as server, connect(server) as client:
        client.send(get("/until?never"))
        wait_until(lambda: server.log("until"))
        worker = server.workers()[0]
        os.kill(worker, signal.SIGABRT)
        server.wait_workers(1, without=[worker])
        assert client.is_closed() and "The application failed" not in server.log()
