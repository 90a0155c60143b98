# SPDX-License-Identifier: MIT
"""Access-log formats: each atom, what is absent, and what a client cannot forge."""

from __future__ import annotations

import os
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn.logs.accesslog import SafeAtoms, all_atoms, basic_user, check_format, escape, line_function

NOW = "[01/Feb/2030:03:04:05 +0000]"

RESPONSE = SimpleNamespace(
    status="201 Created", headers=[("Content-Type", "text/plain"), ("X-Answer", "42")], sent=7
)
REQUEST = SimpleNamespace(headers=[("ACCEPT", "*/*"), ("X-TAG", "a"), ("X-TAG", "b")])
ENVIRON = {
    "REMOTE_ADDR": "192.0.2.7",
    "REQUEST_METHOD": "POST",
    "RAW_URI": "/here?a=1",
    "PATH_INFO": "/here",
    "QUERY_STRING": "a=1",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_REFERER": "http://example.org/",
    "HTTP_USER_AGENT": "probe/1.0",
    "HTTP_AUTHORIZATION": "Basic dXNlcjpwYXNzd29yZA==",
    "wsgi.url_scheme": "http",
    "REMOTE_PORT": 4711,
}
DURATION = timedelta(seconds=2, microseconds=345678)


def line(fmt: str, **changes: Any) -> str:
    """*fmt* filled in by the function, after a check that ``%`` over the atoms gives the same."""
    args = {"resp": RESPONSE, "req": REQUEST, "environ": ENVIRON, "duration": DURATION, **changes}
    function = line_function(fmt, lambda: NOW, basic_user)
    assert function is not None
    data = function(args["resp"], args["req"], args["environ"], args["duration"])
    assert data.endswith(b"\n")
    text = data[:-1].decode()
    atoms = all_atoms(
        args["resp"], args["req"], args["environ"], args["duration"], NOW, basic_user(args["environ"])
    )
    assert text == fmt % SafeAtoms(atoms)
    return text


@pytest.mark.parametrize(
    ("fmt", "expected"),
    [
        ("%(h)s", "192.0.2.7"),
        ("%(l)s", "-"),
        ("%(u)s", "user"),
        ("%(t)s", NOW),
        ("%(r)s", "POST /here?a=1 HTTP/1.1"),
        ("%(m)s", "POST"),
        ("%(U)s", "/here"),
        ("%(q)s", "a=1"),
        ("%(H)s", "HTTP/1.1"),
        ("%(s)s", "201"),
        ("%(B)s", "7"),
        ("%(B)d", "7"),
        ("%(b)s", "7"),
        ("%(f)s", "http://example.org/"),
        ("%(a)s", "probe/1.0"),
        ("%(T)s", "2"),
        ("%(M)s", "2345"),
        ("%(D)s", "2345678"),
        ("%(D)9d", "  2345678"),
        ("%(L)s", "2.345678"),
        ("%({Accept}i)s", "*/*"),
        ("%({x-tag}i)s", "b"),
        ("%({X-Missing}i)s", "-"),
        ("%({content-type}o)s", "text/plain"),
        ("%({X-Answer}o)s", "42"),
        ("%({Content-Type}i)s", "-"),
        ("%({wsgi.url_scheme}e)s", "http"),
        ("%({remote_port}e)s", "4711"),
        ("%({NOTHING}e)s", "-"),
        ("%(unknown)s", "-"),
        ("100%% of %(m)s", "100% of POST"),
        ("no atom at all", "no atom at all"),
        ("", ""),
    ],
)
def test_each_atom(fmt: str, expected: str) -> None:
    assert line(fmt) == expected


def test_the_process_that_answered() -> None:
    assert line("%(p)s") == f"<{os.getpid()}>"


@pytest.mark.parametrize(
    ("fmt", "expected"),
    [("%(h)s", "-"), ("%(u)s", "-"), ("%(f)s", "-"), ("%(a)s", "-")],
)
def test_absent_is_a_dash(fmt: str, expected: str) -> None:
    assert line(fmt, environ={}) == expected


def test_zero_bytes_are_zero_and_unknown_ones_a_dash() -> None:
    assert line("%(b)s %(B)s", resp=SimpleNamespace(status="200 OK", headers=[], sent=0)) == "0 0"
    assert line("%(b)s", resp=SimpleNamespace(status="200 OK", headers=[])) == "-"
    assert line("%(b)s", resp=SimpleNamespace(status="200 OK", headers=[], sent=None)) == "-"


@pytest.mark.parametrize("status", ["204 No Content", b"204 No Content", "204", 204])
def test_status_in_every_form(status: Any) -> None:
    assert line("%(s)s", resp=SimpleNamespace(status=status, headers=[], sent=0)) == "204"


def test_headers_may_be_a_mapping() -> None:
    assert line("%({X-A}i)s", req=SimpleNamespace(headers={"x-a": "1"})) == "1"


