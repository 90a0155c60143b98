# SPDX-License-Identifier: MIT
"""What each validator takes, what it makes of it, and what it refuses."""

from __future__ import annotations

import functools
import os
import ssl
from pathlib import Path
from typing import Any

import pytest

from gunicorn import config as c
from gunicorn.errors import ConfigError
from gunicorn.settings import companion, http, worker


class Plain:
    """A class to be named."""


def named() -> type[Plain]:
    return Plain


GOOD: list[tuple[Any, Any, Any]] = [
    (c.validate_bool, None, None),
    (c.validate_bool, True, True),
    (c.validate_bool, " True ", True),
    (c.validate_bool, "on", True),
    (c.validate_bool, "FALSE", False),
    (c.validate_bool, "0", False),
    (c.validate_dict, {"a": 1}, {"a": 1}),
    (http.validate_scheme_headers, {"X-SSL": "on"}, {"X-SSL": "on"}),
    (c.validate_pos_int, 4, 4),
    (c.validate_pos_int, "5", 5),
    (c.validate_pos_int, "0xFF", 255),
    (c.validate_pos_int, "0o17", 15),
    (c.validate_pos_int, "010", 10),
    (c.validate_pos_int, True, 1),
    (c.validate_pos_int, 0, 0),
    (c.validate_umask, 0o22, 18),
    (c.validate_umask, "022", 18),
    (c.validate_umask, " 0027 ", 23),
    (c.validate_umask, "18", 18),
    (c.validate_umask, "0o22", 18),
    (c.validate_umask, "0x12", 18),
    (c.validate_proxy_protocol, None, "off"),
    (c.validate_proxy_protocol, True, "auto"),
    (c.validate_proxy_protocol, False, "off"),
    (c.validate_proxy_protocol, "off", "off"),
    (c.validate_proxy_protocol, "0", "off"),
    (c.validate_proxy_protocol, "true", "auto"),
    (c.validate_proxy_protocol, "1", "auto"),
    (c.validate_proxy_protocol, "V1", "v1"),
    (c.validate_proxy_protocol, " v2 ", "v2"),
    (c.validate_proxy_protocol, "auto", "auto"),
    (c.validate_string, None, None),
    (c.validate_string, " foo ", "foo"),
    (c.validate_string, "", ""),
    (c.validate_list_string, None, []),
    (c.validate_list_string, [], []),
    (c.validate_list_string, "", []),
    (c.validate_list_string, "one", ["one"]),
    (c.validate_list_string, (" a", "b "), ["a", "b"]),
    (c.validate_string_to_list, None, []),
    (c.validate_string_to_list, "A, B,,", ["A", "B"]),
    (c.validate_string_to_addr_list, "", []),
    (c.validate_string_to_addr_list, None, []),
    (c.validate_string_to_addr_list, "*", ["*"]),
    (c.validate_string_to_addr_list, "10.1.2.3, ::f", ["10.1.2.3", "::f"]),
    (c.validate_string_to_addr_list, "10.0.0.0/8,fd00::/8", ["10.0.0.0/8", "fd00::/8"]),
    (c.validate_file_exists, None, None),
    (c.validate_file_exists, "", ""),
    (c.validate_file_exists, __file__, __file__),
    (c.validate_list_of_existing_files, [__file__], [__file__]),
    (c.validate_list_of_existing_files, "no/such/*.html", ["no/such/*.html"]),
    (c.validate_class, Plain, Plain),
    (c.validate_class, named, Plain),
    (c.validate_class, " a.B ", "a.B"),
    (c.validate_user, None, os.geteuid()),
    (c.validate_user, 12345, 12345),
    (c.validate_user, "12345", 12345),
    (c.validate_user, "root", 0),
    (c.validate_group, None, os.getegid()),
    (c.validate_group, "12345", 12345),
    (c.validate_chdir, "/", "/"),
    (c.validate_chdir, "/usr/../tmp", "/tmp"),
    (c.validate_statsd_address, None, None),
    (c.validate_statsd_address, "localhost", ("localhost", 8125)),
    (c.validate_statsd_address, "statsd:7777", ("statsd", 7777)),
    (c.validate_statsd_address, "[::1]:7777", ("::1", 7777)),
    (c.validate_statsd_address, "unix:7777", ("unix", 7777)),
    (c.validate_statsd_address, "unix:///run/s.sock", "/run/s.sock"),
    (c.validate_statsd_address, "unix://some.socket", "some.socket"),
    (c.validate_statsd_address, "unix:/run/s.sock", "/run/s.sock"),
    (c.validate_statsd_address, "unix:some.socket", "some.socket"),
    (c.validate_reload_engine, "poll", "poll"),
    (c.validate_header_map_behaviour, None, None),
    (c.validate_header_map_behaviour, " Refuse", "refuse"),
    (c.validate_ssl_version, ssl.PROTOCOL_TLS, 2),
    (c.validate_ssl_version, "TLS", 2),
    (c.validate_ssl_version, None, 2),
    (c.validate_ssl_version, "", 2),
    (c.validate_ssl_version, "TLSv1_3", 2),
    (c.validate_ssl_version, "PROTOCOL_SSLv3", 2),
    (c.validate_ssl_version, "SSLv23", 2),
    (c.validate_ssl_version, "PROTOCOL_TLS_SERVER", ssl.PROTOCOL_TLS_SERVER),
    (c.validate_cert_reqs, ssl.CERT_REQUIRED, 2),
    (c.validate_cert_reqs, "1", 1),
    (c.validate_cert_reqs, "CERT_REQUIRED", 2),
    (companion.validate_companion_workers, None, []),
    (companion.validate_companion_workers, [{"name": "a"}], [{"name": "a"}]),
    (companion.validate_companion_workers, ({"name": "a"},), [{"name": "a"}]),
    (c.validate_seconds, 3, 3),
    (c.validate_seconds, 0.5, 0.5),
    (c.validate_seconds, "7", 7),
    (c.validate_seconds, " 0.5 ", 0.5),
    (c.or_none(c.validate_seconds), None, None),
    (companion.validate_file_mode, 0o640, 0o640),
    (companion.validate_file_mode, "660", 0o660),
    (companion.validate_file_mode, "0o660", 0o660),
    (companion.validate_signal, "TERM", "TERM"),
    (companion.validate_signal, "15", 15),
    (companion.validate_signal, 2, 2),
    (c.one_of(*companion.RELOAD_WAYS), "all", "all"),
    (c.one_of(*companion.STOP_ORDERS), "together", "together"),
    (companion.validate_companion_env, None, {}),
]


