# SPDX-License-Identifier: MIT
"""Compile access-log formats into functions that escape each value.

Pure: nothing here writes or looks at a configuration.
"""

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
#: Gives the line of one request, with its end: of the response, the request, the environ and the duration.
Line = Callable[[Any, Any, Environ, timedelta], bytes]

ABSENT = "-"

# What could end the line, act on a terminal (C0, DEL, C1) or leave the quotes around the atom.
_UNSAFE_RE = re.compile('["\\\\\x00-\x1f\x7f-\x9f\u2028\u2029]')

_CONVERSION_RE = re.compile(
    r"""%(?:\((?P<key>(?:[^()]|\([^()]*\))*)\))?
        (?P<spec>[#0\- +]*(?:\d+)?(?:\.\d+)?)
        (?P<length>[hlL]?)(?P<type>[diouxXeEfFgGcrsa%])""",
    re.VERBOSE,
)


def escape(text: str) -> str:
    """*text* such that a client cannot forge a line or a field with it."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return _UNSAFE_RE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    if char in '"\\':
        return "\\" + char
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"


class SafeAtoms(dict[str, Any]):
    """Atoms by name, text in them escaped; any atom that is not there is ``-``.

    Names in braces are those of header fields and variables and have no case.
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


# Atoms that are numbers; variables may be. All others are text.
_NUMBERS = frozenset("TMDB")


class _Examples(dict[str, Any]):
    """A value of the right type for each atom; *own*: any other value suits every conversion."""

    def __init__(self, own: bool) -> None:
        super().__init__(h=ABSENT)
        self._own = own

    def __getitem__(self, key: str) -> Any:
        known = key in _PLAIN or key in ("t", "u") or key.startswith("{")
        return 0 if key in _NUMBERS or key.endswith("}e") or (self._own and not known) else ABSENT


def check_format(fmt: str, own: bool = False) -> None:
    """Raise ValueError for a format that would fail at each request. *own*: it may name more atoms."""
    try:
        fmt % _Examples(own)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(str(error)) from error


def status_code(resp: Any) -> Any:
    """``200`` of a response whose status is ``200 OK``."""
    return _code_of(resp.status)


@lru_cache(maxsize=64)
def _code_of(status: Any) -> Any:
    if isinstance(status, bytes):
        status = status.decode("latin-1")
    if isinstance(status, str):
        return status.split(None, 1)[0] if status.strip() else ABSENT
    return status


def basic_user(environ: Environ) -> str | None:
    """The user name in a Basic Authorization field (RFC 7617), or none; it has not been verified."""
    authorization = environ.get("HTTP_AUTHORIZATION")
    if not authorization:
        return None
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        # The standard decoder skips characters that are not base64, unless told to refuse them.
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
    """The header fields of a request or response, which some servers keep as a mapping."""
    headers = getattr(message, "headers", ())
    return headers.items() if hasattr(headers, "items") else headers


def all_atoms(
    resp: Any, req: Any, environ: Environ, duration: timedelta, now: str, user: str | None
) -> dict[str, Any]:
    """Every atom of one request, unescaped, header fields and variables under lower-case names."""
    atoms: dict[str, Any] = _plain_atoms()(resp, req, environ, duration)
    atoms["t"] = now
    atoms["u"] = user or ABSENT
    for name, value in header_pairs(req):
        atoms[f"{{{name.lower()}}}i"] = value
    for name, value in header_pairs(resp):
        atoms[f"{{{name.lower()}}}o"] = value
    for name, value in environ.items():
        atoms[f"{{{name.lower()}}}e"] = value
    return atoms


