# SPDX-License-Identifier: MIT
"""SIGUSR2: a second master on the same sockets, which takes over or goes again."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from harness import children_of, is_alive, wait_until
from tinyserver import HOOKS, TinyServer


def successor(server: TinyServer) -> int:
    """The new master, once it has its pid file."""
    return server.read_int("x.pid.2")


def test_the_new_master_takes_over() -> None:
    with TinyServer(HOOKS, workers=1, pidfile="x.pid") as server:
        old = server.pid
        first = server.running(1)
        server.signal(signal.SIGUSR2)
        new = successor(server)
        assert server.read_int("x.pid") == old
        wait_until(lambda: children_of(new), 5)
        server.signal(signal.SIGUSR2)
        server.wait_log("is already running")
        server.stop()
        server.adopt(new)
        wait_until(lambda: server.read_int("x.pid") == new, 5, "the pid file renamed")
        assert not (server.dir / "x.pid.2").exists()
        [worker] = server.running(1, without=first)
        assert int(server.get().text) == worker
        assert len(server.events("pre_exec")) == 1
        # It was promoted: it can be succeeded in turn.
        server.signal(signal.SIGUSR2)
        third = successor(server)
        server.signal(signal.SIGTERM)
        server.wait_exit()
        server.adopt(third)
        wait_until(lambda: server.read_int("x.pid") == third, 5, "the pid file renamed again")
        assert server.get().status == 200
        assert server.stop() == 0


def test_the_new_master_goes_and_the_old_one_stays() -> None:
    with TinyServer(workers=1, pidfile="x.pid") as server:
        pids = server.running(1)
        for _ in range(2):
            server.signal(signal.SIGUSR2)
            new = successor(server)
            wait_until(lambda new=new: children_of(new), 5)
            os.kill(new, signal.SIGUSR2)
            os.kill(new, signal.SIGTERM)
            wait_until(lambda new=new: not is_alive(new), 5, "the new master gone")
            wait_until(lambda: not (server.dir / "x.pid.2").exists(), 5)
            assert server.read_int("x.pid") == server.pid
            assert server.get().status == 200
        assert server.running(1) == pids


def test_a_successor_that_cannot_start_changes_nothing() -> None:
    with TinyServer(workers=1, pidfile="x.pid") as server:
        pids = server.running(1)
        server.write("gunicorn.conf.py", "raise RuntimeError('new and broken')")
        server.signal(signal.SIGUSR2)
        server.wait_log("new and broken")
        server.wait_log("this one keeps running")
        assert server.running(1) == pids
        assert not (server.dir / "x.pid.2").exists()


@pytest.mark.parametrize("error", ["RuntimeError('not now')", "SystemExit('not now')"])
def test_a_pre_exec_that_raises_leaves_one_master_and_runs_no_exit_handler(error: str) -> None:
    app = """
    import atexit, os
    from tinyworker import note
    atexit.register(lambda: note("exit", os.getpid()))
    def app(environ, start_response): pass
    """
    hook = f"def pre_exec(server): raise {error}"
    with TinyServer(hook, app=app, preload_app=True, workers=1) as server:
        pids = server.running(1)
        server.signal(signal.SIGUSR2)
        server.wait_log("not now")
        server.wait_log("The new master exited with status 1; this one keeps running")
        assert server.running(1) == pids
        assert not server.events("exit")


def test_a_unix_socket_outlives_the_old_master() -> None:
    with TinyServer(bind="unix", workers=1, pidfile="x.pid") as server:
        server.running(1)
        server.signal(signal.SIGUSR2)
        new = successor(server)
        wait_until(lambda: children_of(new), 5)
        server.stop()
        assert Path(server.unix_path).is_socket()
        server.adopt(new)
        wait_until(lambda: server.read_int("x.pid") == new, 5)
        assert server.get().status == 200
        assert server.stop() == 0
        assert not Path(server.unix_path).exists()


def test_the_successor_starts_where_the_old_master_did(tmp_path: Path) -> None:
    """The same directory, arguments and environment, whatever the configuration made of them since."""
    hook = """
    import os
    def on_starting(server):
        note("start", os.environ.get("ONE"), os.environ.get("GUNICORN_PID"), os.getcwd(), os.getpid())
    """
    (tmp_path / "app.py").write_text("def app(environ, start_response): pass\n")
    # The configuration file is named relative to the directory of the start.
    args = ["-c", "gunicorn.conf.py"]
    with TinyServer(hook, workers=1, raw_env=["ONE=1"], chdir=str(tmp_path), args=args) as server:
        server.running(1)
        server.signal(signal.SIGUSR2)
        starts = server.wait_events("start", 2)
        assert [words[:3] for words in starts] == 2 * [["1", "None", str(tmp_path)]]
        server.stop()
        server.adopt(int(starts[1][3]))
        server.stop()


def test_sockets_from_systemd_and_on_to_the_successor() -> None:
    """LISTEN_FDS from 3 on, meant for this process; a bind is not made then."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        # A shell knows its own pid before it becomes the server.
        command = 'exec 3<&"$0" && export LISTEN_PID=$$ LISTEN_FDS=1 && exec "$@"'
        with TinyServer(
            HOOKS,
            workers=1,
            pidfile="x.pid",
            bind=None,
            ready=None,
            prefix=["bash", "-c", command, str(listener.fileno())],
            popen={"pass_fds": [listener.fileno()]},
        ) as server:
            server.host, server.port = "127.0.0.1", port
            [worker] = server.running(1)
            assert int(server.get().text) == worker
            server.signal(signal.SIGUSR2)
            new = successor(server)
            wait_until(lambda: children_of(new), 5)
            server.stop()
            server.adopt(new)
            wait_until(lambda: server.read_int("x.pid") == new, 5)
            assert int(server.get().text) in children_of(new)
            server.stop()


def test_a_descriptor_as_address() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        fd = listener.fileno()
        with TinyServer(
            bind=None, ready=None, workers=1, args=["-b", f"fd://{fd}"], popen={"pass_fds": [fd]}
        ) as server:
            server.host, server.port = "127.0.0.1", listener.getsockname()[1]
            [worker] = server.running(1)
            assert int(server.get().text) == worker
            # Not ours to rebind, only to go on with.
            server.signal(signal.SIGHUP)
            [second] = server.running(1, without=[worker])
            assert int(server.get().text) == second


@pytest.mark.parametrize("fd", [999, 2])
def test_a_descriptor_that_is_no_socket_is_a_clear_error(fd: int) -> None:
    with TinyServer(bind=None, ready=None, args=["-b", f"fd://{fd}"], expected_code=1) as server:
        assert server.wait_exit(10) == 1
        assert f"descriptor {fd}" in server.log() and "Traceback" not in server.log()


def test_several_addresses_at_once(short_dir: Path) -> None:
    path = short_dir / "s"
    with TinyServer(workers=1, args=["-b", f"unix:{path}", "-b", "[::1]:0"], umask=0o117) as server:
        server.running(1)
        assert server.get().status == 200
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.0 200")
        assert path.stat().st_mode & 0o777 == 0o660
        assert "http://[::1]:" in server.log()
        server.stop()
        assert not path.exists()


def test_readiness_is_told(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(short_dir / "notify"))
        manager.settimeout(10)
        with TinyServer(workers=1, env={"NOTIFY_SOCKET": str(short_dir / "notify")}):
            while b"READY=1" not in manager.recv(4096).split(b"\n"):
                pass
