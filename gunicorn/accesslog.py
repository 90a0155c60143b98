# SPDX-License-Identifier: MIT
"""Access-log formats: what each atom is, how it is made safe, and a format compiled into a function.

Pure: nothing here writes or looks at a configuration.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

Environ = Mapping[str, Any]
#: What gives one atom: of the response, the request, the environ and the duration.
Getter = Callable[[Any, Any, Environ, timedelta], Any]
Line = Callable[[Any, Any, Environ, timedelta], str]

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


def status_code(resp: Any) -> Any:
    """``200`` of a response whose status is ``200 OK``."""
    status = resp.status
    if isinstance(status, bytes):
        status = status.decode("latin-1")
    if isinstance(status, str):
        return status.split(None, 1)[0] if status.strip() else ABSENT
    return status


def request_line(environ: Environ) -> str:
    get = environ.get
    return f"{get('REQUEST_METHOD')} {get('RAW_URI')} {get('SERVER_PROTOCOL')}"


def basic_user(environ: Environ) -> str | None:
    """The user name in a Basic Authorization field (RFC 7617), or none; it has not been verified."""
    authorization = environ.get("HTTP_AUTHORIZATION")
    if not authorization:
        return None
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        # The standard decoder skips what is not base64, unless told to refuse it.
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
    atoms = {name: getter(resp, req, environ, duration) for name, getter in _PLAIN.items()}
    atoms["t"] = now
    atoms["u"] = user or ABSENT
    for name, value in header_pairs(req):
        atoms[f"{{{name.lower()}}}i"] = value
    for name, value in header_pairs(resp):
        atoms[f"{{{name.lower()}}}o"] = value
    for name, value in environ.items():
        atoms[f"{{{name.lower()}}}e"] = value
    return atoms


def _sent(resp: Any) -> Any:
    return getattr(resp, "sent", None)


#: The atoms that need nothing but their arguments.
_PLAIN: dict[str, Getter] = {
    "h": lambda resp, req, environ, duration: environ.get("REMOTE_ADDR", ABSENT),
    "l": lambda resp, req, environ, duration: ABSENT,
    "r": lambda resp, req, environ, duration: request_line(environ),
    "s": lambda resp, req, environ, duration: status_code(resp),
    "m": lambda resp, req, environ, duration: environ.get("REQUEST_METHOD"),
    "U": lambda resp, req, environ, duration: environ.get("PATH_INFO"),
    "q": lambda resp, req, environ, duration: environ.get("QUERY_STRING"),
    "H": lambda resp, req, environ, duration: environ.get("SERVER_PROTOCOL"),
    "b": lambda resp, req, environ, duration: ABSENT if _sent(resp) is None else str(_sent(resp)),
    "B": lambda resp, req, environ, duration: _sent(resp),
    "f": lambda resp, req, environ, duration: environ.get("HTTP_REFERER", ABSENT),
    "a": lambda resp, req, environ, duration: environ.get("HTTP_USER_AGENT", ABSENT),
    "T": lambda resp, req, environ, duration: microseconds(duration) // 1_000_000,
    "M": lambda resp, req, environ, duration: microseconds(duration) // 1000,
    "D": lambda resp, req, environ, duration: microseconds(duration),
    "L": lambda resp, req, environ, duration: "{}.{:06}".format(*divmod(microseconds(duration), 1_000_000)),
    "p": lambda resp, req, environ, duration: f"<{os.getpid()}>",
}


def compile_format(fmt: str, now: Callable[[], str], user: Callable[[Environ], str | None]) -> Line | None:
    """A function that gives the line of one request, asking for no atom that *fmt* does not name.

    None for a format that mixes in what is no named conversion: what that means is for ``%`` to say.
    """
    template: list[str] = []
    getters: list[Getter] = []
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
        getters.append(_getter(match["key"], now, user))
    template.append(fmt[position:])
    if "%" in fmt[position:] or any("%" in part for part in template[::2]):
        return None
    return _joined("".join(template), tuple(getters))


def _joined(template: str, getters: tuple[Getter, ...]) -> Line:
    quotes = template.count('"')

    def line(resp: Any, req: Any, environ: Environ, duration: timedelta) -> str:
        values = [get(resp, req, environ, duration) for get in getters]
        text = template % tuple(values)
        # Mostly nothing needs to be escaped, and that is seen sooner for all at once.
        if text.isascii() and text.isprintable() and text.count('"') == quotes and "\\" not in text:
            return text
        return template % tuple([escape(value) if isinstance(value, str) else value for value in values])

    return line


def _getter(key: str, now: Callable[[], str], user: Callable[[Environ], str | None]) -> Getter:
    if key == "t":
        return lambda resp, req, environ, duration: now()
    if key == "u":
        return lambda resp, req, environ, duration: user(environ) or ABSENT
    if key in _PLAIN:
        return _PLAIN[key]
    kind = key.rpartition("}")[2]
    if key.startswith("{") and kind in ("i", "o", "e"):
        name = key[1 : key.rindex("}")]
        return _variable(name) if kind == "e" else _field(name.lower(), of_request=kind == "i")
    return lambda resp, req, environ, duration: ABSENT


def _field(name: str, of_request: bool) -> Getter:
    def field(resp: Any, req: Any, environ: Environ, duration: timedelta) -> Any:
        found: Any = ABSENT
        for key, value in header_pairs(req if of_request else resp):
            if key.lower() == name:
                found = value
        return found

    return field


def _variable(name: str) -> Getter:
    def variable(resp: Any, req: Any, environ: Environ, duration: timedelta) -> Any:
        for key in (name, name.upper(), name.lower()):
            if key in environ:
                value = environ[key]
                return value if isinstance(value, (str, int, float)) else str(value)
        return ABSENT

    return variable
