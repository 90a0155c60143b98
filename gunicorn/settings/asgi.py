# SPDX-License-Identifier: MIT
"""Settings for the ``asgi`` worker."""

from __future__ import annotations

from typing import Any

from gunicorn.settings.base import ASGI, Setting
from gunicorn.settings.kinds import Count, Seconds
from gunicorn.settings.validators import any_case, validate_string

SECTION = ASGI


def validate_root_path(val: Any) -> str:
    """A path in ASCII, without a slash at its end."""
    path = validate_string(val) or ""
    if path and not path.startswith("/"):
        raise ValueError(f"expected a path that begins with a slash, such as /shop, not {val!r}")
    if not path.isascii() or not path.isprintable():
        raise ValueError(f"expected a path in ASCII, encoded with %, not {val!r}")
    return path.rstrip("/")


class ASGILoop(
    Setting,
    name="asgi_loop",
    flags="--asgi-loop",
    validator=any_case("auto", "asyncio", "uvloop"),
    default="auto",
):
    """The event loop: ``asyncio``, ``uvloop``, or ``auto``, which is uvloop where that is installed.

    uvloop is faster. It is part of ``gunicorn[asgi]``.
    """


class ASGILifespan(
    Setting,
    name="asgi_lifespan",
    flags="--asgi-lifespan",
    validator=any_case("auto", "on", "off"),
    default="auto",
):
    """Whether a worker runs the application's lifespan: its code for the start and the end.

    With ``auto`` an application that does not know the protocol is served without; with ``on`` that is an
    error. In both cases a startup that the application reports as failed is a failed boot of the worker, so
    the server does not start, and a reload is refused. ``off`` never runs it.
    """


class ASGIDisconnectGracePeriod(
    Seconds,
    name="asgi_disconnect_grace_period",
    flags="--asgi-disconnect-grace-period",
    default=3,
):
    """The seconds that the application has to end a request whose client has gone.

    It is told by ``http.disconnect`` or ``websocket.disconnect``. After this time its task is cancelled.
    """


class WebSocketMaxMessageSize(
    Count, name="websocket_max_message_size", flags="--websocket-max-message-size", default=16 * 1024 * 1024
):
    """The largest message, in bytes, that a WebSocket accepts. A larger one closes it with code 1009."""


class RootPath(Setting, meta="STRING", validator=validate_root_path, default="", default_text="none"):
    """The path under which a proxy has mounted the application, ``root_path`` in the ASGI scope.

    For a proxy that removes this prefix from the path. WSGI applications get it from the proxy, in
    ``SCRIPT_NAME`` (see ``forwarder_headers``).
    """
