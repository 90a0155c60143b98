# SPDX-License-Identifier: MIT
"""Leases on real servers: all stores keep the same promises."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import kubernetesserver
import pytest
from harness import wait_until
from storeservers import PASSWORD, SERVERS, StoreServer, has_psycopg

from gunicorn.companion.leasing import store
from gunicorn.companion.leasing.store import Store, StoreError
from gunicorn.unix import boottime

A, B = "web-1 (pid 1) aa", "web-2 (pid 2) bb"
TTL = 60.0
TIMEOUT = 10.0


@pytest.fixture
def server(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[StoreServer]:
    with request.param(short_dir) as server:
        yield server


def url_of(server: StoreServer) -> str:
    """One that passes through PgBouncer where there is one."""
    return server.url(server.ports()[-1])


@pytest.mark.parametrize("server", SERVERS.values(), indirect=True, ids=list(SERVERS))
def test_a_server_keeps_leases(server: StoreServer) -> None:
    store.check_url(server.url())
    one, other = store.connect(server.url(), TIMEOUT), store.connect(url_of(server), TIMEOUT)
    held_until_released(one, other)
    a_release_that_comes_late_frees_nothing(one)
    notes_survive(one, other)
    waiting_ends_early(one, other)
    expired = an_unrenewed_lease_is_free(one, other)

    one.acquire("kept", A, TTL)
    server.stop(signal.SIGTERM)
    with pytest.raises(StoreError) as caught:
        other.acquire("kept", B, TTL)
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)
    server.start()
    answer = wait_until(lambda: try_to_acquire(other, "kept", B), 20, "the server answers again")
    assert (answer.mine, answer.owner) == (False, A)
    assert one.renew("kept", A, answer.token, TTL, None)
    assert other.acquire("short", B, TTL).token > expired
    for each in (one, other):
        each.close()


def try_to_acquire(store: Store, name: str, owner: str) -> store.Answer | None:
    try:
        return store.acquire(name, owner, TTL)
    except StoreError:
        return None


def held_until_released(one: Store, other: Store) -> None:
    first = one.acquire("a", A, TTL)
    assert (first.mine, first.owner, first.note) == (True, A, "")
    assert first.token > 0
    refused = other.acquire("a", B, TTL)
    assert (refused.mine, refused.owner, refused.token) == (False, A, first.token)
    assert TTL - 30 < refused.expires_in <= TTL
    # Another ttl is no other holding.
    assert one.renew("a", A, first.token, 2 * TTL, None)
    longer = other.acquire("a", B, TTL)
    assert (longer.owner, longer.token) == (A, first.token)
    assert longer.expires_in > TTL
    assert one.renew("a", A, first.token, 2 * TTL, None)
    # Neither another owner nor another token changes it.
    for owner, token in ((B, first.token), (A, first.token - 1), (A, first.token + 1)):
        if (owner, token) != (A, first.token + 1):
            assert not other.renew("a", owner, token, TTL, "intruder")
        other.release("a", owner, token, "intruder")
    assert other.acquire("a", B, TTL).owner == A
    one.release("a", A, first.token, None)
    # A third one knows nothing of what these two have seen.
    second = other.acquire("a", B, TTL)
    assert (second.mine, second.owner, second.note) == (True, B, "")
    assert second.token > first.token
    assert not one.renew("a", A, first.token, TTL, None)
    one.release("a", A, first.token, None)
    assert other.renew("a", B, second.token, TTL, None)
    other.release("a", B, second.token, None)


def a_release_that_comes_late_frees_nothing(one: Store) -> None:
    first = one.acquire("late", A, TTL)
    # As after a release that had no answer.
    second = one.acquire("late", A, TTL)
    assert second.mine
    assert second.token > first.token
    one.release("late", A, first.token, None)
    assert one.renew("late", A, second.token, TTL, None)


def notes_survive(one: Store, other: Store) -> None:
    note = '{"last": "2026-11-27T12:00:00+00:00", "how": "größer \\" \' % {}"}'
    token = one.acquire("noted", A, TTL).token
    assert one.renew("noted", A, token, TTL, note)
    assert one.renew("noted", A, token, TTL, None)
    assert other.acquire("noted", B, TTL).note == note
    one.release("noted", A, token, None)
    taken = other.acquire("noted", B, TTL)
    assert (taken.mine, taken.note) == (True, note)
    other.release("noted", B, taken.token, "x" * 4096)
    assert one.acquire("noted", A, TTL).note == "x" * 4096


def waiting_ends_early(one: Store, other: Store) -> None:
    tokens = {name: one.acquire(name, A, TTL).token for name in ("w1", "w2")}
    woken, wake = os.pipe()
    began = time.monotonic()
    other.wait(["w1", "w2"], 0.01, woken)
    timer = threading.Timer(0.1, one.release, ("w2", A, tokens["w2"], None))
    timer.start()
    other.wait(["w1", "w2"], TTL, woken)
    timer.join()
    assert other.acquire("w2", B, TTL).mine
    os.write(wake, b"x")
    other.wait(["w1", "w2"], TTL, woken)
    other.wait([], TTL, woken)
    assert time.monotonic() < began + TTL / 2
    os.close(woken)
    os.close(wake)


def an_unrenewed_lease_is_free(one: Store, other: Store) -> int:
    token = one.acquire("short", A, 1.0).token
    wait_until(lambda: (other.acquire("short", B, 1.0).expires_in or 0) < 0.7, 10, "time passes")
    began = time.monotonic()
    assert one.renew("short", A, token, 1.0, None)
    answer = wait_until(
        lambda: (answer := other.acquire("short", B, TTL)).mine and answer, 15, "it expires", interval=0.2
    )
    assert time.monotonic() > began + 0.99
    assert answer.token > token
    assert not one.renew("short", A, token, 1.0, None)
    return answer.token


def test_kubernetes_counts_the_time_on_the_clock_of_who_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class OneServer(kubernetesserver.Handler):
        objects = kubernetesserver.Objects(tmp_path / "objects")
        token = ""

    now = 1000.0
    monkeypatch.setattr(boottime, "now", lambda: now)
    api = ThreadingHTTPServer(("127.0.0.1", 0), OneServer)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    (tmp_path / "token").touch()
    url = f"kubernetes://shop?server=http://127.0.0.1:{api.server_port}&account={tmp_path}"
    one, other = store.connect(url, TIMEOUT), store.connect(url, TIMEOUT)
    assert one.acquire("a", A, 15).token == 1
    now += 100
    # However long ago that was: this one sees it for the first time.
    assert other.acquire("a", B, 15).expires_in == 15
    now += 20
    assert one.renew("a", A, 1, 15, None)
    # It was renewed since, as is seen only now.
    assert other.acquire("a", B, 15).expires_in == 15
    now += 14.9
    assert other.acquire("a", B, 15).owner == A
    now += 0.2
    assert other.acquire("a", B, 15).token == 2
    OneServer.token = "another"
    with pytest.raises(StoreError, match=r"401.*its role must allow get, list, create and update"):
        one.acquire("a", A, 15)
    one.close()
    other.close()
    api.shutdown()
    api.server_close()


class Mute:
    """A server that accepts connections and says nothing, or with *dripping* a byte now and then."""

    def __init__(self, dripping: bool) -> None:
        self.dripping = dripping
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            if self.dripping:
                threading.Thread(target=self.drip, args=[connection], daemon=True).start()

    def drip(self, connection: socket.socket) -> None:
        # Part of an answer in each of the protocols: a long line of a header, or of a simple string.
        for byte in b"HTTP/1.1 200 " + b"x" * 1000:
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                return
            time.sleep(0.1)

    def close(self) -> None:
        # Closing alone does not wake who accepts.
        self.listener.shutdown(socket.SHUT_RDWR)
        for each in (self.listener, *self.connections):
            each.close()


def test_a_server_that_hangs_holds_up_no_call(tmp_path: Path) -> None:
    mutes = [Mute(dripping=False), Mute(dripping=True)]
    urls = [
        url
        for mute in mutes
        for url in (
            f"redis://:secret@127.0.0.1:{mute.port}/0",
            f"sentinel://127.0.0.1:{mute.port}/shop",
            f"postgresql://a:secret@127.0.0.1:{mute.port}/b",
            f"etcd://127.0.0.1:{mute.port}",
            f"etcd://127.0.0.1:{mute.port}?tls=1",
            f"kubernetes://shop?server=http://127.0.0.1:{mute.port}&account={tmp_path}/none",
        )
    ]
    urls = [url for url in urls if has_psycopg() or not url.startswith("postgresql")]
    errors: dict[str, list[tuple[str, float]]] = {url: [] for url in urls}

    def ask(url: str) -> None:
        client = store.connect(url, 0.3)
        for _ in range(2):
            began = time.monotonic()
            try:
                client.acquire("a", A, TTL)
            except StoreError as exc:
                errors[url].append((str(exc), time.monotonic() - began))
        client.close()

    threads = [threading.Thread(target=ask, args=[url]) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mute in mutes:
        mute.close()
    for url, found in errors.items():
        assert len(found) == 2, url
        for error, seconds in found:
            assert "secret" not in error
            # A dripping server would take a hundred.
            assert seconds < 10, (url, error)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://localhost", None),
        ("rediss://user:secret@queue.internal:6380/2?ssl_ca_certs=/etc/ca.pem", None),
        ("sentinel://:secret@one,two:26380/mymaster/3?sentinel_password=x&tls=1", None),
        ("postgresql://shop:secret@db.internal/shop?sslmode=verify-full", None),
        ("postgresql://one,two:5433/shop?target_session_attrs=read-write", None),
        ("etcd://root:secret@one:2379,two:2379?tls=1", None),
        ("kubernetes://shop", None),
        ("kubernetes://", None),
        ("redis:///0", "names no host"),
        ("redis://queue.internal/jobs", "not the number of a database"),
        ("redis://:secret@queue.internal:port/0", "is no valid URL"),
        ("sentinel://one,two", "names no service"),
        ("sentinel://one:x/mymaster", "is no valid URL"),
        ("postgresql://db.internal", "names no database"),
        ("postgresql://db.internal/shop?colour=blue", "invalid URI query parameter"),
        ("etcd://", "names no host"),
        ("etcd://one/path", "leave out"),
        ("etcd://one:x", "is no valid URL"),
        ("etcd://one?colour=blue", "'colour' is not an option"),
        ("etcd://one?cafile=/nonexistent", "No such file"),
        ("kubernetes://Shop_1", "is not the name of a namespace"),
        ("kubernetes://shop/lease", "leave out the path"),
        ("kubernetes://shop?colour=blue", "'colour' is not an option"),
        ("kubernetes://shop?server=localhost", "must be a URL"),
    ],
)
def test_what_their_urls_may_be(url: str, problem: str | None) -> None:
    if url.startswith("postgresql") and not has_psycopg():
        pytest.skip("psycopg finds no libpq")
    if problem is None:
        store.check_url(url)
        return
    with pytest.raises(ValueError, match=problem) as caught:
        store.check_url(url)
    assert "secret" not in str(caught.value)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "gunicorn.companion.leasing.postgresqlstore", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'gunicorn\[postgresql\]', and libpq5 of your system"):
        store.check_url("postgresql://db.internal/shop")
