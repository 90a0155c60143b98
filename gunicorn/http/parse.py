# SPDX-License-Identifier: MIT
"""Parse the head of a request: bytes in, a RequestHead out. No socket inside.

``HeadGatherer`` collects bytes until a head is complete, and ``parse_head`` reads a complete one. It tries
``fast_head`` first, which looks at all fields at once where it can and never raises. Every head that is not
plainly sound is left to ``exact_head``, which finds the error or accepts what the configuration permits.
"""

from __future__ import annotations

import re

from . import grammar
from .environ import header_key
from .errors import (
    ExpectationFailed,
    InvalidHeader,
    InvalidHeaderName,
    InvalidHTTPVersion,
    InvalidRequestLine,
    InvalidRequestMethod,
    InvalidSchemeHeaders,
    LimitRequestHeaders,
    LimitRequestLine,
    ObsoleteFolding,
    UnsupportedTransferCoding,
)
from .policy import RequestPolicy
from .proxyproto import ProxyInfo, split_proxy_header, starts_proxy_header

Headers = list[tuple[str, str]]

HEAD_END = b"\r\n\r\n"
# RFC 9112 section 2.2: a server should ignore at least one. A row of them is no request.
MAX_EMPTY_LINES = 1

_BARE_LF_RE = re.compile(rb"(?<!\r)\n")

_UNPRINTABLE = bytes(code for code in range(256) if not chr(code).isprintable())

