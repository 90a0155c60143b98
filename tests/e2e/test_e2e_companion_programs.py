# SPDX-License-Identifier: MIT
"""Companions that are programs, and the sockets that the manager keeps for companions."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_companions import companion_server as jobs_server
from e2e_companions import entry, overlaps, reconfigure, wait_waiting
from harness import LINUX, Server, descriptors, free_port, is_alive, wait_until

pytestmark = pytest.mark.skipif(not LINUX, reason="looks at processes by /proc")

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
needs_uvicorn = pytest.mark.skipif(
    importlib.util.find_spec("uvicorn") is None, reason="uvicorn is not installed"
)

# How often a companion is restarted under load; more by hand.
RESTARTS = int(os.environ.get("E2E_RESTARTS", "6"))


def companion_server(*companions: dict[str, Any], **settings: Any) -> Server:
    server = jobs_server(*companions, **settings)
    # Programs note nothing.
    server.notes_starts = False
    return server


def program(name: str, *words: str, **keys: Any) -> dict[str, Any]:
    """A companion that runs *words*."""
    return {"name": name, "command": list(words), **keys}


def ask(address: str, timeout: float = 15.0) -> bytes:
    """The body of the answer at *address* ("HOST:PORT" or "unix:PATH"), read to its end."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        place: Any = address.removeprefix("unix:")
    else:
        sock = socket.socket()
        host, _, port = address.rpartition(":")
        place = (host, int(port))
    with sock:
        sock.settimeout(timeout)
        sock.connect(place)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.split()[1:2] == [b"200"], data
    return body


# -- a program in the place of a target --

NODE = """
const fds = Number(process.env.LISTEN_FDS || 0);
if (fds !== 1 || Number(process.env.LISTEN_PID) !== process.pid) process.exit(7);
const server = require("http").createServer((request, response) => response.end(`node ${process.pid}\\n`));
server.listen({fd: 3}, () => console.log(`it listens: "${process.argv.slice(1).join("|")}"`));
process.on("SIGTERM", () => server.close(() => process.exit(0)));
"""


@needs_node
def test_node_serves_on_a_socket_that_it_is_given() -> None:
    port = free_port()
    node = program(
        "socketio", "node", "-e", NODE, "two words", "it's", bind=f"127.0.0.1:{port}", stdout="out"
    )
    with companion_server(node) as server:
        pid = server.wait_companion("socketio")["pid"]
        assert ask(f"127.0.0.1:{port}") == b"node %d\n" % pid
        assert server.wait_log("it listens", name="out") == 'it listens: "two words|it\'s"\n'
        assert server.ask("restart", "socketio")["ok"]
        after = server.wait_companion("socketio", without=[pid])["pid"]
        assert ask(f"127.0.0.1:{port}") == b"node %d\n" % after
        assert not is_alive(pid)
        assert server.stop() == 0
        assert "SIGKILL" not in server.log()


# -- sockets --

WEB = '''
import os
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def serve():
    """http.server on the first inherited socket; at SIGTERM it finishes the request at hand."""
    assert os.environ["LISTEN_PID"] == str(os.getpid())
    server = HTTPServer(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=3)
    # Another copy may be quicker; a blocking accept() would then wait, and see no stop.
    server.socket.setblocking(False)
    signal.signal(signal.SIGTERM, lambda *args: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.02)


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = str(os.getpid()).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def open_files():
    numbers = []
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the listing's own
        # libffi keeps its library open once ctypes is imported.
        if "libffi.so" not in path:
            numbers.append(int(name))
    return sorted(numbers)

def shows_its_sockets():
    kinds = []
    for number in range(3, 3 + int(os.environ["LISTEN_FDS"])):
        sock = socket.socket(fileno=number)
        kinds.append([sock.family.name, sock.getsockname()])
        sock.detach()
    with open("sockets.tmp", "w") as file:
        file.write(repr((kinds, os.environ["LISTEN_FDNAMES"], open_files())))
    os.rename("sockets.tmp", "sockets")
    signal.pause()
'''
FILES = {"web.py": WEB}


def http_server(**keys: Any) -> dict[str, Any]:
    return {"name": "site", "target": "web:serve", **keys}


def uvicorn(**keys: Any) -> dict[str, Any]:
    words = [sys.executable, "-m", "uvicorn", "web:asgi", "--fd", "3", "--log-level", "warning"]
    return program("site", *words, **keys)


