# SPDX-License-Identifier: MIT
"""The keys ``probe`` and ``liveness``: what they may hold, and what the checks have found so far. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gunicorn.companion.checks import (
    check_command,
    check_count,
    check_path,
    check_some_time,
    check_time,
    did_you_mean,
)
from gunicorn.settings import redact
from gunicorn.settings.foreign import probe_hint
from gunicorn.settings.validators import parse_address

KINDS = ("command", "http", "tcp", "file", "log")

# With shorter pauses the prober would do nothing else.
LEAST_EVERY = 0.1

# A host and a port, or the path of a Unix socket.
Address = tuple[str, int] | str


class Probe(NamedTuple):
    """One of the two keys, checked. Times are seconds; *status* is for ``http`` alone."""

    kind: str
    what: str | tuple[str, ...]
    every: float = 10
    timeout: float = 3
    failures: int = 3
    successes: int = 1
    delay: float = 0
    status: tuple[int, ...] = (200,)

    def __str__(self) -> str:
        """As people are shown it: a command line or a URL may hold passwords."""
        words = (self.what,) if isinstance(self.what, str) else redact.in_value(self.what)
        return f"{self.kind} {redact.in_text(' '.join(words))}"


class Url(NamedTuple):
    """Where an ``http`` probe connects, and what it asks for."""

    address: tuple[str, int]
    host: str
    path: str


def parse_url(text: str) -> Url:
    """Raises ValueError with what is wrong."""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"{redact.in_text(text)!r} is not a URL: write other characters as %20 and the like")
    try:
        parts = urlsplit(text)
        port = 80 if parts.port is None else parts.port
    except ValueError as exc:
        raise ValueError(f"{redact.in_text(text)!r} is not a URL: {exc}") from None
    if parts.scheme == "https":
        raise ValueError(
            "https is not spoken: ask over http on the loopback interface, or use a command such as curl"
        )
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{redact.in_text(text)!r} is not of the form http://127.0.0.1:8001/health")
    if "@" in parts.netloc:
        raise ValueError("a name and a password in the URL are not sent: use a command such as curl")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url((_numeric(parts.hostname), port), parts.netloc, path)


def parse_tcp(text: str) -> Address:
    """Raises ValueError with what is wrong."""
    if not text.startswith(("unix:", "fd:")) and not re.fullmatch(r"(\[.*\]|[^:]*):\d+", text):
        raise ValueError(f"{text!r} has no port")
    try:
        address = parse_address(text)
    except RuntimeError as exc:
        raise ValueError(str(exc)) from None
    if isinstance(address, int):
        raise ValueError(f"{text!r}: a descriptor cannot be used here, give an address")
    if isinstance(address, str):
        return address
    return _numeric(address[0]), address[1]


def _numeric(host: str) -> str:
    """*host*, which must not need a name server: that could hold up all checks."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"{host!r} is neither an IP address nor 'localhost', and names are not looked up"
        ) from None
    return host


def _check_regex(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a regular expression")
    try:
        re.compile(value)
    except re.error as exc:
        raise ValueError(f"{value!r} is not a regular expression: {exc}") from None
    return value


def _check_words(value: Any) -> tuple[str, ...]:
    words = check_command(value)
    if words[0] in ("CMD", "CMD-SHELL", "NONE"):
        raise ValueError(
            f"{words[0]!r} is a word of compose files: leave it out, and write a line for the shell as "
            "['sh', '-c', LINE]"
        )
    return words


def _address(parse: Callable[[str], Any]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a string")
        if "%(" not in value:
            # With placeholders it is checked when they are filled.
            parse(value)
        return value

    return check


def _check_every(value: Any) -> float:
    if check_some_time(value) < LEAST_EVERY:
        raise ValueError(f"{value!r} is less than {LEAST_EVERY:g} seconds")
    return check_time(value)


def _check_status(value: Any) -> tuple[int, ...]:
    codes = (value,) if isinstance(value, int) else value
    if not isinstance(codes, (list, tuple)) or not codes:
        raise ValueError(f"{value!r} is not a list of status codes, such as [200, 204]")
    for code in codes:
        if isinstance(code, bool) or not isinstance(code, int) or not 100 <= code <= 599:
            raise ValueError(f"{code!r} is not a status code from 100 to 599")
    return tuple(codes)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "command": _check_words,
    "http": _address(parse_url),
    "tcp": _address(parse_tcp),
    "file": check_path,
    "log": _check_regex,
    "every": _check_every,
    "timeout": check_some_time,
    "failures": check_count,
    "successes": check_count,
    "delay": check_time,
    "status": _check_status,
}


def check_probe(value: Any) -> Probe:
    """The check of both keys; a `Probe` has had its placeholders filled."""
    if isinstance(value, Probe):
        value = {**value._asdict(), value.kind: value.what}
        value = {key: each for key, each in value.items() if key not in ("kind", "what")}
        if "http" not in value:
            del value["status"]
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{redact.in_value(value)!r} is not a dictionary such as {{'tcp': '127.0.0.1:8001'}}"
        )
    for key in value:
        if key not in _CHECKS:
            raise ValueError(f"unknown key {probe_hint(str(key)) or did_you_mean(str(key), _CHECKS)}")
    kinds = [kind for kind in KINDS if kind in value]
    if len(kinds) != 1:
        found = f"not {' and '.join(kinds)} together" if kinds else "there is none"
        raise ValueError(f"give one of {', '.join(KINDS)}: {found}")
    [kind] = kinds
    if "status" in value and kind != "http":
        raise ValueError(f"status: it belongs to http, not to {kind}")
    values: dict[str, Any] = {}
    for key, given in value.items():
        try:
            values[key] = _CHECKS[key](given)
        except ValueError as exc:
            raise ValueError(f"{key}: {exc}") from None
    return Probe(kind, values.pop(kind), **values)


# -- what was found ----------------------------------------------------------------


class Result(NamedTuple):
    """One check. *reason*: why it has failed; *output*: the end of what a command or a server has said.

    *quick*: one of the first of a start, which follow each other faster than ``every``.
    """

    good: bool
    reason: str = ""
    output: str = ""
    took: float = 0.0
    quick: bool = False


@dataclass
class Findings:
    """The latest result of a companion's ``probe`` or ``liveness``, and how many of a kind were in a row."""

    result: Result | None = None
    # Monotonic seconds.
    at: float = 0.0
    successes: int = 0
    failures: int = 0

    def note(self, result: Result, probe: Probe, now: float) -> None:
        """Count *result*. Failures count on until `probe.successes` have come in a row."""
        self.result, self.at = result, now
        if not result.good:
            self.successes = 0
            self.failures += not result.quick
            return
        self.successes += 1
        if self.passed(probe):
            self.failures = 0

    def passed(self, probe: Probe) -> bool:
        """Whether enough checks in a row have succeeded."""
        return self.successes >= probe.successes

    def failed(self, probe: Probe) -> bool:
        """Whether so many have failed that something must be done."""
        return self.failures >= probe.failures

    @property
    def trouble(self) -> str | None:
        """Why the latest check has failed; None if it has not."""
        return self.result.reason if self.result is not None and not self.result.good else None
