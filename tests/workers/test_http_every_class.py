# SPDX-License-Identifier: MIT
"""HTTP under each worker class alike, whether we read and write it there, Tornado's server or gevent's."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import tornado
from harness import Server, read_until_closed, readable, wait_until
from test_http_parse import INVALID, VALID
from workertools import Client, conf, connect, get

APP = '''
import builtins, json, os, time
from urllib.parse import unquote

HERE = os.path.dirname(os.path.abspath(__file__))
NAMES = "SCRIPT_NAME PATH_INFO QUERY_STRING RAW_URI HTTP_HOST wsgi.url_scheme".split()

def note(text):
    with open(os.path.join(HERE, "served"), "a") as f:
        f.write(text + "\\n")

class Result:
    """Pieces, over and over where they are endless, that count how many were taken."""

    def __init__(self, plan):
        self.plan, self.taken = plan, 0

    def __iter__(self):
        return self

    def __next__(self):
        pieces = self.plan["pieces"]
        if self.taken >= len(pieces) and not self.plan.get("endless"):
            if "fails" in self.plan:
                raise getattr(builtins, self.plan["fails"])("on purpose")
            raise StopIteration
        self.taken += 1
        return pieces[(self.taken - 1) % len(pieces)].encode()

    def close(self):
        note(f"closed {self.taken}")

def app(environ, start_response):
    path = environ["PATH_INFO"]
    note(environ["REQUEST_METHOD"] + " " + path)
    if path == "/plan":
        plan = json.loads(unquote(environ["QUERY_STRING"]))
        if "raises" in plan:
            raise getattr(builtins, plan["raises"])("on purpose")
        start_response(plan.get("status", "200 OK"), [tuple(pair) for pair in plan.get("headers", [])])
        result = Result(plan)
        return list(result) if plan.get("list") else result
    if path == "/body":
        body = environ["wsgi.input"].read()
    elif path == "/big":
        time.sleep(0.2)
        body = b"x" * 5_000_000
    elif path == "/backend":
        raise ConnectionResetError(104, "a backend")
    elif path == "/file":
        start_response("200 OK", [("Content-Length", "5")])
        return environ["wsgi.file_wrapper"](open("/dev/zero", "rb"))
    elif path == "/take":
        sock = environ["gunicorn.socket"]
        sock.sendall(b"taken")
        if environ["QUERY_STRING"] == "listen":
            while sock.recv(100):
                pass
        if environ["QUERY_STRING"] == "backend":
            raise ConnectionResetError("of a connection of its own")
        raise getattr(builtins, environ["QUERY_STRING"])
    else:
        body = json.dumps({name: environ.get(name) for name in NAMES}
            | {name: value for name, value in environ.items() if "_X_" in name}).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
'''

KINDS = ["sync", "gthread", "gevent", "gevent_pywsgi", "tornado", "asgi"]


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(APP, conf(request.param, accesslog="-")) as server:
        yield server


def kind_of(server: Server) -> str:
    return server.config_text.partition("'")[2].partition("'")[0]


def without(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("served", [kind for kind in KINDS if kind not in kinds], indirect=True)


# ASGI has no variables, and a client that ends its side has gone.
not_asgi = without("asgi")
# Whose server is asked for what Tornado's does not give.
not_tornado = without("tornado")
wsgi_servers = without("tornado", "asgi")


def plan(method: str = "GET", version: str = "1.1", **what: Any) -> bytes:
    what.setdefault("pieces", [])
    return f"{method} /plan?{quote(json.dumps(what))} HTTP/{version}\r\nHost: x\r\n\r\n".encode()


class Exchange:
    """What came of a request, to whose connection a second one was sent behind it."""

    def __init__(self, server: Server, request: bytes, second: bool = True) -> None:
        follows = b"GET /second HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        with server.connect() as sock:
            with contextlib.suppress(OSError):
                sock.sendall(request + follows * second)
                if not second:
                    sock.shutdown(socket.SHUT_WR)
            data = read_until_closed(sock)
        head, _, self.content = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1]) if data else 0
        self.headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            assert name.lower() not in self.headers, name
            self.headers[name.lower()] = value
        # Where the connection goes on, the other answer is behind the content.
        self.goes_on = b"HTTP/1.1 " in self.content
        if self.goes_on:
            self.content, _, second_answer = self.content.partition(b"HTTP/1.1 ")
            assert second_answer.startswith(b"200 OK") and b"/second" in second_answer


@contextlib.contextmanager
def noted(server: Server) -> Iterator[list[str]]:
    """The lines that the application writes meanwhile."""
    before = len(server.log("served"))
    lines: list[str] = []
    yield lines
    lines += server.log("served")[before:].splitlines()


@contextlib.contextmanager
def logged(server: Server) -> Iterator[list[str]]:
    """The lines of the error log that are written meanwhile."""
    before = len(server.log())
    lines: list[str] = []
    yield lines
    lines += server.log()[before:].splitlines()


HELLO = {"pieces": ["hel", "lo"]}


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(
    ("request_", "content", "length", "goes_on"),
    [
        (("HEAD", "200 OK", None), b"", "", True),
        (("HEAD", "200 OK", 5), b"", "5", True),
        (("HEAD", "200 OK", 9), b"", "9", True),
        (("GET", "204 No Content", None), b"", "", True),
        (("GET", "204 No Content", 5), b"", "", True),
        (("GET", "304 Not Modified", None), b"", "", True),
        (("GET", "304 Not Modified", 5), b"", "5", True),
        (("GET", "200 OK", 2), b"he", "2", True),
        (("GET", "200 OK", 4), b"hell", "4", True),
        (("GET", "200 OK", 0), b"", "0", True),
        # The client waits for the rest.
        (("GET", "200 OK", 9), b"hello", "9", False),
    ],
)
def test_no_more_than_the_framing_allows(
    served: Server, request_: Any, content: bytes, length: str, goes_on: bool, as_list: bool
) -> None:
    method, status, announced = request_
    headers = [["Content-Length", str(announced)]] if announced is not None else []
    got = Exchange(served, plan(method, status=status, headers=headers, list=as_list, **HELLO))
    if kind_of(served) == "asgi" and method == "GET" and len(content) == announced:
        # The application fails, and the answer says so if nothing was sent.
        assert not got.goes_on and (got.status == 500 or got.content == b"hel")
        return
    assert (got.status, got.content) == (int(status[:3]), content)
    assert "transfer-encoding" not in got.headers
    if method == "HEAD" and not length:
        assert got.headers.get("content-length", "5") == "5"
    elif status[:3] != "304":
        assert got.headers.get("content-length", "") == length
    else:
        assert got.headers.get("content-length", length) == length
    assert got.goes_on is (goes_on and kind_of(served) != "sync")


@pytest.mark.parametrize(
    "headers",
    [
        [["Content-Length", "5"], ["Content-Length", "6"]],
        [["Content-Length", "abc"]],
        [["Content-Length", "-1"]],
        [["X", "a\0b"]],
        [["X N", "v"]],
        [["X", "a\r\nb"]],
    ],
    ids=str,
)
def test_headers_that_cannot_be_sent_are_a_500(served: Server, headers: Any) -> None:
    with logged(served) as log:
        got = Exchange(served, plan(headers=headers, **HELLO))
    assert got.status == 500 and b"on purpose" not in got.content
    assert any("The application failed on 'GET /plan" in line for line in log)


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("keep", ["", "Connection: keep-alive\r\n"])
def test_an_old_client_knows_no_chunks(served: Server, keep: str, as_list: bool) -> None:
    request = plan(version="1.0", list=as_list, **HELLO).replace(b"Host", keep.encode() + b"Host")
    got = Exchange(served, request)
    assert (got.status, got.content) == (200, b"hello") and "transfer-encoding" not in got.headers
    assert not got.goes_on or got.headers["connection"].lower() == "keep-alive"


@not_tornado
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_content_that_is_cut_short_does_not_look_whole(served: Server, version: str) -> None:
    with served.connect() as sock:
        sock.sendall(plan(version=version, fails="ValueError", **HELLO))
        if version == "1.0":
            with pytest.raises(ConnectionResetError):
                while sock.recv(1000):
                    pass
        else:
            assert read_until_closed(sock).endswith(b"3\r\nhel\r\n2\r\nlo\r\n")


def test_hop_by_hop_headers_stay_here(served: Server) -> None:
    headers = [["Transfer-Encoding", "chunked"], ["Keep-Alive", "timeout=5"], ["Content-Length", "5"]]
    got = Exchange(served, plan(headers=headers, **HELLO))
    assert (got.status, got.content) == (200, b"hello")
    assert "transfer-encoding" not in got.headers and "keep-alive" not in got.headers


@pytest.mark.parametrize("headers", [[], [["Content-Length", "5"]], [["Transfer-Encoding", "chunked"]]])
def test_success_of_connect_ends_the_connection(served: Server, headers: Any) -> None:
    """What follows a 2xx to CONNECT is no HTTP (RFC 9110 section 9.3.6)."""
    request = b"CONNECT evil:80 HTTP/1.1\r\nHost: evil:80\r\n\r\n"
    with noted(served) as served_paths:
        got = Exchange(served, request)
    assert got.status == 200 and not got.goes_on
    assert not {"content-length", "transfer-encoding"} & got.headers.keys()
    assert served_paths == ["CONNECT "]


@not_asgi
@pytest.mark.parametrize(
    ("method", "status", "length", "most"),
    [("GET", "200 OK", 9, 4), ("GET", "200 OK", 0, 1), ("HEAD", "200 OK", 9, 1), ("GET", "304 Not", None, 1)],
)
def test_no_more_is_taken_of_a_result_than_can_be_sent(
    served: Server, method: str, status: str, length: int | None, most: int
) -> None:
    headers = [["Content-Length", str(length)]] if length is not None else []
    with noted(served) as lines:
        got = Exchange(served, plan(method, status=status, headers=headers, endless=True, pieces=["abc"]))
    assert got.content == (b"abcabcabc"[:length] if (method, status) == ("GET", "200 OK") else b"")
    assert f"closed {most}" in lines


@not_asgi
def test_no_more_of_an_endless_file_than_was_announced(served: Server) -> None:
    assert Exchange(served, b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n").content == bytes(5)


@pytest.mark.parametrize(
    "error", ["ValueError", "GeneratorExit", "BaseException", "KeyboardInterrupt", "SystemExit"]
)
@pytest.mark.parametrize("where", ["raises", "fails"])
def test_whatever_the_application_raises_is_a_500(served: Server, where: str, error: str) -> None:
    workers = served.workers()
    with logged(served) as log:
        got = Exchange(served, plan(**{where: error}))
    assert got.status == 500 and b"on purpose" not in got.content and not got.goes_on
    assert any("The application failed on 'GET /plan" in line for line in log)
    head = Exchange(served, plan("HEAD", **{where: error}))
    assert (head.status, head.content) == (500, b"")
    assert served.workers() == workers


def test_the_end_of_a_connection_of_its_own_is_the_applications_failure(served: Server) -> None:
    with logged(served) as log:
        assert Exchange(served, b"GET /backend HTTP/1.1\r\nHost: x\r\n\r\n").status == 500
    assert any("The application failed on 'GET /backend'" in line for line in log)


@wsgi_servers
@pytest.mark.parametrize("error", ["StopIteration", "ValueError"])
def test_a_connection_that_was_taken_over_gets_no_page(served: Server, error: str) -> None:
    with served.connect() as sock, logged(served) as log:
        sock.sendall(
            b"GET /take?%b HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n" % error.encode()
        )
        assert read_until_closed(sock) == b"taken"
    assert ("Traceback" in "".join(log)) is (error == "ValueError")
    # What was said after StopIteration, only the application knows.
    assert [line for line in log if "GET /take" in line and '" 500 ' in line] or error == "StopIteration"
    assert not [line for line in log if '"GET /take' in line] or error == "ValueError"


@wsgi_servers
def test_a_client_that_leaves_a_connection_that_was_taken_over_is_no_error(served: Server) -> None:
    request = b"GET /take?%b HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
    with logged(served) as log:
        with served.connect() as sock:
            sock.sendall(request % b"listen")
            assert sock.recv(5) == b"taken"
            # A reset, in place of an end.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # It was seen when the one worker, or thread, is there for the next one.
        wait_until(lambda: Exchange(served, b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n").status == 200)
        with served.connect() as sock:
            sock.sendall(request % b"backend")
            assert read_until_closed(sock) == b"taken"
    assert "".join(log).count("Traceback") == 1


TRUNCATED = [
    b"GET / HTTP/1.1",
    b"GET / HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\nHost: x",
    b"GET / HTTP/1.1\r\nHost: x\r\n",
    b"hello",
    b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab",
    b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
]
BAD = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET foo HTTP/1.1\r\nHost: a\r\n\r\n",
    b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nContent-Type: a/b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Ssl: on\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Proto: http\r\n\r\n",
    b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
    b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab",
    b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
]


def test_limits(served: Server) -> None:
    for status, line, fields in (
        (414, "/" + "x" * 5000, ""),
        (431, "/", "A: 1\r\n" * 100),
        (431, "/", f"A: {'x' * 8200}\r\n"),
        (431, "/", f"A: {'x' * 80_000}\r\n"),
        (200, "/" + "x" * 4000, f"A: {'x' * 8000}\r\n" * 99),
    ):
        with noted(served) as paths:
            got = Exchange(served, f"GET {line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode())
        assert got.status == status and (status == 200 or not got.goes_on)
        assert status == 200 or paths == []


@pytest.mark.parametrize("request_", TRUNCATED + BAD, ids=repr)
def test_what_is_no_request_is_a_400_and_never_served(served: Server, request_: bytes) -> None:
    with noted(served) as paths, logged(served) as log:
        got = Exchange(served, request_, second=request_ in BAD)
    assert got.status == 400 and not got.goes_on
    assert [path for path in paths if path != "POST /body"] == []
    assert not any("Traceback" in line or "ERROR" in line for line in log), log


def test_fields_of_a_proxy_that_disagree_behind_one_that_is_sound(served: Server) -> None:
    sound = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: https\r\n"
    assert Exchange(served, sound + b"\r\n").status == 200
    assert Exchange(served, sound + b"X-Forwarded-Ssl: off\r\n\r\n").status == 400


@pytest.mark.parametrize("served", ["gthread", "gevent_pywsgi"], indirect=True)
def test_heads_are_read_by_the_same_rules(served: Server) -> None:
    """Those of the tests of the parser that need no setting, and no client that is a stranger."""
    expected = {data: 200 for name, data, settings, _ in VALID if not settings and "forwarder" not in name}
    expected |= {data: status for _, data, settings, _, status in INVALID if not settings}
    assert len(expected) > 100
    found = {data: Exchange(served, data, second=False).status for data in expected}
    assert found == expected


@pytest.mark.parametrize("head", ["1.0", "1.1\r\nConnection: close", "1.1\r\nConnection: x, Close"])
def test_nothing_is_served_behind_a_request_that_ends_the_connection(served: Server, head: str) -> None:
    """Its client would get no answer, and ask once more."""
    with noted(served) as paths:
        got = Exchange(served, f"GET /first HTTP/{head}\r\nHost: x\r\n\r\n".encode())
    assert (got.status, got.headers["connection"], got.goes_on) == (200, "close", False)
    assert paths == ["GET /first"]


#: What the libraries of these classes let pass.
# Before 6.6, Tornado puts a space in the place of a fold, as it may (RFC 9112 section 5.2).
FOLDS = {"folding"} if tornado.version_info < (6, 6) else set()
LENIENT = {"tornado": {"bare LF in value", "bare LF before"} | FOLDS, "asgi": {"two spaces"}}


def test_what_the_parser_refuses_no_class_serves(served: Server) -> None:
    passed = set()
    for name, data, settings, *_ in INVALID:
        if settings:
            continue
        with noted(served) as paths, served.connect() as sock:
            with contextlib.suppress(OSError):
                sock.sendall(data + get("/second", close=True))
            read_until_closed(sock)
        if paths:
            passed.add(name)
    assert passed == LENIENT.get(kind_of(served), set())


@without("sync")
def test_an_empty_line_may_precede_a_request(served: Server) -> None:
    with connect(served) as client:
        for _ in range(2):
            for piece in (b"\r", b"\n", get("/first")):
                client.send(piece)
                # Once this one has its answer, the piece was read.
                assert Exchange(served, get("/other")).goes_on
            assert client.answer().status == 200


@not_asgi
def test_a_client_that_has_ended_its_side_gets_its_answer(served: Server) -> None:
    assert Exchange(served, plan(**HELLO), second=False).status == 200
    assert len(Exchange(served, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n", second=False).content) == 5_000_000


def test_a_client_that_is_still_sending_gets_the_refusal(served: Server) -> None:
    """Bytes that nobody has read would turn the close into a reset, which destroys what has been answered."""
    with served.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a:b\r\nContent-Length: 500000\r\n\r\n" + b"x" * 50_000)
        assert readable(sock, 5)
        for _ in range(9):
            sock.sendall(b"x" * 50_000)
        sock.shutdown(socket.SHUT_WR)
        data = read_until_closed(sock)
        assert data.startswith(b"HTTP/1.1 400 ") and data.endswith(b"</html>\n")


@not_tornado
def test_a_bare_line_feed_ends_nothing(served: Server) -> None:
    for request in (b"GET / HTTP/1.1\nHost: a\n\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n"):
        with noted(served) as paths:
            assert Exchange(served, request).status == 400
        assert paths == []


def test_a_connection_that_ends_without_a_request_is_no_error(served: Server) -> None:
    for sent in (b"", b"\r\n"):
        with logged(served) as log, served.connect() as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            assert read_until_closed(sock) == b""
        assert log == []


def environ_of(server: Server, request: bytes) -> dict[str, Any]:
    got = Exchange(server, request)
    assert got.status == 200, got.status
    answer: dict[str, Any] = json.loads(got.content)
    return answer


@pytest.mark.parametrize("header", ["PATH_INFO", "path-info"])
def test_no_header_replaces_the_path(served: Server, header: str) -> None:
    request = f"GET /public HTTP/1.1\r\nHost: a\r\n{header}: /admin\r\n\r\n"
    assert environ_of(served, request.encode())["PATH_INFO"] == "/public"


@not_asgi
def test_the_environ_of_what_a_proxy_says(served: Server) -> None:
    environ = environ_of(
        served,
        b"GET /sub/a%20b?q=1 HTTP/1.1\r\nHost: a\r\nSCRIPT_NAME: /sub\r\nX-Forwarded-Proto: https\r\n"
        b"X_X_Hidden: 1\r\nX-X-Shown: 1\r\n\r\n",
    )
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/sub", "/a b")
    assert (environ["QUERY_STRING"], environ["RAW_URI"]) == ("q=1", "/sub/a%20b?q=1")
    assert environ["wsgi.url_scheme"] == "https"
    # Of a name with an underscore nobody knows whether the proxy has set it.
    assert environ["HTTP_X_X_SHOWN"] == "1" and "HTTP_X_X_HIDDEN" not in environ


@not_asgi
def test_a_path_outside_of_script_name_is_not_the_applications_failure(served: Server) -> None:
    with noted(served) as paths, logged(served) as log:
        got = Exchange(served, b"GET /other HTTP/1.1\r\nHost: a\r\nSCRIPT_NAME: /sub\r\n\r\n")
    assert got.status == 500 and not got.goes_on and paths == []
    assert any("[WARNING] Bad request from 127.0.0.1: configuration problem" in line for line in log)
    assert not any("Traceback" in line for line in log)


@not_asgi
def test_the_absolute_form(served: Server) -> None:
    environ = environ_of(served, b"GET http://b:1/p?q#f HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (environ["PATH_INFO"], environ["QUERY_STRING"], environ["HTTP_HOST"]) == ("/p", "q", "b:1")
    assert environ["RAW_URI"] == "http://b:1/p?q#f"


@pytest.mark.parametrize("expect", ["100-continue, 100-Continue", ",100-continue ,", "100-continue"])
def test_expect_is_a_list(served: Server, expect: str) -> None:
    head = f"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: {expect}\r\n\r\n"
    with connect(served) as client:
        client.send(head.encode())
        assert client.answer().status == 100
        client.send(b"ab")
        answer = client.answer()
        assert (answer.status, answer.body) == (200, b"ab")
    assert Exchange(served, head.replace("100", "200").encode() + b"ab").status == 417


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1\r\nContent-Length: 5\r\n",
        b"HTTP/1.1\r\nTransfer-Encoding: chunked\r\n",
        b"HTTP/1.0\r\nContent-Length: 5\r\n",
    ],
)
def test_a_request_that_could_be_upgraded_is_read_like_any_other(served: Server, head: bytes) -> None:
    """So clients that prefer HTTP/2 ask, whatever the method."""
    head += b"Host: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\n\r\n"
    with noted(served) as paths:
        got = Exchange(
            served, b"POST /body " + head + (b"5\r\nhello\r\n0\r\n\r\n" if b"chunked" in head else b"hello")
        )
    assert (got.status, got.content) == (200, b"hello")
    assert got.goes_on is (b"1.1" in head and kind_of(served) != "sync")
    assert paths == ["POST /body"] + ["GET /second"] * got.goes_on


@not_tornado  # Tornado's reads a body before it asks the application
def test_a_body_that_the_client_holds_back_is_not_waited_for(served: Server) -> None:
    with Client(served.connect()) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert client.answer().closes and client.is_closed()
