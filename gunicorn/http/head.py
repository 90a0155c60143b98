# SPDX-License-Identifier: MIT
"""Build the head of a response from an application's status and headers. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable

from .errors import InvalidHeader, InvalidHeaderName
from .grammar import FIELD_VALUE_RE, STATUS_RE, TOKEN_RE

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_date: tuple[int, str] = (-1, "")

# Applications send the same few names: check each once.
_NAMES: dict[str, str] = {}
_NAMES_MAX = 1024
_CODES: dict[str, int] = {}
_CODES_MAX = 128


def http_date(timestamp: float | None = None) -> str:
    """Format *timestamp* (seconds since the epoch; None: now) as an IMF-fixdate (RFC 9110 section 5.6.7)."""
    # time.gmtime() of nothing asks time(2), whose second may begin some milliseconds late.
    when = time.gmtime(time.time() if timestamp is None else timestamp)
    year, month, day, hour, minute, second, weekday, _, _ = when
    return f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{second:02} GMT"


def current_date() -> str:
    """Return http_date() of now, made once a second."""
    global _date
    now = time.time()
    second, text = _date
    if not second <= now < second + 1:
        second = int(now)
        text = http_date(second)
        _date = (second, text)
    return text


def check_status(status: str) -> int:
    """Return the code of a WSGI status string. Raises TypeError or ValueError for anything else."""
    code = _CODES.get(status) if type(status) is str else None
    if code is not None:
        return code
    if not isinstance(status, str):
        raise TypeError(f"the status must be a str, not {type(status).__name__}")
    match = STATUS_RE.fullmatch(status)
    if match is None:
        raise ValueError(f"not a status of three digits, a space and a reason: {status!a}")
    code = int(match[1])
    if len(_CODES) < _CODES_MAX and len(status) < 64:
        _CODES[status] = code
    return code


def check_header(name: str, value: str) -> tuple[str, str]:
    """Return the lower-case name and the stripped value of an application's header.

    Raises TypeError for anything but str, InvalidHeaderName or InvalidHeader for text that would break the
    head apart.
    """
    lower = _NAMES.get(name) if type(name) is str else None
    if lower is None:
        lower = _check_name(name)
    if type(value) is str and value.isascii() and value.isprintable():
        return lower, value.strip(" ")  # nearly always, and faster than the expression
    if not isinstance(value, str):
        raise TypeError(f"the value of header {name!a} must be a str, not {type(value).__name__}")
    if not FIELD_VALUE_RE.fullmatch(value):
        raise InvalidHeader(f"{name}: {value}")
    return lower, value.strip(" \t")


def _check_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of a header must be a str, not {type(name).__name__}")
    if not TOKEN_RE.fullmatch(name):
        raise InvalidHeaderName(name)
    lower = name.lower()
    if len(_NAMES) < _NAMES_MAX and len(name) < 64:
        _NAMES[name] = lower
    return lower


def has_body(method: str, code: int | None) -> bool:
    """Whether a response may have content (RFC 9110 sections 6.4.1, 9.3.2, 15.3.5, 15.4.5)."""
    return method != "HEAD" and (code is None or (code >= 200 and code not in (204, 304)))


def forbids_length(method: str, code: int | None) -> bool:
    """Whether Content-Length may not be sent at all (RFC 9110 section 8.6)."""
    if code is None:
        return False
    return code < 200 or code == 204 or (method == "CONNECT" and code < 300)


def field_lines(headers: Iterable[tuple[str, str]]) -> str:
    """Join *headers*, already checked, into lines."""
    parts: list[str] = []
    for name, value in headers:
        parts += (name, ": ", value, "\r\n")
    # Do not format them: a subclass of str may format as something else.
    return "".join(parts)


def encode_head(lines: str) -> bytes:
    """Encode the lines of a head and add the final empty one.

    Raises UnicodeEncodeError for text that is not Latin-1, which PEP 3333 does not allow.
    """
    return f"{lines}\r\n".encode("latin-1")


_IN_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})


def error_response(status: int, reason: str, text: str) -> bytes:
    """Return a complete response that tells a client what went wrong, and closes the connection."""
    title = f"{status} {reason.translate(_IN_HTML)}"
    body = (
        f"<!DOCTYPE html>\n<html>\n<head><title>{title}</title></head>\n"
        f"<body>\n<h1>{title}</h1>\n<p>{text.translate(_IN_HTML)}</p>\n</body>\n</html>\n"
    ).encode()
    head = encode_head(
        f"HTTP/1.1 {status} {reason}\r\n"
        f"Date: {current_date()}\r\n"
        "Connection: close\r\n"
        "Content-Type: text/html; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    return head + body
