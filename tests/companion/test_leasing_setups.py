# SPDX-License-Identifier: MIT
"""Leases on servers as people set them up: TLS, users with few rights, sentinels, several hosts."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from harness import free_port, wait_until
from proctools import program
from storeservers import Etcd, Kubernetes, PostgreSQL, Redis, StoreServer

from gunicorn.companion.leasing import store
from gunicorn.companion.leasing.store import LeaseError, StoreError

pytestmark = pytest.mark.matrix

A, B = "web-1 (pid 1) aa", "web-2 (pid 2) bb"
TTL = 60.0


@pytest.fixture
def started(short_dir: Path) -> Iterator[list[StoreServer]]:
    servers: list[StoreServer] = []
    yield servers
    for server in servers:
        server.stop()


def certificates(directory: Path) -> None:
    """Make ``ca.pem``, and ``cert.pem`` with ``key.pem`` for 127.0.0.1, signed by it."""
    openssl = program("openssl")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes")
    authority = ("-addext", "keyUsage=critical,keyCertSign", "-subj", "/CN=authority", "-days", "2")
    run("req", "-x509", *key, "-keyout", "ca-key.pem", "-out", "ca.pem", *authority)
    run("req", *key, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=server")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", "names")
    run("x509", "-req", "-in", "request.pem", *signed, "-out", "cert.pem")
    (directory / "key.pem").chmod(0o600)


def holds_and_refuses(url: str) -> None:
    store.check_url(url)
    one, other = store.connect(url, 10), store.connect(url, 10)
    answer = one.acquire("a", A, TTL)
    assert answer.mine
    assert other.acquire("a", B, TTL).owner == A
    assert one.renew("a", A, answer.token, TTL, "note")
    one.release("a", A, answer.token, None)
    assert other.acquire("a", B, TTL).note == "note"
    one.close()
    other.close()


def refuses_strangers(url: str) -> None:
    client = store.connect(url, 10)
    with pytest.raises(StoreError, match="certificate"):
        client.acquire("a", A, TTL)
    client.close()


class TLSRedis(Redis):
    def commands(self) -> list[list[str]]:
        (command,) = super().commands()
        command[command.index("--port") : command.index("--port") + 2] = ["--port", "0"]
        options = {"port": str(self.port), "cert-file": "cert.pem", "key-file": "key.pem"}
        options |= {"ca-cert-file": "ca.pem", "auth-clients": "no"}
        return [[*command, *(word for name, value in options.items() for word in (f"--tls-{name}", value))]]


def test_redis_with_tls(short_dir: Path, started: list[StoreServer]) -> None:
    certificates(short_dir)
    server = TLSRedis(short_dir)
    started.append(server)
    server.start()
    url = server.url().replace("redis://", "rediss://")
    holds_and_refuses(f"{url}?ssl_ca_certs={short_dir}/ca.pem")
    refuses_strangers(url)


def test_redis_refuses_a_wrong_password(short_dir: Path, started: list[StoreServer]) -> None:
    server = Redis(short_dir)
    started.append(server)
    server.start()
    client = store.connect(f"redis://lease:wrong-one@127.0.0.1:{server.port}/1", 10)
    with pytest.raises(StoreError, match="invalid username-password pair") as caught:
        client.acquire("a", A, TTL)
    assert "wrong-one" not in str(caught.value)
    client.close()


class Sentinel(StoreServer):
    """A sentinel beside two servers; *port* of the first one."""

    def prepare(self) -> None:
        self.replica_port, self.sentinel_port = free_port(), free_port()
        (self.directory / "sentinel.conf").write_text(
            f"port {self.sentinel_port}\nbind 127.0.0.1\n"
            f"sentinel monitor shop 127.0.0.1 {self.port} 1\n"
            "sentinel down-after-milliseconds shop 500\nsentinel failover-timeout shop 2000\n"
        )

    def commands(self) -> list[list[str]]:
        redis = program("redis-server")
        common = ["--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0"]
        return [
            [redis, "--port", str(self.port), *common],
            [redis, "--port", str(self.replica_port), *common, "--replicaof", "127.0.0.1", str(self.port)],
            [redis, "sentinel.conf", "--sentinel"],
        ]

    def ports(self) -> list[int]:
        return [self.port, self.replica_port, self.sentinel_port]

    def url(self, port: int | None = None) -> str:
        return f"sentinel://127.0.0.1:1,127.0.0.1:{port or self.sentinel_port}/shop/0"


def test_redis_after_a_failover(short_dir: Path, started: list[StoreServer]) -> None:
    import redis

    server = Sentinel(short_dir)
    started.append(server)
    server.start()
    store.check_url(server.url())
    one, other = store.connect(server.url(), 2), store.connect(server.url(), 2)
    first = wait_until(
        lambda: (answer := attempt(one, "a", A)) and answer.mine and answer, 30, "up for a ttl", interval=0.2
    )
    with redis.Redis(port=server.replica_port) as replica, redis.Redis(port=server.sentinel_port) as sentinel:
        wait_until(lambda: replica.hget("gunicorn:lease:a", "owner") == A.encode(), 10, "replicated")
        wait_until(lambda: len(sentinel.sentinel_slaves("shop")) == 1, 15, "the sentinel knows the replica")
    server.processes[0].kill()
    assert wait_until(lambda: renewed(one, first.token), 30, "the replica is the master now", interval=0.2)
    assert other.acquire("a", B, 5.0).owner == A
    one.close()
    other.close()


def attempt(client: store.Store, name: str, owner: str) -> store.Answer | None:
    try:
        return client.acquire(name, owner, 5.0)
    except StoreError:
        return None


def renewed(client: store.Store, token: int) -> bool:
    try:
        return client.renew("a", A, token, 5.0, None)
    except StoreError:
        return False


def test_postgresql_when_the_table_is_not_there(short_dir: Path, started: list[StoreServer]) -> None:
    import psycopg

    server = PostgreSQL(short_dir)
    started.append(server)
    server.start()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE USER poor PASSWORD 'poor'")
    url = f"postgresql://poor:poor@127.0.0.1:{server.port}/postgres"
    poor = store.connect(url, 10)
    with pytest.raises(StoreError, match="let its owner run: CREATE TABLE IF NOT EXISTS gunicorn_lease"):
        poor.acquire("a", A, TTL)
    # Many at once create it once.
    clients = [store.connect(server.url(), 10) for _ in range(8)]
    answers: list[store.Answer] = []
    barrier = threading.Barrier(len(clients))

    def acquire(number: int) -> None:
        barrier.wait()
        answers.append(clients[number].acquire("a", f"web-{number}", TTL))

    threads = [threading.Thread(target=acquire, args=[number]) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(clients)
    assert sum(answer.mine for answer in answers) == 1
    with pytest.raises(StoreError, match="permission denied for table gunicorn_lease"):
        poor.acquire("a", A, TTL)
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("GRANT SELECT, INSERT, UPDATE ON gunicorn_lease TO poor")
    assert not poor.acquire("a", A, TTL).mine
    for client in (poor, *clients):
        client.close()


def test_postgresql_gives_up_a_statement_that_waits(short_dir: Path, started: list[StoreServer]) -> None:
    import psycopg

    server = PostgreSQL(short_dir)
    started.append(server)
    server.start()
    # Through PgBouncer, whose connections others use as well.
    client = store.connect(server.url(server.ports()[-1]), 0.5)
    wait_until(lambda: attempt(client, "a", A), 10, "the table is there")
    with psycopg.connect(server.url()) as connection:
        connection.execute("LOCK TABLE gunicorn_lease")
        with pytest.raises(StoreError, match=r"no answer within 0\.5s"):
            client.acquire("a", A, TTL)
        held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        wait_until(lambda: connection.execute(held).fetchone() == (0,), 10, "the server gave it up too")
    with psycopg.connect(server.url(server.ports()[-1]), autocommit=True) as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)
    client.close()


def test_postgresql_in_other_encodings_and_out_of_tokens(short_dir: Path, started: list[StoreServer]) -> None:
    import psycopg

    server = PostgreSQL(short_dir)
    started.append(server)
    server.start()
    ascii_url = server.url().replace("/postgres", "/plain")
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE plain ENCODING 'SQL_ASCII' TEMPLATE template0")
    for url in (ascii_url, f"{ascii_url}?client_encoding=latin1"):
        client = store.connect(url, 10)
        answer = store.checked(client.acquire("größer", A, TTL), 0)
        assert answer.mine and answer.note in ("", "ü")
        client.release("größer", A, answer.token, "ü")
        client.close()
    one = store.connect(server.url(), 10)
    token = one.acquire("a", A, TTL).token
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("UPDATE gunicorn_lease SET owner = '', token = 9223372036854775807")
        with pytest.raises(LeaseError, match="bigint out of range"):
            one.acquire("a", A, TTL)
        assert one.acquire("b", A, TTL).mine
        # A statement that the server ends.
        connection.execute("UPDATE gunicorn_lease SET owner = %s, token = %s WHERE name = 'a'", (A, token))
        ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        connection.execute(f"{ends} AND backend_type = 'client backend'")
        assert one.renew("a", A, token, TTL, None)
    one.close()


class SecureEtcd(Etcd):
    def commands(self) -> list[list[str]]:
        (command,) = super().commands()
        client = [f"--{name}-client-urls" for name in ("listen", "advertise")]
        for option in client:
            place = command.index(option) + 1
            command[place] = command[place].replace("http:", "https:")
        tls = {"cert-file": "cert.pem", "key-file": "key.pem", "trusted-ca-file": "ca.pem"}
        return [[*command, "--client-cert-auth", *(f"--{name}={value}" for name, value in tls.items())]]

    def answers(self, port: int) -> bool:
        return "ready to serve client requests" in self.log()


def test_etcd_with_tls(short_dir: Path, started: list[StoreServer]) -> None:
    certificates(short_dir)
    server = SecureEtcd(short_dir)
    started.append(server)
    server.start()
    url = f"etcd://127.0.0.1:{server.port}"
    files = f"cafile={short_dir}/ca.pem&certfile={short_dir}/cert.pem&keyfile={short_dir}/key.pem"
    holds_and_refuses(f"{url}?{files}")
    refuses_strangers(f"{url}?tls=1")


def test_etcd_with_users_and_several_hosts(short_dir: Path, started: list[StoreServer]) -> None:
    server = Etcd(short_dir)
    started.append(server)
    server.start()

    def call(path: str, **question: object) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}/v3/auth/{path}")
        request.data = json.dumps(question).encode()
        urllib.request.urlopen(request, timeout=10).read()

    for user, role in (("root", "root"), ("lease", "lease")):
        call("role/add", name=role)
        call("user/add", name=user, password="open/sesame")
        call("user/grant", user=user, role=role)
    # From gunicorn/ to gunicorn0, in base64.
    everything = {"permType": "READWRITE", "key": "Z3VuaWNvcm4v", "range_end": "Z3VuaWNvcm4w"}
    call("role/grant", name="lease", perm=everything)
    call("enable")
    url = f"etcd://lease:{quote('open/sesame', safe='')}@127.0.0.1:1,127.0.0.1:{server.port}"
    holds_and_refuses(url)
    # Its tokens are forgotten with a restart.
    client = store.connect(url, 10)
    assert client.acquire("b", A, TTL).mine
    server.stop(signal.SIGTERM)
    server.start()
    assert client.acquire("b", B, TTL).owner == A
    client.close()
    for wrong in ("lease:wrong-one@", ""):
        client = store.connect(f"etcd://{wrong}127.0.0.1:{server.port}", 10)
        with pytest.raises(StoreError, match=r"did not let the user in|user name is empty") as caught:
            client.acquire("a", A, TTL)
        assert "wrong-one" not in str(caught.value)
        client.close()


def test_kubernetes_with_tls(short_dir: Path, started: list[StoreServer]) -> None:
    certificates(short_dir)
    server = Kubernetes(short_dir)
    started.append(server)
    server.options = [str(short_dir / "cert.pem"), str(short_dir / "key.pem")]
    server.start()
    url = server.url().replace("http%3A", "https%3A")
    refuses_strangers(url)
    (server.account / "ca.crt").write_bytes((short_dir / "ca.pem").read_bytes())
    holds_and_refuses(url)
    # It is replaced while we run.
    (server.account / "token").write_text("too old")
    client = store.connect(url, 10)
    with pytest.raises(StoreError, match=r"401.*role must allow get, list, create and update of leases"):
        client.acquire("a", A, TTL)
    client.close()
