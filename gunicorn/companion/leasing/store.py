# SPDX-License-Identifier: MIT
"""What a store of leases is, and which there are by their URLs.

A lease has a holder for a time, and a token: a number that grows with each new holding, so that whatever the
companion writes to can refuse one that has lost its lease and does not know it yet.
"""

from __future__ import annotations

import importlib
import operator
import re
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

from gunicorn.settings import redact

# By the scheme of their URL: the module, with its `connect(url, timeout)` and `check(url)`, and the extra
# that installs what it needs.
STORES = {
    "file": ("filestore", ""),
    "redis": ("redisstore", "redis"),
    "rediss": ("redisstore", "redis"),
    "sentinel": ("redisstore", "redis"),
    # psycopg itself needs the system's library.
    "postgresql": ("postgresqlstore", "postgresql", ", and libpq5 of your system or psycopg[binary]"),
    "etcd": ("etcdstore", ""),
    "kubernetes": ("kubernetesstore", ""),
}
_OWN_STORE_RE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

# The most that a holder may store with a lease, in bytes.
LONGEST_NOTE = 4096

# Seconds between two looks at a lease that another one holds, where a store can't tell.
POLL_INTERVAL = 1.0


# The largest token: more than a bigint of SQL can hold would be of no use.
LARGEST_TOKEN = 2**63 - 1

# Of what a store says, so many characters go into a message; and a wait is no longer than these seconds.
_MOST_SHOWN = 300
_LONGEST_WAIT = 1e9


class StoreError(Exception):
    """The store can't be asked, or refuses: one sentence, without a password."""


class LeaseError(StoreError):
    """The same for one lease alone: the others of this store go on."""


@dataclass(frozen=True)
class Answer:
    """What the store says of a lease."""

    # Whether the asker holds it now.
    mine: bool
    # Who holds it; "" if nobody does.
    owner: str
    # That of the last holding; 0: it was never held.
    token: int
    # Seconds until it is free unless it is renewed, as far as the store knows.
    expires_in: float | None = None
    # What a holder has stored with it; survives release and expiry.
    note: str = ""


class Store(Protocol):
    """Used by one thread. No call takes longer than the timeout of the store; all raise `StoreError`.

    A lost connection is made anew by the next call.
    """

    def acquire(self, name: str, owner: str, ttl: float) -> Answer:
        """Try once. A new holding has a larger token than any before.

        Who holds it already keeps its token; or gets a new one where a release of its own may still be on
        its way, as on a network.
        """

    def renew(self, name: str, owner: str, token: int, ttl: float, note: str | None) -> bool:
        """Hold it for another *ttl* seconds, and store *note*; False if it is lost."""

    def release(self, name: str, owner: str, token: int, note: str | None) -> None:
        """Give it up, and store *note*; nothing happens if it is lost."""

    def wait(self, names: Sequence[str], seconds: float, wake: int) -> None:
        """Wait until one of *names* may have become free, or the descriptor *wake* is readable."""

    def close(self) -> None: ...


def connect(url: str, timeout: float) -> Store:
    """Return the store at *url*; whether it can be reached, the first call shows. Raises StoreError."""
    try:
        if _is_own(url):
            return OwnStore(_load(url)(timeout))
        store: Store = _module(url).connect(url, timeout)
        return store
    except StoreError:
        raise
    except Exception as exc:
        raise StoreError(f"{hide_password(url)}: {exc}") from None


def check_url(url: str) -> None:
    """Raise ValueError with what to change. Nothing is asked of the store."""
    if not _is_own(url):
        _module(url).check(url)


def check_name(url: str, name: str) -> None:
    """Raise ValueError if the store at *url*, which was checked, can have no lease of this name."""
    if not _is_own(url):
        check = getattr(_module(url), "check_name", None)
        if check is not None:
            check(name)


def hide_password(url: str) -> str:
    """*url* for people."""
    return redact.in_text(url)


def shorten(text: str) -> str:
    """Return what a store says as one short line, without a password and control characters."""
    line = " ".join(hide_password(text[: 10 * _MOST_SHOWN]).split())
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= _MOST_SHOWN else line[:_MOST_SHOWN] + "..."


def checked(found: Any, used: int) -> Answer:
    """Return the answer *found* of a store. Raises LeaseError if it makes no sense.

    A token of ours must not be *used*. A smaller one shows that the store has lost its data.
    """
    try:
        token = operator.index(found.token)
        left = None if found.expires_in is None else float(found.expires_in)
        answer = Answer(bool(found.mine), shorten(found.owner), token, left, found.note)
        if not isinstance(answer.note, str) or len(answer.note) > 2 * LONGEST_NOTE:
            raise TypeError
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise LeaseError(f"its answer makes no sense: {shorten(repr(found))}") from None
    if answer.mine and not (0 < token <= LARGEST_TOKEN and token != used):
        raise LeaseError(f"it gave token {token}, and not a new one from 1 to 2**63 - 1")
    if left is not None:
        # Not a number is no time.
        answer = replace(answer, expires_in=min(left, _LONGEST_WAIT) if left > 0 else 0.0)
    return answer


def split_url(url: str) -> SplitResult:
    """Take a URL apart; ValueError, which does not show it, if that is impossible."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (computed here, and may fail)
        # A label that is empty or too long can't be looked up.
        (parts.hostname or "").encode("idna")
    except ValueError as exc:
        raise ValueError(f"is no valid URL of a store: {exc}") from None
    return parts


def _is_own(url: str) -> bool:
    return _OWN_STORE_RE.fullmatch(url) is not None and url.partition(":")[0] not in STORES


def _module(url: str) -> Any:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in STORES:
        raise ValueError(
            f"{hide_password(url)!r} is no store of leases: expected "
            + ", ".join(f"{name}://" for name in STORES)
            + " or MODULE:CALLABLE"
        )
    module, extra, *more = STORES[scheme]
    try:
        return importlib.import_module(f"gunicorn.companion.leasing.{module}")
    except ImportError as exc:
        raise ValueError(
            f"{scheme}:// needs more than is installed ({exc}): "
            f"pip install 'gunicorn[{extra}]'{''.join(more)}"
        ) from None


def _load(name: str) -> Callable[[float], Any]:
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    made: Callable[[float], Any] = found
    return made


def sleep(seconds: float, wake: int) -> None:
    """Wait until *wake* is readable, at most *seconds*."""
    poller = select.poll()
    poller.register(wake, select.POLLIN)
    poller.poll(max(0.0, seconds) * 1000)


class OwnStore:
    """A store that a user has written: ``acquire``, ``renew``, ``release``; the rest is optional."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def acquire(self, name: str, owner: str, ttl: float) -> Answer:
        answer: Answer = self._call("acquire", name, owner, ttl)
        return answer

    def renew(self, name: str, owner: str, token: int, ttl: float, note: str | None) -> bool:
        return bool(self._call("renew", name, owner, token, ttl, note))

    def release(self, name: str, owner: str, token: int, note: str | None) -> None:
        self._call("release", name, owner, token, note)

    def wait(self, names: Sequence[str], seconds: float, wake: int) -> None:
        if hasattr(self._made, "wait"):
            self._call("wait", names, seconds, wake)
        else:
            sleep(min(seconds, POLL_INTERVAL), wake)

    def close(self) -> None:
        if hasattr(self._made, "close"):
            self._call("close")

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._made, method)(*arguments)
        except StoreError:
            raise
        except Exception as exc:
            name = type(self._made).__name__
            raise StoreError(hide_password(f"{name}.{method}: {type(exc).__name__}: {exc}")) from None
