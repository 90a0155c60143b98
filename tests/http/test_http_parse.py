# SPDX-License-Identifier: MIT
"""Heads of requests: what is read from them, what is refused, however the bytes are cut."""

from __future__ import annotations

from typing import Any

import pytest
from httpkit import CUTS, byte_by_byte, content

from gunicorn.http import errors as e
from gunicorn.http import parse
from gunicorn.http.policy import AllowList, RequestPolicy

SCHEMES = {"X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"}


def gather(pieces: list[bytes], policy: RequestPolicy) -> parse.HeadGatherer:
    gatherer = parse.HeadGatherer(policy)
    for index, piece in enumerate(pieces):
        if gatherer.feed(piece):
            # What comes in the same piece is kept; later pieces are nobody's concern here.
            assert gatherer.rest() == b"" or piece.endswith(gatherer.rest())
            return gatherer
        assert index < len(pieces) - 1, "incomplete"
    raise AssertionError("nothing fed")


def heads(raw: bytes, trusted: bool = False, **switches: Any) -> list[parse.RequestHead]:
    """The head in *raw*, read in every way that there is; all must agree."""
    policy = RequestPolicy(**switches)
    found = []
    for tail in (b"", b"GET /next HTTP/1.1\r\nHost: n\r\n\r\n", b"\x00\n\r\n\r\n"):
        for cut in CUTS:
            gatherer = gather(cut(raw + tail), policy)
            assert gatherer.head() == raw
            assert gatherer.rest() == tail[: len(gatherer.buffer) - len(raw)]
        found.append(parse.parse_head(raw, policy, trusted))
    found.append(parse.exact_head(raw, policy, trusted))
    assert all(content(head) == content(found[0]) for head in found)
    return found


