# SPDX-License-Identifier: MIT
"""The ``gunicorn-companion`` command: its parser, the table of commands, and its exit.

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
from gunicorn.companion.client import arguments, logs, show, web
from gunicorn.companion.client import commands as client
from gunicorn.companion.client.connection import (
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

INTERRUPTED = 130
# The first word of the call by which a shell's script asks what may be typed next.
COMPLETE = "__complete"

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
    arguments.common(parser)
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
        arguments.common(one, waits=name in WAITS, limits=LIMITS.get(name))
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


# -- commands that load what others do without ---------------------------------


def _show_leases(connection: Connection, options: Any) -> int:
    from gunicorn.companion.client.leases import lease

    return lease(connection, options)


def _show_metrics(connection: Connection, options: Any) -> int:
    from gunicorn.companion.client.metrics import show_metrics

    return show_metrics(connection, options)


def _show_completion(_: object, options: Any) -> int:
    from gunicorn.companion.client.completion import show_script

    return show_script(options)


def _translate(_: object, options: Any) -> int:
    from gunicorn.companion.importing.command import run

    problem = run(options)
    if problem:
        raise Failure(problem, REFUSED)
    return OK


def _show_top(connection: Connection, options: Any) -> int:
    from gunicorn.companion.client.top import run

    return run(connection, options)


def _steer_server(connection: Connection, options: Any) -> int:
    from gunicorn.companion.client import deploy

    return deploy.COMMANDS[options.command](connection, options)


# Each command: its help, more of its description, the function that adds its arguments, and the one that runs
# it. The answers of the manager are in supervise/commands.py.
COMMANDS: dict[str, tuple[str, str, Callable[[Parser], None], Callable[[Connection, Any], int]]] = {
    "status": (
        "show companions and their state; with the NAME of one, all about it",
        "Exit status 3: a companion that should run is not RUNNING, or keeps failing.",
        arguments.status,
        show.show_status,
    ),
    "start": (
        "start companions that are stopped or waiting for a restart",
        "Returns when they are RUNNING or done; exit status 1: one waits for a companion that is stopped.",
        arguments.start,
        client.steer,
    ),
    "stop": (
        "stop companions and keep them stopped",
        "Returns when all their processes are gone.",
        arguments.some,
        client.steer,
    ),
    "restart": (
        "stop companions and start them again",
        "Returns when they are RUNNING again.",
        arguments.restart,
        client.steer,
    ),
    "signal": (
        "send a signal to companions",
        "It goes to the companion alone, not to its children.",
        arguments.signal,
        client.send_signal,
    ),
    "scale": (
        "change how many copies of a companion run",
        "Lasts until its numprocs changes in the configuration, or the server restarts. "
        "The copy with the highest index stops first.",
        arguments.scale,
        client.scale,
    ),
    "wait": (
        "wait until companions are in a state",
        "Exit status 1: one of them will not get there by itself (it is STOPPED, or waits for one that is), "
        "or --timeout has passed.",
        arguments.wait,
        client.wait,
    ),
    "history": (
        "show the latest starts and ends of companions, and the cause of each",
        "Those of the last hundred, also from before the manager was restarted.",
        arguments.history,
        show.show_history,
    ),
    "events": (
        "print each change of a state, each start and end as a line of JSON",
        "Ends with the server, or on Ctrl-C.",
        arguments.events,
        client.follow_events,
    ),
    "logs": (
        "show the last lines that companions wrote, and follow them",
        "Lines of several companions have the name in front. They outlive a companion that is restarted or "
        "killed. With --json each line is an object with its time, name, pid and stream.",
        arguments.logs,
        logs.show_logs,
    ),
    "metrics": (
        "print all figures for Prometheus",
        "In its text format, as the page /metrics of the monitor has them: for the textfile collector, or "
        "for a look. What each means is in the line before it.",
        arguments.metrics,
        _show_metrics,
    ),
    "web": (
        "show web workers and what they are doing; add, remove, reload or kill them",
        "Exit status 3: fewer workers serve than there should be, or the master hangs; 1: refused, or a new "
        "worker does not start.",
        arguments.web,
        web.web,
    ),
    "top": (
        "show companions and web workers on a live screen, with the output of one",
        "Keys restart, stop, start, scale and inspect them; ? lists the keys. Needs the library textual. "
        "Without it, or without a terminal, the same tables are printed again and again.",
        arguments.top,
        _show_top,
    ),
    "lease": (
        "show the leases of companions and who holds them; 'lease release NAME' gives one away",
        "Only the server that holds it can do so: what runs with it is stopped, and asks for the lease again "
        "after 3 seconds. "
        "Exit status 3: one has been held by nobody for longer than two ttl.",
        arguments.lease,
        _show_leases,
    ),
    "dump": (
        "print what all threads of companions or web workers do now: their Python stacks",
        "They are not disturbed. Of a function in C only the Python line that calls it is shown. Exit status "
        "1: a process does not answer (the reason is printed).",
        arguments.dump,
        client.show_stacks,
    ),
    "reread": (
        "read the configuration again and apply the changes",
        "If it is wrong, nothing changes and the exit status is 1.",
        arguments.reread,
        client.reread,
    ),
    "reload": (
        "reload everything: the configuration, web workers, companions that have changed",
        "As SIGHUP to the master does. If the configuration is wrong, or new web workers do not boot, "
        "nothing changes; with --wait the exit status is then 1, or 3 if it is done and a companion does not "
        "run.",
        arguments.reload,
        _steer_server,
    ),
    "upgrade": (
        "start a new master with the code on disk, and end the old one when it serves",
        "If the new master does not boot within --timeout seconds (default 120), it is ended and the old one "
        "goes on; with --wait the exit status is then 1, or 3 if it is done and a companion does not run. "
        "Companions change hands, and none runs twice.",
        arguments.upgrade,
        _steer_server,
    ),
    "shutdown": (
        "stop the whole server",
        "As SIGTERM to the master does: requests and jobs that run come to their end.",
        arguments.shutdown,
        _steer_server,
    ),
    "pid": (
        "print the pid of the companion manager, or of companions",
        "Exit status 1: a companion has no process.",
        arguments.pid,
        client.show_pid,
    ),
    "version": (
        "print the version of the running server",
        "--version prints that of the command.",
        arguments.none,
        client.show_version,
    ),
    "completion": (
        "print the script that completes commands, options and names in a shell",
        "bash: add 'source <(gunicorn-companion completion bash)' to ~/.bashrc. zsh: the same with zsh, in "
        "~/.zshrc, after compinit. fish: gunicorn-companion completion fish "
        "> ~/.config/fish/completions/gunicorn-companion.fish. Names come from the running server.",
        arguments.completion,
        _show_completion,
    ),
    "import": (
        "translate the configuration of supervisord and others into one for this server",
        "Reads supervisord.conf, Procfile, circus.ini, uwsgi.ini, systemd's units, docker-compose.yml (needs "
        "PyYAML) and pm2's JSON; prints a part of gunicorn.conf.py. What has no counterpart is a comment "
        "that says what to do instead; look at each 'guess'. Exit status 1: a file cannot be read.",
        arguments.importing,
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


if __name__ == "__main__":
    sys.exit(main())
