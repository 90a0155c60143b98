# SPDX-License-Identifier: MIT
"""What the command's terminal can do: its width, and colours."""

from __future__ import annotations

import os
import sys

GREEN, YELLOW, RED = 32, 33, 31


def has_colors() -> bool:
    """Whether output may be coloured: only on a terminal, see no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width() -> int | None:
    """The columns of the terminal; None without one: a line may then have any length."""
    if not sys.stdout.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def put(text: str, color: int | None = None) -> None:
    """Write *text*, in a *color* if one is given; the caller has asked `has_colors`."""
    if color is None:
        sys.stdout.write(text)
        return
    # `Printable` lets no colour pass.
    stream = getattr(sys.stdout, "stream", sys.stdout)
    stream.write(f"\x1b[{color}m")
    sys.stdout.write(text)
    stream.write("\x1b[0m")
