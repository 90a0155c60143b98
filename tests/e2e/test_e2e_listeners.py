# SPDX-License-Identifier: MIT
"""Listening sockets: PORT, systemd, SO_REUSEPORT."""

from __future__ import annotations

import os
import socket

import pytest
from e2e_apps import WEB
from harness import Server, free_port, wait_until


def test_port_from_the_environment() -> None:
    server = Server(WEB, bind=None, env={"PORT": str(free_port())})
    server.port = int(server.env["PORT"])
    with server:
        assert server.get("/").status == 200


def test_a_unix_socket_of_systemd_stays(short_dir: object) -> None:
    path = f"{short_dir}/act.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        # A shell knows its own pid before it becomes the server.
        activate = 'exec 3<&"$0" && export LISTEN_PID=$$ LISTEN_FDS=1 && exec "$@"'
        prefix = ["bash", "-c", activate, str(listener.fileno())]
        server = Server(WEB, bind=None, prefix=prefix, popen={"pass_fds": [listener.fileno()]})
        server.unix_path = path
        with server:
            assert server.get("/").status == 200
            assert server.stop() == 0
        assert os.path.exists(path), "the socket belongs to the service manager"


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT here")
def test_reuse_port_lets_two_servers_share() -> None:
    with Server(WEB, "reuse_port = True") as first:
        bind = ["-b", first.address]
        second = Server(WEB, "reuse_port = True", bind=None, args=bind, ready=lambda s: s.workers())
        second.port = first.port
        with second:
            seen = set()

            def both() -> bool:
                seen.add(first.get("/process").json()["ppid"])
                return seen == {first.pid, second.pid}

            wait_until(both, 10, "answers of both", interval=0)
