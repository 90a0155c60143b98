# SPDX-License-Identifier: MIT
"""Real servers and what they send to a statsd daemon."""

from __future__ import annotations

import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTTIN

import pytest
from e2e_apps import WEB
from e2e_companions import companion_server, entry
from harness import Server, wait_until
from workertools import conf


class Daemon:
    """Collects datagrams; a figure is (name, value, the rest)."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.settimeout(0.1)
        self.address = "{}:{}".format(*self.sock.getsockname())
        self.figures: list[tuple[str, float, str]] = []
        self._done = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._done:
            try:
                line = self.sock.recv(4096).decode()
            except TimeoutError:
                continue
            name, _, figure = line.partition(":")
            value, _, rest = figure.partition("|")
            self.figures.append((name, float(value), rest))

    def values(self, name: str) -> list[float]:
        return [value for found, value, _ in self.figures if found == name]

    def sums(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for name, value, rest in self.figures:
            if rest.startswith("c"):
                total[name] += int(value)
        return total

    def wait_gauge(self, name: str, value: float) -> None:
        wait_until(
            lambda: self.values(name)[-1:] == [value], 10, lambda: f"{name} {value}: {self.values(name)}"
        )

    def wait_sum(self, name: str, value: int) -> None:
        self.wait_sums({name: value})

    def wait_sums(self, expected: dict[str, int]) -> None:
        """Each figure is a datagram of its own: that one has come says nothing of the next."""
        wait_until(
            lambda: {name: self.sums()[name] for name in expected} == expected,
            10,
            lambda: f"{expected}: {self.sums()}",
        )

    def close(self) -> None:
        self._done = True
        self._thread.join()
        self.sock.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["sync", "gthread", "asgi"])
def test_requests_workers_and_log_lines(daemon: Daemon, kind: str) -> None:
    text = conf(kind, workers=2, statsd_prefix="shop")
    with Server(WEB, text, ["--statsd-host", daemon.address], ready="listen") as server:
        daemon.wait_gauge("shop.gunicorn.workers", 2)
        for path, status in (("/", 200), ("/", 200), ("/empty", 204), ("/boom", 500)):
            assert server.get(path).status == status
        assert server.raw(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
        figures = {
            "requests": 5,
            "request.status.200": 2,
            "request.status.204": 1,
            "request.status.400": 1,
            "request.status.500": 1,
            "log.error": 1,
            "log.warning": 1,
        }
        daemon.wait_sums({f"shop.gunicorn.{name}": value for name, value in figures.items()})
        # Sent before the counter of the same request.
        durations = daemon.values("shop.gunicorn.request.duration")
        assert len(durations) == 5 and all(0 <= value < 5000 for value in durations)
        server.signal(SIGTTIN)
        daemon.wait_gauge("shop.gunicorn.workers", 3)
        server.signal(SIGKILL, server.workers()[0])
        wait_until(lambda: daemon.values("shop.gunicorn.workers")[-2:] == [2, 3], 10, "one lost and replaced")
        assert server.stop() == 0
        daemon.wait_gauge("shop.gunicorn.workers", 0)
    assert {rest for _, _, rest in daemon.figures} == {"g", "c|@1.0", "ms"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_connections_that_wait(daemon: Daemon) -> None:
    flags = ["--statsd-host", daemon.address, "--enable-backlog-metric"]
    with Server(WEB, "", flags, ready="listen") as server:
        # The worker has accepted what came before it was there.
        server.get("/")
        daemon.wait_gauge("gunicorn.backlog", 0)
        (worker,) = server.workers()
        server.signal(SIGSTOP, worker)
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        daemon.wait_gauge("gunicorn.backlog", 3)
        daemon.wait_gauge("gunicorn.socket.backlog", 3)
        server.signal(SIGCONT, worker)
        for client in clients:
            client.close()
        daemon.wait_gauge("gunicorn.backlog", 0)


def test_companions(daemon: Daemon) -> None:
    companions = [
        entry("a", "idle"),
        entry("b", "stubborn", stop_timeout=0.3),
        entry("never", "idle", autostart=False),
    ]
    settings = {"statsd_host": daemon.address, "dogstatsd_tags": "env:test"}
    with companion_server(*companions, **settings) as server:
        daemon.wait_gauge("gunicorn.companions.running", 2)
        assert daemon.values("gunicorn.companions.running")[0] == 0
        server.signal(SIGKILL, server.companion("a")["pid"])
        daemon.wait_sum("gunicorn.companions.backoffs", 1)
        daemon.wait_sum("gunicorn.companions.restarts", 1)
        daemon.wait_gauge("gunicorn.companions.running", 2)
        assert server.ask("stop", "b")["ok"]
        daemon.wait_sum("gunicorn.companions.kills", 1)
        daemon.wait_gauge("gunicorn.companions.running", 1)
        assert server.ask("restart", "a")["ok"]
        daemon.wait_sum("gunicorn.companions.restarts", 2)
        daemon.wait_gauge("gunicorn.companions.running", 1)

        def tags() -> set[tuple[str, str]]:
            return {
                (name.rpartition(".")[2], rest) for name, _, rest in daemon.figures if ".companions." in name
            }

        wait_until(lambda: len(tags()) >= 7, 10, lambda: f"seven kinds of figures: {tags()}")
        assert tags() == {
            ("running", "g|#env:test"),
            ("backoffs", "c|@1.0|#companion:a,env:test"),
            ("restarts", "c|@1.0|#companion:a,env:test"),
            ("kills", "c|@1.0|#companion:b,env:test"),
            ("ends", "c|@1.0|#companion:a,cause:killed,env:test"),
            ("ends", "c|@1.0|#companion:a,cause:command,env:test"),
            ("ends", "c|@1.0|#companion:b,cause:command,env:test"),
        }
        assert server.stop() == 0
        daemon.wait_gauge("gunicorn.companions.running", 0)
        assert daemon.sums()["gunicorn.companions.backoffs"] == 1
