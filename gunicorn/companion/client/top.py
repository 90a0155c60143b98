# SPDX-License-Identifier: MIT
"""The command ``top``: the live screen, or without textual its tables in plain text."""

from __future__ import annotations

import os
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec

from gunicorn.companion.client import live, rows
from gunicorn.companion.client.connection import Connection

CLEAR = "\x1b[H\x1b[2J"
HOW_TO_GET_MORE = "This is the plain view. pip install textual: then it has output and keys."
WIDTH_OF_NO_TERMINAL = 100


def run(connection: Connection, options: Namespace) -> int:
    """Show the screen until somebody leaves it."""
    find = live.finder(connection, options.socket)
    # It is read no more, and a server may have few connections.
    connection.__exit__()
    if not options.plain and can_show_screen():
        from gunicorn.companion.client.screen import TopApp

        return TopApp(find, options.interval).run_until_left()
    return show_plain(find, options.interval)


def can_show_screen() -> bool:
    streams = sys.__stdin__, sys.__stdout__, sys.__stderr__
    on_terminal = all(stream is not None and stream.isatty() for stream in streams)
    return on_terminal and has_capable_terminal() and find_spec("textual") is not None


def has_capable_terminal() -> bool:
    return os.environ.get("TERM", "dumb") not in ("", "dumb")


def show_plain(find: live.Find, interval: float) -> int:
    """Print the tables again and again, the problems first, until Ctrl-C."""
    clears = sys.stdout.isatty() and has_capable_terminal()
    rates = rows.Rates()
    for found in live.looks(find, interval, threading.Event()):
        width, height = _size() if sys.stdout.isatty() else (WIDTH_OF_NO_TERMINAL, None)
        if isinstance(found, rows.Look):
            rates.add(found)
            lines = plain_lines(found, rates, width, None if height is None else height - 3)
        else:
            rates = rows.Rates()
            lines = [f"No answer since {_clock(found.since)}: {found.problem}"]
        if clears:
            # `Printable` lets no control character pass.
            getattr(sys.stdout, "stream", sys.stdout).write(CLEAR)
            lines.append(HOW_TO_GET_MORE)
        _print([f"{_clock(time.time())}  every {interval:g} s", *lines, ""], width if height else None)
    return 0


def plain_lines(look: rows.Look, rates: rows.Rates, width: int, height: int | None = None) -> list[str]:
    """The summary and the tables; only the first rows of each if *height* lines are too few."""
    lines = [text for _, text in rows.summary(look, rates, width)]
    companions, workers = rows.companion_rows(look, rates), rows.worker_rows(look, rates)
    # An empty line and the titles above each table.
    room = sys.maxsize if height is None else max(4, height - len(lines) - 4)
    for found, columns, most in (
        (companions, rows.COMPANION_COLUMNS, max(room * 2 // 3, room - len(workers))),
        (workers, rows.WORKER_COLUMNS, max(room // 3, room - len(companions))),
    ):
        ordered = rows.in_order(found, columns, rows.PROBLEMS)
        shown = ordered if len(ordered) <= most else ordered[: most - 1]
        if found:
            lines += ["", *table_lines(shown, found, columns, width)]
        if len(shown) < len(ordered):
            lines.append(f"  … {len(ordered) - len(shown)} more")
    return lines


def table_lines(
    ordered: Sequence[rows.Row], all_rows: Sequence[rows.Row], columns: Sequence[rows.Column], width: int
) -> list[str]:
    layout = rows.widths(columns, all_rows, width)
    head = " ".join(rows.fit(column.title, size, column.right) for column, size in layout)
    lines = [f"  {head}".rstrip()]
    for row in ordered:
        cells = (rows.fit(row.cells[column.name], size, column.right) for column, size in layout)
        lines.append(f"{rows.MARKS[row.level]} {' '.join(cells)}".rstrip())
    return lines


def _print(lines: Sequence[str], width: int | None) -> None:
    text = "\n".join(line if width is None else rows.fit(line, width).rstrip() for line in lines)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = text.translate(rows.ASCII)
    print(text, flush=True)


def _size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return 80, 24
    return size.columns or 80, size.lines or 24


def _clock(wall: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(wall))
