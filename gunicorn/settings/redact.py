# SPDX-License-Identifier: MIT
"""Hide passwords and keys in logged and printed configuration.

A secret is recognized by its name, or by its place in a URL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

HIDDEN = "***"

_WORDS = frozenset(
    (
        *("pass", "passwd", "password", "passphrase", "passcode", "pw", "pwd", "pin", "otp", "salt"),
        *("secret", "secrets", "token", "tokens", "key", "keys", "private", "signature", "pat", "jwt"),
        *("credential", "credentials", "creds", "auth", "authorization", "cookie"),
    )
)
# For names without separators: PGPASSWORD, authtoken.
_ENDINGS = ("password", "passwd", "passphrase", "secret", "token", "apikey", "accesskey", "secretkey")
# The shell's variables for directories.
_NO_SECRETS = ("PWD", "OLDPWD")

_WORD_RE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ASSIGNMENT_RE = re.compile(r"(--?)?([A-Za-z_][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)
# In a longer text a value ends at a blank or at a separator of query strings and lists.
_INLINE_RE = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)=([^\s&;,]+)")
_URL_PASSWORD_RE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s:/@]*):[^\s]*@")
_URL_TOKEN_RE = re.compile(r"(https?://)[^\s:/@]+@", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether *name* looks like that of a password or key: ``SECRET_KEY``, ``pgPassword``."""
    if name in _NO_SECRETS:
        return False
    words = [word.lower() for word in _WORD_RE.findall(name)]
    return any(word in _WORDS or word.endswith(_ENDINGS) for word in words)


def in_text(text: str) -> str:
    """*text* without the passwords in its URLs and the secrets in its ``name=value``."""
    if "=" in text:
        text = _INLINE_RE.sub(lambda found: f"{found[1]}={HIDDEN}" if is_secret(found[1]) else found[0], text)
    if "://" in text:
        text = _URL_TOKEN_RE.sub(rf"\1{HIDDEN}@", _URL_PASSWORD_RE.sub(rf"\1:{HIDDEN}@", text))
    return text


def in_value(value: Any) -> Any:
    """*value* for messages: lists, dicts and ``KEY=VALUE`` texts without their secrets."""
    if isinstance(value, str):
        return _assignment(value)
    if isinstance(value, dict):
        return {
            name: HIDDEN if is_secret(str(name)) and not _is_harmless(item) else in_value(item)
            for name, item in value.items()
        }
    if type(value) is list:
        return list(_items(value))
    if type(value) is tuple:
        return tuple(_items(value))
    return value


def in_setting(name: str, value: Any) -> Any:
    """The value of a setting for the log: without secrets, and without any value of an environment."""
    if name in ("raw_env", "companion_env"):
        return _names_only(value)
    if name == "companion_workers" and isinstance(value, (list, tuple)):
        value = [
            {**one, "env": _names_only(one["env"])} if isinstance(one, dict) and "env" in one else one
            for one in value
        ]
    return in_value(value)


def _names_only(environment: Any) -> Any:
    if isinstance(environment, dict):
        return dict.fromkeys(environment, HIDDEN)
    if isinstance(environment, (list, tuple)):
        return [f"{str(item).partition('=')[0]}={HIDDEN}" for item in environment]
    return environment


def _is_harmless(value: Any) -> bool:
    return value is None or isinstance(value, bool) or value in ("", (), [], {})


def _items(values: Iterable[Any]) -> Iterable[Any]:
    hide = False
    for value in values:
        if hide and isinstance(value, str) and not value.startswith("-"):
            yield HIDDEN
        else:
            yield in_value(value)
        # The argument of a flag may be a word of its own: --password x.
        hide = isinstance(value, str) and value.startswith("-") and "=" not in value and is_secret(value)


def _assignment(text: str) -> str:
    found = _ASSIGNMENT_RE.fullmatch(text)
    if found is None or not found[3]:
        return in_text(text)
    head = f"{found[1] or ''}{found[2]}="
    return head + (HIDDEN if is_secret(found[2]) else in_text(found[3]))