@pytest.mark.parametrize(("validator", "value", "expected"), GOOD)
def test_good_values(validator: Any, value: Any, expected: Any) -> None:
    result = validator(value)
    assert result == expected
    assert type(result) is type(expected) or isinstance(result, int)


BAD: list[tuple[Any, Any, type[Exception]]] = [
    (c.validate_bool, "zilch", ValueError),
    (c.validate_bool, 4, TypeError),
    (c.validate_dict, [], TypeError),
    (http.validate_scheme_headers, {5: "https"}, TypeError),
    (c.validate_pos_int, -1, ValueError),
    (c.validate_pos_int, "-21", ValueError),
    (c.validate_pos_int, "many", ValueError),
    (c.validate_pos_int, None, TypeError),
    (c.validate_pos_int, 1.5, TypeError),
    (c.validate_pos_int, object(), TypeError),
    (c.validate_string, 2, TypeError),
    (c.validate_list_string, 2, TypeError),
    (c.validate_list_string, ["a", None], TypeError),
    (c.validate_list_string, ["a", 1], TypeError),
    (c.validate_list_string, {"a": 1}, TypeError),
    (c.validate_string_to_list, 1, TypeError),
    (c.validate_string_to_addr_list, 1, TypeError),
    (c.validate_string_to_addr_list, "127.0.0", ValueError),
    (c.validate_string_to_addr_list, "::f:", ValueError),
    (c.validate_string_to_addr_list, "10.1.2.3/8", ValueError),
    (c.validate_string_to_addr_list, "proxy.example", ValueError),
    (c.validate_file_exists, "/no/such/file", ValueError),
    (c.validate_list_of_existing_files, [__file__, "/no/such/file"], ValueError),
    (c.validate_list_of_existing_files, [""], ValueError),
    (c.validate_bind, "host:port", ValueError),
    (c.validate_bind, ["127.0.0.1", "[::1"], ValueError),
    (c.validate_bind, 8000, TypeError),
    (c.validate_assignments, ["A=1", "B"], ValueError),
    (c.validate_assignments, "=1", ValueError),
    (c.validate_class, 3, TypeError),
    (c.validate_worker_class, "eventlet", ValueError),
    (c.validate_user, "no-such-user-here", ConfigError),
    (c.validate_user, 1.5, TypeError),
    (c.validate_user, True, TypeError),
    (c.validate_group, "no-such-group-here", ConfigError),
    (c.validate_chdir, "/no/such/directory", ConfigError),
    (c.validate_chdir, __file__, ConfigError),
    (c.validate_chdir, None, TypeError),
    (c.validate_statsd_address, 666, TypeError),
    (c.validate_statsd_address, "host:string", TypeError),
    (c.validate_statsd_address, "unix://", TypeError),
    (c.validate_statsd_address, "unix:", TypeError),
    (c.validate_proxy_protocol, "v3", ValueError),
    (c.validate_proxy_protocol, 2, TypeError),
    (c.validate_umask, "rwx", ValueError),
    (c.validate_umask, "089", ValueError),
    (c.validate_umask, None, TypeError),
    (c.validate_statsd_address, "fd://3", TypeError),
    (c.validate_reload_engine, "invalid", ConfigError),
    (c.validate_header_map_behaviour, "keep", ValueError),
    (c.validate_header_map_behaviour, 1, TypeError),
    (c.validate_ssl_version, "best", ValueError),
    (c.validate_ssl_version, [], TypeError),
    (c.validate_cert_reqs, 3, ValueError),
    (c.validate_cert_reqs, "always", ValueError),
    (companion.validate_companion_workers, {"name": "a"}, TypeError),
    (companion.validate_companion_workers, "a", TypeError),
    (companion.validate_companion_workers, [{"name": "a"}, "b"], TypeError),
    (companion.validate_companion_workers, 0, TypeError),
    (c.validate_seconds, True, TypeError),
    (c.validate_seconds, None, TypeError),
    (c.validate_seconds, -1, ValueError),
    (c.validate_seconds, "soon", ValueError),
    (c.validate_seconds, "nan", ValueError),
    (c.validate_seconds, float("inf"), ValueError),
    (c.validate_seconds, 10**400, ValueError),
    (c.validate_seconds, 1e308, ValueError),
    (c.validate_pos_int, 10**400, ValueError),
    (worker.validate_workers_max, True, TypeError),
    (companion.validate_file_mode, "rw", ValueError),
    (companion.validate_file_mode, "1777", ValueError),
    (companion.validate_file_mode, 0o1777, ValueError),
    (companion.validate_file_mode, None, TypeError),
    (companion.validate_signal, None, TypeError),
    (companion.validate_signal, False, TypeError),
    (c.one_of(*companion.RELOAD_WAYS), "some", ValueError),
    (c.one_of(*companion.STOP_ORDERS), "backwards", ValueError),
    (companion.validate_companion_env, "A=1", TypeError),
]


