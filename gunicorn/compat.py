# SPDX-License-Identifier: MIT
"""Small functions that other packages know from ``gunicorn.util`` and this one has no use for."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NoReturn


def get_arity(f: Callable[..., Any]) -> int:
    """How many arguments *f* takes by position or by name."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds for parameter in inspect.signature(f).parameters.values())


def _called_with_wrong_args(f: Callable[..., Any]) -> bool:
    """Whether the TypeError at hand came from the call of *f* itself rather than from inside of *f*."""
    code = getattr(f, "__code__", None)
    tb = sys.exc_info()[2]
    while tb is not None:
        if tb.tb_frame.f_code is code:
            return False
        tb = tb.tb_next
    return True


def check_is_writable(path: str) -> None:
    """Raises RuntimeError unless a log can be appended to at *path*, which is made if it is not there."""
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise RuntimeError(f"cannot write to {path!r}: {error.strerror}") from error


def close(sock: Any) -> None:
    """Close *sock*; one that fails to close is as good as closed."""
    try:
        sock.close()
    except OSError:
        pass


def has_fileno(obj: Any) -> bool:
    """Whether *obj* is open on a descriptor of the system."""
    try:
        os.fstat(obj.fileno())
    except (AttributeError, OSError, ValueError):  # io.UnsupportedOperation is both of the latter
        return False
    return True


def warn(msg: str) -> None:
    """Tell *msg* on stderr so that it is seen."""
    print(f"!!! WARNING: {msg}", file=sys.stderr, flush=True)


def make_fail_app(msg: bytes | str) -> Callable[..., Iterable[bytes]]:
    """A WSGI application that answers everything with status 500 and *msg*."""
    body = msg.encode("utf-8") if isinstance(msg, str) else msg

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        start_response("500 Internal Server Error", headers)
        return [body]

    return app


def reraise(
    tp: type[BaseException], value: BaseException | None, tb: TracebackType | None = None
) -> NoReturn:
    """Raise *value*, or an instance of *tp*, with the traceback *tb*."""
    error = tp() if value is None else value
    raise error.with_traceback(tb)
