# SPDX-License-Identifier: MIT
"""The page of the web tier, which says where the other servers are."""

import os
from collections.abc import Callable, Iterable
from typing import Any

FIRST = int(os.environ.get("LIVE_PORT", "8001"))


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"curl -N http://127.0.0.1:{port}/\n".encode() for port in range(FIRST, FIRST + 4)]
