# SPDX-License-Identifier: MIT
"""A page that names its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

PAGE = b"""<!doctype html>
<title>Shop</title>
<script src="/static/price.3f2a9c1b.js"></script>
<script src="/static/shop.js" defer></script>
<h1>Apples</h1>
<p id="price"></p>
"""


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    found = environ["PATH_INFO"] == "/"
    body = PAGE if found else b"There is no such page.\n"
    start_response(
        "200 OK" if found else "404 Not Found",
        [
            ("Content-Type", "text/html; charset=utf-8" if found else "text/plain"),
            ("Content-Length", str(len(body))),
        ],
    )
    return [body]
