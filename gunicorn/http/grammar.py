# SPDX-License-Identifier: MIT
"""The character classes and small rules of RFC 9110 and RFC 9112, under the RFC's names."""

from __future__ import annotations

import re

# RFC 9110 section 5.6.2: what a token may hold beside letters and digits.
TOKEN_SPECIALS = r"!#$%&'*+-.^_`|~"
_TOKEN_CLASS = f"[{re.escape(TOKEN_SPECIALS)}0-9A-Za-z]"
TOKEN_RE = re.compile(f"{_TOKEN_CLASS}+")
TOKEN_BYTES_RE = re.compile(f"{_TOKEN_CLASS}+".encode("ascii"))

# RFC 9110 section 5.5: controls other than HTAB have no place in a field value; CR, LF and NUL could make
# one message look like two.
CONTROLS_RE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
FIELD_VALUE_RE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

# RFC 9112 section 2.3. One digit each: "HTTP/1.10" is not a version.
HTTP_VERSION_RE = re.compile(r"HTTP/([0-9])\.([0-9])")

# By convention methods are upper-case words; "#" is a token character that only attacks use here.
UNCONVENTIONAL_METHOD_RE = re.compile(r"[a-z#]")

# RFC 9110 section 8.6 with a bound: 19 digits are more than any body, and int() of thousands of
# digits is slow or refused.
CONTENT_LENGTH_RE = re.compile(r"[0-9]{1,19}")

# RFC 9110 section 7.2: uri-host [ ":" port ]; the host is a bracketed literal or a reg-name.
_REG_NAME = r"[0-9A-Za-z\-._~!$&'()*+,;=%]*"
HOST_RE = re.compile(rf"(?:\[[0-9A-Fa-fvV:.\-_~!$&'()*+,;=%]+\]|{_REG_NAME})(?::[0-9]*)?")

# RFC 9112 section 3.2: characters that can end or confuse a request line. Bytes above 0x7f are no URI either,
# and are refused in HTTP; nginx passes them on in packets of uWSGI's protocol.
TARGET_BADCHAR_RE = re.compile(r"[\x00-\x20\x7f]")
ABSOLUTE_FORM_RE = re.compile(r"[Hh][Tt][Tt][Pp][Ss]?://([^/?#]*)(.*)", re.DOTALL)

_ESCAPE_RE = re.compile(r"%([0-9A-Fa-f]{2})")
STATUS_RE = re.compile(r"([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")

# RFC 9112 section 7.1: chunk-size [ chunk-ext ]. Sixteen digits hold any 64-bit size.
_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_CHUNK_EXT = rf"[ \t]*;[ \t]*{_TOKEN_CLASS}+(?:[ \t]*=[ \t]*(?:{_TOKEN_CLASS}+|{_QUOTED}))?"
CHUNK_LINE_RE = re.compile(rf"([0-9A-Fa-f]{{1,16}})(?:{_CHUNK_EXT})*".encode("latin-1"))

# RFC 9110 section 7.6.1 and PEP 3333: these belong to the connection, so the server alone sets them.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)


def is_hoppish(header: str) -> bool:
    """Whether *header* belongs to one connection and may not come from an application."""
    return header.strip().lower() in HOP_BY_HOP


def list_members(value: str) -> list[str]:
    """Split a comma-separated field value into its members, lower-case, without empty ones."""
    return [member for part in value.lower().split(",") if (member := part.strip(" \t"))]


def bytes_to_str(b: bytes | str) -> str:
    """Return *b* as WSGI text: one character for each byte."""
    return b if isinstance(b, str) else b.decode("latin-1")


def to_bytestring(value: object, encoding: str = "utf8") -> bytes:
    """Return *value* as bytes; raises TypeError for other types than str and bytes."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise TypeError(f"expected str or bytes, not {type(value).__name__}")
    return value.encode(encoding)


def unquote_to_wsgi_str(string: str) -> str:
    """Resolve percent escapes; the result has one character for each byte (PEP 3333)."""
    if "%" not in string:
        return string
    return _ESCAPE_RE.sub(lambda escape: chr(int(escape[1], 16)), string)
