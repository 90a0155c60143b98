# SPDX-License-Identifier: MIT
"""Fill in formats of the access log, and escape each value. Pure."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any

Environ = Mapping[str, Any]
#: Gives one atom of a request from its response, the request, the environ and the duration.
Getter = Callable[[Any, Any, Environ, timedelta], Any]
#: Gives the line of a request, with its end, from the same.
Line = Callable[[Any, Any, Environ, timedelta], bytes]

ABSENT = "-"

# Characters that could end the line, control a terminal (C0, DEL, C1) or end the quotes around an atom.
_UNSAFE_RE = re.compile('["\\\\\x00-\x1f\x7f-\x9f\u2028\u2029]')

# A name in a format, or an escaped percent sign. Python allows pairs of brackets in names.
_NAME_RE = re.compile(r"%%|%\(((?:[^()]|\([^()]*\))*)\)")

# The bytes that may need escaping, or are part of a character in UTF-8 that may.
_SUSPECT = bytes(byte for byte in range(256) if not 32 <= byte < 127 or chr(byte) in '"\\')


def escape(text: str) -> str:
    """Escape *text*, so that a client cannot forge a line or a field with it."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return _UNSAFE_RE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    if char in '"\\':
        return "\\" + char
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"


class SafeAtoms(dict[str, Any]):
    """Atoms by name, text escaped; a missing one is ``-``.

    Names in braces are those of header fields and variables, and have no case.
    """

    def __init__(self, atoms: Mapping[str, Any]) -> None:
        super().__init__(
            (key, escape(value) if isinstance(value, str) else value) for key, value in atoms.items()
        )

    def __getitem__(self, key: str) -> Any:
        if key.startswith("{"):
            key = key.lower()
        return super().__getitem__(key)

    def __missing__(self, key: str) -> str:
        return ABSENT


# These atoms are numbers, and variables may be. All others are text.
_NUMBERS = frozenset("TMDB")


class _Examples(dict[str, Any]):
    """A value of the right type for each atom; *own*: any other name may be a number or text."""

    def __init__(self, own: bool) -> None:
        super().__init__(h=ABSENT)
        self._own = own

    def __getitem__(self, key: str) -> Any:
        known = key in _GETTERS or key in ("t", "u") or key.startswith("{")
        return 0 if key in _NUMBERS or key.endswith("}e") or (self._own and not known) else ABSENT


def check_format(fmt: str, own: bool = False) -> None:
    """Raise ValueError for a format that would fail at each request. *own*: it may name more atoms."""
    try:
        fmt % _Examples(own)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(str(error)) from error


def status_code(resp: Any) -> Any:
    """Return ``200`` for a response with the status ``200 OK``."""
    return _code_of(resp.status)


@lru_cache(maxsize=64)
def _code_of(status: Any) -> Any:
    if isinstance(status, bytes):
        status = status.decode("latin-1")
    if isinstance(status, str):
        return status.split(None, 1)[0] if status.strip() else ABSENT
    return status


def basic_user(environ: Environ) -> str | None:
    """Return the user name in a Basic Authorization field (RFC 7617), which nobody has verified; or None."""
    authorization = environ.get("HTTP_AUTHORIZATION")
    if not authorization:
        return None
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        # Without *validate*, characters that are not base64 are skipped.
        decoded = base64.b64decode(credentials.strip().encode("latin-1"), validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError):
        return None
    try:
        text = decoded.decode("utf-8")
    except UnicodeDecodeError:
        text = decoded.decode("latin-1")
    user, colon, _ = text.partition(":")
    return user if colon and user else None


def microseconds(duration: timedelta) -> int:
    return (duration.days * 86400 + duration.seconds) * 1_000_000 + duration.microseconds


def header_pairs(message: Any) -> Iterable[tuple[str, str]]:
    """Return the header fields of a request or response, which some servers keep as a mapping."""
    headers = getattr(message, "headers", ())
    return headers.items() if hasattr(headers, "items") else headers


def all_atoms(
    resp: Any, req: Any, environ: Environ, duration: timedelta, now: str, user: str | None
) -> dict[str, Any]:
    """Return every atom of a request, unescaped; names of header fields and variables are in lower case."""
    atoms = {name: get(resp, req, environ, duration) for name, get in _GETTERS.items()}
    atoms["t"] = now
    atoms["u"] = user or ABSENT
    for name, value in header_pairs(req):
        atoms[f"{{{name.lower()}}}i"] = value
    for name, value in header_pairs(resp):
        atoms[f"{{{name.lower()}}}o"] = value
    for name, value in environ.items():
        atoms[f"{{{name.lower()}}}e"] = value
    return atoms


