# SPDX-License-Identifier: MIT
"""The ``gunicorn-companion`` command. It stands on the standard library and `paths` alone."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from gunicorn import __version__
from gunicorn.companion import paths

OK, REFUSED, NO_ANSWER, NOT_RUNNING = 0, 1, 2, 3

DEFAULT_TIMEOUT = 5.0
RETRY_INTERVAL = 0.1
SOCKET_VARIABLE = "GUNICORN_COMPANION_SOCKET"

Reply = dict[str, Any]


class Failure(Exception):
    """Ends the command: the text goes to stderr, the code to the shell."""

    def __init__(self, text: str, code: int = NO_ANSWER) -> None:
        super().__init__(text)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = build_parser().parse_args(argv)
    try:
        with connect(options.socket, options.timeout) as connection:
            code = COMMANDS[options.command](connection, options)
        sys.stdout.flush()
        return code
    except Failure as exc:
        print(f"gunicorn-companion: {exc}", file=sys.stderr)
        return exc.code
    except BrokenPipeError:
        # `gunicorn-companion status | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gunicorn-companion",
        description="See and steer the companion processes of a running server.",
        epilog="Exit status: 0 done (for status: all that should run is RUNNING), 1 refused, "
        "2 wrong usage or no answer, 3 status found a companion that should run and does not.",
    )
    parser.add_argument(
        "-s",
        "--socket",
        metavar="SOCKET",
        default=os.environ.get(SOCKET_VARIABLE) or None,
        help=f"control socket of the server (also ${SOCKET_VARIABLE}; default: the one live socket in "
        "$RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/gunicorn, ~/.gunicorn and /run/*/)",
    )
    parser.add_argument("--json", action="store_true", help="print the server's replies as they are")
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        help=f"seconds to wait for an answer (default {DEFAULT_TIMEOUT:g}), and for companions to settle "
        "(default: as long as their own limits allow)",
    )
    parser.add_argument(
        "--no-wait", action="store_true", help="do not wait until companions have started or stopped"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    status = commands.add_parser("status", help="show companions, their state and what it means")
    status.add_argument("names", metavar="NAME", nargs="*", help="companions to show; all by default")
    for command, text in (
        ("start", "start companions that are stopped"),
        ("stop", "stop companions and keep them stopped"),
        ("restart", "stop companions and start them again"),
    ):
        one = commands.add_parser(command, help=text)
        one.add_argument("names", metavar="NAME", nargs="+", help="companions by name, or 'all'")
    commands.add_parser("reread", help="read the configuration again and apply what changed")
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time of 0 or more seconds")
    return value


# -- the connection ----------------------------------------------------------


class Connection:
    """One connection to a control socket; a request at a time."""

    def __init__(self, path: str, sock: socket.socket) -> None:
        self.path = path
        self.sock = sock
        self.file = sock.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()
        self.sock.close()

    def ask(self, **request: Any) -> Reply:
        """Send a request and return the reply. Raises Failure where none comes."""
        try:
            self.sock.sendall(json.dumps(request).encode() + b"\n")
            line = self.file.readline()
        except TimeoutError:
            raise Failure(f"no answer from {self.path} in time") from None
        except OSError as exc:
            raise Failure(f"{self.path}: {exc.strerror}") from None
        if not line.endswith(b"\n"):
            raise Failure(f"{self.path}: the server closed the connection")
        try:
            reply = json.loads(line)
        except ValueError:
            raise Failure(f"{self.path}: the answer is not JSON; is it a companion socket?") from None
        if not isinstance(reply, dict):
            raise Failure(f"{self.path}: the answer is no object; is it a companion socket?")
        return reply

    def must(self, **request: Any) -> Reply:
        """Like `ask`; a refusal is a Failure, too."""
        reply = self.ask(**request)
        if not reply.get("ok"):
            raise Failure(str(reply.get("error", "refused")), REFUSED)
        return reply


def connect(path: str | None, timeout: float | None) -> Connection:
    """Connect to *path*, or to the one live socket. Raises Failure.

    A socket that is missing or refuses is tried again until the timeout: the
    manager may just be starting.
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
                "~/.gunicorn or /run/*/; is the server running, as this user? (-s names its socket)"
            )
        except (FileNotFoundError, ConnectionRefusedError) as exc:
            problem = f"{path}: {exc.strerror}; is the server running, with companions configured?"
        except OSError as exc:
            raise Failure(f"{path}: {exc.strerror or exc}") from None
        if time.monotonic() + RETRY_INTERVAL > deadline:
            raise Failure(problem)
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
    """The one live server; none: None; several: a Failure that lists them."""
    live: list[Connection] = []
    for path in paths.candidate_sockets(os.environ, os.getuid()):
        try:
            live.append(_open(path, timeout))
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


