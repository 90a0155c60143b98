# SPDX-License-Identifier: MIT
"""A page that says where to look."""

from collections.abc import Callable, Iterable
from typing import Any


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"gunicorn-companion logs -f\n"]
