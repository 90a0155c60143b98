# SPDX-License-Identifier: MIT
"""The map of modules in the architecture page: each file with the first sentence of its docstring.

Written as ``modules.inc`` before each build; ``python module_map.py`` prints it.
"""

from __future__ import annotations

import ast
from pathlib import Path

from generated import writes

ROOT = Path(__file__).resolve().parents[2]
HEAD = ".. This file is written by _ext/module_map.py from the modules' docstrings; changes belong there.\n"


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line; empty if there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def packages() -> list[Path]:
    """The directories with modules, the package itself first."""
    package = ROOT / "gunicorn"
    return [package, *sorted(path.parent for path in package.rglob("*/__init__.py"))]


def modules(package: Path) -> list[Path]:
    return sorted(path for path in package.glob("*.py") if path.name != "__init__.py")


def table() -> str:
    """The whole map in reStructuredText."""
    blocks = [HEAD]
    for package in packages():
        title = f"``{package.relative_to(ROOT)}/``"
        blocks.append(f"{title}\n{'~' * len(title)}\n\n{summary(package / '__init__.py')}\n")
        rows = [f"``{path.name}``\n   {summary(path)}" for path in modules(package)]
        blocks.append("\n".join(rows) + "\n")
    return "\n".join(blocks)


setup = writes("modules.inc", table)

if __name__ == "__main__":
    print(table(), end="")
