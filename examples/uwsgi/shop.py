"""An application that shows what nginx says of the client."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

NAMES = (
    "REMOTE_ADDR",
    "REQUEST_METHOD",
    "wsgi.url_scheme",
    "HTTP_HOST",
    "SCRIPT_NAME",
    "PATH_INFO",
    "RAW_URI",
)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    text = "".join(f"{name}: {environ[name]}\n" for name in NAMES)
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode("latin-1")]
