# SPDX-License-Identifier: MIT
"""The control socket's file: where it is, and what the master and the manager do when it is gone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
from pathlib import Path

from e2e_companions import CHECKS_OFTEN, companion_server, entry, pids, starts
from harness import Control, Server, wait_until


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_default_place_follows_the_environment() -> None:
    with companion_server(entry("a", "idle"), umask=0) as server:
        server.wait_manager()
        path = server.run_dir / "gunicorn" / f"companion-{server.pid}.sock"
        assert (mode_of(path.parent), mode_of(path)) == (0o700, 0o600)
    with companion_server(entry("a", "idle"), env_option={"XDG_RUNTIME_DIR": None}) as server:
        server.wait_manager()
        path = server.home / ".gunicorn" / f"companion-{server.pid}.sock"
        assert path.is_socket() and mode_of(path.parent) == 0o700
    server = companion_server(entry("a", "idle"))
    runtime = server.dir / "rt"
    runtime.mkdir()
    server.env["RUNTIME_DIRECTORY"] = str(runtime)
    # What a killed server has left goes.
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(runtime / f"companion-{2**22 - 2}.sock"))
    with server:
        server.wait_manager()
        own = runtime / f"companion-{server.pid}.sock"
        wait_until(lambda: list(runtime.glob("companion-*.sock")) == [own])


def test_an_empty_path_means_no_socket() -> None:
    with companion_server(entry("a", "idle"), companion_control_socket="") as server:
        wait_until(lambda: starts(server, "a"))
        assert not [found for found in server.dir.rglob("*") if found.is_socket()]


def test_a_live_socket_of_another_server_is_left_alone_and_tried_again() -> None:
    def server_at(path: str) -> Server:
        return companion_server(entry("a", "idle"), companion_control_socket=path, extra=CHECKS_OFTEN)

    server = server_at("c.sock")
    path = server.configured_control = server.dir / "c.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(64)
        inode = path.stat().st_ino
        with server, server_at(str(path)) as second:
            for each in (server, second):
                wait_until(lambda each=each: starts(each, "a"))  # type: ignore[misc]
                each.wait_log("c.sock")
            # A server that has never had it does not remove it at its end either.
            assert second.stop() == 0
            assert path.stat().st_ino == inode
            manager = server.manager()
            other.close()
            path.unlink()
            assert server.wait_manager(15) == manager
            server.wait_companion("a")
            assert len(starts(server, "a")) == 1


def test_a_deleted_socket_file_is_made_again() -> None:
    with companion_server(entry("a", "idle"), extra=CHECKS_OFTEN) as server:
        server.wait_companion("a")
        before, manager = pids(server), server.wait_manager()
        server.control_path().unlink()
        assert server.wait_manager(11) == manager
        shutil.rmtree(server.control_path().parent)
        assert server.wait_manager(12) == manager
        assert pids(server) == before
    with companion_server(entry("a", "idle")) as server:
        server.wait_companion("a")
        before = pids(server)
        # USR1 checks it at once.
        server.control_path().unlink()
        server.signal(signal.SIGUSR1)
        server.wait_manager(3)
        assert pids(server) == before, "USR1 kills no companion"


def test_a_burst_of_connections_waits_in_the_backlog() -> None:
    with companion_server(entry("a", "idle")) as server:
        manager = server.wait_manager()
        os.kill(manager, signal.SIGSTOP)
        clients = []
        try:
            for _ in range(50):
                clients.append(Control(server.control_path()))
                clients[-1].send(b'{"cmd": "status"}\n')
        finally:
            os.kill(manager, signal.SIGCONT)
        for client in clients:
            assert client.read_reply()["ok"] is True
            client.close()
