# SPDX-License-Identifier: MIT
"""Real servers that keep leases, each with a directory and a port of its own."""

from __future__ import annotations

import importlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pytest
from harness import free_port, wait_until
from proctools import PROGRAMS_REQUIRED, descendants_of, die_with_parent, kill_all, kill_quietly, program

PASSWORD = "open/sesame@1"


class StoreServer:
    """One that can be stopped and started again with its data."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.prepare()

    def prepare(self) -> None:
        pass

    def commands(self) -> list[list[str]]:
        raise NotImplementedError

    def url(self, port: int | None = None) -> str:
        """What a server is told; *port*: that of a proxy before it."""
        raise NotImplementedError

    def ports(self) -> Sequence[int]:
        return [self.port]

    def __enter__(self) -> StoreServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.resume()
        self.stop()

    def start(self) -> None:
        with open(self.directory / "log", "ab") as log:
            self.processes = [
                subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    cwd=self.directory,
                    preexec_fn=die_with_parent,
                )
                for command in self.commands()
            ]
        for port in self.ports():
            wait_until(lambda port=port: self.answers(port), 20, self.log)

    def answers(self, port: int) -> bool:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-2000:]

    def stop(self, sig: int = signal.SIGKILL) -> None:
        if sig == signal.SIGKILL:
            kill_all([process.pid for process in self.processes])
        for process in self.processes:
            process.send_signal(sig)
        self.resume()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                kill_all([process.pid])
                process.wait(10)
        self.processes = []

    def pause(self) -> None:
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, sig: int) -> None:
        for process in self.processes:
            for pid in (process.pid, *descendants_of(process.pid)):
                kill_quietly(pid, sig)


class Redis(StoreServer):
    """*durable*: it writes each change to a file."""

    durable = True

    def commands(self) -> list[list[str]]:
        return [
            [
                *(program("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
                *("--appendonly", "yes" if self.durable else "no"),
                # One that may not ask since when the server runs takes over without waiting after a start.
                *("--user", "lease", "on", f">{PASSWORD}", "~gunicorn:lease:*", "+@all", "-info"),
            ]
        ]

    def url(self, port: int | None = None) -> str:
        return f"redis://lease:{quote(PASSWORD, safe='')}@127.0.0.1:{port or self.port}/1"


class ForgetfulRedis(Redis):
    """It keeps nothing on disk, and tells since when it has been up."""

    durable = False

    def url(self, port: int | None = None) -> str:
        return f"redis://127.0.0.1:{port or self.port}/1"


def _as_postgres(*command: str) -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return list(command)
    return [program("setpriv"), "--reuid=postgres", "--regid=postgres", "--init-groups", *command]


def postgresql_program(name: str) -> str:
    """Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else program(name)


def has_psycopg() -> bool:
    """Whether psycopg works: it needs libpq, which pip does not bring. With REQUIRE_PROGRAMS=1 it must."""
    try:
        importlib.import_module("psycopg")
    except ImportError:
        if PROGRAMS_REQUIRED:
            pytest.fail("psycopg does not work, and REQUIRE_PROGRAMS=1 is set")
        return False
    return True


class PostgreSQL(StoreServer):
    def prepare(self) -> None:
        if not has_psycopg():
            pytest.skip("psycopg finds no libpq")
        self.pooler_port = free_port()
        initdb = postgresql_program("initdb")
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.directory, user.pw_uid, user.pw_gid)
        (self.directory / "password").write_text(PASSWORD)
        (self.directory / "password").chmod(0o644)
        subprocess.run(
            _as_postgres(
                *(initdb, "-D", "data", "-U", "lease", "--pwfile=password"),
                *("-A", "scram-sha-256", "--no-sync", "--locale=C", "-E", "UTF8", "--no-instructions"),
            ),
            cwd=self.directory,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (self.directory / "users.txt").write_text(f'"lease" "{PASSWORD}"\n')
        (self.directory / "users.txt").chmod(0o644)
        (self.directory / "pgbouncer.ini").write_text(
            f"""\
[databases]
postgres = host=127.0.0.1 port={self.port} dbname=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.pooler_port}
unix_socket_dir =
auth_type = plain
auth_file = users.txt
pool_mode = transaction
server_login_retry = 0.2
"""
        )

    def commands(self) -> list[list[str]]:
        postgres = [
            *(postgresql_program("postgres"), "-D", "data", "-p", str(self.port), "-k", ""),
            # It starts fast, and is no slower than its log on disk.
            *("-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=8MB", "-c", "fsync=off"),
        ]
        found = [_as_postgres(*postgres)]
        if shutil.which("pgbouncer") or PROGRAMS_REQUIRED:
            found.append(_as_postgres(program("pgbouncer"), "-q", "pgbouncer.ini"))
        return found

    def ports(self) -> Sequence[int]:
        return [self.port, self.pooler_port][: len(self.processes)]

    def answers(self, port: int) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url(port), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def url(self, port: int | None = None) -> str:
        return f"postgresql://lease:{quote(PASSWORD, safe='')}@127.0.0.1:{port or self.port}/postgres"

    def stop(self, sig: int = signal.SIGKILL) -> None:
        # A smart shutdown (SIGTERM) would wait for its clients.
        super().stop(signal.SIGINT if sig == signal.SIGTERM else sig)


class Etcd(StoreServer):
    def prepare(self) -> None:
        self.peer_port = free_port()

    def commands(self) -> list[list[str]]:
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.peer_port}"
        return [
            [
                *(program("etcd"), "--data-dir", str(self.directory / "data"), "--name", "one"),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"one={peer}"),
                # The shortest lease is one and a half times the election timeout.
                *("--heartbeat-interval", "20", "--election-timeout", "200"),
            ]
        ]

    def answers(self, port: int) -> bool:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/health")
        return b'"true"' in connection.getresponse().read()

    def url(self, port: int | None = None) -> str:
        return f"etcd://127.0.0.1:{port or self.port}"


class Kubernetes(StoreServer):
    """Not Kubernetes itself: see `kubernetesserver`."""

    def prepare(self) -> None:
        self.options: list[str] = []
        self.account = self.directory / "account"
        self.account.mkdir()
        (self.account / "token").write_text(PASSWORD + "\n")
        (self.account / "namespace").write_text("shop")

    def commands(self) -> list[list[str]]:
        script = str(Path(__file__).with_name("kubernetesserver.py"))
        return [
            [sys.executable, script, str(self.port), str(self.directory / "objects"), PASSWORD, *self.options]
        ]

    def url(self, port: int | None = None) -> str:
        server = f"http://127.0.0.1:{port or self.port}"
        return f"kubernetes://?server={quote(server, safe='')}&account={quote(str(self.account), safe='')}"


SERVERS = {
    "redis": Redis,
    "postgresql": PostgreSQL,
    "etcd": Etcd,
    "kubernetes": Kubernetes,
}
