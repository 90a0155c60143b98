# SPDX-License-Identifier: MIT
"""Real servers for tests: start one in a directory of its own, talk to it, signal it, leave nothing behind.

``Server`` is a context manager.  Everything it starts runs in a short temporary directory (a Unix socket
path may be 107 bytes long at most) with its own ``HOME``, runtime directory and ``TMPDIR``, so no test meets
another.  The test process is made a child subreaper: an orphan of a server becomes our child, and so is found
and ended.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM, SIGUSR2
from types import TracebackType
from typing import Any

from proctools import (
    LINUX,
    become_subreaper,
    child_procs,
    children_of,
    cmdline_of,
    descendants_of,
    descriptors,
    environ_of,
    is_alive,
    kill_all,
    kill_quietly,
    read_proc,
    reap_zombies,
    session_of,
    status_field,
    wait_until,
)

__all__ = [
    "LINUX",
    "Background",
    "Control",
    "Reply",
    "Server",
    "become_subreaper",
    "children_of",
    "cmdline_of",
    "conf",
    "descendants_of",
    "descriptors",
    "environ_of",
    "free_port",
    "is_alive",
    "kill_all",
    "kill_quietly",
    "load",
    "read_proc",
    "read_until_closed",
    "readable",
    "reap_zombies",
    "session_of",
    "short_tmpdir",
    "status_field",
    "wait_until",
]

ROOT = Path(__file__).resolve().parent.parent
#: In the log of a server: what Python warns of in a file of ours.
OUR_WARNING = re.compile(rf"^{re.escape(str(ROOT))}/gunicorn/.*Warning: .*", re.MULTILINE)
DEFAULT_APP = """
import os

def app(environ, start_response):
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


def conf(**settings: Any) -> str:
    """The text of a configuration file with *settings*."""
    return "".join(f"{name} = {value!r}\n" for name, value in settings.items())


# -- network -----------------------------------------------------------------------------------------------


#: Those given last, which may not be bound yet.
_given_ports: deque[int] = deque(maxlen=1000)


def free_port() -> int:
    """A port without a listener, outside the range that the kernel gives to outgoing connections.

    Until the server binds it, only a call in another process could give it away, and each draws at random
    from thousands.
    """
    draw = random.SystemRandom()
    for _ in range(200):
        port = draw.randrange(20000, 32000)
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given_ports.append(port)
            return port
    raise RuntimeError("no free port")


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, read whole."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("latin-1")

    def json(self) -> Any:
        return json.loads(self.body)


class UnixHTTPConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def read_until_closed(sock: socket.socket, timeout: float = 5.0) -> bytes:
    """Everything until the peer closes (a reset counts as a close); TimeoutError if it does not."""
    deadline = time.monotonic() + timeout
    data = b""
    while True:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            chunk = sock.recv(65536)
        except ConnectionResetError:
            return data
        except TimeoutError:
            raise TimeoutError(f"still open after {timeout} s, got {data!r}") from None
        if not chunk:
            return data
        data += chunk


# -- the control socket ------------------------------------------------------------------------------------


class Control:
    """One connection to a control socket: JSON lines, written and read by hand."""

    def __init__(self, path: str | Path, timeout: float = 5.0) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise
        self._buffer = b""

    def peer_pid(self) -> int:
        """The pid of the listening process, as the kernel tells it."""
        data = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", data)[0]
        return pid

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read_line(self) -> bytes:
        """The next line without its newline; ``b""`` at a close."""
        while b"\n" not in self._buffer:
            chunk = self.sock.recv(65536)
            if not chunk:
                return b""
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def read_reply(self) -> dict[str, Any]:
        line = self.read_line()
        if not line:
            raise ConnectionError("control socket closed without an answer")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def ask(self, cmd: str, name: str | None = None, **more: Any) -> dict[str, Any]:
        request: dict[str, Any] = {"cmd": cmd, **more}
        if name is not None:
            request["name"] = name
        self.send(json.dumps(request).encode() + b"\n")
        return self.read_reply()

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


# -- the server --------------------------------------------------------------------------------------------

#: Pids that the Popen of a Server will wait for, so nothing else may reap them.
_owned_pids: set[int] = set()


#: Has the kernel kill a program when the test process dies. A function between fork and exec could ask for it
#: too, but would make the fork copy the page tables of the test process: 13 ms for each server.
DYING_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL", "--"] if LINUX and shutil.which("setpriv") else []


def short_tmpdir() -> Path:
    """A directory with a short name, which other users may enter (tests with ``user`` set need that)."""
    path = Path(tempfile.mkdtemp(prefix="g-", dir="/tmp"))
    path.chmod(0o755)
    return path


