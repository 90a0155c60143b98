# SPDX-License-Identifier: MIT
"""The environ that an application gets."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any
from wsgiref.validate import check_environ

import pytest
from httpkit import PEER, SERVER, Exchange, make_config, read_request

from gunicorn.http import environ as environment
from gunicorn.http import wsgi
from gunicorn.http.errors import ConfigurationProblem
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader, Unreader


def environ_of(raw: str, peer: Any = PEER, server: Any = SERVER, **settings: Any) -> dict[str, Any]:
    request = read_request(raw.replace("\n", "\r\n").encode("latin-1"), peer, **settings)
    return wsgi.create(request, None, peer, server, request.cfg)[1]


def test_everything() -> None:
    with Exchange(
        b"POST /caf%C3%A9/a%20b?x=%20 HTTP/1.1\r\nHost: example.com:8080\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 2\r\nX-One: 1\r\n\r\nhi"
    ) as exchange:
        environ = exchange.environ
        check_environ(environ)
        expected = {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/caf\xc3\xa9/a b",
            "QUERY_STRING": "x=%20",
            "RAW_URI": "/caf%C3%A9/a%20b?x=%20",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8000",
            "SERVER_SOFTWARE": wsgi.SERVER_SOFTWARE,
            "REMOTE_ADDR": "127.0.0.1",
            "REMOTE_PORT": "51000",
            "CONTENT_TYPE": "text/plain",
            "CONTENT_LENGTH": "2",
            "HTTP_HOST": "example.com:8080",
            "HTTP_X_ONE": "1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": wsgi.FileWrapper,
            "gunicorn.socket": exchange.sock,
        }
        assert {name: environ[name] for name in expected} == expected
        assert set(environ) - set(expected) == {"wsgi.input", "wsgi.errors", "wsgi.early_hints"}
        assert environ["wsgi.input"].read() == b"hi"


def test_requests_do_not_share_an_environ() -> None:
    cfg = make_config(workers=2)
    request = read_request(b"GET / HTTP/1.0\r\n\r\n")
    first = wsgi.create(request, None, PEER, SERVER, cfg)[1]
    assert first["wsgi.multiprocess"] is True
    first["wsgi.multithread"] = first["mine"] = True
    second = wsgi.create(request, None, PEER, SERVER, cfg)[1]
    assert second["wsgi.multithread"] is False
    assert "mine" not in second


def test_repeated_headers_are_joined() -> None:
    environ = environ_of("GET / HTTP/1.0\nA: 1\nCookie: a=1\na: 2\nCookie: b=2\n\n")
    assert environ["HTTP_A"] == "1,2"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"


def test_trailers_stay_out() -> None:
    with Exchange(
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\nx\r\n0\r\nX-Admin: 1\r\nCookie: i\r\n\r\n"
    ) as exchange:
        assert exchange.environ["wsgi.input"].read() == b"x"
        assert exchange.req.trailers == [("X-ADMIN", "1"), ("COOKIE", "i")]
        assert not {"HTTP_X_ADMIN", "HTTP_COOKIE"} & exchange.environ.keys()
        assert "CONTENT_LENGTH" not in exchange.environ


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("//a//b", "//a//b", ""),
        ("/a%2Fb", "/a/b", ""),
        ("/%zz%4", "/%zz%4", ""),
        ("/a%00b", "/a\0b", ""),
        ("/%C3%A9", "/\xc3\xa9", ""),
        ("/a?b?c%20#d", "/a", "b?c%20"),
        ("http://other/p?q", "/p", "q"),
    ],
)
def test_paths(target: str, path: str, query: str) -> None:
    environ = environ_of(f"GET {target} HTTP/1.1\nHost: h\n\n")
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == (path, query)
    assert environ["RAW_URI"] == target


def test_other_forms_of_targets() -> None:
    assert environ_of("OPTIONS * HTTP/1.1\nHost: h\n\n")["PATH_INFO"] == "*"
    assert environ_of("CONNECT a:1 HTTP/1.1\nHost: h\n\n")["PATH_INFO"] == ""
    # The target's host overrides the field.
    assert environ_of("GET http://a:1/ HTTP/1.1\nHost: h\n\n")["HTTP_HOST"] == "a:1"


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("10.0.0.1", 5), {"REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": "5"}),
        (("::1", 5, 0, 0), {"REMOTE_ADDR": "::1", "REMOTE_PORT": "5"}),
        ("", {"REMOTE_ADDR": ""}),
        (b"\0name", {"REMOTE_ADDR": "\0name"}),
        (None, {"REMOTE_ADDR": ""}),
    ],
)
def test_client_variables(client: Any, expected: dict[str, str]) -> None:
    environ: dict[str, Any] = {}
    environment.add_client(environ, client)
    assert environ == expected


@pytest.mark.parametrize(
    ("server", "host", "scheme", "name", "port"),
    [
        (("10.0.0.1", 80), "h:1", "http", "10.0.0.1", "80"),
        (("::1", 80, 0, 0), "h:1", "http", "::1", "80"),
        ("10.0.0.1:80", "h:1", "http", "10.0.0.1", "80"),
        ("/run/app.sock", "h:1", "http", "h", "1"),
        ("/run/a:b.sock", "h", "http", "h", "80"),
        ("/run/app.sock", "h", "https", "h", "443"),
        ("/run/app.sock", "[::1]", "http", "[::1]", "80"),
        ("/run/app.sock", "[::1]:5", "http", "[::1]", "5"),
        ("/run/app.sock", None, "http", "localhost", "80"),
        (b"\0abstract", "h", "http", "h", "80"),
    ],
)
def test_server_variables(server: Any, host: str | None, scheme: str, name: str, port: str) -> None:
    environ = {"HTTP_HOST": host} if host is not None else {}
    environment.add_server(environ, server, scheme)
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == (name, port)


@pytest.mark.parametrize(
    ("path", "script_name", "expected"),
    [
        ("/a/b", "", ("", "/a/b")),
        ("/a/b", "/a", ("/a", "/b")),
        ("/a/b", "/a/", ("/a", "/b")),
        ("/a", "/a", ("/a", "")),
        ("/%61/b", "/a", ("/a", "/b")),
        ("/a/b", "/", ("", "/a/b")),
        ("*", "/a", ("", "*")),
        ("/ab", "/a", None),
        ("/b", "/a", None),
    ],
)
def test_script_name(path: str, script_name: str, expected: tuple[str, str] | None) -> None:
    if expected is not None:
        assert environment.split_script_name(path, script_name) == expected
    else:
        with pytest.raises(ConfigurationProblem) as caught:
            environment.split_script_name(path, script_name)
        assert caught.value.status == 500


def test_script_name_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_NAME", "/caf\u00e9")
    environ = environ_of("GET /caf%C3%A9/x HTTP/1.0\n\n")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/caf\xc3\xa9", "/x")


MOUNTED = "GET /m/x HTTP/1.0\nScript_Name: /m\n"


def test_paths_of_a_trusted_proxy() -> None:
    environ = environ_of(MOUNTED + "\n")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/m", "/x")
    environ = environ_of(MOUNTED + "\n", forwarder_headers="*")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/m", "/x")


@pytest.mark.parametrize("name", ["PATH_INFO", "Path_Info", "path-info"])
@pytest.mark.parametrize("settings", [{}, {"header_map": "dangerous"}, {"forwarder_headers": "*"}])
def test_no_header_replaces_the_path(name: str, settings: dict[str, Any]) -> None:
    """A proxy has looked at the request line."""
    for raw in (f"GET /m/x HTTP/1.0\n{name}: /admin\n\n", MOUNTED + f"{name}: /admin\n\n"):
        environ = environ_of(raw, **settings)
        assert environ["SCRIPT_NAME"] + environ["PATH_INFO"] == "/m/x"
        assert environ["HTTP_PATH_INFO"] == "/admin"


@pytest.mark.parametrize(
    ("peer", "settings"),
    [
        (("10.0.0.1", 1), {}),
        (("10.0.0.1", 1), {"header_map": "dangerous"}),
        (PEER, {"forwarder_headers": ""}),
        (PEER, {"forwarder_headers": "", "header_map": "dangerous"}),
    ],
)
def test_paths_of_anybody_else(peer: Any, settings: dict[str, Any]) -> None:
    environ = environ_of(MOUNTED + "Path_Info: /other\n\n", peer, **settings)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/m/x")


def test_dashes_do_not_reach_a_forwarded_name() -> None:
    raw = "GET /m/x HTTP/1.0\nScript-Name: /m\nRemote-User: admin\n\n"
    environ = environ_of(raw)
    assert environ["SCRIPT_NAME"] == ""
    # What the proxy says stands, whatever its client sent under the same key.
    for order in ("Remote-User: admin\nREMOTE_USER: bob\n", "REMOTE_USER: bob\nRemote-User: admin\n"):
        environ = environ_of(f"GET / HTTP/1.0\n{order}\n", forwarder_headers="REMOTE_USER")
        assert environ["HTTP_REMOTE_USER"] == "bob"


def test_scheme() -> None:
    raw = "GET / HTTP/1.0\nX-Forwarded-Ssl: on\n\n"
    assert environ_of(raw)["wsgi.url_scheme"] == "https"
    assert environ_of(raw, ("10.0.0.1", 1))["wsgi.url_scheme"] == "http"
    assert environ_of(raw, ("10.0.0.1", 1), forwarded_allow_ips="10.0.0.0/8")["wsgi.url_scheme"] == "https"


def test_names_of_strangers_are_not_kept_for_ever() -> None:
    for number in range(3000):
        assert environment.header_key(f"STRANGER-{number}") == f"HTTP_STRANGER_{number}"
    assert len(environment._KEYS) <= environment._KEYS_MAX


def test_errors_go_where_the_error_log_goes() -> None:
    cfg = make_config(errorlog="/somewhere")
    log, stream, second = logging.getLogger("gunicorn.error"), io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(stream)
    before = log.handlers[:]
    log.handlers[:] = [handler]
    try:
        errors = wsgi.WSGIErrorsWrapper(cfg)
        assert errors.write("one\n") == 4
        errors.writelines(["two\n", "three\n"])
        errors.flush()
        handler.setStream(second)  # as a reopened log does
        errors.close()
        print("four", file=errors)  # type: ignore[call-overload]
        ascii_stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
        handler.setStream(ascii_stream)
        errors.write("caf\u00e9")
    finally:
        log.handlers[:] = before
    assert stream.getvalue() == "one\ntwo\nthree\n"
    assert second.getvalue() == "four\n"
    assert ascii_stream.buffer.getvalue() == b"caf\\xe9"  # type: ignore[attr-defined]


def test_errors_without_a_log_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = make_config()
    cfg.set("errorlog", "-")
    before = logging.getLogger("gunicorn.error").handlers[:]
    logging.getLogger("gunicorn.error").handlers[:] = []
    try:
        wsgi.WSGIErrorsWrapper(cfg).write("seen")
    finally:
        logging.getLogger("gunicorn.error").handlers[:] = before
    sys.stderr.flush()
    assert capsys.readouterr().err == "seen"


def test_file_wrapper() -> None:
    file = io.BytesIO(b"x" * 20000)
    wrapper = wsgi.FileWrapper(file, 8000)
    assert [len(piece) for piece in wrapper] == [8000, 8000, 4000]
    wrapper.close()
    assert file.closed
    assert not hasattr(wsgi.FileWrapper(type("NoClose", (), {"read": None})()), "close")


def test_a_request_that_reads_itself_in_another_way() -> None:
    """What parse() sets in the reference interface is enough."""

    class Own(Request):
        def parse(self, unreader: Unreader) -> bytes:
            self.method, self.uri, self.version = unreader.read().decode(), "/x?q", (1, 1)
            self.path, self.query, self.fragment = "/x", "q", ""
            self.headers = [("HOST", "h")]
            return b""

    request = Own(make_config(), IterUnreader([b"GET"]), PEER)
    environ = wsgi.create(request, None, PEER, SERVER, request.cfg)[1]
    check_environ(environ)
    assert (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["HTTP_HOST"]) == ("GET", "/x", "h")
    assert request.should_close()
