# SPDX-License-Identifier: MIT
"""What is read never depends on the way: fast or exact, in one piece or in many."""

from __future__ import annotations

from typing import Any

from httpkit import content, make_config
from hypothesis import given, settings
from hypothesis import strategies as st

from gunicorn.http import parse, wsgi
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.policy import RequestPolicy
from gunicorn.http.unreader import IterUnreader

POLICIES = [
    RequestPolicy(),
    RequestPolicy(limit_request_line=20, limit_request_fields=2, limit_request_field_size=30),
    RequestPolicy(
        permit_obsolete_folding=True,
        strip_header_spaces=True,
        permit_unconventional_http_method=True,
        permit_unconventional_http_version=True,
        casefold_http_method=True,
        header_map="dangerous",
        secure_scheme_headers={"X-FORWARDED-PROTO": "https"},
    ),
]

BYTES = st.binary(min_size=1, max_size=3)
METHODS = st.sampled_from(
    [b"GET", b"POST", b"HEAD", b"OPTIONS", b"CONNECT", b"get", b"G", b"A" * 21, b"\r\nPUT"]
)
TARGETS = st.sampled_from(
    [
        b"/",
        b"//a/b",
        b"/a?b=c",
        b"/?",
        b"*",
        b"h:80",
        b"http://h/p?q",
        b"/a#f",
        b"/a?b#f",
        b"/\xe9",
        b"/a b",
        b"?",
    ]
)
VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1"])
NAMES = st.sampled_from(
    [
        b"Host",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Connection",
        b"Expect",
        b"X-Forwarded-Proto",
        b"Cookie",
        b"A_B",
        b"SCRIPT_NAME",
        b"A ",
        b" A",
        b"",
        b"x",
    ]
)
VALUES = st.sampled_from(
    [
        b"",
        b"h",
        b"5",
        b"+5",
        b"5, 5",
        b"chunked",
        b"gzip, chunked",
        b"close",
        b"keep-alive, x",
        b"100-continue",
        b"https",
        b"http",
        b" x\t",
        b"x\r",
        b"x\n",
        b"\r\n y",
        b"\x00",
        b"\xff",
        b"a" * 40,
    ]
)
SEPARATORS = st.sampled_from([b": ", b":", b" :", b":\t ", b""])
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n"])
FIELDS = st.lists(st.tuples(NAMES, SEPARATORS, VALUES, ENDS).map(b"".join), max_size=4).map(b"".join)
HEADS = st.tuples(METHODS, st.just(b" "), TARGETS, st.just(b" "), VERSIONS, ENDS, FIELDS).map(b"".join)


@st.composite
def corrupted(draw: Any) -> bytes:
    head = draw(HEADS)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(head)))
        head = head[:at] + draw(BYTES) + head[at + draw(st.integers(0, 2)) :]
    block = head + b"\r\n"
    # What the gatherer would hand on: nothing but one head.
    end = parse.find_head_end(block + b"\r\n\r\n")
    return (block + b"\r\n\r\n")[:end]


@settings(max_examples=400, deadline=None)
@given(block=corrupted(), policy=st.sampled_from(POLICIES), trusted=st.booleans())
def test_fast_and_exact_agree(block: bytes, policy: RequestPolicy, trusted: bool) -> None:
    fast = outcome(parse.fast_head, block, policy, trusted)
    if fast is None:
        return
    assert fast == outcome(parse.exact_head, block, policy, trusted)


def outcome(function: Any, *arguments: Any) -> Any:
    try:
        head = function(*arguments)
    except ParseException as error:
        return type(error), error.status
    return head and content(head)


def test_ordinary_heads_take_the_fast_way() -> None:
    block = b"GET /a?b HTTP/1.1\r\nHost: h:80\r\nUser-Agent: \xe9\r\nCookie: a=b; c=d\r\n\r\n"
    head = parse.fast_head(block, RequestPolicy())
    assert head is not None
    assert content(head) == content(parse.exact_head(block, RequestPolicy()))


NAMES_SENT = st.sampled_from(["A", "Cookie", "content-type", "X-Y", "x-y", "X.Y", "Connection"])


def _one_type(pairs: list[tuple[str, str]]) -> bool:
    return [name for name, _ in pairs].count("content-type") < 2


@settings(max_examples=200, deadline=None)
@given(
    pairs=st.lists(st.tuples(NAMES_SENT, st.sampled_from(["", "v", "\xe9", "close, x"])), max_size=5).filter(
        _one_type
    )
)
def test_both_ways_give_the_same_environ(pairs: list[tuple[str, str]]) -> None:
    block = "".join([f"{name}: {value}\r\n" for name, value in pairs])
    request = Request(
        None,
        IterUnreader([f"GET /a HTTP/1.1\r\nHost: h\r\n{block}\r\n".encode("latin-1")]),
        ("127.0.0.1", 1),
        policy=POLICIES[0],
    )
    cfg = make_config()
    as_read = wsgi.create(request, None, ("127.0.0.1", 1), ("127.0.0.1", 80), cfg)[1]
    assert request.headers  # from here on they may be other ones
    anew = wsgi.create(request, None, ("127.0.0.1", 1), ("127.0.0.1", 80), cfg)[1]
    for environ in (as_read, anew):
        del environ["wsgi.early_hints"]
    assert as_read == anew


STREAMS = st.sampled_from(
    [
        b"POST /a?b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.0\r\n\r\n",
    ]
)
EDITS = st.lists(
    st.tuples(
        st.integers(0, 200),
        st.integers(0, 2),
        st.sampled_from([bytes([c]) for c in b"\r\n\t :;,0159aG/\0\xff_"]),
    ),
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(stream=STREAMS, edits=EDITS, cuts=st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_a_stream_reads_the_same_however_it_is_cut(
    stream: bytes, edits: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    for at, removed, added in edits:
        at %= len(stream)
        stream = stream[:at] + added + stream[at + removed :]
    pieces, start = [], 0
    while start < len(stream):
        pieces.append(stream[start : start + cuts[len(pieces) % len(cuts)]])
        start += len(pieces[-1])
    # How a bad stream is refused may differ, when it is noticed early; not what is taken from it before.
    assert requests_in(pieces) == requests_in([stream])


def requests_in(pieces: list[bytes]) -> tuple[list[object], bool]:
    """What is read of all requests, and whether that came to a good end."""
    unreader, found = IterUnreader(pieces), list[object]()
    try:
        while True:
            request = Request(None, unreader, ("127.0.0.1", 1), len(found) + 1, policy=POLICIES[0])
            found.append((request.method, request.uri, tuple(request.headers)))
            found.append((request.body.read(), tuple(request.trailers)))
            if request.should_close():
                return found, True
    except NoMoreData as end:
        return found, end.buf == b""
    except (ParseException, OSError):
        return found, False
