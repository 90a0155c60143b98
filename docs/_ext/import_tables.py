# SPDX-License-Identifier: MIT
"""The tables of keys of other supervisors, from the modules that translate them.

Written as ``import_ORIGIN.inc`` before each build; ``python import_tables.py ORIGIN`` prints one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from generated import writes

HEAD = ".. This file is written by _ext/import_tables.py from companion/importing/; changes belong there.\n"
ORIGINS = ("supervisord", "procfile", "circus", "uwsgi", "systemd", "compose", "pm2")

# What the second table of an origin is about, if it has one.
OTHERS = {
    "supervisord": ("SERVER", "other sections"),
    "circus": ("SERVER", "[circus]"),
    "systemd": ("UNIT", "[Unit]"),
}


def table(origin: str) -> str:
    """All tables of one origin in reStructuredText."""
    module = import_module(f"gunicorn.companion.importing.{origin}")
    text = HEAD + rows("there", module.HERE)
    if module.INSTEAD:
        text += "\nThese have no counterpart, and become comments:\n" + rows("there", module.INSTEAD)
    if origin in OTHERS:
        name, title = OTHERS[origin]
        text += rows(title, getattr(module, name))
    return text


def rows(title: str, keys: Mapping[str, str]) -> str:
    lines = [
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 28 72",
        "",
        f"   * - {title}",
        "     - here",
    ]
    for key, here in keys.items():
        lines += [f"   * - ``{key}``", f"     - {here}"]
    return "\n".join([*lines, ""])


def _table(origin: str) -> Any:
    return lambda: table(origin)


def setup(app: Any) -> dict[str, Any]:
    for origin in ORIGINS:
        writes(f"import_{origin}.inc", _table(origin))(app)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    print(table(sys.argv[1]), end="")
