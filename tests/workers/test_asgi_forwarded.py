# SPDX-License-Identifier: MIT
"""What trusted proxies say of their clients, as the scope of an ASGI application shows it."""

from __future__ import annotations

from typing import Any

import pytest

from gunicorn.config import Config
from gunicorn.http.policy import policy_for
from gunicorn.workers.asgiforwarded import Forwarded

HERE = ("127.0.0.1", 5)


@pytest.mark.parametrize(
    ("fields", "scheme", "client"),
    [
        ([], "http", HERE),
        ([("x-forwarded-proto", "https")], "https", HERE),
        ([("x-forwarded-proto", "HTTPS")], "http", HERE),
        ([("x-forwarded-proto", "https"), ("x-forwarded-ssl", "off")], "http", HERE),
        ([("x-forwarded-for", "192.0.2.7")], "http", ("192.0.2.7", 0)),
        ([("x-forwarded-for", "192.0.2.7:55")], "http", ("192.0.2.7", 55)),
        ([("x-forwarded-for", "192.0.2.7:x")], "http", ("192.0.2.7:x", 0)),
        ([("x-forwarded-for", "2001:db8::1")], "http", ("2001:db8::1", 0)),
        ([("x-forwarded-for", "[2001:db8::1]")], "http", ("2001:db8::1", 0)),
        ([("x-forwarded-for", "[2001:db8::1]:7")], "http", ("2001:db8::1", 7)),
        ([("x-forwarded-for", "unknown")], "http", ("unknown", 0)),
        ([("x-forwarded-for", " , ,")], "http", HERE),
        # The last one that is no proxy of ours.
        ([("x-forwarded-for", "6.6.6.6, 192.0.2.7, 10.1.2.3")], "http", ("192.0.2.7", 0)),
        ([("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "192.0.2.7")], "http", ("192.0.2.7", 0)),
        ([("x-forwarded-for", "10.1.1.1, 10.2.2.2")], "http", ("10.1.1.1", 0)),
    ],
    ids=repr,
)
def test_scheme_and_client(fields: list[tuple[str, str]], scheme: str, client: tuple[str, int]) -> None:
    cfg = Config()
    cfg.set("forwarded_allow_ips", "10.0.0.0/8")
    scope: dict[str, Any] = {
        "scheme": "http",
        "client": HERE,
        "headers": [(name.encode(), value.encode()) for name, value in fields],
    }
    Forwarded(policy_for(cfg)).apply(scope)
    assert (scope["scheme"], scope["client"]) == (scheme, client)