#: For a configuration file: a new worker proves itself at once, for tests with many reloads.
QUICK_RELOADS = "import gunicorn.master.pool\ngunicorn.master.pool.PROBATION = 0.05\n"


class Server:
    """A real server as a real process.

    >>> with Server(app="...", config="workers = 2") as server:
    ...     assert server.get("/").status == 200

    :param app: text of ``app.py`` (WSGI callable ``app``); dedented.
    :param config: text of ``gunicorn.conf.py``; dedented.
    :param args: further command line arguments, before the application.
    :param target: the positional argument; "" gives none.
    :param bind: ``"tcp"`` (127.0.0.1), ``"unix"``, or None: the test says ``bind`` itself.
    :param env: variables added to the environment (None as a value removes one).
    :param files: more files for the directory, path → text.
    :param ready: when ``start`` returns: ``"http"`` (a request to ``ready_path`` is answered), ``"listen"``
        (a connection is accepted), a callable taking the server, or None (at once).
    :param directory: an existing directory, for a second server on the same one; not removed.
    :param prefix: a command put before the interpreter (``["unshare", …]``).
    """

    def __init__(
        self,
        app: str = DEFAULT_APP,
        config: str = "",
        args: Sequence[str] = (),
        *,
        target: str = "app:app",
        bind: str | None = "tcp",
        env: Mapping[str, str | None] | None = None,
        files: Mapping[str, str] | None = None,
        ready: str | Callable[[Server], Any] | None = "http",
        ready_path: str = "/",
        directory: Path | None = None,
        prefix: Sequence[str] = (),
        popen: Mapping[str, Any] | None = None,
    ) -> None:
        self.owns_directory = directory is None
        self.dir = directory or short_tmpdir()
        self.config_text = config
        self.args, self.target, self.prefix = list(args), target, list(prefix)
        self.ready, self.ready_path = ready, ready_path
        self.popen_options = dict(popen or {})
        self.proc: subprocess.Popen[bytes] | None = None
        self.exit_code: int | None = None
        self.checked = True
        self.expected_code: int | None = 0
        self._pid: int | None = None
        self._killed = False
        self.run_dir = self.dir / "run"
        self.tmp_dir = self.dir / "tmp"
        self.home = self.dir / "home"
        for directory_ in (self.run_dir, self.tmp_dir, self.home):
            directory_.mkdir(exist_ok=True)
        self.run_dir.chmod(0o700)
        self.tmp_dir.chmod(0o1777)
        self.output = self.dir / "server.log"
        self.host, self.port = "127.0.0.1", 0
        self.unix_path = ""
        if bind == "tcp":
            self.port = free_port()
            self.address = f"{self.host}:{self.port}"
            self.args[:0] = ["-b", self.address]
        elif bind == "unix":
            self.unix_path = str(self.dir / "web.sock")
            self.address = f"unix:{self.unix_path}"
            self.args[:0] = ["-b", self.address]
        self.marker = f"{os.getpid()}-{id(self)}-{random.random()}"
        self.env = self._environment(env or {})
        if self.owns_directory:
            self.write("app.py", app)
            self.write("gunicorn.conf.py", config)
        for name, text in (files or {}).items():
            self.write(name, text)

    def _environment(self, more: Mapping[str, str | None]) -> dict[str, str]:
        unwanted = ("GUNICORN_", "LISTEN_", "NOTIFY_", "WATCHDOG_", "PYTEST_", "COV_", "XDG_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        for name in ("WEB_CONCURRENCY", "PORT", "FORWARDED_ALLOW_IPS", "RUNTIME_DIRECTORY", "PYTHONWARNINGS"):
            env.pop(name, None)
        env.update(
            HOME=str(self.home),
            XDG_RUNTIME_DIR=str(self.run_dir),
            TMPDIR=str(self.tmp_dir),
            PYTHONPATH=str(ROOT),
            PYTHONDONTWRITEBYTECODE="1",
            PYTHONWARNINGS="default::DeprecationWarning,default::PendingDeprecationWarning",
            # setproctitle would write over the memory that /proc/<pid>/environ shows, which we read.
            SPT_NOENV="1",
            GUNICORN_TEST_MARKER=self.marker,
        )
        env.pop("PYTHONFAULTHANDLER", None)
        for name, value in more.items():
            if value is None:
                env.pop(name, None)
            else:
                env[name] = value
        return env

    # -- life --

    def write(self, name: str, text: str) -> Path:
        """Write a file of the server's directory at one stroke (readers see the old text or the new)."""
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(textwrap.dedent(text))
        os.replace(fresh, path)
        return path

    def command(self) -> list[str]:
        line = [*self.prefix, sys.executable, "-m", "gunicorn", *self.args]
        return [*line, self.target] if self.target else line

    def start(self) -> Server:
        become_subreaper()
        options: dict[str, Any] = {
            "start_new_session": True,
            "stdin": subprocess.DEVNULL,
            **self.popen_options,
        }
        with open(self.output, "ab") as out:
            options.setdefault("stdout", out)
            options.setdefault("stderr", out)
            self.proc = subprocess.Popen(
                [*DYING_WITH_PARENT, *self.command()], cwd=self.dir, env=self.env, **options
            )
        _owned_pids.add(self.proc.pid)
        self.checked = False
        self._pid = self.proc.pid
        try:
            self.wait_ready()
        except BaseException:
            self._fail()
            raise
        return self

    def wait_ready(self) -> None:
        if self.ready is None:
            return

        def probe() -> Any:
            if self.proc is not None and self.proc.poll() not in (None, 0):
                raise RuntimeError(f"server exited with {self.proc.returncode} before it was ready")
            if self.ready == "listen":
                with self.connect(timeout=2.0):
                    return True
            try:
                return self.ready(self) if callable(self.ready) else self.get(self.ready_path, timeout=2.0)
            except http.client.HTTPException:
                return False

        wait_until(probe, 20, "server ready")

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        if kind is not None:
            self._fail()
            return
        try:
            if not self.checked:
                if self.exit_code is None and not self._killed:
                    code = self.stop()
                    if self.expected_code is not None:
                        assert code == self.expected_code, f"exit code {code}, not {self.expected_code}"
                self.assert_nothing_left()
        except BaseException:
            self._fail()
            raise
        self._remove()

    def _fail(self) -> None:
        print(f"---- {self.output} of {' '.join(self.command())}\n{self.log()}\n----", file=sys.stderr)
        print("---- processes: " + "; ".join(f"{p} {cmdline_of(p)}" for p in self.tree()), file=sys.stderr)
        self.kill_tree()
        self._remove()

    def _remove(self) -> None:
        if self.owns_directory:
            shutil.rmtree(self.dir, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The master's pid (after ``adopt``: that of the adopted one)."""
        assert self._pid is not None, "not started"
        return self._pid

    def adopt(self, pid: int) -> None:
        """From now on, the master is *pid*: a daemon, or the new one of a USR2."""
        self._pid = pid
        self.exit_code = None

    def again(self) -> Server:
        """Another server (not started) on the same directory and address, for when this one is gone."""
        other = Server(directory=self.dir, bind=None, args=["-b", self.address])
        other.host, other.port = self.host, self.port
        other.configured_control = self.configured_control
        return other

    def upgrade(self) -> Server:
        """SIGUSR2; the new master as a server of its own, until this one adopts it."""
        mode = self.run_dir.stat().st_mode
        new = Server(directory=self.dir, bind=None, ready=None)
        self.run_dir.chmod(mode)
        self.signal(SIGUSR2)
        pid = wait_until(self.new_master, 20, "a new master")
        assert pid is not None
        new.adopt(pid)
        new.env, new.configured_control = self.env, self.configured_control
        return new

    def signal(self, sig: int, pid: int | None = None) -> None:
        os.kill(pid or self.pid, sig)

    def wait_exit(self, timeout: float = 20.0) -> int:
        """The master's exit code (negative: the signal that killed it)."""
        assert self.proc is not None
        if self._pid == self.proc.pid:
            try:
                self.exit_code = self.proc.wait(timeout)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"master {self.pid} still runs after {timeout} s") from None
            _owned_pids.discard(self.proc.pid)
            return self.exit_code
        # A daemon or a promoted master: an orphan, hence ours to wait for (Linux), if its parent is gone.
        wait_until(lambda: not is_alive(self.pid), timeout, f"master {self.pid} gone")
        try:
            _pid, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            self.exit_code = 0
        else:
            self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code

    def stop(self, sig: int = SIGTERM, timeout: float = 20.0) -> int:
        """Signal the master and wait for its end; its exit code."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(sig)
        return self.wait_exit(timeout)

    def kill(self) -> None:
        """``kill -9`` of the master alone; files that it leaves are then no fault."""
        self._killed = True
        self.signal(SIGKILL)
        self.wait_exit()

    def tree(self) -> list[int]:
        """Every living process of this server: below its master, or an orphan with its marker."""
        found = set(descendants_of(self.proc.pid)) if self.proc is not None else set()
        if self.proc is not None and is_alive(self.proc.pid):
            found.add(self.proc.pid)
        for pid in descendants_of(os.getpid()):
            if pid not in found and environ_of(pid).get("GUNICORN_TEST_MARKER") == self.marker:
                found.add(pid)
        return sorted(found)

    def kill_tree(self) -> None:
        while pids := self.tree():
            kill_all(pids)
            self._reap()
        self._reap()
        self.checked = True

    def _reap(self) -> None:
        if self.proc is not None and self.proc.poll() is not None:
            _owned_pids.discard(self.proc.pid)
        reap_zombies(frozenset(_owned_pids))

    def assert_nothing_left(self, timeout: float = 3.0) -> None:
        """No process of the tree; after a clean stop no temporary file, socket file or pid file either."""
        wait_until(lambda: not self.tree(), timeout, lambda: f"left over: {self._describe(self.tree())}")
        self._reap()
        assert not (warned := OUR_WARNING.findall(self.log())), warned
        if not self._killed and self.owns_directory:
            assert not list(self.tmp_dir.iterdir()), f"temporary files left: {list(self.tmp_dir.iterdir())}"
            sockets = [path for path in self.dir.rglob("*") if path.is_socket()]
            assert not sockets, f"socket files left: {sockets}"
            pidfiles = [path for path in self.dir.rglob("*.pid*") if path.is_file()]
            assert not pidfiles, f"pid files left: {pidfiles}"
        self.checked = True

    @staticmethod
    def _describe(pids: Sequence[int]) -> str:
        return "; ".join(
            f"{pid} (parent {getattr(read_proc(pid), 'ppid', '?')}) {cmdline_of(pid)}" for pid in pids
        )

    # -- what runs --

    def children(self) -> list[int]:
        return children_of(self.pid)

    def new_master(self) -> int | None:
        """The master that a USR2 started, if one is there."""
        for pid in self.children():
            if environ_of(pid).get("GUNICORN_PID") == str(self.pid):
                return pid
        return None

    def manager(self) -> int | None:
        """The companion manager; where one is being replaced, the new one."""
        found = [(proc.start, pid) for pid in self.managers() if (proc := read_proc(pid)) is not None]
        return max(found)[1] if found else None

    def managers(self) -> list[int]:
        """The children that lead a session of their own."""
        return [proc.pid for proc in child_procs(self.pid) if proc.session == proc.pid]

    def workers(self) -> list[int]:
        """The pids of the HTTP workers, oldest first."""
        procs, new_master = child_procs(self.pid), self.new_master()
        return [proc.pid for proc in procs if proc.session != proc.pid and proc.pid != new_master]

    def wait_workers(self, count: int, timeout: float = 10.0, without: Sequence[int] = ()) -> list[int]:
        """The workers, once there are exactly *count* of them and none of *without*."""

        def right() -> list[int] | None:
            pids = self.workers()
            return pids if len(pids) == count and not set(pids) & set(without) else None

        if count == 0:
            wait_until(lambda: not self.workers(), timeout, lambda: f"no workers; there are {self.workers()}")
            return []
        found = wait_until(right, timeout, lambda: f"{count} workers without {without}; {self.workers()}")
        assert found is not None
        return found

    def wait_manager(self, timeout: float = 10.0, without: int | None = None) -> int:
        """The manager's pid, once it answers on the control socket."""

        def answering() -> int | None:
            pid = self.manager()
            if pid is None or pid == without:
                return None
            with self.control() as control:
                return pid if control.peer_pid() == pid and control.ask("status").get("ok") else None

        pid = wait_until(answering, timeout, "manager answering")
        assert pid is not None
        return pid

    # -- companions --

    def control_path(self) -> Path:
        """Where the default control socket is (see the companions guide); a configured one is found too."""
        if self.configured_control is not None:
            return self.configured_control
        if runtime := self.env.get("RUNTIME_DIRECTORY"):
            return Path(runtime.split(":")[0]) / f"companion-{self.pid}.sock"
        if runtime := self.env.get("XDG_RUNTIME_DIR"):
            return Path(runtime) / "gunicorn" / f"companion-{self.pid}.sock"
        return self.home / ".gunicorn" / f"companion-{self.pid}.sock"

    configured_control: Path | None = None
    #: Companions note their starts in ``<name>.starts``; RUNNING then means that the target has begun, too.
    notes_starts = False

    def control(self, timeout: float = 5.0) -> Control:
        return Control(self.control_path(), timeout)

    def ask(self, cmd: str, name: str | None = None, timeout: float = 5.0, **more: Any) -> dict[str, Any]:
        """One request on a fresh control connection; OSError while there is no socket."""
        with self.control(timeout) as control:
            return control.ask(cmd, name, **more)

    def companions(self) -> dict[str, dict[str, Any]]:
        """What ``status`` says, by name."""
        reply = self.ask("status")
        assert reply["ok"], reply
        return {entry["name"]: entry for entry in reply["companions"]}

    def companion(self, name: str) -> dict[str, Any]:
        return self.companions()[name]

    def wait_companion(
        self, name: str, state: str = "RUNNING", timeout: float = 10.0, *, without: Sequence[int] = ()
    ) -> dict[str, Any]:
        """The status of companion *name* once it is in *state*, under a pid that is none of *without*."""
        last: dict[str, Any] = {}

        def right() -> dict[str, Any] | None:
            entry = self.companions().get(name)
            last.clear()
            last.update(entry or {})
            if not entry or entry["state"] != state or entry["pid"] in without:
                return None
            if self.notes_starts and state == "RUNNING":
                noted = self.log(f"{name}.starts").split()[::2]
                return entry if str(entry["pid"]) in noted else None
            return entry

        found = wait_until(right, timeout, lambda: f"{name} {state}; last seen {last}")
        assert found is not None
        return found

    # -- HTTP --

    def connect(self, timeout: float = 5.0) -> socket.socket:
        """A connection to the web tier."""
        if self.unix_path:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout)
            try:
                sock.connect(self.unix_path)
            except OSError:
                sock.close()
                raise
            return sock
        return socket.create_connection((self.host, self.port), timeout)

    def http(self, timeout: float = 5.0) -> http.client.HTTPConnection:
        """A connection that the caller keeps, for keep-alive; to be closed by the caller."""
        if self.unix_path:
            return UnixHTTPConnection(self.unix_path, timeout)
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def request(
        self,
        method: str,
        path: str = "/",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
    ) -> Reply:
        """One request on a connection of its own."""
        with contextlib.closing(self.http(timeout)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())

    def get(self, path: str = "/", **options: Any) -> Reply:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> Reply:
        return self.request("POST", path, body, **options)

    def raw(self, data: bytes, timeout: float = 5.0) -> bytes:
        """Send *data* as it is and read until the server closes."""
        with self.connect(timeout) as sock:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
            return read_until_closed(sock, timeout)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    # -- files --

    def log(self, name: str = "server.log") -> str:
        """The server's output so far, or another file of its directory; "" while it is not there."""
        try:
            return (self.dir / name).read_text(errors="replace")
        except OSError:
            return ""

    def wait_log(self, text: str, timeout: float = 10.0, name: str = "server.log") -> str:
        """The log once it contains *text*."""
        return wait_until(
            lambda: (log := self.log(name)) if text in self.log(name) else "", timeout, f"{text!r} in {name}"
        )

    def read_int(self, name: str, timeout: float = 10.0) -> int:
        """The number in a file of the server's directory, once it is there."""
        return int(wait_until(lambda: self.log(name).strip(), timeout, f"a number in {name}"))


