# SPDX-License-Identifier: MIT
"""Every kind of listening socket."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys

import pytest
from e2e_apps import WEB
from harness import Server, free_port, wait_until

#: Puts the descriptor given first at 3, as systemd does, says so in the environment, and becomes the program.
ACTIVATE = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",")]
for place, fd in enumerate(fds, 3):
    os.dup2(fd, place, inheritable=True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(fds))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("umask", [0, 0o077])
def test_unix_socket(umask: int) -> None:
    with Server(WEB, f"umask = {umask}", bind="unix") as server:
        info = os.stat(server.unix_path)
        assert stat.S_ISSOCK(info.st_mode)
        assert stat.S_IMODE(info.st_mode) == 0o777 & ~umask
        environ = server.get("/environ").json()
        assert environ["wsgi.url_scheme"] == "http"
        assert server.stop() == 0
        assert not os.path.exists(server.unix_path)


def test_a_stale_unix_socket_is_replaced() -> None:
    server = Server(WEB, bind="unix")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(server.unix_path)
    with server:
        assert server.get("/").status == 200


def test_a_file_in_the_socket_s_place_is_not_removed() -> None:
    server = Server(WEB, bind="unix", ready=None)
    server.write("web.sock", "somebody's data")
    with server:
        assert server.wait_exit(15) != 0
        assert server.log("web.sock") == "somebody's data"


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_ipv6() -> None:
    with Server(WEB, bind="tcp6") as server:
        environ = server.get("/environ").json()
        assert environ["REMOTE_ADDR"] == "::1"
        assert environ["SERVER_PORT"] == str(server.port)


def test_several_at_once() -> None:
    port = free_port()
    with Server(WEB, args=["-b", f"127.0.0.1:{port}", "-b", "unix:more.sock"]) as server:
        first, server.port = server.port, port
        assert server.get("/").status == 200
        server.port, server.unix_path = first, str(server.dir / "more.sock")
        assert server.get("/").status == 200
        server.unix_path = ""


def test_port_from_the_environment() -> None:
    server = Server(WEB, bind=None, env={"PORT": str(free_port())})
    server.port = int(server.env["PORT"])
    with server:
        assert server.get("/").status == 200


@pytest.fixture
def listener() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(16)
    return sock


def test_fd_socket(listener: socket.socket) -> None:
    with listener:
        server = Server(
            WEB, bind=None, args=["-b", f"fd://{listener.fileno()}"], popen={"pass_fds": [listener.fileno()]}
        )
        server.port = listener.getsockname()[1]
        with server:
            assert server.get("/").status == 200
            old = server.workers()
            server.signal(signal.SIGHUP)
            server.wait_workers(1, without=old)
            assert server.get("/").status == 200
        # It is not the server's: still open here.
        assert listener.getsockname()[1] == server.port


def test_systemd_activation(listener: socket.socket) -> None:
    with listener:
        prefix = [sys.executable, "-c", ACTIVATE, str(listener.fileno())]
        server = Server(WEB, bind=None, prefix=prefix, popen={"pass_fds": [listener.fileno()]})
        server.port = listener.getsockname()[1]
        with server:
            found = server.get("/process").json()
            assert "LISTEN_FDS" not in found["env"] and "LISTEN_PID" not in found["env"]
            server.signal(signal.SIGUSR2)
            new = wait_until(
                lambda: next((p for p in server.children() if p not in (found["pid"],)), None), 10
            )
            assert new is not None
            wait_until(lambda: server.get("/process").json()["ppid"] == new, 10, "the new master serves")
            assert server.stop() == 0
            server.adopt(new)
            assert server.get("/").status == 200


def test_systemd_unix_socket_stays(short_dir: object) -> None:
    path = f"{short_dir}/act.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        prefix = [sys.executable, "-c", ACTIVATE, str(listener.fileno())]
        server = Server(WEB, bind=None, prefix=prefix, popen={"pass_fds": [listener.fileno()]})
        server.unix_path = path
        with server:
            assert server.get("/").status == 200
            assert server.stop() == 0
        assert os.path.exists(path), "the socket belongs to the service manager"


def test_listen_variables_of_another_process_are_not_ours() -> None:
    with Server(WEB, env={"LISTEN_PID": "1", "LISTEN_FDS": "1"}) as server:
        assert server.get("/").status == 200


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


def test_chdir_applies_to_relative_paths() -> None:
    with Server(
        WEB, "pidfile = 'in.pid'", args=["--chdir", "sub"], files={"sub/app.py": WEB}, ready=None
    ) as server:
        wait_until(lambda: server.get("/").status == 200)
        assert server.get("/process").json()["cwd"] == str(server.dir / "sub")
