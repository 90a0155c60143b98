# SPDX-License-Identifier: MIT
"""The control socket: its protocol, its enemies, its file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import pytest
from e2e_companions import companion_server, entry, pids, starts
from harness import Control, Server, is_alive, load, wait_until

# -- commands --


def test_start_stop_restart() -> None:
    with companion_server(entry("a", "idle"), entry("b", "idle")) as server:
        first = server.wait_companion("a")["pid"]
        other = server.wait_companion("b")["pid"]
        assert server.ask("start", "a")["ok"], "start of what runs succeeds"
        reply = server.ask("stop", "a")
        assert reply["ok"] and isinstance(reply["message"], str)
        found = server.wait_companion("a", "STOPPED")
        assert found["pid"] in (None, 0) and found["description"] == "stopped manually"
        assert not is_alive(first)
        assert server.ask("stop", "a")["ok"], "stop of what is stopped succeeds"
        assert server.ask("start", "a")["ok"]
        second = server.wait_companion("a", without=[first])["pid"]
        assert server.ask("restart", "a")["ok"]
        third = server.wait_companion("a", without=[first, second])["pid"]
        server.ask("stop", "a")
        server.wait_companion("a", "STOPPED")
        assert server.ask("restart", "a")["ok"], "restart of what is stopped starts it"
        server.wait_companion("a", without=[first, second, third])
        assert server.companion("b")["pid"] == other
        assert server.companion("a")["kill_count"] == 0


def test_commands_while_it_is_stopping() -> None:
    with companion_server(entry("drain", env={"UNTIL": "done"})) as server:
        pid = server.wait_companion("drain")["pid"]
        assert server.ask("stop", "drain")["ok"]
        for cmd in ("start", "restart"):
            reply = server.ask(cmd, "drain")
            assert reply["ok"] is False
            assert "is stopping; retry" in reply.get("error", "") + reply.get("message", "")
        assert server.ask("stop", "drain")["ok"]
        assert server.companion("drain")["pid"] == pid
        server.write("done", "")
        server.wait_companion("drain", "STOPPED")
        assert len(starts(server, "drain")) == 1


def test_stop_cancels_a_pending_restart() -> None:
    with companion_server(entry("drain", env={"UNTIL": "done"})) as server:
        server.wait_companion("drain")
        assert server.ask("restart", "drain")["ok"]
        assert server.companion("drain")["state"] == "STOPPING"
        assert server.ask("stop", "drain")["ok"]
        server.write("done", "")
        server.wait_companion("drain", "STOPPED")
        assert len(starts(server, "drain")) == 1


def test_commands_in_backoff() -> None:
    with companion_server(entry("exit3", restart_delay=60)) as server:
        server.wait_companion("exit3", "BACKOFF")
        assert server.ask("start", "exit3")["ok"]
        wait_until(lambda: len(starts(server, "exit3")) == 2, 3, "started at once")
        server.wait_companion("exit3", "BACKOFF")
        assert server.ask("stop", "exit3")["ok"]
        assert server.companion("exit3")["state"] == "STOPPED"


def test_a_stop_that_needs_sigkill_is_counted() -> None:
    with companion_server(entry("stubborn", stop_timeout=0.5)) as server:
        server.wait_companion("stubborn")
        started = time.monotonic()
        server.ask("stop", "stubborn")
        found = server.wait_companion("stubborn", "STOPPED")
        assert 0.4 < time.monotonic() - started < 2.5
        assert found["kill_count"] == 1


def test_stop_signal_by_name_and_number() -> None:
    companions = [
        entry("drain1", "drain", stop_signal="INT", env={"DRAIN": "0"}),
        entry("drain2", "drain", stop_signal=int(signal.SIGQUIT), env={"DRAIN": "0"}),
        entry("drain3", "drain", stop_signal="SIGTERM", env={"DRAIN": "0"}),
    ]
    with companion_server(*companions) as server:
        for number, sig in ((1, signal.SIGINT), (2, signal.SIGQUIT), (3, signal.SIGTERM)):
            name = f"drain{number}"
            server.wait_companion(name)
            server.ask("stop", name)
            server.wait_companion(name, "STOPPED")
            assert [int(line.split()[1]) for line in server.log(f"{name}.signals").splitlines()] == [sig]


# -- garbage and hostile clients (what must hold, 9) --


GARBAGE = {
    "not json": b"hello\n",
    "blank": b"\n",
    "spaces": b"   \n",
    "null": b"null\n",
    "number": b"5\n",
    "list": b"[]\n",
    "string": b'"status"\n',
    "no command": b"{}\n",
    "command is a number": b'{"cmd": 5}\n',
    "command is a list": b'{"cmd": ["status"]}\n',
    "unknown command": b'{"cmd": "explode"}\n',
    "attribute as command": b'{"cmd": "__class__"}\n',
    "method as command": b'{"cmd": "stop_all"}\n',
    "no name": b'{"cmd": "stop"}\n',
    "name is a number": b'{"cmd": "stop", "name": 5}\n',
    "unknown name": b'{"cmd": "stop", "name": "nobody"}\n',
    "binary": bytes(range(128, 256)) + b"\n",
    "NUL": b"\0\0\0\n",
    "deep": b"[" * 30000 + b"\n",
    "large number": b'{"cmd": "status", "name": ' + b"9" * 5000 + b"}\n",
    "surrogate": b'{"cmd": "status", "name": "\\ud800"}\n',
}


def test_garbage_gets_an_error_and_the_connection_stays_usable() -> None:
    with companion_server(entry("a", "idle")) as server:
        pid = server.wait_companion("a")["pid"]
        manager = server.wait_manager()
        with server.control() as control:
            for case, data in GARBAGE.items():
                control.send(data)
                reply = control.read_reply()
                assert reply["ok"] is False, (case, reply)
                assert reply["error"] and isinstance(reply["error"], str), (case, reply)
                assert control.ask("status")["ok"], case
        assert server.manager() == manager
        assert server.companion("a")["pid"] == pid
        assert "Traceback" not in server.log()


def test_pipelined_requests_are_answered_in_order() -> None:
    with companion_server(entry("a", "idle")) as server:
        server.wait_companion("a")
        with server.control() as control:
            control.send(b'{"cmd": "status"}\nnonsense\n{"cmd": "status", "name": "a"}\n{"cmd":')
            assert control.read_reply()["ok"] is True
            assert control.read_reply()["ok"] is False
            assert len(control.read_reply()["companions"]) == 1
            control.send(b' "status"}\r\n')
            assert control.read_reply()["ok"] is True
        # A client that closes its sending side still gets its answers.
        with server.control() as control:
            control.send(b'{"cmd": "status"}\n' * 3)
            control.sock.shutdown(socket.SHUT_WR)
            assert [control.read_reply()["ok"] for _ in range(3)] == [True] * 3
            assert control.read_line() == b""


def test_a_line_of_64_kib_passes_and_one_byte_more_does_not() -> None:
    with companion_server(entry("a", "idle")) as server:
        server.wait_manager()
        with server.control() as control:
            line = b'{"cmd": "status"' + b" " * (65536 - 17) + b"}"
            assert len(line) == 65536
            control.send(line + b"\n")
            assert control.read_reply()["ok"] is True
        with server.control() as control:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                control.send(b"x" * 65537 + b"\n")
            with contextlib.suppress(ConnectionResetError):
                reply = control.read_line()
                assert reply == b"" or json.loads(reply)["ok"] is False
        # Without any newline the limit holds as well.
        with server.control() as control:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(64):
                    control.send(b"x" * 65536)
            with contextlib.suppress(ConnectionResetError):
                reply = control.read_line()
                assert reply == b"" or json.loads(reply)["ok"] is False
        assert server.ask("status")["ok"]


def supervised_without_delay(server: Server) -> None:
    """A killed companion is back soon, and the socket answers others soon."""
    before = server.wait_companion("a")["pid"]
    os.kill(before, signal.SIGKILL)
    killed = time.monotonic()
    server.wait_companion("a", timeout=2, without=[before])
    assert time.monotonic() - killed < 1.5
    started = time.monotonic()
    assert server.ask("status")["ok"]
    assert time.monotonic() - started < 0.5


def test_half_a_line_held_open() -> None:
    with companion_server(entry("a", "idle")) as server:
        server.wait_companion("a")
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.control()) for _ in range(20)]
            for client in clients:
                client.send(b'{"cmd": "sta')
            supervised_without_delay(server)
            for client in clients:
                client.send(b'tus"}\n')
                assert client.read_reply()["ok"] is True


def test_a_client_that_never_reads() -> None:
    with companion_server(entry("a", "idle"), *(entry(f"x{n}", "idle") for n in range(10))) as server:
        server.wait_companion("a")
        manager = server.wait_manager()
        with server.control() as rude:
            rude.sock.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                while sent < 4_000_000:
                    sent += rude.sock.send(b'{"cmd": "status"}\n' * 1000)
            supervised_without_delay(server)
            assert memory_kb(manager) < 120_000, "its answers are not piled up without end"
            cpu = cpu_ticks(manager)
            deadline = time.monotonic() + 0.5
            wait_until(lambda: time.monotonic() > deadline, 2)
            assert cpu_ticks(manager) - cpu < 25, "it costs no busy loop"
        supervised_without_delay(server)


def memory_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_200_connections_at_once_and_a_clean_refusal_above() -> None:
    with companion_server(entry("a", "idle")) as server:
        server.wait_companion("a")
        manager = server.wait_manager()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.control()) for _ in range(200)]
            for client in clients:
                client.send(b'{"cmd": "status"}\n')
            for client in clients:
                assert client.read_reply()["ok"] is True
            # How many more there may be is the server's choice; past it, an error and a close, not silence.
            refused = 0
            for _ in range(300):
                more = stack.enter_context(server.control())
                try:
                    more.send(b'{"cmd": "status"}\n')
                    reply = more.read_reply()
                except (BrokenPipeError, ConnectionError):
                    refused += 1
                    continue
                if not reply["ok"]:
                    assert "error" in reply
                    refused += 1
            assert refused == 0 or refused <= 300
            before = clients[0].ask("status", "a")["companions"][0]["pid"]
            os.kill(before, signal.SIGKILL)
            wait_until(
                lambda: clients[5].ask("status", "a")["companions"][0]["pid"] not in (before, None, 0), 2
            )
        supervised_without_delay(server)
        assert server.manager() == manager


def test_many_clients_come_and_go_while_companions_are_supervised() -> None:
    with companion_server(entry("a", "idle"), companion_restart_delay=0.1) as server:
        server.wait_companion("a")
        manager = server.wait_manager()
        before = len(os.listdir(f"/proc/{manager}/fd"))
        done = threading.Event()

        def hammer() -> None:
            while not done.is_set():
                with contextlib.suppress(OSError), server.control() as control:
                    control.send(b'{"cmd": "status"}\n{"cmd": "st')

        threads = [threading.Thread(target=hammer, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                pid = server.wait_companion("a")["pid"]
                os.kill(pid, signal.SIGKILL)
                server.wait_companion("a", timeout=3, without=[pid])
        finally:
            done.set()
            for thread in threads:
                thread.join(5)
        wait_until(lambda: len(os.listdir(f"/proc/{manager}/fd")) <= before, 5, "no descriptor leaked")


# -- the file --


@pytest.mark.parametrize("mode", [None, 0o660])
def test_the_mode_is_right_from_the_first_moment(mode: int | None) -> None:
    settings = {} if mode is None else {"companion_control_socket_mode": mode}
    server = companion_server(
        entry("a", "idle"), umask=0, companion_control_socket="run/c.sock", ready_option=None, **settings
    )
    path = server.configured_control = server.dir / "run" / "c.sock"
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        # Whatever name it is made under, a socket in this directory has one mode only.
        while not done.is_set():
            with contextlib.suppress(OSError):
                for item in os.scandir(path.parent):
                    info = item.stat(follow_symlinks=False)
                    if stat.S_ISSOCK(info.st_mode):
                        seen.add(stat.S_IMODE(info.st_mode))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        with server:
            server.wait_manager()
            assert stat.S_IMODE(path.stat().st_mode) == (mode or 0o600)
    finally:
        done.set()
        thread.join(5)
    assert seen == {mode or 0o600}, [oct(found) for found in seen]


def test_the_default_directory_is_private() -> None:
    with companion_server(entry("a", "idle"), umask=0) as server:
        server.wait_manager()
        path = server.control_path()
        assert path.parent == server.run_dir / "gunicorn"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_default_place_follows_the_environment() -> None:
    with companion_server(entry("a", "idle"), env_option={"XDG_RUNTIME_DIR": None}) as server:
        server.wait_manager()
        path = server.home / ".gunicorn" / f"companion-{server.pid}.sock"
        assert path.is_socket() and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    server = companion_server(entry("a", "idle"))
    (server.dir / "rt").mkdir()
    server.env["RUNTIME_DIRECTORY"] = str(server.dir / "rt")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(server.dir / "rt" / f"companion-{2**22 - 2}.sock"))
    with server:
        server.wait_manager()
        assert (server.dir / "rt" / f"companion-{server.pid}.sock").is_socket()
        # What a killed server had left is gone.
        wait_until(lambda: len(list((server.dir / "rt").glob("companion-*.sock"))) == 1)


def test_an_empty_path_means_no_socket() -> None:
    with companion_server(entry("a", "idle"), companion_control_socket="") as server:
        wait_until(lambda: starts(server, "a"))
        assert not [found for found in server.dir.rglob("*") if found.is_socket()]


def at(server: Server, name: str = "c.sock") -> Path:
    server.configured_control = server.dir / name
    return server.configured_control


def test_a_stale_socket_file_is_replaced() -> None:
    server = companion_server(entry("a", "idle"), companion_control_socket="c.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(at(server)))
    with server:
        server.wait_companion("a")


def test_a_plain_file_in_its_place_is_left_alone() -> None:
    server = companion_server(entry("a", "idle"), companion_control_socket="c.sock")
    at(server).write_text("somebody's data")
    with server:
        wait_until(lambda: starts(server, "a"))
        server.wait_log("c.sock")
        assert at(server).read_text() == "somebody's data"
        assert server.get("/").status == 200


#: Looks after the socket twice a second, where it is every few seconds else.
ATTENTIVE = """
import gunicorn.companion.server.handle, gunicorn.companion.control
gunicorn.companion.server.handle.SOCKET_CHECK_INTERVAL = gunicorn.companion.control.RETRY_INTERVAL = 0.5
"""


def test_a_live_socket_of_another_is_left_alone_and_tried_again() -> None:
    server = companion_server(entry("a", "idle"), companion_control_socket="c.sock", extra=ATTENTIVE)
    path = at(server)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(64)
        inode = path.stat().st_ino
        with server:
            wait_until(lambda: starts(server, "a"))
            server.wait_log("c.sock")
            assert path.stat().st_ino == inode
            manager = server.manager()
            other.close()
            path.unlink()
            assert server.wait_manager(15) == manager
            server.wait_companion("a")
            assert len(starts(server, "a")) == 1


def test_a_socket_taken_by_another_is_not_removed_at_the_end() -> None:
    server = companion_server(entry("a", "idle"), companion_control_socket="c.sock")
    path = at(server)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(64)
        with server:
            wait_until(lambda: starts(server, "a"))
            assert server.stop() == 0
            assert path.is_socket()
            path.unlink()


def test_a_deleted_socket_file_is_made_again() -> None:
    with companion_server(entry("a", "idle"), extra=ATTENTIVE) as server:
        server.wait_companion("a")
        before = pids(server)
        manager = server.wait_manager()
        server.control_path().unlink()
        assert server.wait_manager(11) == manager
        assert pids(server) == before
    with companion_server(entry("a", "idle")) as server:
        server.wait_companion("a")
        before = pids(server)
        # USR1 checks it at once.
        server.control_path().unlink()
        server.signal(signal.SIGUSR1)
        server.wait_manager(3)
        assert pids(server) == before, "USR1 kills no companion"


def test_the_whole_directory_deleted() -> None:
    import shutil

    with companion_server(entry("a", "idle"), extra=ATTENTIVE) as server:
        server.wait_companion("a")
        before = pids(server)
        shutil.rmtree(server.control_path().parent)
        server.wait_manager(12)
        assert pids(server) == before
        os.kill(before["a"] or 0, signal.SIGKILL)
        server.wait_companion("a", without=[before["a"] or 0])


@pytest.mark.parametrize("place", ["app.py/c.sock", "no/such/dir/c.sock", "n" * 120])
def test_a_socket_that_cannot_be_made_is_one_warning(place: str) -> None:
    with (
        companion_server(entry("a", "idle"), companion_control_socket=place) as server,
        load(server) as problems,
    ):
        wait_until(lambda: starts(server, "a"))
        wait_until(lambda: "WARNING" in server.log(), 5, "a warning")
        pid = starts(server, "a")[0][0]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(starts(server, "a")) == 2, 5, "supervised without a socket")
        lines = [line for line in server.log().splitlines() if "WARNING" in line and "c.sock" in line]
        assert len(lines) <= 1
        assert problems == []


def test_the_listener_s_backlog_does_not_stop_a_burst() -> None:
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
