# SPDX-License-Identifier: MIT
"""The command ``logs``: print lines of output, and follow them while the log keeper is replaced."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace

from gunicorn.companion.client import terminal
from gunicorn.companion.client.commands import EVERY
from gunicorn.companion.client.connection import (
    DEFAULT_TIMEOUT,
    OK,
    RETRY_INTERVAL,
    Connection,
    Failure,
    Reply,
    complain,
    connect,
)

# Of names in front of lines, as in the server's own output.
LOG_COLORS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


def show_logs(connection: Connection, options: Namespace) -> int:
    """Print kept lines; with ``--follow`` new ones until the server ends or somebody interrupts."""
    names = [] if EVERY in options.names else options.names
    request: Reply = {"cmd": "logs", "names": names, "lines": options.lines, "follow": options.follow}
    if options.since is not None:
        request["since"] = time.time() - options.since
    if options.stream:
        request["stream"] = options.stream
    reply = connection.must(**request)
    show = _show_line if options.json else Lines(alone=len(reply["names"]) == 1).show
    # A line may take any time to come.
    connection.sock.settimeout(None)
    last = 0.0
    while True:
        while (line := next_line(connection)) is not None:
            show(line)
            last = json.loads(line).get("time", last)
        if not options.follow:
            return OK
        # The process that answers was replaced, if the server has not ended.
        request.update(resume=True, since=last + 1e-6)
        connection = _ask_again(connection, options, request)


def next_line(connection: Connection) -> bytes | None:
    """None at the end. A process that was killed may have sent a part of a line."""
    try:
        line = connection.file.readline()
    except ConnectionResetError:
        return None
    return line if line.endswith(b"\n") else None


def _ask_again(connection: Connection, options: Namespace, request: Reply) -> Connection:
    """Raises Failure if nobody answers for a while."""
    deadline = time.monotonic() + DEFAULT_TIMEOUT
    while True:
        again = connect(connection.path, options.timeout)
        try:
            again.must(**request)
        except Failure:
            # It may have been passed to the process that was just killed.
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_INTERVAL)
        else:
            again.sock.settimeout(None)
            return again


class Lines:
    """Prints lines with the name of their companion, unless there can be only one."""

    def __init__(self, alone: bool) -> None:
        self.alone = alone
        self.colored = terminal.has_colors()

    def show(self, line: bytes) -> None:
        found = json.loads(line)
        if "left_out" in found:
            complain(f"{found['left_out']} lines are left out: they came faster than they were read")
            return
        # Bytes that are no text were sent as surrogates.
        text = found["line"].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if not self.alone:
            self._show_name(found["name"])
        print(text, flush=True)

    def _show_name(self, name: str) -> None:
        color = LOG_COLORS[sum(name.encode()) % len(LOG_COLORS)]
        terminal.put(f"{name} |", color if self.colored else None)
        terminal.put(" ")


def _show_line(line: bytes) -> None:
    sys.stdout.write(line.decode("utf-8", "replace"))
    sys.stdout.flush()
