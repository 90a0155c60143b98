# SPDX-License-Identifier: MIT
"""The page: how much each packer has packed, and its pids."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

import chores

COUNTS = "SELECT packer, count(*), group_concat(DISTINCT pid) FROM parcels GROUP BY packer ORDER BY packer"


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    try:
        with chores.database() as db:
            rows = db.execute(COUNTS).fetchall()
    except sqlite3.OperationalError:  # the table is not there yet
        rows = []
    lines = [f"{packer}  {count} parcels  by pid {pids}\n" for packer, count, pids in rows]
    body = "".join(lines or ["nothing packed yet\n"]).encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
