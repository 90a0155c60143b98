# SPDX-License-Identifier: MIT
"""What holds under each worker class alike, as far as the tests of one class do not show it for that."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
import time

import pytest
from harness import Background, Server, descriptors, status_field, wait_until
from workertools import APP, ASGI_TOO, conf, connect, dial, elapsed, get, side_by_side, silence

KEEPING = pytest.mark.parametrize("kind", ["gthread", "gevent", "gevent_pywsgi", "tornado", ASGI_TOO])


# -- connections that are kept, and their ends --------------------------------------------------------


@pytest.mark.parametrize("kind", ["gthread", "gevent", "gevent_pywsgi"])
def test_idle_connections_do_not_delay_a_stop(kind: str) -> None:
    config = conf(kind, keepalive=30)
    with Server(APP, config) as server, contextlib.ExitStack() as stack, connect(server) as silent:
        clients = [stack.enter_context(connect(server)) for _ in range(5)]
        assert not any(client.ask().closes for client in clients)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        silence(0.2)
        # The request that comes meanwhile is answered.
        answer = clients[0].ask()
        assert answer.status == 200 and answer.closes
        assert server.wait_exit() == 0
        assert time.monotonic() - started < 2.5
        assert all(client.is_closed() for client in [*clients, silent])


@KEEPING
def test_idle_connections_at_max_requests_delay_no_client(kind: str) -> None:
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


@side_by_side("gthread", "gevent", "gevent_pywsgi", "tornado")
def test_a_long_request_outlives_the_retirement_and_delays_no_client(kind: str) -> None:
    """It is longer than `timeout`, its worker is the only one, and the place of that is taken at its end."""
    settings = {"max_requests": 1, "timeout": 2, "graceful_timeout": 20, "keepalive": 30, "threads": 2}
    with Server(APP, conf(kind, **settings), ready="listen") as server:
        wait_until(lambda: len(server.workers()) == 1)
        with connect(server) as client:
            client.send(get("/until?done"))
            wait_until(lambda: server.log("until"))
            first = server.log("until").split()[0]
            assert elapsed(lambda: server.get("/")) < 1.5
            wait_until(lambda: server.get("/").text != first)
            silence(2.5)
            assert elapsed(lambda: server.get("/")) < 1.5
            server.write("done", "")
            answer = client.answer()
            assert answer.status == 200 and answer.body == first.encode()
            assert answer.closes and client.is_closed()
        server.wait_log("is to be replaced")
        assert "SIGKILL" not in server.log() and "has not answered" not in server.log()


@pytest.mark.parametrize("kind", ["gthread", "gevent", "tornado", ASGI_TOO])
def test_the_end_of_patience(kind: str) -> None:
    """Silent clients are not waited for; a request that does not end is cut off before the master kills."""
    # A worker ends an eighth of it earlier, at most half a second, and needs that on a busy machine.
    config = conf(kind, graceful_timeout=4, threads=2)
    with Server(APP, config) as server, contextlib.ExitStack() as stack, connect(server) as client:
        client.send(get("/until?never"))
        wait_until(lambda: server.log("until"))
        silent = [stack.enter_context(connect(server)) for _ in range(5)]
        for one in silent[::2]:
            one.send(b"GET / HT")
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 7
        assert client.is_closed()
        assert "requests unfinished" in server.log() and "SIGKILL" not in server.log()


@KEEPING
def test_a_quick_stop(kind: str) -> None:
    config = conf(kind, threads=2) + "def worker_int(worker):\n    open('interrupted', 'w').write('x')\n"
    with Server(APP, config) as server, connect(server) as client:
        client.send(get("/until?never"))
        wait_until(lambda: server.log("until"))
        started = time.monotonic()
        server.signal(signal.SIGINT)
        assert server.wait_exit() == 0
        assert time.monotonic() - started < 2
        assert server.log("interrupted")


@pytest.mark.parametrize("kind", ["gevent", "tornado", ASGI_TOO])
def test_no_more_connections_than_configured(kind: str) -> None:
    config = conf(kind, worker_connections=3, keepalive=30, threads=4)
    with Server(APP, config, ready="listen") as server:
        busy = [Background(server, "/until?done") for _ in range(3)]
        wait_until(lambda: server.log("until").count("\n") == 3)
        with connect(server) as client:
            client.send(get())
            assert not client.is_closed(0.3)
            server.write("done", "")
            assert [one.result().status for one in busy] == [200] * 3
            client.sock.settimeout(5)
            assert client.answer().status == 200
        # An idle connection makes room for a new one.
        with connect(server) as one, connect(server) as two:
            assert not one.ask().closes and not two.ask().closes
            with connect(server), connect(server) as new:
                assert elapsed(new.ask) < 3
            assert one.is_closed() and not two.is_closed(0.1)


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_a_request_beyond_its_time_is_shown_and_its_worker_replaced(kind: str) -> None:
    with (
        Server(APP, conf(kind, request_timeout=0.5, graceful_timeout=15)) as server,
        connect(server) as stuck,
        connect(server) as other,
    ):
        first = server.get("/").text
        stuck.send(get("/until?never"))
        log = server.wait_log("takes longer than 0.5 s")
        assert "'GET /until?never'" in log and "time.sleep(0.01)" in server.log()
        # While it hangs, a successor serves; requests that were begun are served to the end.
        other.send(get("/until?now"))
        wait_until(lambda: server.get("/").text != first)
        server.write("now", "")
        assert other.answer().status == 200
        server.write("never", "")
        answer = stuck.answer()
        assert answer.status == 200 and answer.closes and answer.body == first.encode()


@side_by_side("gthread", "gevent", "gevent_pywsgi", "tornado")
def test_a_head_has_a_deadline(kind: str) -> None:
    with Server(APP, conf(kind, timeout=2)) as server, contextlib.ExitStack() as stack:
        silent, *stalled = [stack.enter_context(connect(server)) for _ in range(3)]
        started = time.monotonic()
        for client, sent in zip(stalled, (b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"), strict=True):
            client.send(sent)
        for client in stalled:
            answer = client.answer()
            assert answer.status == 408 and answer.closes and client.is_closed()
        assert silent.is_closed()
        assert 1.7 < time.monotonic() - started < 4


#: A context of the class as it was before anything was patched, as a configuration file makes it.
OWN_CONTEXT = """
from ssl import SSLContext, PROTOCOL_TLS_SERVER
def ssl_context(config, default):
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(config.certfile, config.keyfile)
    return context