# -- the commands ------------------------------------------------------------


def show_status(connection: Connection, options: argparse.Namespace) -> int:
    names = [name for name in options.names if name != "all"]
    replies = [connection.must(cmd="status", name=name, memory=options.json) for name in names] or [
        connection.must(cmd="status", memory=options.json)
    ]
    companions = [companion for reply in replies for companion in reply["companions"]]
    if options.json:
        print(json.dumps({**replies[0], "companions": companions}, indent=2))
    elif not companions:
        print("no companions are configured")
    else:
        print_table(companions)
    return OK if all(runs_as_it_should(companion) for companion in companions) else NOT_RUNNING


def print_table(companions: list[Reply]) -> None:
    """Aligned columns as of ``supervisorctl status``."""
    width = max(len(companion["name"]) for companion in companions)
    for companion in companions:
        print(f"{companion['name']:<{width}}   {companion['state']:<8}   {companion['description']}")


def runs_as_it_should(companion: Reply) -> bool:
    if companion["state"] == "STOPPED":
        # Stopped by command, or never meant to start by itself.
        return bool(companion["manual_stop"]) or not companion["autostart"]
    if companion["state"] == "STOPPING":
        return bool(companion["manual_stop"])
    return bool(companion["state"] == "RUNNING")


def steer(connection: Connection, options: argparse.Namespace) -> int:
    """start, stop or restart, then wait until each has settled."""
    names = _expand(connection, options.names)
    code = OK
    waiting = []
    for name in names:
        reply = connection.ask(cmd=options.command, name=name)
        if options.json:
            print(json.dumps(reply))
        if reply.get("ok"):
            waiting.append(name)
            if options.no_wait and not options.json:
                print(reply.get("message"))
        else:
            code = REFUSED
            print(f"gunicorn-companion: {reply.get('error')}", file=sys.stderr)
    if not options.no_wait and not _wait(connection, options, waiting):
        code = REFUSED
    return code


def _expand(connection: Connection, names: list[str]) -> list[str]:
    if "all" not in names:
        return list(dict.fromkeys(names))
    reply = connection.must(cmd="status")
    return [companion["name"] for companion in reply["companions"]]


def _wait(connection: Connection, options: argparse.Namespace, names: list[str]) -> bool:
    """Poll until every one of *names* has settled; False if one settled otherwise than asked.

    Waiting is the client's work: the manager waits for nobody.
    """
    deadline = None if options.timeout is None else time.monotonic() + options.timeout
    wanted = "STOPPED" if options.command == "stop" else "RUNNING"
    good = True
    while names:
        reply = connection.must(cmd="status")
        found = {companion["name"]: companion for companion in reply["companions"]}
        for name in list(names):
            companion = found.get(name)
            state = "STOPPED" if companion is None else companion["state"]
            if state in ("STARTING", "STOPPING"):
                continue
            names.remove(name)
            good = _tell(options, name, state, wanted, companion) and good
        if names:
            if deadline is not None and time.monotonic() >= deadline:
                raise Failure(f"not settled in time: {', '.join(names)}")
            time.sleep(RETRY_INTERVAL)
    return good


def _tell(options: argparse.Namespace, name: str, state: str, wanted: str, companion: Reply | None) -> bool:
    done = {"start": "started", "stop": "stopped", "restart": "restarted"}[options.command]
    if state == wanted:
        if not options.json:
            print(f"{name}: {done}")
        return True
    description = companion["description"] if companion is not None else "it is configured no more"
    print(f"gunicorn-companion: {name}: {state}, {description}", file=sys.stderr)
    return False


def reread(connection: Connection, options: argparse.Namespace) -> int:
    if options.timeout is None:
        # It executes the configuration file, which may take its time.
        connection.sock.settimeout(None)
    reply = connection.ask(cmd="reread")
    if options.json:
        print(json.dumps(reply, indent=2))
        return OK if reply.get("ok") else REFUSED
    if not reply.get("ok"):
        kept = "; the configuration stays as it was" if reply.get("kept_old_config") else ""
        raise Failure(f"{reply.get('error')}{kept}", REFUSED)
    changed = False
    for kind in ("added", "removed", "restarted", "updated"):
        for name in reply.get(kind, []):
            changed = True
            print(f"{name}: {kind}")
    if not changed:
        print("nothing changed")
    return OK


COMMANDS: dict[str, Callable[[Connection, argparse.Namespace], int]] = {
    "status": show_status,
    "start": steer,
    "stop": steer,
    "restart": steer,
    "reread": reread,
}

if __name__ == "__main__":
    sys.exit(main())
