# SPDX-License-Identifier: MIT
"""The page: how many visits there were, as the store counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import services


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    # Both are there: the web workers come after the migration and the store.
    schema = services.SCHEMA.read_text().strip()
    body = f"visit {services.count('visits')}, schema {schema}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
