# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from gunicorn.settings.validators import is_ipv6, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", ("localhost", 8000)),
        ("LocalHost:5000", ("localhost", 5000)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("", ("0.0.0.0", 8000)),
        (":5000", ("0.0.0.0", 5000)),
        ("tcp://localhost", ("localhost", 8000)),
        ("tcp://localhost:5000", ("localhost", 5000)),
        ("TCP://localhost:5000", ("localhost", 5000)),
        ("[::1]", ("::1", 8000)),
        ("[::1]:5000", ("::1", 5000)),
        ("tcp://[::]:80", ("::", 80)),
        ("::1", ("::1", 8000)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("unix:/run/a.sock", "/run/a.sock"),
        ("unix:a.sock", "a.sock"),
        ("unix:///run/a.sock", "/run/a.sock"),
        ("unix://run/a.sock", "run/a.sock"),
        ("unix:/odd://name", "/odd://name"),
        ("fd://33", 33),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_addresses(text: str, expected: object) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("127.0.0.1:test", "'test'"),
        ("127.0.0.1:", "''"),
        (":", "''"),
        ("localhost:65536", "'65536'"),
        ("localhost:-1", "'-1'"),
        ("localhost:+80", "'+80'"),
        ("localhost:8_0", "'8_0'"),
        ("fd://x", "'x'"),
        ("fd://-1", "'-1'"),
        ("[::1", "[IPv6]:PORT"),
        ("[::1]80", "[IPv6]:PORT"),
        ("a:b:80", "colons"),
        ("http://localhost", "'http'"),
        ("unix:", "no path"),
        ("unix://", "no path"),
    ],
)
def test_wrong_addresses_say_what_is_wrong(text: str, names: str) -> None:
    with pytest.raises(RuntimeError) as info:
        parse_address(text)
    assert names in str(info.value)


def test_the_default_port_is_the_callers() -> None:
    assert parse_address("metrics", default_port="8125") == ("metrics", 8125)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("::1", True),
        ("1200:0000:AB00:1234:0000:2552:7777:1313", True),
        ("fe80::1%eth0", True),
        ("1200::AB00:1234::2552:7777:1313", False),
        ("1200:0000:AB00:1234:O000:2552:7777:1313", False),
        ("127.0.0.1", False),
        ("", False),
    ],
)
def test_is_ipv6(text: str, expected: bool) -> None:
    assert is_ipv6(text) is expected
