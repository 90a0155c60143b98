# SPDX-License-Identifier: MIT
"""A client gets all of the last answer, whatever it is still sending."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from harness import wait_until
from workertools import elapsed

from gunicorn.workers import connection

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The server's and the client's end of a TCP connection: Unix sockets know no reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), 5)
        server, _ = listener.accept()
    with server, client:
        yield server, client


def arrived(sock: socket.socket, count: int) -> None:
    """Wait until *count* bytes can be received."""
    sock.settimeout(5)
    deadline = time.monotonic() + 5
    while len(sock.recv(count, socket.MSG_PEEK)) < count:
        assert time.monotonic() < deadline
    sock.settimeout(None)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def test_nothing_to_wait_for(pair: Pair) -> None:
    server, client = pair
    server.sendall(b"answer")
    assert elapsed(lambda: connection.close_gracefully(server)) < 0.5
    assert server.fileno() == -1 and read_all(client) == b"answer"


def test_unread_input_does_not_destroy_the_answer(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"x" * 1000)
    arrived(server, 1000)
    server.sendall(b"answer")
    assert connection.begin_close(server)
    assert read_all(client) == b"answer"
    client.close()
    assert elapsed(lambda: connection.linger(server)) < 1
    assert server.fileno() == -1


def test_a_client_that_goes_on_sending_gets_the_answer(pair: Pair) -> None:
    server, client = pair
    server.sendall(b"answer")
    thread = threading.Thread(target=connection.close_gracefully, args=(server, True))
    thread.start()
    for _ in range(20):
        client.sendall(b"x" * 1000)
        time.sleep(0.005)
    assert read_all(client) == b"answer"
    client.close()
    thread.join(5)
    assert not thread.is_alive()


def test_lingering_has_bounds(pair: Pair) -> None:
    server, _ = pair
    assert connection.begin_close(server, more_expected=True)
    assert 0.2 <= elapsed(lambda: connection.linger(server, seconds=0.2)) < 1.5
    assert server.fileno() == -1


def test_a_client_that_sends_without_end_is_cut_off_in_time(pair: Pair) -> None:
    server, client = pair
    assert connection.begin_close(server, more_expected=True)

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                client.sendall(b"x" * 65536)

    thread = threading.Thread(target=flood)
    thread.start()
    assert elapsed(lambda: connection.discard_input(server)) < 5
    assert elapsed(lambda: connection.linger(server, seconds=0.2)) < 5
    thread.join(5)
    assert not thread.is_alive()


def test_discarding_takes_what_is_there_and_waits_for_nothing(pair: Pair) -> None:
    server, client = pair
    assert not connection.discard_input(server)
    client.sendall(b"x" * 100)
    arrived(server, 100)
    assert not connection.discard_input(server)
    with pytest.raises(BlockingIOError):
        server.recv(1, socket.MSG_DONTWAIT)
    client.close()
    server.settimeout(5)
    server.recv(1, socket.MSG_PEEK)
    assert connection.discard_input(server)


def test_what_can_be_read(pair: Pair) -> None:
    server, client = pair
    assert not connection.has_input(server) and not connection.is_readable(server)
    client.sendall(b"x")
    arrived(server, 1)
    assert connection.has_input(server) and connection.is_readable(server)
    assert server.recv(10) == b"x"
    client.close()
    wait_until(lambda: connection.is_readable(server))
    assert not connection.has_input(server)
    server.close()
    assert not connection.has_input(server) and not connection.is_readable(server)


def test_a_listener_with_a_client_is_readable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not connection.is_readable(listener)
        with socket.create_connection(listener.getsockname()):
            wait_until(lambda: connection.is_readable(listener))


def test_a_reset_tells_that_content_was_cut(pair: Pair) -> None:
    server, client = pair
    server.sendall(b"half")
    connection.reset(server)
    with pytest.raises(ConnectionResetError):
        while client.recv(100):
            pass


def test_a_client_that_has_gone_is_no_error(pair: Pair) -> None:
    server, client = pair
    connection.reset(client)
    time.sleep(0.01)
    assert not connection.begin_close(server) and server.fileno() == -1


def test_the_kernel_s_timeout(pair: Pair) -> None:
    server, _ = pair
    connection.set_blocking_timeout(server, 0.1)
    started = time.monotonic()
    with pytest.raises(BlockingIOError):
        server.recv(1)
    assert 0.08 < time.monotonic() - started < 2


def test_a_timeout_is_as_long_as_it_likes(pair: Pair) -> None:
    server, client = pair
    connection.set_blocking_timeout(server, 2.0**63)
    client.sendall(b"x")
    assert server.recv(1) == b"x"