VALID: list[tuple[str, bytes, dict[str, Any], dict[str, Any]]] = [
    (
        "plain",
        b"GET /a/b?x=1&y HTTP/1.1\r\nHost: example.com:80\r\nAccept: */*\r\n\r\n",
        {},
        {
            "method": "GET",
            "target": "/a/b?x=1&y",
            "path": "/a/b",
            "query": "x=1&y",
            "fragment": "",
            "version": (1, 1),
            "headers": [("HOST", "example.com:80"), ("ACCEPT", "*/*")],
            "should_close": False,
            "scheme": "http",
        },
    ),
    ("1.0", b"GET / HTTP/1.0\r\n\r\n", {}, {"version": (1, 0), "headers": [], "should_close": True}),
    (
        "1.0 keep-alive",
        b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
        {},
        {"should_close": False},
    ),
    ("close", b"GET / HTTP/1.1\r\nHost: h\r\nConnection: foo, Close\r\n\r\n", {}, {"should_close": True}),
    (
        "close wins",
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n",
        {},
        {"should_close": True},
    ),
    (
        "close wins, first",
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close, keep-alive\r\n\r\n",
        {},
        {"should_close": True},
    ),
    ("empty line before", b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", {}, {"path": "/"}),
    ("empty line before", b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", {}, {"path": "/"}),
    ("version 1.2", b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", {}, {"version": (1, 2)}),
    ("token method", b"M-SEARCH / HTTP/1.1\r\nHost: h\r\n\r\n", {}, {"method": "M-SEARCH"}),
    (
        "fragment",
        b"GET /a?b=/c?d#e#f?g HTTP/1.1\r\nHost: h\r\n\r\n",
        {},
        {"path": "/a", "query": "b=/c?d", "fragment": "e#f?g", "target": "/a?b=/c?d#e#f?g"},
    ),
    ("fragment, no query", b"GET /a#b?c HTTP/1.1\r\nHost: h\r\n\r\n", {}, {"path": "/a", "query": ""}),
    (
        "two slashes",
        b"GET //evil.com/x HTTP/1.1\r\nHost: h\r\n\r\n",
        {},
        {"path": "//evil.com/x", "authority": None},
    ),
    ("colon in path", b"GET /a:80/http://b HTTP/1.1\r\nHost: h\r\n\r\n", {}, {"path": "/a:80/http://b"}),
    (
        "absolute form",
        b"GET http://Example.com:81/p?q HTTP/1.1\r\nHost: other\r\n\r\n",
        {},
        {"path": "/p", "query": "q", "authority": "Example.com:81", "headers": [("HOST", "other")]},
    ),
    (
        "absolute form, no path",
        b"GET HTTPS://h?q HTTP/1.1\r\nHost: h\r\n\r\n",
        {},
        {"path": "/", "query": "q", "authority": "h"},
    ),
    ("asterisk form", b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", {}, {"path": "*"}),
    (
        "authority form",
        b"CONNECT [::1]:443 HTTP/1.1\r\nHost: h\r\n\r\n",
        {},
        {"path": "", "authority": "[::1]:443"},
    ),
    ("empty host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", {}, {"headers": [("HOST", "")]}),
    ("host ipv6", b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", {}, {"headers": [("HOST", "[::1]:80")]}),
    ("host underscore", b"GET / HTTP/1.1\r\nHost: my_app\r\n\r\n", {}, {"headers": [("HOST", "my_app")]}),
    (
        "white space around values",
        b"GET / HTTP/1.1\r\nHost: \t h \t\r\nA:\r\nB: \t \r\nC:x  y\r\n\r\n",
        {},
        {"headers": [("HOST", "h"), ("A", ""), ("B", ""), ("C", "x  y")]},
    ),
    (
        "tab, quotes and Latin-1 in values",
        b'GET / HTTP/1.1\r\nHost: h\r\nA: "\xe9\t;"\r\n\r\n',
        {},
        {"headers": [("HOST", "h"), ("A", '"\xe9\t;"')]},
    ),
    (
        "token name",
        b"GET / HTTP/1.1\r\nHost: h\r\n!#$%&'*+-.^`|~1a: x\r\n\r\n",
        {},
        {"headers": [("HOST", "h"), ("!#$%&'*+-.^`|~1A", "x")]},
    ),
    (
        "repeated field",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\na: 2\r\n\r\n",
        {},
        {"headers": [("HOST", "h"), ("A", "1"), ("A", "2")]},
    ),
    ("length", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0012\r\n\r\n", {}, {"content_length": 12}),
    ("chunked", b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n", {}, {"chunked": True}),
    ("expect", b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\n\r\n", {}, {"expect_continue": True}),
    *[
        (
            f"expect {value!a}",
            b"PUT / HTTP/1.1\r\nHost: h\r\nExpect:" + value + b"\r\n\r\n",
            {},
            {"expect_continue": expected},
        )
        for value, expected in (
            (b" 100-continue, 100-Continue", True),
            (b" 100-continue,", True),
            (b",, 100-continue ,", True),
            (b" 100-continue\r\nExpect: 100-continue", True),
        )
    ],
    ("expect in 1.0", b"PUT / HTTP/1.0\r\nExpect: miracles\r\n\r\n", {}, {"expect_continue": False}),
    (
        "underscore dropped",
        b"GET / HTTP/1.1\r\nHost: h\r\nA_B: 1\r\nC: 2\r\n\r\n",
        {},
        {"headers": [("HOST", "h"), ("C", "2")]},
    ),
    (
        "underscore dangerous",
        b"GET / HTTP/1.1\r\nHost: h\r\nA_B: 1\r\n\r\n",
        {"header_map": "dangerous"},
        {"headers": [("HOST", "h"), ("A_B", "1")]},
    ),
    (
        "forwarder header",
        b"GET / HTTP/1.1\r\nHost: h\r\nScript_Name: /x\r\n\r\n",
        {"trusted": True},
        {"headers": [("HOST", "h"), ("SCRIPT_NAME", "/x")]},
    ),
    (
        "forwarder header, stranger",
        b"GET / HTTP/1.1\r\nHost: h\r\nScript_Name: /x\r\n\r\n",
        {},
        {"headers": [("HOST", "h")]},
    ),
    (
        "scheme",
        b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: https\r\n\r\n",
        {"trusted": True, "secure_scheme_headers": SCHEMES},
        {"scheme": "https"},
    ),
    (
        "scheme http",
        b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\n\r\n",
        {"trusted": True, "secure_scheme_headers": SCHEMES, "default_scheme": "https"},
        {"scheme": "http"},
    ),
    (
        "scheme, agreed",
        b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Ssl: on\r\n\r\n",
        {"trusted": True, "secure_scheme_headers": SCHEMES},
        {"scheme": "https"},
    ),
    (
        "scheme, stranger",
        b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: https\r\n\r\n",
        {"secure_scheme_headers": SCHEMES},
        {"scheme": "http"},
    ),
    (
        "folding",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\n 2\r\n\t  3 \r\nB: x\r\n\r\n",
        {"permit_obsolete_folding": True},
        {"headers": [("HOST", "h"), ("A", "1 2 3"), ("B", "x")]},
    ),
    (
        "folding of a dropped field",
        b"GET / HTTP/1.1\r\nHost: h\r\nA_B: 1\r\n 2\r\n\r\n",
        {"permit_obsolete_folding": True},
        {"headers": [("HOST", "h")]},
    ),
    (
        "folding onto nothing",
        b"GET / HTTP/1.1\r\nHost: h\r\nA:\r\n 2\r\n\r\n",
        {"permit_obsolete_folding": True},
        {"headers": [("HOST", "h"), ("A", "2")]},
    ),
    (
        "spaces stripped",
        b"GET / HTTP/1.1\r\nHost: h\r\nA \t: 1\r\n\r\n",
        {"strip_header_spaces": True},
        {"headers": [("HOST", "h"), ("A", "1")]},
    ),
    (
        "odd method",
        b"x# / HTTP/1.1\r\nHost: h\r\n\r\n",
        {"permit_unconventional_http_method": True},
        {"method": "x#"},
    ),
    (
        "method folded",
        b"get / HTTP/1.1\r\nHost: h\r\n\r\n",
        {"permit_unconventional_http_method": True, "casefold_http_method": True},
        {"method": "GET"},
    ),
    (
        "odd version",
        b"GET / HTTP/3.7\r\nHost: h\r\n\r\n",
        {"permit_unconventional_http_version": True},
        {"version": (3, 7)},
    ),
    (
        "line at its limit",
        b"GET /aaa HTTP/1.1\r\nHost: h\r\n\r\n",
        {"limit_request_line": 17},
        {"path": "/aaa"},
    ),
    (
        "fields at their limit",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\n\r\n",
        {"limit_request_fields": 2},
        {"headers": [("HOST", "h"), ("A", "1")]},
    ),
    (
        "field at its limit",
        b"GET / HTTP/1.1\r\nHost: h\r\nAb: 123\r\n\r\n",
        {"limit_request_field_size": 9},
        {"headers": [("HOST", "h"), ("AB", "123")]},
    ),
    (
        "line without limit",
        b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
        {"limit_request_line": 0},
        {"query": ""},
    ),
    (
        "field without limit",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"a" * 20000 + b"\r\n\r\n",
        {"limit_request_field_size": 0},
        {"path": "/"},
    ),
]


@pytest.mark.parametrize(("raw", "switches", "expected"), [v[1:] for v in VALID], ids=[v[0] for v in VALID])
def test_valid(raw: bytes, switches: dict[str, Any], expected: dict[str, Any]) -> None:
    for head in heads(raw, **switches):
        assert {name: getattr(head, name) for name in expected} == expected


LINE = b"GET / HTTP/1.1\r\nHost: h\r\n"
INVALID: list[tuple[str, bytes, dict[str, Any], type[Exception], int]] = [
    ("no host", b"GET / HTTP/1.1\r\n\r\n", {}, e.InvalidHeader, 400),
    ("two hosts", LINE + b"Host: h\r\n\r\n", {}, e.InvalidHeader, 400),
    ("two hosts in 1.0", b"GET / HTTP/1.0\r\nHost: h\r\nHost: i\r\n\r\n", {}, e.InvalidHeader, 400),
    ("host with space", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", {}, e.InvalidHeader, 400),
    ("host list", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", {}, e.InvalidHeader, 400),
    ("host with path", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", {}, e.InvalidHeader, 400),
    ("host with user", b"GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", {}, e.InvalidHeader, 400),
    ("no version", b"GET /\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("empty target", b"GET  HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("two spaces", b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("space in target", b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("tab in target", b"GET /a\tb HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("NUL in target", b"GET /a\0 HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("DEL in target", b"GET /a\x7f HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("CR in line", b"GET /a\rb HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("trailing space", b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("leading space", b" GET / HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("no slash", b"GET a HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("other scheme", b"GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("absolute form, no host", b"GET http:///a HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    (
        "absolute form, only port",
        b"GET http://:8/a HTTP/1.1\r\nHost: h\r\n\r\n",
        {},
        e.InvalidRequestLine,
        400,
    ),
    ("absolute form, user", b"GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("asterisk for GET", b"GET * HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("authority for GET", b"GET h:80 HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("path for CONNECT", b"CONNECT / HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("CONNECT without port", b"CONNECT h HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("lower-case method", b"get / HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestMethod, 400),
    ("short method", b"GO / HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestMethod, 400),
    ("long method", b"A" * 21 + b" / HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestMethod, 400),
    ("no token", b"G[T / HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestMethod, 400),
    (
        "no token, though odd ones may be",
        b"G[T / HTTP/1.1\r\nHost: h\r\n\r\n",
        {"permit_unconventional_http_method": True},
        e.InvalidRequestMethod,
        400,
    ),
    ("version 2", b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", {}, e.InvalidHTTPVersion, 505),
    ("version 0.9", b"GET / HTTP/0.9\r\n\r\n", {}, e.InvalidHTTPVersion, 505),
    ("version of two digits", b"GET / HTTP/1.10\r\nHost: h\r\n\r\n", {}, e.InvalidHTTPVersion, 400),
    ("version, lower case", b"GET / http/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidHTTPVersion, 400),
    (
        "version of other digits",
        "GET / HTTP/1.\u00b9\r\nHost: h\r\n\r\n".encode("latin-1"),
        {},
        e.InvalidHTTPVersion,
        400,
    ),
    (
        "version, no HTTP",
        b"GET / FTP/1.1\r\nHost: h\r\n\r\n",
        {"permit_unconventional_http_version": True},
        e.InvalidHTTPVersion,
        400,
    ),
    ("no colon", LINE + b"foo\r\n\r\n", {}, e.InvalidHeader, 400),
    ("empty name", LINE + b": x\r\n\r\n", {}, e.InvalidHeaderName, 400),
    ("space before colon", LINE + b"A : x\r\n\r\n", {}, e.InvalidHeaderName, 400),
    ("tab before colon", LINE + b"A\t: x\r\n\r\n", {}, e.InvalidHeaderName, 400),
    ("empty name, stripped", LINE + b" \t: x\r\n\r\n", {"strip_header_spaces": True}, e.ObsoleteFolding, 400),
    ("space in name", LINE + b"A B: x\r\n\r\n", {}, e.InvalidHeaderName, 400),
    ("control in name", LINE + b"A\x01: x\r\n\r\n", {}, e.InvalidHeaderName, 400),
    ("Latin-1 in name", LINE + b"A\xe9: x\r\n\r\n", {}, e.InvalidHeaderName, 400),
    ("bracket in name", LINE + b"A[: x\r\n\r\n", {}, e.InvalidHeaderName, 400),
    ("NUL in value", LINE + b"A: x\0y\r\n\r\n", {}, e.InvalidHeader, 400),
    ("NUL ends value", LINE + b"A: x\0\r\n\r\n", {}, e.InvalidHeader, 400),
    ("control in value", LINE + b"A: x\x0by\r\n\r\n", {}, e.InvalidHeader, 400),
    ("DEL in value", LINE + b"A: x\x7fy\r\n\r\n", {}, e.InvalidHeader, 400),
    ("bare CR in value", LINE + b"A: x\ry\r\n\r\n", {}, e.InvalidHeader, 400),
    ("CR CR LF", LINE + b"A: x\r\r\n\r\n", {}, e.InvalidHeader, 400),
    ("bare LF in value", LINE + b"A: x\ny: z\r\n\r\n", {}, e.InvalidHeader, 400),
    ("folding", LINE + b"A: 1\r\n 2\r\n\r\n", {}, e.ObsoleteFolding, 400),
    (
        "folding of the request line",
        b"GET / HTTP/1.1\r\n Host: h\r\n\r\n",
        {"permit_obsolete_folding": True},
        e.InvalidHeader,
        400,
    ),
    (
        "control in a fold",
        LINE + b"A: 1\r\n 2\x00\r\n\r\n",
        {"permit_obsolete_folding": True},
        e.InvalidHeader,
        400,
    ),
    (
        "both framings",
        LINE + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        {},
        e.InvalidHeader,
        400,
    ),
    (
        "both, the other way",
        LINE + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        {},
        e.InvalidHeader,
        400,
    ),
    ("two lengths", LINE + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n", {}, e.InvalidHeader, 400),
    *[
        (f"length {value!a}", LINE + b"Content-Length: " + value + b"\r\n\r\n", {}, e.InvalidHeader, 400)
        for value in (
            b"",
            b"1, 1",
            b"+5",
            b"-1",
            b"5_0",
            b"0x5",
            b"5.0",
            b"\xb2",
            b"1 1",
            b"9" * 20,
            b"9" * 5000,
        )
    ],
    *[
        (f"coding {value!a}", LINE + b"Transfer-Encoding: " + value + b"\r\n\r\n", {}, error, status)
        for value, error, status in (
            (b"gzip", e.UnsupportedTransferCoding, 501),
            (b"identity", e.UnsupportedTransferCoding, 501),
            (b"gzip, chunked", e.UnsupportedTransferCoding, 501),
            (b"xchunked", e.UnsupportedTransferCoding, 501),
            (b"chunked;q=1", e.UnsupportedTransferCoding, 501),
            (b'"chunked"', e.UnsupportedTransferCoding, 501),
            (b"chunked, gzip", e.InvalidHeader, 400),
            (b"chunked, identity", e.InvalidHeader, 400),
            (b"chunked, chunked", e.InvalidHeader, 400),
            (b"chunked\r\nTransfer-Encoding: chunked", e.InvalidHeader, 400),
            (b"chunked\r\nTransfer-Encoding: identity", e.InvalidHeader, 400),
            (b"", e.InvalidHeader, 400),
            (b",chunked", e.InvalidHeader, 400),
            (b"chunked,", e.InvalidHeader, 400),
            (b"\x0bchunked", e.InvalidHeader, 400),
        )
    ],
    ("chunked in 1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", {}, e.InvalidHeader, 400),
    *[
        (
            f"target {target!a}",
            b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n",
            {},
            e.InvalidRequestLine,
            400,
        )
        for target in (b"/\xc3\xa9", b"/\xe9", b"/?\xe9", b"http://h/\xe9")
    ],
    ("bare LF before", b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("two empty lines before", b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", {}, e.InvalidRequestLine, 400),
    ("two types", LINE + b"Content-Type: a/b\r\nA: b\r\nContent-Type: a/b\r\n\r\n", {}, e.InvalidHeader, 400),
    ("no expectation", LINE + b"Expect:\r\n\r\n", {}, e.ExpectationFailed, 417),
    ("no expectation in a list", LINE + b"Expect: ,\r\n\r\n", {}, e.ExpectationFailed, 417),
    ("expectation", LINE + b"Expect: 200-ok\r\n\r\n", {}, e.ExpectationFailed, 417),
    ("expectation in a list", LINE + b"Expect: 100-continue, x\r\n\r\n", {}, e.ExpectationFailed, 417),
    ("underscore refused", LINE + b"A_B: 1\r\n\r\n", {"header_map": "refuse"}, e.InvalidHeaderName, 400),
    (
        "schemes at odds",
        LINE + b"X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n\r\n",
        {"trusted": True, "secure_scheme_headers": SCHEMES},
        e.InvalidSchemeHeaders,
        400,
    ),
    (
        "schemes at odds, one name",
        LINE + b"X-Forwarded-Proto: http\r\nX-Forwarded-Proto: https\r\n\r\n",
        {"trusted": True, "secure_scheme_headers": SCHEMES},
        e.InvalidSchemeHeaders,
        400,
    ),
    (
        "long line",
        b"GET /aaaa HTTP/1.1\r\nHost: h\r\n\r\n",
        {"limit_request_line": 17},
        e.LimitRequestLine,
        414,
    ),
    ("many fields", LINE + b"A: 1\r\nB: 2\r\n\r\n", {"limit_request_fields": 2}, e.LimitRequestHeaders, 431),
    (
        "many dropped fields",
        LINE + b"A_A: 1\r\nB_B: 2\r\n\r\n",
        {"limit_request_fields": 2},
        e.LimitRequestHeaders,
        431,
    ),
    ("long field", LINE + b"Ab: 1234\r\n\r\n", {"limit_request_field_size": 9}, e.LimitRequestHeaders, 431),
    (
        "long folded field",
        LINE + b"A: 1\r\n 2\r\n 3\r\n\r\n",
        {"limit_request_field_size": 12, "permit_obsolete_folding": True},
        e.LimitRequestHeaders,
        431,
    ),
]


def read(pieces: list[bytes], trusted: bool = False, **switches: Any) -> parse.RequestHead:
    policy = RequestPolicy(**switches)
    return parse.parse_head(gather(pieces, policy).head(), policy, trusted)


@pytest.mark.parametrize(
    ("raw", "switches", "error", "status"), [v[1:] for v in INVALID], ids=[v[0] for v in INVALID]
)
def test_invalid(raw: bytes, switches: dict[str, Any], error: type[e.ParseException], status: int) -> None:
    for tail in (b"", b"GET / HTTP/1.1\r\nHost: n\r\n\r\n"):
        for cut in CUTS:
            with pytest.raises(error) as caught:
                read(cut(raw + tail), **switches)
            assert caught.value.status == status
            assert caught.value.reason and caught.value.text
            assert str(caught.value).isprintable()


HOPELESS = [
    ("bare LF head", b"GET / HTTP/1.1\nHost: h\n\n", e.InvalidRequestLine),
    ("bare LF in fields", b"GET / HTTP/1.1\r\nHost: h\n\n", e.InvalidHeader),
    ("bare LF at once", b"\nGET / HTTP/1.1\r\n", e.InvalidRequestLine),
    ("TLS hello", b"\x16\x03\x01\x02\x00\x01", e.InvalidRequestLine),
    ("empty lines", b"\r\n\r\n", e.InvalidRequestLine),
    ("endless line", b"GET /" + b"a" * 5000, e.LimitRequestLine),
    ("endless fields", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 140000, e.LimitRequestHeaders),
]


@pytest.mark.parametrize(("raw", "error"), [v[1:] for v in HOPELESS], ids=[v[0] for v in HOPELESS])
def test_hopeless_heads_are_refused_before_they_are_complete(raw: bytes, error: type[Exception]) -> None:
    for pieces in ([raw], byte_by_byte(raw) if len(raw) < 10000 else [raw[:70000], raw[70000:]]):
        gatherer = parse.HeadGatherer(RequestPolicy())
        with pytest.raises(error):
            for piece in pieces:
                assert not gatherer.feed(piece)
            raise AssertionError("waits for more")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r",
        b"\r\n",
        b"\r\n\r",
        b"G",
        b"GET / HTTP/1.1\r",
        b"GET / HTTP/1.1\r\nHost: h\r\n\r",
    ],
)
def test_possible_heads_are_waited_for(raw: bytes) -> None:
    assert not parse.HeadGatherer(RequestPolicy()).feed(raw)
    assert parse.find_head_end(raw) == -1


def test_find_head_end_resumes() -> None:
    raw = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nrest"
    end = len(raw) - 4
    assert parse.find_head_end(raw) == end
    for seen in range(len(raw) - 4):
        assert parse.find_head_end(bytearray(raw), max(0, seen - 3)) == end


def test_whole_head() -> None:
    raw = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    plain, proxied = RequestPolicy(), RequestPolicy(proxy_protocol="auto")
    assert (
        parse.whole_head(raw, plain, first=True)
        == parse.whole_head(raw + b"rest", plain, first=False)
        == len(raw)
    )
    for other in (b"", raw[:-1], b"\r\n\r\n" + raw):
        assert parse.whole_head(other, plain, first=True) == 0
    assert parse.whole_head(raw, proxied, first=True) == 0
    assert parse.whole_head(raw, proxied, first=False) == len(raw)


def test_white_space_runs_cost_linear_time() -> None:
    block = LINE + b"".join(b"A%d: %b\x01\r\n" % (i, b" " * 8000) for i in range(90)) + b"\r\n"
    policy = RequestPolicy(limit_request_field_size=0)
    with pytest.raises(e.InvalidHeader):
        parse.parse_head(block, policy)


def test_names_of_strangers_are_not_kept_for_ever() -> None:
    policy = RequestPolicy(limit_request_fields=5000, limit_request_field_size=0)
    block = LINE + b"".join(b"Strange-%d: x\r\n" % i for i in range(3000)) + b"\r\n"
    assert len(parse.parse_head(block, policy).headers) == 3001
    assert len(parse._KEYS) <= parse._KEYS_MAX


@pytest.mark.parametrize(
    ("entries", "peer", "allowed"),
    [
        (["127.0.0.1"], ("127.0.0.1", 1), True),
        (["127.0.0.1"], ("127.0.0.2", 1), False),
        ("127.0.0.1, ::1", ("::1", 1, 0, 0), True),
        (["10.0.0.0/8"], ("10.200.3.4", 1), True),
        (["10.0.0.0/8"], ("11.0.0.1", 1), False),
        (["10.0.0.1/8"], ("10.200.3.4", 1), True),
        (["10.0.0.0/8"], ("::ffff:10.1.2.3", 1, 0, 0), True),
        (["10.0.0.1"], ("::ffff:10.0.0.1", 1, 0, 0), True),
        (["fe80::/10"], ("fe80::1%eth0", 1, 0, 2), True),
        (["*"], ("8.8.8.8", 1), True),
        ([], ("127.0.0.1", 1), False),
        ([], "", True),
        ([], b"\0abstract", True),
        (["127.0.0.1"], ("no address", 1), False),
    ],
)
def test_allow_list(entries: Any, peer: Any, allowed: bool) -> None:
    assert AllowList(entries).allows(peer) is allowed


def test_allow_list_names_what_it_cannot_read() -> None:
    with pytest.raises(ValueError, match="localhost"):
        AllowList(["localhost"])
