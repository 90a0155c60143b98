# SPDX-License-Identifier: MIT
"""What is hidden of a configuration, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from gunicorn.settings import redact

SECRET = """
    PASSWORD DB_PASSWORD PGPASSWORD MYSQL_PWD passwd SECRET_KEY SECRET AWS_SECRET_ACCESS_KEY apiKey API_KEY
    APIKEY authToken GITHUB_TOKEN DJANGO_SECRET STRIPE_KEY BASIC_AUTH REDIS_PASS --password
    db.password SMTP_CREDENTIALS
"""
PLAIN = """
    PWD OLDPWD MODE PATH DATABASE_URL KEYBOARD MONKEY AUTHOR TOKENIZER_PATH COMPASS PASSENGER_APP PINNED
    SALTED keepalive certfile keyfile stop_timeout
"""


@pytest.mark.parametrize("name", SECRET.split())
def test_names_of_secrets(name: str) -> None:
    assert redact.is_secret(name)


@pytest.mark.parametrize("name", PLAIN.split())
def test_other_names(name: str) -> None:
    assert not redact.is_secret(name)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("redis://:sesame@queue:6379/0", "redis://:***@queue:6379/0"),
        ("postgres://shop:p@ss:w/rd@db/shop", "postgres://shop:***@db/shop"),
        ("postgres://shop@db/shop", "postgres://shop@db/shop"),
        ("https://sesame@example.org/x", "https://***@example.org/x"),
        ("http://127.0.0.1:8000/a@b", "http://127.0.0.1:***@b"),  # rather too much than too little
        ("http://host/?token=sesame&page=2", "http://host/?token=***&page=2"),
        ("host=db password=sesame dbname=shop", "host=db password=*** dbname=shop"),
        ("shop:create_app(token='sesame')", "shop:create_app(token=***"),
        ("SECRET_KEY=a sesame, with blanks", "SECRET_KEY=***"),
        ("SECRET_KEY=", "SECRET_KEY="),
        ("MODE=live", "MODE=live"),
        ("CACHE=redis://u:sesame@h", "CACHE=redis://u:***@h"),
        ("--password=sesame", "--password=***"),
        (["job", "--token", "sesame", "-v"], ["job", "--token", "***", "-v"]),
        (("job", "--password", "-v"), ("job", "--password", "-v")),
        ({"PASSWORD": "sesame", "A": "b"}, {"PASSWORD": "***", "A": "b"}),
        ({"password": None, "token": "", "auth": False}, {"password": None, "token": "", "auth": False}),
        ({"auth": {"user": "x"}, "pin": 1234}, {"auth": "***", "pin": "***"}),
        ([{"env": {"API_KEY": "sesame"}}], [{"env": {"API_KEY": "***"}}]),
        (5, 5),
        (None, None),
    ],
)
def test_values(value: Any, shown: Any) -> None:
    assert redact.in_value(value) == shown
