# SPDX-License-Identifier: MIT
"""The ``gunicorn-companion`` command: its words, and its end."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from gunicorn import __version__
from gunicorn.companion.ctlclient import DEFAULT_TIMEOUT, OK, SOCKET_VARIABLE, Failure, connect
from gunicorn.companion.ctlcommands import COMMANDS

__all__ = ["COMMANDS", "build_parser", "main"]

STATES = ("STOPPED", "STARTING", "RUNNING", "BACKOFF", "STOPPING")
INTERRUPTED = 130

NAMES = "by name: 'rq' (with all its copies, if it has numprocs), 'rq:2', or 'all'"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = build_parser().parse_args(argv)
    options.started = time.monotonic()
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
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gunicorn-companion",
        description="See and steer the companion processes of a running server.",
        epilog="Exit status: 0 done (for status: all that should run is RUNNING), 1 refused, or settled "
        "otherwise than asked, 2 wrong usage or no answer, 3 status found a companion that should run and "
        "does not. 'gunicorn-companion COMMAND --help' tells more of a command.",
    )
    _add_common(
        parser, socket=os.environ.get(SOCKET_VARIABLE) or None, json=False, timeout=None, no_wait=False
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    # The same after the command; what is absent there leaves what came before it.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    _add_common(common)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}.{' ' + more if more else ''}"
        return commands.add_parser(name, help=text, description=description, parents=[common])

    _add_status(add)
    _add_steering(add)
    _add_waiting(add)
    _add_others(add)
    return parser


def _add_common(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    parser.add_argument(
        "-s",
        "--socket",
        metavar="SOCKET",
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
    parser.set_defaults(**defaults)


def _add_status(add: Any) -> None:
    status = add(
        "status",
        "show companions, their state and what it means",
        "Exit status 3: one that should run is not RUNNING.",
    )
    status.add_argument(
        "names", metavar="NAME", nargs="*", help=f"companions to show {NAMES}; all by default"
    )
    status.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="their memory, too, each and in sum: the proportional size (PSS), in which a page that ten "
        "processes share counts a tenth in each, private memory, and what copy-on-write saves",
    )


def _add_steering(add: Any) -> None:
    for command, text, more in (
        ("start", "start companions that are stopped", "Returns when they are RUNNING."),
        ("stop", "stop companions and keep them stopped", "Returns when all their processes are gone."),
        ("restart", "stop companions and start them again", "Returns when they are RUNNING again."),
    ):
        one = add(command, text, more)
        one.add_argument("names", metavar="NAME", nargs="+", help=f"companions {NAMES}")
        if command == "restart":
            one.add_argument(
                "--rolling",
                action="store_true",
                help="one copy at a time, each RUNNING before the next is stopped",
            )
    signal = add("signal", "send a signal to companions", "To the companion alone, not to its children.")
    signal.add_argument("name", metavar="NAME", help=f"companions {NAMES}")
    signal.add_argument("signal", metavar="SIG", help="its name (HUP, SIGHUP) or number")
    scale = add(
        "scale",
        "change how many copies of a companion run",
        "Holds until its numprocs is changed in the configuration. The highest index goes first.",
    )
    scale.add_argument("name", metavar="NAME", help="a companion with numprocs, by its plain name")
    scale.add_argument("numprocs", metavar="N", type=_count, help="how many there shall be")


def _add_waiting(add: Any) -> None:
    wait = add(
        "wait",
        "wait until companions are in a state",
        "Exit status 1: one of them is STOPPED and will not get there, or --timeout has passed.",
    )
    wait.add_argument("names", metavar="NAME", nargs="+", help=f"companions {NAMES}")
    wait.add_argument(
        "--state",
        default="RUNNING",
        type=str.upper,
        choices=STATES,
        help="the state that all of them shall be in (default RUNNING): " + ", ".join(STATES),
        metavar="STATE",
    )
    add(
        "events",
        "print each change of a state as it comes, a line of JSON each",
        "Ends with the server, or by Ctrl-C.",
    )


def _add_others(add: Any) -> None:
    reread = add(
        "reread",
        "read the configuration again and apply what changed",
        "Where it has a mistake nothing changes, and the exit status is 1.",
    )
    reread.add_argument("--dry-run", action="store_true", help="tell what would change and leave it at that")
    pid = add("pid", "print the pid of the companion manager, or of companions")
    pid.add_argument("names", metavar="NAME", nargs="*", help=f"companions {NAMES}; none: the manager")
    add("version", "print the version of the running server")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time of 0 or more seconds")
    return value


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