"""


@side_by_side("gthread", "gevent", "gevent_pywsgi", "tornado")
def test_tls(kind: str, certificate: dict[str, str]) -> None:
    more = OWN_CONTEXT if kind == "gevent_pywsgi" else ""
    config = conf(kind, timeout=2, keepalive=30, **certificate) + more
    with Server(APP, config, ready="listen") as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(server)) for _ in range(10)]
        for client in silent[::2]:
            client.send(b"\x16\x03\x01\x02\x00\x01\x00")  # the start of a hello
        with dial(server, True) as client:
            assert elapsed(client.ask) < 1.5
            assert client.ask("/scheme").body == b"https"
            for size in (10, 200_000, 3):
                client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
                client.send(b"y" * size)
                assert client.answer().body == b"y" * size
            client.send(get() * 3)
            assert [client.answer().status for _ in range(3)] == [200] * 3
            # None of the silent ones holds a place for ever.
            assert all(one.is_closed() for one in silent)
            assert client.ask().status == 200
            server.signal(signal.SIGTERM)
            assert server.wait_exit() == 0
            assert client.sock.recv(10) == b""
        assert ("hold the unpatched SSLContext" in server.log()) == bool(more)


# -- requests and signals ----------------------------------------------------------------------------


@side_by_side("sync", "gthread", "gevent", "gevent_pywsgi", "tornado")
def test_a_body_that_is_not_read(kind: str) -> None:
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
            # A plain worker is there for one client alone, but not for `timeout` if that one has its answer.
            assert elapsed(lambda: server.get("/")) < 10
        # A client may send all of a large body before it reads: nginx does so with what it has on disk.
        client = stack.enter_context(connect(server))
        client.send(head.replace(b"92160", b"8000000") + b"x" * 8_000_000)
        assert client.answer().status == 200


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


@side_by_side("sync", "gthread", "gevent", "tornado")
def test_without_descriptors_clients_wait_and_one_line_is_logged(kind: str) -> None:
    with Server(FULL, conf(kind)) as server, connect(server) as first:
        assert first.ask("/full").status == 200
        server.wait_log("all are taken")
        with connect(server) as one, connect(server) as other:
            one.send(get())
            other.send(get())
            assert one.answer().status == other.answer().status == 200
        assert server.log().count("No connection can be accepted") == 1


@side_by_side("sync", "gthread", "gevent", "tornado")
def test_nothing_is_logged_in_a_signal_handler(kind: str) -> None:
    """It may have interrupted a log call that holds the lock."""
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
        # One worker more and one less, each waited for: the workers that get a signal below must exist.
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


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent", "gevent_pywsgi", "tornado", ASGI_TOO])
def test_a_signal_at_any_import_of_a_booting_worker_does_no_harm(kind: str) -> None:
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


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
@side_by_side("sync", "gthread", "gevent", "gevent_pywsgi", "tornado")
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
                # Again, and all the others. The master would end them at once at its second signal.
                for again in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGABRT, signal.SIGUSR1):
                    os.kill(pid, again)
        assert server.wait_exit() == 0
        log = server.log()
        assert "Traceback" not in log and "ignored in" not in log
        stages = ("hook begins", "hook ends", "exit handler begins", "exit handler ends")
        assert [log.count(stage) for stage in stages] == [2, 2, 2, 2]
        assert log.count("worker interrupted") == (0 if sig == signal.SIGTERM else 2)


@side_by_side("sync", "gevent", "gevent_pywsgi", "tornado")
def test_an_abort_ends_the_worker_whatever_its_application_does(kind: str) -> None:
    """It is raised within the request, which must not take it for a failure of its own."""
    with Server(APP, conf(kind)) as server, connect(server) as client:
        client.send(get("/until?never"))
        wait_until(lambda: server.log("until"))
        worker = server.workers()[0]
        os.kill(worker, signal.SIGABRT)
        server.wait_workers(1, without=[worker])
        assert client.is_closed() and "The application failed" not in server.log()


# -- clients that are silent for longer than `timeout` ------------------------------------------------


#: What is taken over answers "ping", and sends as much as does not fit into any buffer for "flood".
TAKE = """
import socket