class Counting:
    """Clients that connect again and again, and count how it ends."""

    def __init__(self, address: str, clients: int = 4) -> None:
        self.address = address
        self.ends: Counter[str] = Counter()
        self.pids: set[int] = set()
        self.longest = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        while not self._over.is_set():
            begun = time.monotonic()
            try:
                self.pids.add(int(ask(self.address)))
                self.ends["answered"] += 1
            except Exception as exc:
                self.ends[f"{type(exc).__name__}: {exc}"] += 1
            self.longest = max(self.longest, time.monotonic() - begun)
            time.sleep(0.002)

    def __enter__(self) -> Counting:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def refuses(address: str) -> bool:
    """Whether nobody listens there."""
    try:
        ask(address, timeout=0.2)
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except OSError:
        pass
    return False


@contextlib.contextmanager
def counting(server: Server, address: str) -> Iterator[Counting]:
    assert int(ask(address)) > 0
    with Counting(address) as clients:
        yield clients


def restart_under_load(server: Server, address: str) -> Counting:
    pids = [server.wait_companion("site")["pid"]]
    with counting(server, address) as clients:
        for _ in range(RESTARTS):
            assert server.ask("restart", "site")["ok"]
            pids.append(server.wait_companion("site", without=pids, timeout=30)["pid"])
            wait_until(lambda: pids[-1] in clients.pids, 20, "an answer of the new one")
    assert len(set(pids)) == RESTARTS + 1
    return clients


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_http_server_is_restarted_under_load(kind: str) -> None:
    server = companion_server(files_option=FILES, companion_startsecs=0)
    address = f"127.0.0.1:{free_port()}" if kind == "tcp" else f"unix:{server.dir}/web.socket"
    reconfigure(server, http_server(bind=[address]), companion_startsecs=0)
    with server:
        clients = restart_under_load(server, address)
        assert set(clients.ends) == {"answered"}, clients.ends
        assert server.stop() == 0
        assert not os.path.exists(f"{server.dir}/web.socket")


@needs_uvicorn
def test_uvicorn_is_restarted_under_load() -> None:
    address = f"127.0.0.1:{free_port()}"
    with companion_server(uvicorn(bind=address), files_option=FILES, companion_startsecs=0) as server:
        clients = restart_under_load(server, address)
        # Uvicorn closes connections that it has accepted and not read yet; no others fail.
        closed = {end: n for end, n in clients.ends.items() if end != "answered"}
        assert all("reset by peer" in end or "AssertionError: b''" in end for end in closed), closed
        assert sum(closed.values()) <= RESTARTS * 4


def test_a_client_waits_while_the_companion_is_down() -> None:
    address = f"127.0.0.1:{free_port()}"
    with companion_server(
        http_server(bind=address), files_option=FILES, companion_restart_delay=1.0
    ) as server:
        old = server.wait_companion("site")["pid"]
        os.kill(old, 9)
        wait_until(lambda: server.companion("site")["state"] == "BACKOFF", 10, "BACKOFF")
        assert int(ask(address)) == server.wait_companion("site", without=[old])["pid"]


