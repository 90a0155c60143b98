# SPDX-License-Identifier: MIT
"""The ``gunicorn-companion`` command: its arguments and its exit.

Health checks and scripts call it often, so it must start quickly: it imports only the standard library and
the lowest layers, and builds only the parser of the command at hand.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
import time
from collections.abc import Callable, Sequence

from gunicorn import __version__
from gunicorn.companion.client import commands as client
from gunicorn.companion.client import logs, show, web
from gunicorn.companion.client.commands import DONE
from gunicorn.companion.client.connection import (
    DEFAULT_TIMEOUT,
    NO_ANSWER,
    OK,
    REFUSED,
    SOCKET_VARIABLE,
    Connection,
    Failure,
    NoServer,
    Printable,
    complain,
    connect,
    discard,
)

TYPE_CHECKING = False  # importing typing is slow
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["COMMANDS", "build_parser", "main"]

STATES = ("STOPPED", "STARTING", "RUNNING", "BACKOFF", "STOPPING")
INTERRUPTED = 130
# The first word of the call by which a shell's script asks what may be typed next.
COMPLETE = "__complete"

NAMES = (
    "by name: 'rq' (with all its copies, if it has numprocs), 'rq:2', a pattern such as 'work*', a group "
    "such as '@workers', or 'all'"
)

# What to write instead of commands of supervisorctl, systemctl, pm2 and others.
FOREIGN_WORDS = {
    "update": "reread applies what changed in companions; reload does so for the whole server",
    "add": "reread applies what changed in the configuration; web add: more web workers",
    "remove": "reread applies what changed in the configuration; web remove: fewer web workers",
    **dict.fromkeys(("workers", "worker", "ttin", "ttou"), "use web"),
    **dict.fromkeys(
        ("quit", "exit", "halt", "terminate"), "shutdown ends the server; stop all ends companions"
    ),
    **dict.fromkeys(("deploy", "redeploy", "graceful", "hup"), "use reload, or upgrade for a new master"),
    **dict.fromkeys(("rollback", "usr2"), "upgrade goes back by itself if the new master does not boot"),
    **dict.fromkeys(("tail", "maintail", "log", "fg", "attach"), "use logs -f NAME"),
    **dict.fromkeys(("avail", "list", "ls", "ps", "show", "describe"), "use status -v"),
    "monit": "use top",
    "send": "use signal SIGNAL NAME",
    "kill": "use signal SIGNAL NAME; web kill PID for a web worker",
    **dict.fromkeys(("clear", "reset-failed", "reset"), "start NAME restarts one that gave up"),
    **dict.fromkeys(("enable", "disable"), "use autostart in the configuration"),
    "help": "use --help",
}


class Parser(argparse.ArgumentParser):
    """Suggests what to write for an unknown command."""

    def error(self, message: str) -> NoReturn:
        _, found, rest = message.partition("argument COMMAND: invalid choice: '")
        if found:
            word = rest.partition("'")[0]
            message = f"unknown command {word}" + (_meant(word) or f" ({', '.join(COMMANDS)})")
        super().error(message)


def _meant(word: str) -> str:
    if word in FOREIGN_WORDS:
        return f": {FOREIGN_WORDS[word]}"
    import difflib

    near = difflib.get_close_matches(word, COMMANDS, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    _prepare_output()
    streams = sys.stdout, sys.stderr
    # The texts may come from another user's server or companion.
    sys.stdout, sys.stderr = Printable(sys.stdout), Printable(sys.stderr)
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # `gunicorn-companion status | head -1`
        discard(sys.stdout)
        return OK
    except OSError as exc:
        discard(sys.stdout)
        complain(f"cannot write the answer: {exc.strerror or exc}")
        return NO_ANSWER
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        sys.stdout, sys.stderr = streams


def _run(words: Sequence[str]) -> int:
    if words and words[0] == COMPLETE:
        from gunicorn.companion.client.completion import complete

        return complete(build_parser, words[1], list(words[2:]))
    options = build_parser(words).parse_args(words)
    options.started = time.monotonic()
    try:
        run: Callable[[Any, Any], int] = COMMANDS[options.command][-1]
        if options.command in WITHOUT_SERVER:
            return run(None, options)
        with _connect(options) as connection:
            return run(connection, options)
    except Failure as exc:
        complain(exc)
        return exc.code


def _connect(options: Any) -> Connection:
    signals = SIGNALS.get(options.command)
    try:
        return connect(options.socket, options.timeout if signals is None else None)
    except NoServer as exc:
        if signals is None:
            raise
        raise Failure(f"{exc}; a server without companions has no control socket: {signals}") from None


def _prepare_output() -> None:
    """Make the output streams usable, even if they are closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Closed by `>&-`: the caller only wants the exit status.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The terminal may lack the letters of a companion's status.
        sys.stdout.reconfigure(errors="backslashreplace")


