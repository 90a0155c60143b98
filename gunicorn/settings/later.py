# SPDX-License-Identifier: MIT
"""Settings of Gunicorn 24 to 27 without a meaning here: accepted, with a line about it, or refused.

A value is refused if without it a part of the application or a promised protocol would be missing; the error
says how to have that here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gunicorn.settings.base import GUNICORN_27, Setting, auto_int
from gunicorn.settings.kinds import Count, Flag, Text
from gunicorn.settings.validators import (
    MAX_NUMBER,
    any_case,
    validate_list_string,
    validate_pos_int,
    validate_seconds,
)

SECTION = GUNICORN_27

_DIRTY = "there are no dirty workers: let a companion (companion_workers) do their work"
_HTTP2 = "this server speaks HTTP/1.1: let a proxy in front speak HTTP/2, or run Hypercorn as a companion"
_CONTROL = "gunicorn-companion has a socket of its own, companion_control_socket"
_ONE_PARSER = "there is one parser"

# What takes the place of a setting that does nothing.
_UNUSED = {
    "http_parser": _ONE_PARSER,
    "http2_max_concurrent_streams": _HTTP2,
    "http2_initial_window_size": _HTTP2,
    "http2_max_frame_size": _HTTP2,
    "http2_max_header_list_size": _HTTP2,
    "control_socket": _CONTROL,
    "control_socket_mode": f"{_CONTROL}, and companion_control_socket_mode",
}


def unused_settings(cfg: Any) -> list[str]:
    """What to say of each setting in *cfg* that is set and does nothing."""
    return [
        f"{name} has no effect: {instead}"
        for name, instead in _UNUSED.items()
        if cfg.settings[name].get() != cfg.settings[name].default
    ]


def only(default: Any, validate: Callable[[Any], Any], why: str) -> Callable[[Any], Any]:
    """A validator that takes nothing but *default*; of what *validate* takes it says *why* not."""

    def check(val: Any) -> Any:
        value = validate(val)
        if value != default:
            raise ValueError(why)
        return value

    return check


def validate_protocols(val: Any) -> list[str]:
    """``h1``, which text without a protocol means, too; a list that has ``h2`` is refused."""
    given = validate_list_string(val.split(",") if isinstance(val, str) else val)
    words = [word.lower() for word in given if word] or ["h1"]
    if not set(words) <= {"h1", "h2"} or len(set(words)) < len(words):
        raise ValueError(f"expected h1, h2 or both, separated by commas, not {val!r}")
    if "h2" in words:
        raise ValueError(_HTTP2)
    return words


def validate_cleartext(val: Any) -> str:
    if isinstance(val, bool):
        return "prior-knowledge" if val else "off"
    return any_case("off", "prior-knowledge", "upgrade", "both")(val)


def within(least: int, most: int) -> Callable[[Any], int]:
    """A validator for a whole number from *least* to *most*, the bounds of RFC 9113."""

    def validate(val: Any) -> int:
        number = validate_pos_int(val)
        if not least <= number <= most:
            raise ValueError(f"expected a number from {least} to {most}, not {number}")
        return number

    return validate


def no_hook(val: Any) -> None:
    if val is not None:
        raise ValueError(_DIRTY)


class HTTPParser(
    Setting,
    validator=any_case("auto", "fast", "python"),
    name="http_parser",
    flags="--http-parser",
    default="auto",
):
    """Accepted without an effect: there is one parser."""


class HTTPProtocols(
    Setting, validator=validate_protocols, name="http_protocols", flags="--http-protocols", default="h1"
):
    """``h1``, that is HTTP/1.1; a list with ``h2`` is refused.

    A proxy in front can speak HTTP/2 to clients, and so can Hypercorn, as a companion.
    """


class HTTP2MaxConcurrentStreams(
    Count,
    name="http2_max_concurrent_streams",
    flags="--http2-max-concurrent-streams",
    validator=within(1, MAX_NUMBER),
    default=100,
):
    """Accepted without an effect: the server speaks HTTP/1.1."""


class HTTP2InitialWindowSize(
    Count,
    name="http2_initial_window_size",
    flags="--http2-initial-window-size",
    validator=within(0, 2**31 - 1),
    default=65535,
):
    """Accepted without an effect: the server speaks HTTP/1.1."""


class HTTP2MaxFrameSize(
    Count,
    name="http2_max_frame_size",
    flags="--http2-max-frame-size",
    validator=within(2**14, 2**24 - 1),
    default=16384,
):
    """Accepted without an effect: the server speaks HTTP/1.1."""


class HTTP2MaxHeaderListSize(
    Count, name="http2_max_header_list_size", flags="--http2-max-header-list-size", default=65536
):
    """Accepted without an effect: the server speaks HTTP/1.1."""


class HTTP2Cleartext(
    Setting,
    name="http2_cleartext",
    flags="--http2-cleartext",
    validator=only("off", validate_cleartext, _HTTP2),
    default="off",
):
    """``off``; other values are refused: see ``http_protocols``."""


class ControlSocket(Text, meta="PATH", default_text="none"):
    """Accepted without an effect: ``gunicorn-companion`` uses ``companion_control_socket``."""


class ControlSocketMode(
    Setting, type=auto_int, validator=validate_pos_int, meta="INT", default=0o600, default_text="``0o600``"
):
    """Accepted without an effect: see ``companion_control_socket_mode``."""


class ControlSocketDisable(Flag, flags="--no-control-socket"):
    """Accepted without an effect: there is no such socket. See ``companion_control_socket``."""


class DirtyApps(
    Setting,
    flags="--dirty-app",
    action="append",
    validator=only([], validate_list_string, _DIRTY),
    default=[],
    default_text="none",
):
    """Refused: a companion does what a dirty worker does, in a process beside the web workers.

    It shares the memory of the preloaded application. You choose how requests reach it, a queue or a socket.
    """


class DirtyWorkers(Setting, meta="INT", validator=only(0, validate_pos_int, _DIRTY), default=0):
    """Refused but for 0: see ``dirty_apps``."""


class DirtyTimeout(Setting, meta="SECONDS", validator=only(300, validate_seconds, _DIRTY), default=300):
    """Refused but for 300: see ``dirty_apps``."""


class DirtyThreads(Setting, meta="INT", validator=only(1, validate_pos_int, _DIRTY), default=1):
    """Refused but for 1: see ``dirty_apps``."""


class DirtyGracefulTimeout(Setting, meta="SECONDS", validator=only(30, validate_seconds, _DIRTY), default=30):
    """Refused but for 30: see ``dirty_apps``."""


class OnDirtyStarting(Setting, flags=None, validator=no_hook):
    """Refused: see ``dirty_apps``."""


class DirtyPostFork(Setting, flags=None, validator=no_hook):
    """Refused: see ``dirty_apps``."""


class DirtyWorkerInit(Setting, flags=None, validator=no_hook):
    """Refused: see ``dirty_apps``."""


class DirtyWorkerExit(Setting, flags=None, validator=no_hook):
    """Refused: see ``dirty_apps``."""
