# SPDX-License-Identifier: MIT
"""How the documentation is built: ``sphinx-build -W -b html docs docs/_build``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Some pages are written from the code, so the package must be importable.
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from gunicorn import __version__  # noqa: E402

project = "Gunicorn with companions"
author = "the project's contributors"
project_copyright = "the project's contributors, MIT licence"
version = release = __version__

extensions = [
    "companion_keys",
    "gunicorn_27",
    "import_tables",
    "metrics_table",
    "module_map",
    "settings_page",
]
exclude_patterns = ["_build"]
highlight_language = "none"
nitpicky = True

html_theme = "alabaster"
html_title = f"{project} {release}"
html_theme_options = {
    "description": "A WSGI and ASGI server that also runs your application's other processes",
    "fixed_sidebar": True,
    "page_width": "1080px",
}
html_show_sourcelink = False
html_show_copyright = False
