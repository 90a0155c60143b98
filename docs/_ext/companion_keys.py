# SPDX-License-Identifier: MIT
"""The table of the keys of a companion, from the keys themselves.

Written as ``companion_keys.inc`` before each build; ``python companion_keys.py`` prints it.
"""

from __future__ import annotations

from dataclasses import MISSING

from generated import writes

from gunicorn.companion.keys import KEYS, Key

HEAD = ".. This file is written by _ext/companion_keys.py from companion/keys.py; changes belong there.\n"
COLUMNS = ("key", "default", "global", "restart", "meaning")


def table() -> str:
    """The whole table in reStructuredText."""
    rows = [COLUMNS, *(row(name, key) for name, key in KEYS.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = " ".join("=" * width for width in widths)
    head, *lines = (
        " ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    )
    return "\n".join([HEAD, rule, head, rule, *lines, rule, ""])


def row(name: str, key: Key) -> tuple[str, ...]:
    has_setting, restarts = ("yes" if each else "" for each in (key.setting is not None, key.shapes))
    return f"``{name}``", default(key), has_setting, restarts, key.meaning


def default(key: Key) -> str:
    """The default as a reader would write it; empty where the key must be given."""
    if key.default is MISSING:
        return ""
    if key.default is None:
        return "none"
    if isinstance(key.default, str):
        return f'``"{key.default}"``'
    return f"``{key.default!r}``"


setup = writes("companion_keys.inc", table)

if __name__ == "__main__":
    print(table(), end="")
