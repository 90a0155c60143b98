# SPDX-License-Identifier: MIT
"""The client of the control socket: find the server and send it one request at a time.

Like the rest of the command it imports only the standard library and `default_paths`, to start quickly.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import time
from typing import Any

from gunicorn.companion.client import default_paths

OK, REFUSED, NO_ANSWER, NOT_RUNNING = 0, 1, 2, 3

DEFAULT_TIMEOUT = 5.0
RETRY_INTERVAL = 0.1
SOCKET_VARIABLE = "GUNICORN_COMPANION_SOCKET"

# More than any server sends: a foreign server must not use up our memory.
MAX_REPLY = 64 * 1024 * 1024
# Control characters of terminals: C0 except tab and newline, DEL, C1.
_CONTROL_RE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# Seconds between two requests for the status: if the server sends events, which may not report everything; if
# it does not; and at least.
LOOK_INTERVAL_TOLD = 1.0
LOOK_INTERVAL = 0.1
SHORTEST_LOOK_INTERVAL = 0.05

Reply = dict[str, Any]


class Failure(Exception):
    """Ends the command: the text goes to stderr, the code to the shell."""

    def __init__(self, text: str, code: int = NO_ANSWER) -> None:
        super().__init__(text)
        self.code = code


class NoServer(Failure):
    """No server was found."""


class Closed(Failure):
    """The server has closed the connection before its answer."""


class Connection:
    """One connection to a control socket; a request at a time."""

    def __init__(self, path: str, sock: socket.socket) -> None:
        self.path = path
        self.sock = sock
        self.file = sock.makefile("rb", buffering=64 * 1024)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()
        self.sock.close()

    def ask(self, **request: Any) -> Reply:
        """Send a request and return the reply. Raises Failure if none comes."""
        try:
            self.sock.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError:
            raise Failure(f"no answer from {self.path} in time") from None
        except (BrokenPipeError, ConnectionResetError):
            # A server with too many connections sends that as the answer, and closes this one.
            pass
        except OSError as exc:
            raise Failure(f"{self.path}: {exc.strerror}") from None
        try:
            reply = json.loads(self.line())
        except (ValueError, RecursionError):
            raise Failure(f"{self.path}: the answer is not JSON; is it a companion socket?") from None
        if not isinstance(reply, dict):
            raise Failure(f"{self.path}: the answer is not an object; is it a companion socket?")
        return reply

    def line(self) -> bytes:
        """The next line from the server, with its newline. Raises Failure if none comes."""
        try:
            line = self.file.readline(MAX_REPLY)
        except TimeoutError:
            raise Failure(f"no answer from {self.path} in time") from None
        except ConnectionResetError:
            line = b""
        except OSError as exc:
            raise Failure(f"{self.path}: {exc.strerror}") from None
        if not line.endswith(b"\n"):
            raise Closed(f"{self.path}: the server closed the connection")
        return line

    def wait_for_end(self, deadline: float | None) -> bool:
        """Wait until the server closes the connection; False if *deadline* (monotonic) has passed before."""
        while True:
            self.sock.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            try:
                if not self.sock.recv(4096):
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True

    def check_pid(self, pid: Any) -> int:
        """Return *pid* if it may be signalled. Raises Failure.

        The shell of root may be about to signal it: another user's server may only name processes of that
        user.
        """
        if type(pid) is not int or pid <= 0:
            raise Failure(f"{self.path}: the answer names no process")
        user = _credentials(self.sock)[1]
        if os.geteuid() == 0 and user not in (None, 0):
            try:
                owner = os.stat(f"/proc/{pid}").st_uid
            except OSError:
                return pid  # it is gone, or hidden
            if owner != user:
                raise Failure(
                    f"{self.path} is user {user}'s and names process {pid}, which is user {owner}'s"
                )
        return pid

    def must(self, **request: Any) -> Reply:
        """Like `ask`, but also raises Failure if the server refuses."""
        reply = self.ask(**request)
        if not reply.get("ok"):
            raise Failure(refusal(reply), REFUSED)
        return reply


def peer(sock: socket.socket) -> int | None:
    """The process at the other end, 0 if it is in another container; None if the system is not Linux."""
    return _credentials(sock)[0]


def _credentials(sock: socket.socket) -> tuple[int | None, int | None]:
    """The process and the user at the other end; None if the system is not Linux."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None, None
    # struct ucred, unix(7): pid, uid, gid
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return pid, uid