# For the connections that the application makes, and not for those of clients.
socket.setdefaulttimeout(0.3)

FLOOD = 30_000_000

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/take":
        sock = environ["gunicorn.socket"]
        sock.sendall(b"HTTP/1.1 101 Switching\\r\\nConnection: upgrade\\r\\nUpgrade: x\\r\\n\\r\\n")
        while data := sock.recv(5):
            sock.sendall(b"x" * FLOOD if data == b"flood" else b"pong")
        raise StopIteration
    body = environ["wsgi.input"].read() or b"nothing"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
UPGRADE = "Connection: upgrade\r\nUpgrade: x\r\n"
HALF = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst"


@pytest.mark.parametrize("secure", [False, True])
@side_by_side("gthread", "gevent", "gevent_pywsgi", asgi=False)
def test_bodies_and_connections_taken_over_may_pause(
    kind: str, secure: bool, certificate: dict[str, str]
) -> None:
    settings: dict[str, object] = {"timeout": 1, "threads": 5}
    if secure:
        settings.update(certificate)
    takes = [UPGRADE, UPGRADE]
    if kind != "gthread" or not secure:
        # Without the header, the server cannot foresee that the application takes the connection over.
        takes.append("")
    with Server(TAKE, conf(kind, **settings), ready="listen") as server, contextlib.ExitStack() as stack:
        taken = []
        for more in takes:
            client = stack.enter_context(dial(server, secure))
            client.send(get("/take", more=more))
            assert client.answer().status == 101
            taken.append(client)
        body = stack.enter_context(dial(server, secure))
        body.send(HALF)
        taken[1].send(b"flood")
        silence(1.7)
        body.send(b"other")
        assert body.answer().body == b"firstother"
        for number, client in enumerate(taken):
            if number == 1:
                size = 0
                while size < 30_000_000:
                    size += len(client.sock.recv(1 << 20))
            client.send(b"ping!")
            assert client.sock.recv(10) == b"pong"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gthread", {"threads": 1}),
        ("gevent", {"worker_connections": 1}),
        pytest.param("gevent_pywsgi", {"worker_connections": 1}, marks=pytest.mark.matrix),
        pytest.param("asgi", {"worker_connections": 1}, marks=pytest.mark.matrix),
    ],
)
def test_a_client_that_pauses_in_a_body_makes_room_for_others(kind: str, settings: dict[str, object]) -> None:
    with Server(TAKE, conf(kind, timeout=1, **settings), ready="listen") as server:
        server.get("/")
        with connect(server) as slow:
            # No client evades it by a header.
            slow.send(HALF.replace(b"Host", UPGRADE.encode() + b"Host"))
            assert server.get("/", timeout=5).status == 200
            assert slow.answer().status == 408
            assert "The application failed" not in server.log()