def build_parser(words: Sequence[str]) -> Parser:
    """The parser for *words*; other commands than those in it have no arguments."""
    # argparse makes a formatter for each option, and imports much to find the width of the terminal.
    formatter = functools.partial(argparse.HelpFormatter, width=80)
    parser = Parser(
        prog="gunicorn-companion",
        formatter_class=formatter,
        description="Show and control the companion processes of a running server.",
        epilog="Exit status: 0 success (for status: every companion that should run is RUNNING), 1 refused, "
        "or not in the requested state, 2 wrong usage or no answer, 3 status or web, or a reload or upgrade "
        "that is done, found one that should run and does not. 'gunicorn-companion "
        "COMMAND --help' explains a command.",
    )
    _add_common(parser)
    socket = os.environ.get(SOCKET_VARIABLE) or None
    parser.set_defaults(socket=socket, json=False, timeout=None, no_wait=False)
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show which Gunicorn is installed, and where"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (text, more, add_arguments, _) in COMMANDS.items():
        if name not in words:
            commands.add_parser(name, help=text, add_help=False)
            continue
        description = f"{text[0].upper()}{text[1:]}. {more}"
        one = commands.add_parser(name, help=text, description=description, formatter_class=formatter)
        add_arguments(one)
        _add_common(one, waits=name in WAITS, limits=LIMITS.get(name))
        one.formatter_class = argparse.HelpFormatter
    parser.formatter_class = argparse.HelpFormatter
    return parser


