# SPDX-License-Identifier: MIT
"""``python -m gunicorn``."""

from __future__ import annotations

from gunicorn.app.wsgiapp import run

if __name__ == "__main__":
    # The name of this file would be the program's in --help otherwise.
    run(prog="gunicorn")