def test_the_manager_keeps_the_socket_of_a_companion_that_hangs_at_its_start() -> None:
    """It listens before the companion runs, and accepts no connection itself."""
    address = f"127.0.0.1:{free_port()}"
    slow = program(
        "site", "sh", "-c", "sleep 1; exec " + sys.executable + " -c 'import web; web.serve()'", bind=address
    )
    with companion_server(slow, files_option=FILES) as server:
        server.wait_companion("site", state="STARTING")
        begun = time.monotonic()
        assert int(ask(address)) == server.companion("site")["pid"]
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize("preload", [True, False])
def test_descriptors_of_config_file_and_application_leave_room_for_the_sockets(preload: bool) -> None:
    app = """
        import os
        held = [open("/etc/passwd") for _ in range(4)]
        def app(environ, start_response):
            start_response("200 OK", [])
            return [str([file.fileno() for file in held]).encode()]
    """
    # As libffi does for its own library when ctypes is imported.
    keep = "import os\nkept = [os.open('/etc/passwd', os.O_RDONLY) for _ in range(3)]\n"
    web = {
        "name": "site",
        "target": "web:shows_its_sockets",
        "bind": [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"],
    }
    settings = {"preload_app": preload, "errorlog": "error.log", "accesslog": "access.log"}
    with companion_server(web, files_option=FILES, app_option=app, extra=keep, **settings) as server:
        server.wait_companion("site")
        kinds, _, _ = eval(server.wait_log("", name="sockets"))
        assert [name for name, _ in kinds] == ["AF_INET", "AF_INET"]
        if preload:
            assert not {3, 4} & set(json.loads(server.get("/").text))


def test_several_addresses_are_handed_over_in_their_order() -> None:
    server = companion_server(files_option=FILES)
    port = free_port()
    addresses = [f"unix:{server.dir}/a.sock", f"127.0.0.1:{port}", f"unix:{server.dir}/b.sock"]
    web = {"name": "site", "target": "web:shows_its_sockets", "bind": addresses}
    reconfigure(server, web, entry("other", "idle"), preload_app=True)
    with server:
        pid = server.wait_companion("site")["pid"]
        kinds, names, numbers = eval(server.wait_log("", name="sockets"))
        assert kinds == [
            ["AF_UNIX", f"{server.dir}/a.sock"],
            ["AF_INET", ("127.0.0.1", port)],
            ["AF_UNIX", f"{server.dir}/b.sock"],
        ]
        assert names == "site:site:site"
        # And the directory that it lists, and the file for stacks.
        assert numbers[:6] == [0, 1, 2, 3, 4, 5] and len(numbers) <= 8
        assert stat.S_ISSOCK(os.stat(server.dir / "a.sock").st_mode)
        # Another companion inherits none of them.
        other = server.wait_companion("other")["pid"]
        server.wait_log(str(other), name="other.starts")
        files = descriptors(other)
        others = [name for number, name in files.items() if number > 2 and "other.lock" not in name]
        assert others == [], files
        assert is_alive(pid)


def test_an_address_that_is_taken() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with companion_server(
            http_server(bind=address), files_option=FILES, companion_restart_delay=0.2
        ) as server:
            server.wait_manager()
            wait_until(lambda: f"cannot listen on {address}" in server.companion("site")["description"], 10)
            assert server.companion("site")["state"] == "BACKOFF"
            other.close()
            server.wait_companion("site")
            assert int(ask(address)) == server.companion("site")["pid"]


def test_copies_share_a_socket() -> None:
    address = f"127.0.0.1:{free_port()}"
    with companion_server(http_server(bind=address, numprocs=3), files_option=FILES) as server:
        for index in range(3):
            server.wait_companion(f"site:{index}")
        with counting(server, address) as clients:
            wait_until(lambda: clients.pids, 20, "an answer")
            (first, *_) = clients.pids
            # The copy that answered last is mostly the first to wake up; let another one answer.
            os.kill(first, signal.SIGSTOP)
            wait_until(lambda: clients.pids != {first}, 20, "an answer of another copy")
            os.kill(first, signal.SIGCONT)
            for index in range(3):
                old = server.companion(f"site:{index}")["pid"]
                assert server.ask("restart", f"site:{index}")["ok"]
                server.wait_companion(f"site:{index}", without=[old])
        assert set(clients.ends) == {"answered"}, clients.ends


def test_other_addresses_by_reread() -> None:
    first, second = (f"127.0.0.1:{free_port()}" for _ in range(2))
    with companion_server(http_server(bind=first), files_option=FILES) as server:
        old = server.wait_companion("site")["pid"]
        reconfigure(server, http_server(bind=[second]))
        assert server.ask("reread")["restarted"] == ["site"]
        new = server.wait_companion("site", without=[old])["pid"]
        assert int(ask(second)) == new
        with pytest.raises(ConnectionRefusedError):
            ask(first)
        reconfigure(server)
        assert server.ask("reread")["removed"] == ["site"]

        wait_until(lambda: refuses(second), 10, "no listener")


def test_a_first_socket_by_reread() -> None:
    """It works though no numbers were reserved at the start, if they are free."""
    address = f"127.0.0.1:{free_port()}"
    with companion_server(entry("a", "idle"), files_option=FILES, preload_app=True) as server:
        server.wait_companion("a")
        reconfigure(server, entry("a", "idle"), http_server(bind=address), preload_app=True)
        assert server.ask("reread")["added"] == ["site"]
        pid = server.wait_companion("site")["pid"]
        assert int(ask(address)) == pid


@pytest.mark.parametrize("kind", ["unix", pytest.param("tcp", marks=pytest.mark.matrix)])
def test_a_killed_or_replaced_manager_costs_no_connection(kind: str) -> None:
    """The master keeps the socket: clients wait in the backlog for the next manager's companion."""
    server = companion_server(files_option=FILES)
    address = f"127.0.0.1:{free_port()}" if kind == "tcp" else f"unix:{server.dir}/web.socket"
    reconfigure(server, http_server(bind=address), companion_reload="all", companion_startsecs=0)
    with server:
        old, manager = server.wait_companion("site")["pid"], server.wait_manager()
        with counting(server, address) as clients:
            for sig, pid in ((signal.SIGKILL, manager), (signal.SIGHUP, server.pid)):
                os.kill(pid, sig)
                manager = server.wait_manager(without=manager)
                old = server.wait_companion("site", without=[old], timeout=20)["pid"]
                wait_until(lambda old=old: old in clients.pids, 20, "an answer of the new one")
        assert set(clients.ends) == {"answered"}, clients.ends
        assert overlaps(server) == []
        assert "cannot listen" not in server.log()
        # What the master keeps goes with the companion.
        assert server.ask("stop", "site")["ok"]
        wait_until(lambda: refuses(address), 10, "no listener")
        # No other process has a copy.
        assert server.ask("start", "site")["ok"]
        server.wait_companion("site")
        assert "cannot listen" not in server.log()


@pytest.mark.parametrize("kind", ["unix", pytest.param("tcp", marks=pytest.mark.matrix)])
def test_the_socket_over_an_upgrade_of_the_server(kind: str) -> None:
    """Over SIGUSR2 the new master has it from the start: no client is refused, also after a roll back."""
    server = companion_server(files_option=FILES)
    address = f"127.0.0.1:{free_port()}" if kind == "tcp" else f"unix:{server.dir}/web.socket"
    gone = f"unix:{server.dir}/gone.socket"
    companions = [http_server(bind=address), entry("a", "idle", bind=gone)]
    reconfigure(server, *companions, preload_app=True)
    with server:
        old = server.wait_companion("site")["pid"]
        server.wait_companion("a")
        with counting(server, address) as clients:
            new = server.upgrade()
            wait_waiting(new, "site", old)
            # The manager of the new master closes its copy, and leaves the file to the old one.
            server.signal(signal.SIGTERM, new.pid)
            server.wait_log("this one keeps running", 20)
            reconfigure(server, companions[0], preload_app=True)
            new = server.upgrade()
            wait_waiting(new, "site", old)
            assert clients.pids == {old}
            assert server.stop() == 0
            server.adopt(new.pid)
            pid = server.wait_companion("site", without=[old], timeout=20)["pid"]
            wait_until(lambda: pid in clients.pids, 20, "an answer of the new one")
        assert clients.pids == {old, pid} and set(clients.ends) == {"answered"}, clients.ends
        assert "cannot listen" not in server.log()
        assert overlaps(server) == []
        # Files go with the server that has them last.
        wait_until(lambda: not (server.dir / "gone.socket").exists(), 10)
        assert server.stop() == 0
        assert not (server.dir / "web.socket").exists()


@pytest.mark.parametrize("keys", [{"singleton": False}, {"numprocs": 2}])
def test_after_a_crash_of_the_server_its_socket_is_waited_for(keys: dict[str, Any]) -> None:
    companion = entry(
        "drain", env={"UNTIL": "done"}, bind=f"127.0.0.1:{free_port()}", start_retries=1, **keys
    )
    with jobs_server(companion, companion_run_dir="records") as first:
        names = ["drain"] if "singleton" in keys else ["drain:0", "drain:1"]
        before = [first.wait_companion(name)["pid"] for name in names]
        manager = first.wait_manager()
        first.kill()
        os.kill(manager, signal.SIGKILL)
        if len(names) > 1:
            # Its start right is free at once, but the other copy has the socket.
            os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: not is_alive(manager), 10, "the end of the manager")
        with first.again() as server:
            server.wait_manager()
            waits = f"waiting for pid {before[-1]}"
            wait_until(lambda: server.companion(names[0])["description"] == waits, 10, server.log)
            server.write("done", "")
            for name, pid in zip(names, before, strict=True):
                assert server.wait_companion(name, without=[pid])["failed_starts"] == 0
            assert "does not start" not in server.log()