# The atoms that are the same for every Logger.
_GETTERS: dict[str, Getter] = {
    "h": lambda resp, req, environ, duration: environ.get("REMOTE_ADDR", ABSENT),
    "l": lambda resp, req, environ, duration: ABSENT,
    "r": lambda resp, req, environ, duration: (
        f"{environ.get('REQUEST_METHOD')} {environ.get('RAW_URI')} {environ.get('SERVER_PROTOCOL')}"
    ),
    "s": lambda resp, req, environ, duration: _code_of(resp.status),
    "m": lambda resp, req, environ, duration: environ.get("REQUEST_METHOD"),
    "U": lambda resp, req, environ, duration: environ.get("PATH_INFO"),
    "q": lambda resp, req, environ, duration: environ.get("QUERY_STRING"),
    "H": lambda resp, req, environ, duration: environ.get("SERVER_PROTOCOL"),
    "b": lambda resp, req, environ, duration: (
        ABSENT if (sent := getattr(resp, "sent", None)) is None else str(sent)
    ),
    "B": lambda resp, req, environ, duration: getattr(resp, "sent", None),
    "f": lambda resp, req, environ, duration: environ.get("HTTP_REFERER", ABSENT),
    "a": lambda resp, req, environ, duration: environ.get("HTTP_USER_AGENT", ABSENT),
    "T": lambda resp, req, environ, duration: microseconds(duration) // 1_000_000,
    "M": lambda resp, req, environ, duration: microseconds(duration) // 1000,
    "D": lambda resp, req, environ, duration: microseconds(duration),
    "L": lambda resp, req, environ, duration: "{}.{:06}".format(*divmod(microseconds(duration), 1_000_000)),
    "p": lambda resp, req, environ, duration: f"<{os.getpid()}>",
}


def line_function(fmt: str, now: Callable[[], str], user: Callable[[Environ], str | None]) -> Line | None:
    """Return a function for the line of one request that computes only the atoms in *fmt*.

    None for a format with other than named conversions.
    """
    names = [name[1] for name in _NAME_RE.finditer(fmt) if name[1] is not None]
    template = _NAME_RE.sub(lambda name: "%" if name[1] is not None else "%%", fmt) + "\n"
    examples = _Examples(own=False)
    try:
        template % tuple(examples[name] for name in names)
    except (TypeError, ValueError):
        return None
    getters = tuple(_getter(name, now, user) for name in names)
    literal = template.encode("utf-8", "backslashreplace")
    suspects = len(literal) - len(literal.translate(None, _SUSPECT))

    def line(resp: Any, req: Any, environ: Environ, duration: timedelta) -> bytes:
        values = [get(resp, req, environ, duration) for get in getters]
        text = template % tuple(values)
        data = text.encode("utf-8", "backslashreplace")
        # Mostly nothing needs escaping, and one check for the whole line is faster.
        if len(data) - len(data.translate(None, _SUSPECT)) != suspects:
            text = template % tuple([escape(v) if isinstance(v, str) else v for v in values])
            data = text.encode("utf-8", "backslashreplace")
        return data

    return line


def _getter(name: str, now: Callable[[], str], user: Callable[[Environ], str | None]) -> Getter:
    if name == "t":
        return lambda resp, req, environ, duration: now()
    if name == "u":
        return lambda resp, req, environ, duration: user(environ) or ABSENT
    key, brace, kind = name[1:].rpartition("}")
    if name.startswith("{") and brace:
        if kind == "i":
            return lambda resp, req, environ, duration: _field(req, key.lower())
        if kind == "o":
            return lambda resp, req, environ, duration: _field(resp, key.lower())
        if kind == "e":
            return lambda resp, req, environ, duration: _variable(environ, key)
    return _GETTERS.get(name, lambda resp, req, environ, duration: ABSENT)


def _field(message: Any, name: str) -> Any:
    found: Any = ABSENT
    for key, value in header_pairs(message):
        if key.lower() == name:
            found = value
    return found


def _variable(environ: Environ, name: str) -> Any:
    for key in (name, name.upper(), name.lower()):
        if key in environ:
            value = environ[key]
            return value if isinstance(value, (str, int, float)) else str(value)
    return ABSENT
