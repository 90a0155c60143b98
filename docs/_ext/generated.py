# SPDX-License-Identifier: MIT
"""What the extensions share that write a file of the documentation from the code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def writes(name: str, text: Callable[[], str]) -> Callable[[Any], dict[str, Any]]:
    """Return the ``setup`` of a Sphinx extension that writes *name* beside the sources before each build."""

    def write(app: Any) -> None:
        path, wanted = Path(app.srcdir) / name, text()
        # A file that is as it should be keeps its time, so that its page is not built again.
        if not path.exists() or path.read_text(encoding="utf-8") != wanted:
            path.write_text(wanted, encoding="utf-8")

    def setup(app: Any) -> dict[str, Any]:
        # Before Sphinx looks for sources, so that the file is among them.
        app.connect("builder-inited", write)
        return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

    return setup