def test_durations_of_days_and_of_nothing() -> None:
    day = timedelta(days=1, microseconds=1)
    assert line("%(T)s %(M)s %(D)s %(L)s", duration=day) == "86400 86400000 86400000001 86400.000001"
    assert line("%(T)s %(D)s %(L)s", duration=timedelta(0)) == "0 0 0.000000"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text", "plain text"),
        ('a "quote"', 'a \\"quote\\"'),
        ("back\\slash", "back\\\\slash"),
        ("new\nline\r", "new\\x0aline\\x0d"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x00\x7f", "\\x00\\x7f"),
        ("C1 \x9b31m and \x85", "C1 \\x9b31m and \\x85"),
        ("line\u2028separator", "line\\u2028separator"),
        ("caf\xe9 \xa0", "caf\xe9 \xa0"),
    ],
)
def test_nothing_can_be_forged(text: str, expected: str) -> None:
    assert escape(text) == expected
    environ = {**ENVIRON, "HTTP_USER_AGENT": text, "RAW_URI": text, "HTTP_X_A": text}
    resp = SimpleNamespace(status="200 OK", headers=[("X-B", text)], sent=0)
    req = SimpleNamespace(headers=[("X-A", text)])
    assert line("%(a)s", environ=environ) == expected
    assert line("%(r)s", environ=environ) == f"POST {expected} HTTP/1.1"
    assert line("%({X-A}i)s|%({X-B}o)s|%({HTTP_X_A}e)s", resp=resp, req=req, environ=environ) == "|".join(
        [expected] * 3
    )


@pytest.mark.parametrize(
    "fmt",
    [
        '\t"%(m)s"\\ caf\xe9 \u2028 %%',
        '\'%(m)s\' """ {0} {m} \\n',
        "%(m)10s|%(m)-10s|%(m).2s|%(m)r",
        "%({a'b}i)s%({a\"b\\}o)s%({'}e)s",
        "%(')s%(m)s%(\")s",
    ],
)
@pytest.mark.parametrize("method", ["GET", 'G"T', "G\nT", "G\\T", "G\xe9T"])
def test_any_format_says_what_it_says(fmt: str, method: str) -> None:
    line(fmt, environ={"REQUEST_METHOD": method})


def test_text_that_is_no_text() -> None:
    function = line_function("%(m)s", lambda: NOW, basic_user)
    assert function is not None
    assert function(RESPONSE, REQUEST, {"REQUEST_METHOD": "\udc80"}, DURATION) == b"\\udc80\n"


def test_a_user_of_the_callers_own() -> None:
    function = line_function("%(u)s", lambda: NOW, lambda environ: environ.get("USER"))
    assert function is not None
    assert function(RESPONSE, REQUEST, {"USER": "me"}, DURATION) == b"me\n"
    assert function(RESPONSE, REQUEST, {}, DURATION) == b"-\n"


def test_unused_atoms_cost_nothing() -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was asked for")

    def unwanted(*args: Any) -> Any:
        raise AssertionError("was called")

    function = line_function("%(m)s", unwanted, unwanted)
    assert function is not None
    assert function(Untouchable(), Untouchable(), {"REQUEST_METHOD": "GET"}, timedelta(0)) == b"GET\n"


@pytest.mark.parametrize("fmt", ["%s", "%(a)", "50%", "%(a)s and %"])
def test_what_is_no_named_conversion_has_no_function(fmt: str) -> None:
    assert line_function(fmt, lambda: NOW, basic_user) is None


@pytest.mark.parametrize(
    ("field", "user"),
    [
        ("Basic YnJva2VuOg==", "broken"),
        ("basic dXNlcjpwYTpzcw==", "user"),
        ("Basic w7xzZXI6cGFzcw==", "\xfcser"),
        ("Basic /HNlcjpwYXNz", "\xfcser"),
        ("Basic OnBhc3M=", None),
        ("Basic dXNlcg==", None),
        ("Basic", None),
        ("Basic !!!", None),
        ("Bearer dXNlcjpwYXNz", None),
        ("", None),
    ],
)
def test_user_of_basic_authentication(field: str, user: str | None) -> None:
    assert basic_user({"HTTP_AUTHORIZATION": field}) == user


def test_safe_atoms_know_no_case_in_braces_and_miss_nothing() -> None:
    atoms = SafeAtoms({"{accept}i": 'a"b', "n": 5})
    assert atoms["{Accept}i"] == 'a\\"b'
    assert atoms["n"] == 5
    assert atoms["{nothing}i"] == atoms["nothing"] == "-"


@pytest.mark.parametrize(
    ("fmt", "own"),
    [
        ("", False),
        ("100%%", False),
        ('%(h)s %(t)s "%(r)s" %(s)s %(b)s', False),
        ("%(D)d %(T)5d %(M)x %(B)d %(L)s %(p)s", False),
        ("%({User-Agent}i)s %({x}o)s %({REMOTE_PORT}e)d %({wsgi.url_scheme}E)s", False),
        ("%(unheard-of)s", False),
        ("%(own)d %(other)s", True),
    ],
)
def test_formats_that_work(fmt: str, own: bool) -> None:
    check_format(fmt, own)


@pytest.mark.parametrize(
    "fmt", ["%(zz)q", "%", "50 %", "%(h", "%(h)d", "%(s)d", "%({x}i)d", "%(h)s %s", "%d", "%(own)d", "%(h)*s"]
)
def test_formats_that_fail_at_each_request(fmt: str) -> None:
    with pytest.raises(ValueError):
        check_format(fmt)
    with pytest.raises((TypeError, ValueError)):
        fmt % SafeAtoms(all_atoms(RESPONSE, REQUEST, ENVIRON, DURATION, NOW, None))