class _Version(argparse.Action):
    """Prints the version of this package, and reports another Gunicorn that was installed over it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        place = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        print(f"{parser.prog} {__version__} from {place}", flush=True)
        try:
            installed = metadata.version("gunicorn")
        except metadata.PackageNotFoundError:  # run from a checkout
            installed = __version__
        if installed != __version__:
            parser.exit(1, f"{parser.prog}: the gunicorn that is installed is another one, {installed}\n")
        parser.exit(0)


# -- options and arguments ---------------------------------------------------


def _add_common(parser: Parser, waits: bool = True, limits: str | None = None) -> None:
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


def _events(parser: Parser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"companions {NAMES}; all by default")


def _some(parser: Parser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help=f"companions {NAMES}")


def _status(parser: Parser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"companions {NAMES}; all by default")
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="add memory, for each and in total: the proportional size (PSS), which counts a page that ten "
        "processes share as a tenth in each, private memory, and what copy-on-write saves",
    )


def _restart(parser: Parser) -> None:
    _some(parser)
    parser.add_argument(
        "--rolling",
        action="store_true",
        help="one copy at a time, each RUNNING before the next stops",
    )


def _signal(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help=f"companions {NAMES}")
    parser.add_argument("signal", metavar="SIG", help="its name (HUP, SIGHUP) or number")


def _scale(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="a companion with numprocs, by its plain name")
    parser.add_argument("numprocs", metavar="N", type=_count, help="the number of copies")


def _wait(parser: Parser) -> None:
    _some(parser)
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


def _logs(parser: Parser) -> None:
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


def _web(parser: Parser) -> None:
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


def _dump(parser: Parser) -> None:
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="+",
        help=f"companions {NAMES}; 'web', all web workers; or the pid of a worker, of a companion, or of a "
        "process that a companion has started",
    )


def _reread(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only show what would change")


def _top(parser: Parser) -> None:
    parser.add_argument(
        "--interval",
        metavar="S",
        type=_seconds,
        default=2.0,
        help="seconds between two looks (default 2); what happens to a companion is shown at once",
    )
    parser.add_argument("--plain", action="store_true", help="print the tables; no screen, no keys")


def _pid(parser: Parser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"companions {NAMES}; none: the manager")


def _metrics(parser: Parser) -> None:
    parser.add_argument(
        "--openmetrics", action="store_true", help="as OpenMetrics, with units and times of creation"
    )


def _history(parser: Parser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"companions {NAMES}; all by default")
    parser.add_argument(
        "-n", metavar="N", dest="number", type=_count, default=100, help="only the last N (default: all, 100)"
    )


def _show_metrics(connection: Connection, options: Any) -> int:
    # Other commands need not load it.
    from gunicorn.companion.client.metrics import show_metrics

    return show_metrics(connection, options)


def _completion(parser: Parser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


def _show_completion(_: object, options: Any) -> int:
    from gunicorn.companion.client.completion import show_script

    return show_script(options)


def _reload(parser: Parser) -> None:
    parser.add_argument("--wait", action="store_true", help="until it is done, or refused")


def _upgrade(parser: Parser) -> None:
    parser.add_argument("--wait", action="store_true", help="until it is done, or rolled back")


def _shutdown(parser: Parser) -> None:
    parser.add_argument(
        "--now", action="store_true", help="kill everything at once: requests and jobs that run are lost"
    )
    parser.add_argument("--wait", action="store_true", help="until the server is gone")


def _import(parser: Parser) -> None:
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


def _translate(_: object, options: Any) -> int:
    from gunicorn.companion.importing.command import run

    problem = run(options)
    if problem:
        raise Failure(problem, REFUSED)
    return OK


def _nothing(parser: Parser) -> None:
    pass


def _show_top(connection: Connection, options: Any) -> int:
    # Other commands do without what it imports.
    from gunicorn.companion.client.top import run

    return run(connection, options)


def _steer_server(connection: Connection, options: Any) -> int:
    # Health checks and the like need not load it.
    from gunicorn.companion.client import deploy

    return deploy.COMMANDS[options.command](connection, options)


# Each command: its help, more of its description, the function that adds its arguments, and the one that runs
# it. The answers of the manager are in supervise/commands.py.
COMMANDS: dict[str, tuple[str, str, Callable[[Parser], None], Callable[[Connection, Any], int]]] = {
    "status": (
        "show companions and their state; with the NAME of one, all about it",
        "Exit status 3: a companion that should run is not RUNNING, or keeps failing.",
        _status,
        show.show_status,
    ),
    "start": (
        "start companions that are stopped or waiting for a restart",
        "Returns when they are RUNNING or done; exit status 1: one waits for a companion that is stopped.",
        _some,
        client.steer,
    ),
    "stop": (
        "stop companions and keep them stopped",
        "Returns when all their processes are gone.",
        _some,
        client.steer,
    ),
    "restart": (
        "stop companions and start them again",
        "Returns when they are RUNNING again.",
        _restart,
        client.steer,
    ),
    "signal": (
        "send a signal to companions",
        "It goes to the companion alone, not to its children.",
        _signal,
        client.send_signal,
    ),
    "scale": (
        "change how many copies of a companion run",
        "Lasts until its numprocs changes in the configuration, or the server restarts. "
        "The copy with the highest index stops first.",
        _scale,
        client.scale,
    ),
    "wait": (
        "wait until companions are in a state",
        "Exit status 1: one of them will not get there by itself (it is STOPPED, or waits for one that is), "
        "or --timeout has passed.",
        _wait,
        client.wait,
    ),
    "history": (
        "show the latest starts and ends of companions, and the cause of each",
        "Those of the last hundred, also from before the manager was restarted.",
        _history,
        show.show_history,
    ),
    "events": (
        "print each change of a state, each start and end as a line of JSON",
        "Ends with the server, or on Ctrl-C.",
        _events,
        client.follow_events,
    ),
    "logs": (
        "show the last lines that companions wrote, and follow them",
        "Lines of several companions have the name in front. They outlive a companion that is restarted or "
        "killed. With --json each line is an object with its time, name, pid and stream.",
        _logs,
        logs.show_logs,
    ),
    "metrics": (
        "print all figures for Prometheus",
        "In its text format, as the page /metrics of the monitor has them: for the textfile collector, or "
        "for a look. What each means is in the line before it.",
        _metrics,
        _show_metrics,
    ),
    "web": (
        "show web workers and what they are doing; add, remove, reload or kill them",
        "Exit status 3: fewer workers serve than there should be, or the master hangs; 1: refused, or a new "
        "worker does not start.",
        _web,
        web.web,
    ),
    "top": (
        "show companions and web workers on a live screen, with the output of one",
        "Keys restart, stop, start, scale and inspect them; ? lists the keys. Needs the library textual. "
        "Without it, or without a terminal, the same tables are printed again and again.",
        _top,
        _show_top,
    ),
    "dump": (
        "print what all threads of companions or web workers do now: their Python stacks",
        "They are not disturbed. Of a function in C only the Python line that calls it is shown. Exit status "
        "1: a process does not answer (the reason is printed).",
        _dump,
        client.show_stacks,
    ),
    "reread": (
        "read the configuration again and apply the changes",
        "If it is wrong, nothing changes and the exit status is 1.",
        _reread,
        client.reread,
    ),
    "reload": (
        "reload everything: the configuration, web workers, companions that have changed",
        "As SIGHUP to the master does. If the configuration is wrong, or new web workers do not boot, "
        "nothing changes; with --wait the exit status is then 1, or 3 if it is done and a companion does not "
        "run.",
        _reload,
        _steer_server,
    ),
    "upgrade": (
        "start a new master with the code on disk, and end the old one when it serves",
        "If the new master does not boot within --timeout seconds (default 120), it is ended and the old one "
        "goes on; with --wait the exit status is then 1, or 3 if it is done and a companion does not run. "
        "Companions change hands, and none runs twice.",
        _upgrade,
        _steer_server,
    ),
    "shutdown": (
        "stop the whole server",
        "As SIGTERM to the master does: requests and jobs that run come to their end.",
        _shutdown,
        _steer_server,
    ),
    "pid": (
        "print the pid of the companion manager, or of companions",
        "Exit status 1: a companion has no process.",
        _pid,
        client.show_pid,
    ),
    "version": (
        "print the version of the running server",
        "--version prints that of the command.",
        _nothing,
        client.show_version,
    ),
    "completion": (
        "print the script that completes commands, options and names in a shell",
        "bash: add 'source <(gunicorn-companion completion bash)' to ~/.bashrc. zsh: the same with zsh, in "
        "~/.zshrc, after compinit. fish: gunicorn-companion completion fish "
        "> ~/.config/fish/completions/gunicorn-companion.fish. Names come from the running server.",
        _completion,
        _show_completion,
    ),
    "import": (
        "translate the configuration of supervisord and others into one for this server",
        "Reads supervisord.conf, Procfile, circus.ini, uwsgi.ini, systemd's units, docker-compose.yml (needs "
        "PyYAML) and pm2's JSON; prints a part of gunicorn.conf.py. What has no counterpart is a comment "
        "that says what to do instead; look at each 'guess'. Exit status 1: a file cannot be read.",
        _import,
        _translate,
    ),
}

# Commands that need no running server.
WITHOUT_SERVER = ("completion", "import")


# What does the same for a server without companions.
SIGNALS = {
    "reload": "send SIGHUP to its master",
    "upgrade": "send SIGUSR2 to its master, and SIGTERM when the new one serves",
    "shutdown": "send SIGTERM to its master",
}

# What --timeout is for, where that is special.
LIMITS = {
    "reload": "seconds to wait, with --wait (default: as long as it takes); the server goes on after that",
    "upgrade": "seconds that the new master has to boot (default 120); old companions have their own limits",
    "shutdown": "seconds to wait, with --wait (default: as long as it takes); the server goes on after that",
}

# Commands that wait until companions or web workers have settled.
WAITS = ("start", "stop", "restart", "scale", "web")


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


if __name__ == "__main__":
    sys.exit(main())
