# SPDX-License-Identifier: MIT
"""What the scoreboard shows of the workers of each class, with real clients."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from typing import Any

import pytest
from harness import Server, wait_until
from workertools import ASGI_TOO, Client, conf, connect, get

APP = """
import hashlib, os, re, time

def hold(how, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if how == "regex":
            re.match("(a+)+$", "a" * 22 + "b")  # keeps the interpreter's lock
        elif how == "sha":
            hashlib.sha512(bytes(1 << 24)).digest()

def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    status, body = "200 OK", b"hello"
    if path.startswith("/hold/"):
        hold(path.rpartition("/")[2], float(query))
    elif path == "/slow":
        time.sleep(0.005)
    elif path == "/missing":
        status, body = "404 Not Found", b"nothing"
    elif path == "/boom":
        raise RuntimeError("boom on purpose")
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
COMPANION = {"name": "idle", "command": ["sleep", "1000"]}
WAYS = ("busy", "sha", "regex")
# One way for each class; `-m matrix` runs the others.
HELD = [
    pytest.param(kind, how, marks=() if WAYS[at % 3] == how and kind != "asgi" else pytest.mark.matrix)
    for at, kind in enumerate(("sync", "gthread", "gevent", "gevent_pywsgi", "tornado", "asgi"))
    for how in WAYS
]
KINDS = pytest.mark.parametrize("kind", ["sync", "gthread", "gevent", "gevent_pywsgi", "tornado", ASGI_TOO])


def serving(kind: str, **settings: Any) -> Server:
    # Not by a request: that would count.
    return Server(APP, conf(kind, companion_workers=[COMPANION], **settings), ready="listen")


def web(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.ask("web")["web"]
    return found


class Clients:
    """Threads that send requests until they are stopped, and count what they were answered."""

    def __init__(self, server: Server, count: int) -> None:
        self.server = server
        self.answers: Counter[str] = Counter()
        self.bytes = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        paths = ["/", "/missing?secret=1", "/", "/slow", "/", "/boom"]
        client: Client | None = None
        sent = 0
        # With pauses: without them, the clients would take the processor from the workers that start.
        while not self._stopped.wait(0.01):
            if client is None:
                client = connect(self.server)
            try:
                answer = client.ask(paths[sent % len(paths)])
            except (OSError, EOFError):
                # The server has closed an idle connection, and not read the request.
                client = None
                continue
            sent += 1
            with self._lock:
                self.answers[f"{answer.status // 100}xx"] += 1
                self.bytes += len(answer.body)
            if answer.closes:
                client.sock.close()
                client = None
        if client is not None:
            client.sock.close()

    def count(self) -> int:
        with self._lock:
            return sum(self.answers.values())

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


@KINDS
def test_what_is_counted_is_what_clients_saw(kind: str) -> None:
    """Over workers that retire and a reload, and with answers to what is no request."""
    with serving(kind, workers=2, max_requests=100, keepalive=5) as server:
        wait_until(lambda: server.ask("web")["ok"])
        clients = Clients(server, 4)
        try:
            wait_until(lambda: web(server)["totals"]["ends"]["max_requests"])
            age = max(worker["age"] for worker in web(server)["workers"])
            server.signal(signal.SIGHUP)
            wait_until(lambda: all(worker["age"] > age for worker in web(server)["workers"]))
            before = clients.count()
            wait_until(lambda: clients.count() > before + 150)
        finally:
            clients.stop()
        assert b" 400 " in server.raw(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        expected = clients.answers + Counter({"4xx": 1})

        def answers() -> Counter[str]:
            return +Counter(web(server)["totals"]["answers"])

        wait_until(lambda: answers() == expected, message=lambda: f"{answers()} and not {expected}")
        wait_until(lambda: web(server)["totals"]["running"] == 0)
        wait_until(lambda: web(server)["totals"]["bytes"] >= clients.bytes)
        totals = web(server)["totals"]
        assert totals["requests"] == sum(totals["histogram"]) == sum(expected.values())
        assert totals["seconds"] >= 0.005 * expected["2xx"] / 5
        assert totals["ends"]["max_requests"] >= 1
        assert totals["ends"]["crash"] == totals["ends"]["killed"] == totals["ends"]["boot"] == 0
        assert totals["bytes"] <= clients.bytes + 500  # the page for what was no request


@pytest.mark.parametrize(("kind", "how"), HELD)
def test_a_worker_that_is_held_shows_what_holds_it(kind: str, how: str) -> None:
    with serving(kind, workers=1, timeout=60) as server:
        with connect(server) as client:
            client.ask("/")
        with connect(server) as client:
            began = time.time()
            client.send(get(f"/hold/{how}?2.5"))
            # At first the request before may be shown, until the worker looks again.
            wait_until(lambda: "/hold" in str(web(server)["workers"][0]["oldest"]), timeout=2)
            (worker,) = web(server)["workers"]
            server.signal(signal.SIGSTOP, worker["pid"])
            (stopped,) = web(server)["workers"]
            assert worker["oldest"] == {
                "method": "GET",
                "path": f"/hold/{how}",
                "since": pytest.approx(began, abs=1),
            }
            assert stopped["oldest"]["path"] == worker["oldest"]["path"]
            assert (stopped["state"], stopped["running"]) == ("busy", 1)
            server.signal(signal.SIGCONT, worker["pid"])
            assert client.answer().status == 200
        wait_until(lambda: web(server)["workers"][0]["state"] == "idle", timeout=2)
        (worker,) = web(server)["workers"]
        assert worker["oldest"] is None and worker["requests"] == 2