#: The atoms that need nothing but what an access log is told, as expressions: in one function together
#: they cost a fraction of what a function for each would.
_PLAIN = {
    "h": "get('REMOTE_ADDR', '-')",
    "l": "'-'",
    "r": 'f\'{get("REQUEST_METHOD")} {get("RAW_URI")} {get("SERVER_PROTOCOL")}\'',
    "s": "code_of(resp.status)",
    "m": "get('REQUEST_METHOD')",
    "U": "get('PATH_INFO')",
    "q": "get('QUERY_STRING')",
    "H": "get('SERVER_PROTOCOL')",
    "b": "'-' if (sent := getattr(resp, 'sent', None)) is None else str(sent)",
    "B": "getattr(resp, 'sent', None)",
    "f": "get('HTTP_REFERER', '-')",
    "a": "get('HTTP_USER_AGENT', '-')",
    "T": "microseconds(duration) // 1_000_000",
    "M": "microseconds(duration) // 1000",
    "D": "microseconds(duration)",
    "L": "'{}.{:06}'.format(*divmod(microseconds(duration), 1_000_000))",
    "p": "f'<{getpid()}>'",
}

_FUNCTION = """\
def function(resp, req, environ, duration):
    get = environ.get
"""
_LINE = """\
    data = {text}.encode("utf-8", "backslashreplace")
    # Mostly nothing needs to be escaped, and that is seen sooner for all at once.
    if data.translate(MARKED).count(0) == {marked}:
        return data
    return {safe_text}.encode("utf-8", "backslashreplace")
"""

# Map every character that may need escaping to a zero.
_MARKED = bytes(byte if 32 <= byte < 127 and chr(byte) not in '"\\' else 0 for byte in range(256))


def compile_format(fmt: str, now: Callable[[], str], user: Callable[[Environ], str | None]) -> Line | None:
    """Return a function for the line of one request that computes only the atoms in *fmt*.

    None for a format with other than named conversions, which are left to ``%``.
    """
    template: list[str] = []
    values: list[str] = []
    position = 0
    for match in _CONVERSION_RE.finditer(fmt):
        template.append(fmt[position : match.start()])
        position = match.end()
        if match["type"] == "%":
            template.append("%%")
            continue
        if match["key"] is None:
            return None
        template.append("%" + match["spec"] + match["type"])
        values.append(_expression(match["key"], verified=user is not basic_user))
    template.append(fmt[position:])
    if "%" in fmt[position:] or any("%" in part for part in template[::2]):
        return None
    # The compiler takes a literal apart that is filled in at once.
    text = "".join(template) + "\n"
    literal = repr(text)
    line: Line = _function(
        _LINE.format(
            text=_filled(literal, values),
            marked=text.encode("utf-8", "backslashreplace").translate(_MARKED).count(0),
            safe_text=_filled(literal, [f"safe({value})" for value in values]),
        ),
        {"now": now, "user": user},
    )
    return line


def _filled(literal: str, values: Iterable[str]) -> str:
    return f"({literal} % ({''.join(f'{value}, ' for value in values)}))"


def _function(body: str, names: Mapping[str, Any]) -> Any:
    """A function of what an access log is told of a request; its *body* may use what is below and *names*."""
    there = {
        "code_of": _code_of,
        "field": _field,
        "getpid": os.getpid,
        "MARKED": _MARKED,
        "microseconds": microseconds,
        "safe": _safe,
        "variable": _variable,
        **names,
    }
    exec(_FUNCTION + body, there)
    return there["function"]


@lru_cache(maxsize=1)
def _plain_atoms() -> Any:
    pairs = ", ".join(f"{name!r}: {expression}" for name, expression in _PLAIN.items())
    return _function(f"    return {{{pairs}}}\n", {})


def _expression(key: str, verified: bool) -> str:
    """Return the expression for the atom *key*; for a user that is not *verified* only if the client names
    one.
    """
    if key == "t":
        return "now()"
    if key == "u":
        found = f"user(environ) or {ABSENT!r}"
        return found if verified else f"({found}) if 'HTTP_AUTHORIZATION' in environ else {ABSENT!r}"
    if key in _PLAIN:
        return _PLAIN[key]
    kind = key.rpartition("}")[2]
    if key.startswith("{") and kind in ("i", "o", "e"):
        name = key[1 : key.rindex("}")]
        if kind == "e":
            return f"variable(environ, {name!r})"
        return f"field({'req' if kind == 'i' else 'resp'}, {name.lower()!r})"
    return repr(ABSENT)


def _safe(value: Any) -> Any:
    return escape(value) if isinstance(value, str) else value


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
