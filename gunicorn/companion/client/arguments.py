# SPDX-License-Identifier: MIT
"""The options and arguments of each command of ``gunicorn-companion``.

A function here adds those of the command of its name; ``ctl.COMMANDS`` says which command has which.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentParser

from gunicorn.companion.client.commands import DONE
from gunicorn.companion.client.connection import DEFAULT_TIMEOUT, SOCKET_VARIABLE

STATES = ("STOPPED", "STARTING", "RUNNING", "BACKOFF", "STOPPING")

NAMES = (
    "by name: 'rq' (with all its copies, if it has numprocs), 'rq:2', a pattern such as 'work*', a group "
    "such as '@workers', or 'all'"
)


def common(parser: ArgumentParser, waits: bool = True, limits: str | None = None) -> None:
    """Options that may be before the command or after it. One that is missing after it does not reset it."""
    parser.add_argument(
        "-s",
        "--socket",
        metavar="SOCKET",
        default=argparse.SUPPRESS,
        help=f"control socket of the server (also ${SOCKET_VARIABLE}; default: the one live socket in "
        "$RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/gunicorn, ~/.gunicorn and /run/*/)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print the answer as JSON, with all figures",
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=argparse.SUPPRESS,
        help=limits
        or f"seconds to wait for an answer (default {DEFAULT_TIMEOUT:g}), and for companions to start or "
        "stop (default: as long as their own limits allow)",
    )
    parser.add_argument(
        "--no-wait",
        action="store_true",
        default=argparse.SUPPRESS,
        # Accepted everywhere, documented only where it has an effect.
        help="do not wait until all have started or stopped" if waits else argparse.SUPPRESS,
    )


def none(parser: ArgumentParser) -> None:
    pass


def some(parser: ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help=f"companions {NAMES}")


def events(parser: ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"companions {NAMES}; all by default")


def status(parser: ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"companions {NAMES}; all by default")
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="add memory, for each and in total: the proportional size (PSS), which counts a page that ten "
        "processes share as a tenth in each, private memory, and what copy-on-write saves",
    )


def start(parser: ArgumentParser) -> None:
    some(parser)
    parser.add_argument(
        "--later",
        action="store_true",
        help="those with a schedule: not now, but from their next time on; "
        "always so with a group, a pattern or all",
    )


def restart(parser: ArgumentParser) -> None:
    some(parser)
    parser.add_argument(
        "--rolling",
        action="store_true",
        help="one copy at a time, each RUNNING before the next stops",
    )


def signal(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help=f"companions {NAMES}")
    parser.add_argument("signal", metavar="SIG", help="its name (HUP, SIGHUP) or number")


def scale(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a companion with numprocs, by its plain name")
    parser.add_argument("numprocs", metavar="N", type=_count, help="the number of copies")


def wait(parser: ArgumentParser) -> None:
    some(parser)
    parser.add_argument(
        "--state",
        default="RUNNING",
        type=str.upper,
        choices=(*STATES, DONE),
        help="the state to wait for (default RUNNING, or done): "
        + ", ".join(STATES)
        + "; DONE: STOPPED by itself with exit status 0",
        metavar="STATE",
    )


def history(parser: ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"companions {NAMES}; all by default")
    parser.add_argument(
        "-n", metavar="N", dest="number", type=_count, default=100, help="only the last N (default: all, 100)"
    )


def logs(parser: ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"companions {NAMES}; all by default")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with new lines, until Ctrl-C or the server's end"
    )
    parser.add_argument(
        "-n",
        "--lines",
        metavar="N",
        type=_number,
        default=50,
        help="how many of the last lines (default 50), at most companion_log_lines of each companion",
    )
    parser.add_argument(
        "--since", metavar="TIME", type=_span, help="only lines of this last time: 90s, 10m, 2h, 1d"
    )
    stream = parser.add_mutually_exclusive_group()
    for name in ("stdout", "stderr"):
        stream.add_argument(
            f"--{name}", dest="stream", action="store_const", const=name, help=f"only lines of {name}"
        )


def metrics(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--openmetrics", action="store_true", help="as OpenMetrics, with units and times of creation"
    )


def web(parser: ArgumentParser) -> None:
    parser.add_argument(
        "do",
        metavar="ACTION",
        nargs="?",
        choices=("add", "remove", "reload", "kill"),
        help="add, remove: so many more or fewer workers, until the next SIGHUP or start; reload: new "
        "workers with the present configuration, each old one ends when a new one serves; kill: end one that "
        "hangs, and with it its requests",
    )
    parser.add_argument(
        "number", metavar="N|PID", nargs="?", type=_count, help="for add and remove (default 1); for kill"
    )


def top(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--interval",
        metavar="S",
        type=_seconds,
        default=2.0,
        help="seconds between two looks (default 2); what happens to a companion is shown at once",
    )
    parser.add_argument("--plain", action="store_true", help="print the tables; no screen, no keys")


def dump(parser: ArgumentParser) -> None:
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="+",
        help=f"companions {NAMES}; 'web', all web workers; or the pid of a worker, of a companion, or of a "
        "process that a companion has started",
    )


def reread(parser: ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only show what would change")


def reload(parser: ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="until it is done, or refused")


def upgrade(parser: ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="until it is done, or rolled back")


def shutdown(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--now", action="store_true", help="kill everything at once: requests and jobs that run are lost"
    )
    parser.add_argument("--wait", action="store_true", help="until the server is gone")


def lease(parser: ArgumentParser) -> None:
    parser.add_argument(
        "do", metavar="release", nargs="?", choices=("release",), help="give it to another server"
    )
    parser.add_argument("name", metavar="LEASE|NAME", nargs="?", help="a lease, or a companion that has one")


def pid(parser: ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"companions {NAMES}; none: the manager")


def completion(parser: ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


def importing(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="a file; '-': standard input. Units of systemd go together"
    )
    parser.add_argument(
        "--from",
        dest="origin",
        metavar="KIND",
        choices=("supervisord", "procfile", "circus", "uwsgi", "systemd", "compose", "pm2"),
        help="what the files are: supervisord, procfile, circus, uwsgi, systemd, compose or pm2 (default: by "
        "name and content)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write it to this new file; one that exists is never overwritten (default: standard output)",
    )


# -- values ------------------------------------------------------------------


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time of 0 or more seconds")
    return value


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


def _span(text: str) -> float:
    """Seconds, from text such as 10m."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    return _seconds(text[:-1]) * units[text[-1]] if text[-1:] in units else _seconds(text)


def _count(text: str) -> int:
    # The server refuses 0.
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)