def test_a_plain_worker_waits_for_a_body_as_long_as_the_master_waits_for_it() -> None:
    with Server(TAKE, conf("sync", timeout=2)) as server:
        (worker,) = server.workers()
        with connect(server) as slow, connect(server) as taker:
            slow.send(HALF)
            silence(1.4)
            slow.send(b"other")
            assert slow.answer().body == b"firstother"
            taker.send(get("/take", more=UPGRADE))
            assert taker.answer().status == 101
            silence(1.4)
            taker.send(b"ping!")
            assert taker.sock.recv(10) == b"pong"
        with connect(server) as slow:
            slow.send(HALF)
            assert slow.answer().status == 408
            # It does not close.
            assert server.get("/").status == 200
        assert server.workers() == [worker] and "CRITICAL" not in server.log()


@pytest.mark.parametrize("secure", [False, True])
@side_by_side("gthread", "gevent", "tornado")
def test_a_pause_of_the_process_costs_no_request(
    kind: str, secure: bool, certificate: dict[str, str]
) -> None:
    """As that of a container or a virtual machine: it is longer than `keepalive`."""
    settings: dict[str, object] = {"keepalive": 1}
    if secure:
        settings.update(certificate)
    with Server(APP, conf(kind, **settings), ready="listen") as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server, secure)) for _ in range(8)]
        assert not any(client.ask().closes for client in clients)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)
        wait_until(lambda: status_field(worker, "State").startswith("T"))
        for client in clients:
            client.send(get())
        silence(1.6)
        os.kill(worker, signal.SIGCONT)
        closes = [client.answer().closes for client in clients]
        # Tornado's may have decided before, and says so.
        assert kind == "tornado" or not any(closes)
        for client, closed in zip(clients, closes, strict=True):
            assert closed or client.ask().status == 200


@pytest.mark.parametrize(
    ("timeout", "secure", "sent"), [(0, False, b""), (0, True, b"GET / HT"), (30, True, b"")]
)
def test_no_client_holds_up_the_end_of_a_plain_worker(
    timeout: int, secure: bool, sent: bytes, certificate: dict[str, str]
) -> None:
    settings: dict[str, object] = {"timeout": timeout, "graceful_timeout": 30}
    if secure:
        settings.update(certificate)
    with Server(APP, conf("sync", **settings), ready="listen") as server, dial(server, secure) as client:
        client.send(sent)
        # Beside the listener, it has this one, and waits for its request.
        wait_until(lambda: server.workers() and str(descriptors(server.workers()[0])).count("socket:") == 2)
        assert elapsed(server.stop) < 5
        assert "SIGKILL" not in server.log()


# -- processes that the application forks -----------------------------------------------------------------

FORKS = """
import multiprocessing, os, sys, time

def fork(end):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(reading, 1)
        if end == "exit":
            sys.exit(3)
        if end == "raise":
            raise RuntimeError("in the fork")
        return "the fork"
    os.write(writing, b"x")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def terminate():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(10)
    return child.exitcode

def app(environ, start_response):
    end = environ["QUERY_STRING"]
    body = str(terminate() if end == "terminate" else fork(end) if end else os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


@side_by_side("sync", "gthread", "gevent", "gevent_pywsgi", "tornado", asgi=False)
def test_a_process_that_the_application_forks_is_no_second_worker(kind: str) -> None:
    """It ends when it comes back to the server, by an exception or with a response; or by SIGTERM."""
    with Server(FORKS, conf(kind, threads=4 if kind == "gthread" else 1)) as server:
        worker = server.get("/").text
        ends = {end: server.get(f"/?{end}").text for end in ("exit", "raise", "return", "terminate")}
        assert ends == {"exit": "3", "raise": "1", "return": "1", "terminate": "-15"}
        assert {server.get("/").text for _ in range(10)} == {worker}
        assert server.log().count("has forked this process") == 2


def test_a_handler_that_the_application_has_replaced_is_named() -> None:
    app = """
    import signal
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda sig, frame: before(sig, frame))
    """
    with Server(textwrap.dedent(app) + APP, conf("sync")) as server:
        assert server.log().count("The application handles SIGTERM itself") == 1
        assert server.stop() == 0
        assert "SIGKILL" not in server.log()