class Printable:
    """A text stream that shows control characters as ``\\x1b``, so that they do not act on a terminal."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> Any:
        return self.stream.write(_CONTROL_RE.sub(lambda match: f"\\x{ord(match[0]):02x}", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def complain(text: object) -> None:
    """Print *text* on stderr, if that is possible."""
    try:
        print(f"gunicorn-companion: {text}", file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: Any) -> None:
    """Discard what *stream* has buffered, which the interpreter would write at its exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        pass


def refusal(reply: Reply) -> str:
    return str(reply.get("error") or reply.get("message") or "refused")


class Changes:
    """Waits until something may have changed: for an event from the server, or for an interval.

    This makes waiting cheap for a server with a thousand companions. It has its own connection; if the server
    refuses it, the interval is shorter.
    """

    def __init__(self, path: str) -> None:
        self._sock: socket.socket | None = None
        self._looked = time.monotonic()
        try:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sock.settimeout(1.0)
            self._sock.connect(path)
            self._sock.sendall(b'{"cmd": "events"}\n')
            # From the answer on no event is missed.
            answer = self._sock.recv(64 * 1024).partition(b"\n")[0]
            accepted = json.loads(answer)["ok"] is True
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            accepted = False
        if not accepted:
            self.close()

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def wait(self, deadline: float | None) -> bool:
        """Wait until something may have changed, at most until *deadline* (monotonic).

        Return whether the server has said that something changed.
        """
        told = False
        if self._sock is None:
            _sleep(LOOK_INTERVAL, deadline)
        elif told := self._take(_bounded(LOOK_INTERVAL_TOLD, deadline)):
            _sleep(self._looked + SHORTEST_LOOK_INTERVAL - time.monotonic(), deadline)
            while self._take(0):
                pass
        self._looked = time.monotonic()
        return told

    def _take(self, timeout: float) -> bool:
        """Wait up to *timeout* for an event; False if none came.

        Its content is ignored: the client asks for the status.
        """
        if self._sock is None:
            return False
        self._sock.settimeout(timeout)
        try:
            data = self._sock.recv(64 * 1024)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
        return bool(data)


def _bounded(seconds: float, deadline: float | None) -> float:
    return seconds if deadline is None else max(0.0, min(seconds, deadline - time.monotonic()))


def _sleep(seconds: float, deadline: float | None) -> None:
    seconds = _bounded(seconds, deadline)
    if seconds > 0:
        time.sleep(seconds)


def connect(path: str | None, timeout: float | None) -> Connection:
    """Connect to *path*, or to the one live socket. Raises Failure.

    Retry a missing or refusing socket until the timeout, because the manager may just be starting.
    """
    limit = DEFAULT_TIMEOUT if timeout is None else timeout
    deadline = time.monotonic() + limit
    while True:
        try:
            if path is not None:
                return _open(path, limit)
            found = _find(limit)
            if found is not None:
                return found
            problem = (
                "no running companion manager found in $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/gunicorn, "
                "~/.gunicorn or /run/*/; is the server running, as this user, and has it companions "
                "or monitor? (-s names its socket)"
            )
        except BlockingIOError:
            problem = f"{path or 'the server'}: too many other clients are waiting"
        except (FileNotFoundError, ConnectionRefusedError) as exc:
            problem = f"{path}: {exc.strerror}; is the server running, with companions configured?"
        except OSError as exc:
            raise Failure(f"{path}: {exc.strerror or exc}") from None
        if time.monotonic() + RETRY_INTERVAL > deadline:
            raise NoServer(problem)
        time.sleep(RETRY_INTERVAL)


def _open(path: str, timeout: float) -> Connection:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # 0 would mean a socket that does not block.
    sock.settimeout(max(timeout, 0.001))
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return Connection(path, sock)


def _find(timeout: float) -> Connection | None:
    """A connection to the only live server; None if there is none. Raises Failure if there are several."""
    live: list[Connection] = []
    for path in default_paths.candidate_sockets(os.environ, os.getuid()):
        try:
            live.append(_open(path, timeout))
        except BlockingIOError:
            # It lives, and may be the only one.
            raise
        except OSError:
            continue
    if len(live) <= 1:
        return live[0] if live else None
    lines = ["several servers are running; choose one with -s:"]
    for connection in live:
        with connection:
            lines.append(f"  -s {connection.path}   {_describe_server(connection)}")
    raise Failure("\n".join(lines))


def _describe_server(connection: Connection) -> str:
    try:
        server = connection.must(cmd="status").get("server", {})
    except Failure:
        return "does not answer"
    addresses = ", ".join(server.get("addresses") or ["?"])
    return f"pid {server.get('pid')}, {addresses}, {server.get('application')}"