@pytest.mark.parametrize(("validator", "value", "error"), BAD)
def test_bad_values(validator: Any, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        validator(value)


def test_eventlet_is_told_what_to_use() -> None:
    with pytest.raises(ValueError, match="gevent"):
        c.validate_worker_class("eventlet")


def test_a_relative_chdir_starts_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PWD", raising=False)
    assert c.validate_chdir("sub") == str(tmp_path / "sub")


# -- hooks -------------------------------------------------------------------------------------


def two(a: Any, b: Any) -> None: ...


def two_or_three(a: Any, b: Any, c: Any = None) -> None: ...


def any_number(*args: Any) -> None: ...


def two_and_a_keyword(a: Any, b: Any, *, flag: bool = False) -> None: ...


def two_and_a_needed_keyword(a: Any, b: Any, *, flag: bool) -> None: ...


class Callable2:
    def __call__(self, a: Any, b: Any) -> None: ...

    def method(self, a: Any, b: Any) -> None: ...


@pytest.mark.parametrize(
    "hook",
    [
        two,
        two_or_three,
        any_number,
        two_and_a_keyword,
        Callable2(),
        Callable2().method,
        functools.partial(two_or_three, 1),
        lambda a, b: None,
        isinstance,
    ],
)
def test_hooks_that_take_two(hook: Any) -> None:
    assert c.validate_callable(2)(hook) is hook


@pytest.mark.parametrize(
    "hook",
    [
        lambda a: None,
        lambda a, b, c: None,
        two_and_a_needed_keyword,
        functools.partial(two, 1),
        1,
        None,
        "",
        "os.path.not_there",
        "not_a_module.func",
        "os.sep",
        "plain",
    ],
)
def test_hooks_that_do_not_take_two(hook: Any) -> None:
    with pytest.raises(TypeError):
        c.validate_callable(2)(hook)


def test_a_hook_by_name() -> None:
    assert c.validate_callable(-1)("os.path.isdir") is os.path.isdir


@pytest.mark.parametrize("count", [2, 3, 4])
def test_post_request_gets_what_it_takes(count: int) -> None:
    hooks = {2: lambda a, b: 2, 3: lambda a, b, c: 3, 4: lambda a, b, c, d: 4}
    hook = c.validate_post_request(hooks[count])
    assert hook(1, 2, 3, 4) == count


def test_post_request_refuses_others() -> None:
    with pytest.raises(TypeError):
        c.validate_post_request(lambda a: None)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("0o0", 0), ("0x0", 0), ("0xFF", 255), ("0022", 18), ("022", 18), ("18", 18)],
)
def test_auto_int(text: str, number: int) -> None:
    assert c.auto_int(None, text) == number