_ORDINARY_METHOD_RE = re.compile("[A-Z]{3,20}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# Clients choose what these hold: keep them from growing.
_KEYS: dict[str, str] = {}  # name as sent -> key in the environ
_KEYS_MAX = 1024
_HOSTS: set[str] = set()  # valid values of Host
_HOSTS_MAX = 64

_FRAMING = frozenset({"HOST", "CONTENT-LENGTH", "CONTENT-TYPE", "TRANSFER-ENCODING", "CONNECTION", "EXPECT"})

_V10, _V11 = (1, 0), (1, 1)
_VERSIONS = {"HTTP/1.0": _V10, "HTTP/1.1": _V11}


class RequestHead:
    """The head of a request, parsed. Text has one character for each byte received."""

    # All in the object: until Python 3.12, attributes of the class are found slowly.
    __slots__ = (
        "_headers",
        "_lines",
        "authority",
        "chunked",
        "content_length",
        "expect_continue",
        "fields",
        "fragment",
        "method",
        "path",
        "query",
        "scheme",
        "should_close",
        "target",
        "version",
    )

    def __init__(self, method: str, target: str, path: str, query: str, version: tuple[int, int]) -> None:
        self.method = method
        self.target = target  # as sent
        self.path = path  # "*" and "" for the asterisk and authority forms
        self.query = query
        self.version = version
        self.fragment = ""
        #: Of the absolute and authority forms; overrides Host.
        self.authority: str | None = None
        self.content_length: int | None = None
        self.chunked = False
        self.scheme = "http"
        self.expect_continue = False
        #: The fields as an environ has them; None if one came twice or has an underscore in its name.
        self.fields: dict[str, str] | None = None
        #: Whether the connection ends with this request (RFC 9112 section 9.3).
        self.should_close = version <= _V10
        self._lines: list[str] = []
        self._headers: Headers | None = None

    @property
    def headers(self) -> Headers:
        """The fields in the order received, names in upper case; made when first asked for."""
        if self._headers is None:
            pairs = [line.partition(": ") for line in self._lines]
            self._headers = [(name.upper(), value) for name, _, value in pairs]
        return self._headers

    @headers.setter
    def headers(self, headers: Headers) -> None:
        self._headers = headers


def find_head_end(buffer: bytes | bytearray, start: int = 0) -> int:
    """Return the offset just after the head at the start of *buffer*, or -1 while it is incomplete.

    *start* is where the search may begin: three bytes before the new ones.
    """
    if buffer.startswith(b"\r\n"):
        start = max(start, skip_empty_lines(buffer))
    index = buffer.find(HEAD_END, start)
    return index + 4 if index >= 0 else -1


def whole_head(data: bytes, policy: RequestPolicy, first: bool) -> int:
    """Return the end of the head that *data* begins with, in the usual case that it came in one piece.

    Returns 0 if a gatherer is needed: more has to come, or something may precede the head. A PROXY header may
    precede the *first* one; a packet of uWSGI's protocol takes its place.
    """
    index = data.find(HEAD_END)
    # At 0 there are empty lines.
    return index + 4 if index > 0 and not (first and policy.begins_otherwise) else 0


def skip_empty_lines(buffer: bytes | bytearray, offset: int = 0) -> int:
    """Move *offset* behind the few empty lines that may precede a request line."""
    for _ in range(MAX_EMPTY_LINES):
        if not buffer.startswith(b"\r\n", offset):
            break
        offset += 2
    return offset


def check_partial_head(buffer: bytes | bytearray, policy: RequestPolicy, start: int = 0) -> None:
    """Raise for an incomplete head that no further bytes can make acceptable.

    *start* as in find_head_end: the bytes before it have been checked already.
    """
    begin = skip_empty_lines(buffer)
    if begin == len(buffer):
        return
    # Do not wait for the rest of a TLS hello or other noise.
    lone_cr = len(buffer) == begin + 1 and buffer[begin] == 0x0D  # the start of an empty line
    if not lone_cr and not grammar.TOKEN_BYTES_RE.match(buffer, begin):
        raise InvalidRequestLine(bytes(buffer[begin : begin + 120]))
    line_end = buffer.find(b"\n", begin, begin + policy.max_line + 2)
    if line_end < 0:
        if len(buffer) - begin > policy.max_line + 1:
            raise LimitRequestLine(len(buffer) - begin, policy.max_line)
        return
    if len(buffer) - line_end > policy.max_header_bytes:
        raise LimitRequestHeaders(f"header fields of more than {policy.max_header_bytes} bytes")
    bare = _BARE_LF_RE.search(buffer, max(begin, start))
    # After a bare LF, the CRLF CRLF that ends a head may never come.
    if bare is not None:
        line = bytes(buffer[begin : bare.start() + 1])
        raise InvalidRequestLine(line) if bare.start() <= line_end else InvalidHeader(line[-120:])


class HeadGatherer:
    """Collects the bytes of one head, and of a PROXY header before it where one is allowed.

    Once feed() returns True, ``buffer`` holds all that was received, and ``head_start`` and ``head_end`` are
    the ends of the head. The body or the next request follows.
    """

    def __init__(self, policy: RequestPolicy, first: bool = True) -> None:
        self.policy = policy
        self.buffer = bytearray()
        self.head_start = 0
        self.head_end = -1
        self.proxy_seen = False
        self.proxy_info: ProxyInfo | None = None
        self._proxy = first and policy.proxy_protocol != ""
        self._checked = 0

    def feed(self, data: bytes) -> bool:
        """Add *data*; True once the head is complete. Raises ParseException if it cannot become valid."""
        self.buffer += data
        if self._proxy and not self._take_proxy_header():
            return False
        buffer = self.buffer[self.head_start :] if self.head_start else self.buffer
        start = max(0, self._checked - 3)
        end = find_head_end(buffer, start)
        if end < 0:
            check_partial_head(buffer, self.policy, start)
            self._checked = len(buffer)
            return False
        self.head_end = self.head_start + end
        return True

    def head(self) -> bytes:
        """Return the complete head with its final empty line."""
        return bytes(self.buffer[self.head_start : self.head_end])

    def rest(self) -> bytes:
        """Return the bytes received after the head."""
        return bytes(self.buffer[self.head_end :])

    def _take_proxy_header(self) -> bool:
        starts = starts_proxy_header(self.buffer)
        if starts is None:
            return False
        if starts:
            split = split_proxy_header(self.buffer, self.policy.proxy_protocol)
            if split is None:
                return False
            self.head_start, self.proxy_info = split
            self.proxy_seen = True
        self._proxy = False
        return True


def parse_head(block: bytes, policy: RequestPolicy, trusted: bool = False) -> RequestHead:
    """Parse *block*, a whole head with its final empty line.

    *trusted*: the peer is named by ``forwarded_allow_ips``. Raises ParseException subclasses.
    """
    return fast_head(block, policy, trusted) or exact_head(block, policy, trusted)


def fast_head(block: bytes, policy: RequestPolicy, trusted: bool = False) -> RequestHead | None:
    """Parse an ordinary, sound head as exact_head() does; None for any other."""
    text = block.decode("latin-1")
    lines = text.split("\r\n")
    # If the line ends are all unprintable characters that there are, there is no bare CR or LF. A few other
    # characters, and space around a value, are rare and left to the exact parser.
    if len(block) - len(block.translate(None, _UNPRINTABLE)) != 2 * (len(lines) - 1):
        return None
    if ":  " in text or " \r\n" in text:
        return None
    parts = lines[0].split(" ")
    if len(parts) != 3 or lines[-1] or lines[-2]:
        return None
    method, target, protocol = parts
    version = _VERSIONS.get(protocol)
    if version is None or target[:1] != "/" or "#" in target or not target.isascii():
        return None
    if method not in _METHODS and (method == "CONNECT" or not _ORDINARY_METHOD_RE.fullmatch(method)):
        return None
    path, _, query = target.partition("?")
    line_length = len(lines[0])
    lines = lines[1:-2]
    if line_length > policy.max_line or len(lines) > policy.limit_request_fields:
        return None
    if len(block) - line_length - 2 > policy.max_field:
        return None
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(": ")
        key = _KEYS.get(name) or _key_of(name)
        if key is None or not colon:
            return None
        fields[key] = value
    if len(fields) != len(lines):
        return None
    head = RequestHead(method, target, path, query, version)
    head._lines = lines
    head.fields = fields
    head.scheme = policy.default_scheme
    return head if _take_framing(head, fields, policy, trusted) else None


def _key_of(name: str) -> str | None:
    """Return the key in an environ for a name as sent; None if the exact parser must decide."""
    # The policy decides about underscores.
    if "_" in name or not grammar.TOKEN_RE.fullmatch(name):
        return None
    key = header_key(name.upper())
    if len(_KEYS) < _KEYS_MAX and len(name) < 64:
        _KEYS[name] = key
    return key


def _take_framing(head: RequestHead, fields: dict[str, str], policy: RequestPolicy, trusted: bool) -> bool:
    """Do what _interpret() does for *fields* that all differ; False unless all is plainly sound."""
    is_11 = head.version is _V11
    host = fields.get("HTTP_HOST")
    if host is None:
        if is_11:
            return False
    elif host not in _HOSTS and not _is_sound_host(host):
        return False
    if "HTTP_CONNECTION" in fields:
        _interpret_connection(head, fields["HTTP_CONNECTION"])
    if "CONTENT_LENGTH" in fields:
        if not grammar.CONTENT_LENGTH_RE.fullmatch(fields["CONTENT_LENGTH"]):
            return False
        head.content_length = int(fields["CONTENT_LENGTH"])
    if "HTTP_TRANSFER_ENCODING" in fields:
        if fields["HTTP_TRANSFER_ENCODING"] != "chunked" or head.content_length is not None or not is_11:
            return False
        head.chunked = True
    if "HTTP_EXPECT" in fields and is_11:
        if fields["HTTP_EXPECT"] != "100-continue":
            return False
        head.expect_continue = True
    return not trusted or policy.scheme_keys.isdisjoint(fields) or _take_scheme(head, fields, policy)


def _take_scheme(head: RequestHead, fields: dict[str, str], policy: RequestPolicy) -> bool:
    seen: str | None = None
    for key, secure in policy.scheme_fields:
        if key in fields:
            scheme = "https" if fields[key] == secure else "http"
            if seen is not None and seen != scheme:
                return False
            head.scheme = seen = scheme
    return True


def _is_sound_host(host: str) -> bool:
    if not grammar.HOST_RE.fullmatch(host):
        return False
    if len(_HOSTS) < _HOSTS_MAX and len(host) < 256:
        _HOSTS.add(host)
    return True


def exact_head(block: bytes, policy: RequestPolicy, trusted: bool = False) -> RequestHead:
    """Parse *block* line by line: accept what *policy* permits, and raise for the rest."""
    begin = skip_empty_lines(block)
    line, _, fields = block[begin:].partition(b"\r\n")
    head = parse_request_line(line, policy)
    if len(fields) - 2 > policy.max_header_bytes:
        raise LimitRequestHeaders(f"header fields of more than {policy.max_header_bytes} bytes")
    head.headers = parse_fields(fields, policy, trusted)
    _interpret(head, policy, trusted)
    return head


def checked_head(
    line: tuple[str, str, str], headers: Headers, policy: RequestPolicy, trusted: bool = False
) -> RequestHead:
    """Check a head that another parser has read: *line* is method, target and version.

    Raises what exact_head() raises, but keeps names with an underscore.
    """
    method, target, version = line
    if (size := len(" ".join(line))) > policy.max_line:
        raise LimitRequestLine(size, policy.max_line)
    if len(headers) > policy.limit_request_fields:
        raise LimitRequestHeaders(f"more than {policy.limit_request_fields} header fields")
    if any(len(name) + len(value) + 4 > policy.max_field for name, value in headers):
        raise LimitRequestHeaders(f"header field of more than {policy.max_field} bytes")
    path, query, fragment, authority = split_target(check_method(method, policy), target)
    head = RequestHead(method, target, path, query, check_version(version, policy))
    head.fragment, head.authority = fragment, authority
    head.headers = [(name.upper(), value) for name, value in headers]
    _interpret(head, policy, trusted)
    return head


def parse_request_line(line: bytes, policy: RequestPolicy) -> RequestHead:
    """Parse a request line, without its CRLF, into a RequestHead without fields."""
    if len(line) > policy.max_line:
        raise LimitRequestLine(len(line), policy.max_line)
    if b"\n" in line or b"\r" in line:
        raise InvalidRequestLine(line)
    parts = line.decode("latin-1").split(" ")
    # RFC 9112 section 3 lets lenient parsers split on any white space. With exactly one SP, there is only one
    # way to read the line.
    if len(parts) != 3 or not parts[1]:
        raise InvalidRequestLine(line)
    method = check_method(parts[0], policy)
    version = check_version(parts[2], policy)
    target = parts[1]
    if grammar.TARGET_BADCHAR_RE.search(target) or not target.isascii():
        raise InvalidRequestLine(line)
    path, query, fragment, authority = split_target(method, target)
    head = RequestHead(method, target, path, query, version)
    head.fragment = fragment
    head.authority = authority
    return head


def check_method(method: str, policy: RequestPolicy) -> str:
    if not grammar.TOKEN_RE.fullmatch(method):
        raise InvalidRequestMethod(method)
    if not policy.permit_unconventional_http_method and (
        not 3 <= len(method) <= 20 or grammar.UNCONVENTIONAL_METHOD_RE.search(method)
    ):
        raise InvalidRequestMethod(method)
    return method.upper() if policy.casefold_http_method else method


def check_version(text: str, policy: RequestPolicy) -> tuple[int, int]:
    match = grammar.HTTP_VERSION_RE.fullmatch(text)
    if match is None:
        raise InvalidHTTPVersion(text)
    version = int(match[1]), int(match[2])
    if version[0] != 1 and not policy.permit_unconventional_http_version:
        raise InvalidHTTPVersion(version)
    return version


def split_target(method: str, target: str) -> tuple[str, str, str, str | None]:
    """Split a request target into path, query, fragment and authority (RFC 9112 section 3.2)."""
    authority: str | None = None
    if method == "CONNECT":
        # CONNECT takes the authority form alone, with a port.
        if not grammar.HOST_RE.fullmatch(target) or not target.rpartition(":")[2].isdigit():
            raise InvalidRequestLine(target)
        return "", "", "", target
    if target == "*":
        if method != "OPTIONS":
            raise InvalidRequestLine(target)
        return "*", "", "", None
    rest = target
    if not target.startswith("/"):
        match = grammar.ABSOLUTE_FORM_RE.fullmatch(target)
        # An http URI without a host, or with user information, is invalid (RFC 9110 section 4.2).
        if match is None or not match[1] or match[1][0] == ":" or not grammar.HOST_RE.fullmatch(match[1]):
            raise InvalidRequestLine(target)
        authority, rest = match[1], match[2]
    # No target has a fragment, but clients that send one mean the resource before it.
    rest, _, fragment = rest.partition("#")
    path, _, query = rest.partition("?")
    return path or "/", query, fragment, authority


def parse_fields(data: bytes, policy: RequestPolicy, trusted: bool = False) -> Headers:
    """Parse the field lines in *data* up to its final empty line: a header section, or trailers."""
    text = data.decode("latin-1")
    if text == "\r\n":
        return []
    if not text.endswith("\r\n\r\n"):
        raise InvalidHeader(text[-120:])
    headers: Headers = []
    size = count = 0
    foldable = False  # whether the last line was kept, so that a continuation belongs to it
    for line in text[:-4].split("\r\n"):
        if line[:1] in (" ", "\t") and line:
            if count == 0:
                raise InvalidHeader(line)
            if not policy.permit_obsolete_folding:
                raise ObsoleteFolding(headers[-1][0] if foldable else line)
            size += len(line) + 2
            _check_value(line)
            if foldable:
                name, value = headers[-1]
                # RFC 9112 section 5.2: the fold counts as one or more spaces.
                headers[-1] = name, (value + " " + line.strip(" \t")).strip(" ")
        else:
            size = len(line) + 2
            count += 1
            if count > policy.limit_request_fields:
                raise LimitRequestHeaders(f"more than {policy.limit_request_fields} header fields")
            name, value = _split_field(line, policy)
            foldable = "_" not in name or keeps_underscore(name, policy, trusted)
            if foldable:
                headers.append((name, value))
        if size > policy.max_field:
            raise LimitRequestHeaders(f"header field of more than {policy.max_field} bytes")
    return headers


def _split_field(line: str, policy: RequestPolicy) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise InvalidHeader(line)
    if policy.strip_header_spaces:
        name = name.rstrip(" \t")
    if not grammar.TOKEN_RE.fullmatch(name):
        raise InvalidHeaderName(name)
    value = value.strip(" \t")
    _check_value(value)
    return name.upper(), value


def _check_value(value: str) -> None:
    if grammar.CONTROLS_RE.search(value):
        raise InvalidHeader(value)


def keeps_underscore(name: str, policy: RequestPolicy, trusted: bool) -> bool:
    """Whether to keep a name with an underscore, which in an environ looks like one with a dash."""
    if trusted and policy.forwards(name):
        return True
    if policy.header_map == "refuse":
        raise InvalidHeaderName(name)
    return policy.header_map == "dangerous"


def _interpret(head: RequestHead, policy: RequestPolicy, trusted: bool) -> None:
    """Set framing, connection and scheme from the fields. Raises ParseException if they are not sound."""
    codings: list[str] | None = None
    connection: list[str] = []
    has_host = has_type = False
    scheme_headers = policy.secure_scheme_headers if trusted else None
    head.scheme = policy.default_scheme
    seen_scheme: str | None = None
    for name, value in head.headers:
        if name in _FRAMING:
            if name == "HOST":
                if has_host or not grammar.HOST_RE.fullmatch(value):
                    raise InvalidHeader("HOST")
                has_host = True
            elif name == "CONNECTION":
                connection.append(value)
            elif name == "CONTENT-LENGTH":
                # With a list or a second length, two servers may disagree about the body.
                if head.content_length is not None or not grammar.CONTENT_LENGTH_RE.fullmatch(value):
                    raise InvalidHeader("CONTENT-LENGTH")
                head.content_length = int(value)
            elif name == "CONTENT-TYPE":
                # With a second one, a filter in front may judge the body by another type.
                if has_type:
                    raise InvalidHeader("CONTENT-TYPE")
                has_type = True
            elif name == "TRANSFER-ENCODING":
                codings = (codings or []) + [part.strip(" \t") for part in value.lower().split(",")]
            elif head.version >= (1, 1):  # Expect; RFC 9110 section 10.1.1: ignored from HTTP/1.0
                # It is a list, though nearly all clients send one member.
                for expectation in grammar.list_members(value) or [""]:
                    if expectation != "100-continue":
                        raise ExpectationFailed(expectation)
                    head.expect_continue = True
        elif scheme_headers and name in scheme_headers:
            scheme = "https" if value == scheme_headers[name] else "http"
            if seen_scheme is not None and seen_scheme != scheme:
                raise InvalidSchemeHeaders
            head.scheme = seen_scheme = scheme
    if connection:
        _interpret_connection(head, ",".join(connection))
    if codings is not None:
        _interpret_codings(head, codings)
    if not has_host and head.version >= (1, 1):
        # RFC 9112 section 3.2: 400 for any HTTP/1.1 request without Host.
        raise InvalidHeader("HOST")


def _interpret_connection(head: RequestHead, value: str) -> None:
    options = grammar.list_members(value)
    if "close" in options:
        head.should_close = True
    elif "keep-alive" in options:
        head.should_close = False


def _interpret_codings(head: RequestHead, codings: list[str]) -> None:
    """Accept chunked alone, once, and without a length (RFC 9112 sections 6.1 and 6.3)."""
    if head.content_length is not None or head.version < (1, 1):
        raise InvalidHeader("TRANSFER-ENCODING")
    if codings != ["chunked"]:
        if "" in codings or "chunked" in codings[:-1]:
            raise InvalidHeader("TRANSFER-ENCODING")
        raise UnsupportedTransferCoding(", ".join(codings))
    head.chunked = True