class Background:
    """A request in a thread; ``result()`` joins it."""

    def __init__(self, server: Server, path: str, timeout: float = 15.0) -> None:
        self.reply: Reply | None = None
        self.error: Exception | None = None
        self.seconds = 0.0

        def run() -> None:
            started = time.monotonic()
            try:
                self.reply = server.get(path, timeout=timeout)
            except Exception as exc:
                self.error = exc
            self.seconds = time.monotonic() - started

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def result(self, timeout: float = 20.0) -> Reply:
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "no answer"
        if self.error is not None:
            raise AssertionError(f"request failed: {self.error!r}") from self.error
        assert self.reply is not None
        return self.reply


@contextlib.contextmanager
def load(server: Server, path: str = "/", interval: float = 0.02) -> Iterator[list[str]]:
    """Ask for *path* all the time in a thread; the list given collects what went wrong."""
    problems: list[str] = []
    done = threading.Event()

    def run() -> None:
        while not done.wait(interval):
            try:
                reply = server.get(path)
                if reply.status != 200:
                    problems.append(f"status {reply.status}")
            except (OSError, http.client.HTTPException) as exc:
                problems.append(repr(exc))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield problems
    finally:
        done.set()
        thread.join(10)


def readable(sock: socket.socket, timeout: float) -> bool:
    return bool(select.select([sock], [], [], timeout)[0])
