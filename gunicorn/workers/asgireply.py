# SPDX-License-Identifier: MIT
"""Responses of the asgi worker: messages of the application in, bytes of HTTP/1.1 out.

uvicorn's own would do. This one checks fields as the other worker classes do, knows clients of HTTP/1.0,
leaves room for an error page until something is sent, and sends the head together with the content.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from gunicorn.http.grammar import TOKEN_BYTES_RE

STATUSES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
_STATUS_LINES = {code: f"HTTP/1.1 {status}\r\n".encode("ascii") for code, status in STATUSES.items()}

# Controls have no place in a head, except for the ends of its lines, and tabs.
_CONTROLS = bytes(code for code in (*range(32), 127) if code != 9)

# Applications send the same few names: check each once.
_NAMES: dict[bytes, bytes] = {}
_NAMES_MAX = 1024

_SPECIAL = frozenset(
    (b"connection", b"content-length", b"date", b"keep-alive", b"server", b"transfer-encoding")
)

# Content from this size on is sent apart from the head, which costs less than copying it.
COPIED = 65536

# How content ends.
NONE: Final = "none"  # there is none
LENGTH: Final = "length"
CHUNKS: Final = "chunks"
TO_THE_END: Final = "to the end"  # of the connection


class Head:
    """The head of a response, and how its content ends.

    *keeps*: whether the connection may serve another request. *default*: the lines of Date and Server. Raises
    ValueError for what cannot be sent.
    """

    __slots__ = ("data", "framing", "keeps", "left")

    def __init__(
        self, method: str, old: bool, status: int, fields: Any, keeps: bool, default: tuple[bytes, bytes]
    ) -> None:
        parts = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, *default]
        lines = 4  # with the empty one
        length: bytes | None = None
        says_close = False
        for name, value in fields:
            lower = _NAMES.get(name) or _checked_name(name)
            if lower in _SPECIAL:
                if lower == b"content-length":
                    if length is not None or not value.isdigit():
                        raise ValueError(f"the application sends no valid Content-Length: {value!r}")
                    length = value
                    continue
                if lower == b"keep-alive" or lower == b"transfer-encoding":
                    continue  # they only concern this connection
                if lower == b"connection":
                    if b"close" in [option.strip() for option in value.lower().split(b",")]:
                        says_close, keeps = True, False
                elif parts[1 if lower == b"date" else 2]:
                    parts[1 if lower == b"date" else 2] = b""
                    lines -= 1
            parts += (lower, b": ", value, b"\r\n")
            lines += 1
        if status in (204, 304) or status < 200 or method == "HEAD":
            self.framing = NONE
            if status < 200 or status == 204:
                length = None
        elif method == "CONNECT" and status < 300:
            # What follows is no HTTP (RFC 9110 section 9.3.6).
            self.framing, length = TO_THE_END, None
        elif length is not None:
            self.framing = LENGTH
        elif old:
            self.framing = TO_THE_END
        else:
            self.framing = CHUNKS
            parts.append(b"transfer-encoding: chunked\r\n")
            lines += 1
        if length is not None:
            parts += (b"content-length: ", length, b"\r\n")
            lines += 1
        keeps = keeps and self.framing != TO_THE_END
        if not keeps and not says_close:
            parts.append(b"connection: close\r\n")
            lines += 1
        parts.append(b"\r\n")
        self.data = data = b"".join(parts)
        if len(data) - len(data.translate(None, _CONTROLS)) != 2 * lines:
            raise ValueError("the application sends a header field with control characters")
        self.keeps = keeps
        #: How much content is to come, if its length is known.
        self.left = int(length or 0)

    def content(self, body: Any, more: bool) -> Any:
        """Return *body* as it is sent; *more* of it may follow. Raises ValueError for a wrong length."""
        framing = self.framing
        if framing == LENGTH:
            self.left -= len(body)
            if self.left < 0 or (self.left and not more):
                amount = "more" if self.left < 0 else "less"
                raise ValueError(f"the application sends {amount} content than its Content-Length says")
            return body
        if framing == CHUNKS:
            end = b"" if more else b"0\r\n\r\n"
            return b"%x\r\n%b\r\n%b" % (len(body), body, end) if body else end
        return body if framing == TO_THE_END else b""


def _checked_name(name: bytes) -> bytes:
    if not TOKEN_BYTES_RE.fullmatch(name):
        raise ValueError(f"the application sends a header field with the name {name!r}")
    lower = bytes(name).lower()
    if len(_NAMES) < _NAMES_MAX and len(name) < 64:
        _NAMES[name] = lower
    return lower
