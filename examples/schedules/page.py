# SPDX-License-Identifier: MIT
"""The page: what the jobs have done, the latest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import chores


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = "".join(reversed(chores.lines()[-40:])).encode() or b"nothing yet\n"
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
