# SPDX-License-Identifier: MIT
"""Real servers with the plain worker: TLS clients that are slow, silent or none, and PROXY headers."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from harness import Server, free_port, is_alive, read_until_closed, wait_until
from workertools import APP, Client, conf, tls


def ask(server: Server, path: str = "/") -> bytes:
    with tls(server.connect()) as client:
        return client.ask(path).body


def test_handshakes_that_never_end_delay_no_client(certificate: dict[str, str]) -> None:
    with (
        Server(APP, conf("sync", timeout=4, **certificate), ready="listen") as server,
        contextlib.ExitStack() as stack,
    ):
        silent = [stack.enter_context(server.connect()) for _ in range(10)]
        for sock in silent[::2]:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")  # the start of a hello
        for _ in range(3):
            started = time.monotonic()
            assert ask(server)
            assert time.monotonic() - started < 1
        # Their time is up before the worker's is, which goes on.
        started = time.monotonic()
        for sock in silent:
            sock.settimeout(6)
            with contextlib.suppress(ConnectionError):
                while sock.recv(100):
                    pass
        assert time.monotonic() - started < 5
        assert ask(server)
        assert "CRITICAL" not in server.log()


def test_no_more_handshakes_than_connections_are_allowed(certificate: dict[str, str]) -> None:
    config = conf("sync", timeout=4, **certificate, worker_connections=3)
    with Server(APP, config, ready="listen") as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(5)]
        assert ask(server)
        # The oldest one had to go.
        silent[0].settimeout(3)
        assert silent[0].recv(1) == b""


def test_plain_text_and_goodbyes_in_a_handshake_end_it_alone(certificate: dict[str, str]) -> None:
    with Server(APP, conf("sync", timeout=4, **certificate), ready="listen") as server:
        with server.connect() as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                read_until_closed(plain)
        with server.connect() as reset:
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert ask(server)


def test_a_handshake_under_way_is_finished_by_a_worker_that_ends(certificate: dict[str, str]) -> None:
    with Server(APP, conf("sync", timeout=4, **certificate), ready="listen") as server:
        first = ask(server)
        sock = server.connect()
        wait_until(lambda: ask(server) == first)  # the worker has accepted what came before
        server.signal(signal.SIGHUP)
        with tls(sock) as client:
            assert client.ask("/").status == 200
        wait_until(lambda: ask(server) != first)


def test_a_request_behind_silent_clients_is_answered_within_a_short_graceful_timeout() -> None:
    with Server(APP, "graceful_timeout = 2", ready="listen") as server, contextlib.ExitStack() as stack:
        first = stack.enter_context(Client(server.connect()))
        first.send(b"GET /sleep?0.3 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: server.log("sleeping"))
        silent = [stack.enter_context(Client(server.connect())) for _ in range(5)]
        for client in silent[::2]:
            client.send(b"GET / HT")
        last = stack.enter_context(Client(server.connect()))
        last.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        server.signal(signal.SIGTERM)
        assert first.answer().status == last.answer().status == 200
        assert [client.answer().status for client in silent] == [408] * 5
        assert server.wait_exit() == 0
        assert "SIGKILL" not in server.log()


@contextlib.contextmanager
def busy(server: Server) -> Iterator[None]:
    """Clients that come one after the other, so that there is always one."""
    done = threading.Event()

    def come() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError, EOFError), Client(server.connect()) as client:
                client.ask()

    clients = [threading.Thread(target=come) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        done.set()
        for client in clients:
            client.join()


@pytest.mark.parametrize("binds", [1, 2])
def test_workers_end_with_their_master_though_clients_come_all_the_time(binds: int) -> None:
    more = [f"-b127.0.0.1:{free_port()}" for _ in range(binds - 1)]
    with Server(APP, "workers = 2", more) as server, busy(server):
        workers = server.workers()
        server.kill()
        wait_until(lambda: not any(map(is_alive, workers)), 5, "workers gone")


def test_no_error_of_accepting_ends_the_worker() -> None:
    special = """
    import errno
    from gunicorn.workers.sync import SyncWorker

    class Special(SyncWorker):
        errors = [errno.EHOSTUNREACH, errno.EMFILE, errno.EINVAL]

        def accept(self, listener):
            if self.errors and self.wsgi:
                raise OSError(self.errors.pop(), "from accept")
            super().accept(listener)
    """
    with Server(APP, "worker_class = 'special.Special'", files={"special.py": special}) as server:
        assert server.get("/").status == 200
        assert server.log().count("No connection can be accepted") == 1
        assert "failed" not in server.log()
