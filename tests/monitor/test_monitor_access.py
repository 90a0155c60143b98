# SPDX-License-Identifier: MIT
"""Who may use the monitor: host names, origins, the token."""

from __future__ import annotations

import pytest

from gunicorn.monitor import access


@pytest.mark.parametrize(
    "host, allowed",
    [
        ("127.0.0.1:9600", True),
        ("10.1.2.3:9600", True),
        ("[::1]:9600", True),
        ("[fe80::1]", True),
        ("localhost", True),
        ("LocalHost:9600", True),
        ("localhost.:9600", True),
        ("web.localhost:9600", True),
        ("inner.example.com:9600", True),
        ("monitor.example.com", True),
        ("monitor.example.com:443", True),
        ("MONITOR.example.com.", True),
        (None, False),
        ("", False),
        ("evil.example.com", False),
        ("evil.example.com:9600", False),
        ("127.0.0.1.evil.example.com", False),
        ("localhost.evil.example.com", False),
        ("notlocalhost", False),
        ("monitor.example.com.evil.org", False),
        ("127.0.0.1@evil.org", False),
        ("2130706433", False),
    ],
)
def test_hosts(host: str | None, allowed: bool) -> None:
    hosts = access.Hosts(["monitor.example.com", "inner.example.com:9600"])
    assert hosts.allow(host) is allowed


def test_the_path_of_a_socket_is_no_host() -> None:
    hosts = access.Hosts(["unix:/run/monitor.sock"])
    assert hosts.allow("localhost")
    assert not hosts.allow("unix")
    assert not hosts.allow("/run/monitor.sock")


@pytest.mark.parametrize(
    "origin, host, same",
    [
        (None, "127.0.0.1:9600", True),
        ("http://127.0.0.1:9600", "127.0.0.1:9600", True),
        ("https://Monitor.example.com", "monitor.example.com", True),
        ("https://monitor.example.com", "monitor.example.com:443", True),
        ("http://127.0.0.1:9601", "127.0.0.1:9600", False),
        ("http://127.0.0.1", "127.0.0.1:9600", False),
        ("http://evil.example.com", "127.0.0.1:9600", False),
        ("null", "127.0.0.1:9600", False),
        ("null", "null", False),
        ("", "127.0.0.1:9600", False),
        ("http://", "", False),
        ("http://127.0.0.1:9600", None, False),
    ],
)
def test_origins(origin: str | None, host: str | None, same: bool) -> None:
    assert access.same_origin(origin, host) is same


@pytest.mark.parametrize(
    "header, good",
    [
        ("Bearer sesame", True),
        ("bearer  sesame ", True),
        (None, False),
        ("", False),
        ("Bearer", False),
        ("Bearer ", False),
        ("Bearer sesam", False),
        ("Bearer sesame2", False),
        ("Basic sesame", False),
        ("sesame", False),
    ],
)
def test_tokens(header: str | None, good: bool) -> None:
    assert access.has_token(header, "sesame") is good


def test_a_token_may_be_any_text() -> None:
    token = "schlüssel €"
    assert access.has_token("Bearer " + token.encode().decode("latin-1"), token)
