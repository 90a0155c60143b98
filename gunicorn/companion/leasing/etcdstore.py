# SPDX-License-Identifier: MIT
"""Leases in etcd, over its JSON gateway: a key that lives as long as a lease of etcd.

``gunicorn/lease/NAME`` holds the owner; the revision that created it is the token.
``gunicorn/lease-note/NAME`` holds the note. etcd counts the time of a lease on a clock that nobody can set.
"""

from __future__ import annotations

import contextlib
import math
import ssl
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from gunicorn.companion.leasing.jsonhttp import JsonHTTP
from gunicorn.companion.leasing.remote import RemoteStore, addresses
from gunicorn.companion.leasing.store import Answer, Store, StoreError

PREFIX = "gunicorn/lease/"
NOTES = "gunicorn/lease-note/"
OPTIONS = ("tls", "cafile", "certfile", "keyfile")


def connect(url: str, timeout: float) -> Store:
    return RemoteStore(lambda: EtcdClient(url, timeout), timeout)


def check(url: str) -> None:
    """Raise ValueError with what to change."""
    parts = urlsplit(url)
    addresses(url, 2379)
    options = _options(parts)
    for name in options:
        if name not in OPTIONS:
            raise ValueError(f"{name!r} is not an option; they are {', '.join(OPTIONS)}")
    if parts.path.strip("/"):
        raise ValueError("leave out the path")
    try:
        _context(options)
    except OSError as exc:
        raise ValueError(f"a file of its TLS options can't be read: {exc.strerror or exc}") from None


def _options(parts: SplitResult) -> dict[str, str]:
    return dict(parse_qsl(parts.query, keep_blank_values=True))


def _context(options: dict[str, str]) -> ssl.SSLContext | None:
    if options.get("tls", "") not in ("1", "true") and not options.keys() & {"cafile", "certfile"}:
        return None
    context = ssl.create_default_context(cafile=options.get("cafile"))
    if "certfile" in options:
        context.load_cert_chain(options["certfile"], options.get("keyfile"))
    return context


class _Holding(NamedTuple):
    owner: str
    # The revision that created the key.
    token: int
    # The lease of etcd.
    lease: str


class EtcdClient:
    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        login = parts.netloc.rpartition("@")[0]
        user, _, password = login.partition(":")
        self._login = {"name": unquote(user), "password": unquote(password)} if user else None
        self._authorization: dict[str, str] = {}
        self._http = JsonHTTP(addresses(url, 2379), timeout, _context(_options(parts)))
        # Leases of etcd by name of ours, with their tokens.
        self._leases: dict[str, tuple[int, str]] = {}

    def acquire(self, name: str, owner: str, ttl: float) -> Answer:
        holding, note = self._look(name)
        if holding is not None and holding.owner == owner:
            # A call before had no answer. The token must be a new one.
            self.release(name, owner, holding.token, None)
            holding, note = self._look(name)
        if holding is None:
            lease = self._grant(ttl)
            put = {"request_put": {"key": _encode(PREFIX + name), "value": _encode(owner), "lease": lease}}
            token = self._transact(name, owner, 0, put)
            if token:
                self._leases[name] = token, lease
                return Answer(True, owner, token, ttl, note)
            self._revoke(lease)
            holding, note = self._look(name)
            if holding is None:
                return Answer(False, "", 0, None, note)
        return Answer(False, holding.owner, holding.token, self._rest(holding.lease), note)

    def renew(self, name: str, owner: str, token: int, ttl: float, note: str | None) -> bool:
        known, lease = self._leases.get(name, (0, ""))
        if known != token:
            holding, _ = self._look(name)
            if holding is None or holding[:2] != (owner, token):
                return False
            lease = holding.lease
        answer = self._ask("lease/keepalive", {"ID": lease}).get("result", {})
        granted = int(answer.get("TTL", 0))
        if not granted:
            return False
        changes = [] if note is None else [_put_note(name, note)]
        if granted < ttl:
            # A longer one was configured since; that of a lease of etcd can't be changed.
            lease = self._grant(ttl)
            changes.append(
                {"request_put": {"key": _encode(PREFIX + name), "value": _encode(owner), "lease": lease}}
            )
        # A lease of etcd lives on when its key was deleted by hand.
        if not self._transact(name, owner, token, *changes):
            return False
        self._leases[name] = token, lease
        return True

    def release(self, name: str, owner: str, token: int, note: str | None) -> None:
        changes: list[object] = [{"request_delete_range": {"key": _encode(PREFIX + name)}}]
        if note is not None:
            changes.append(_put_note(name, note))
        self._transact(name, owner, token, *changes)
        known, lease = self._leases.pop(name, (0, ""))
        if known == token:
            self._revoke(lease)

    def any_free(self, names: Sequence[str]) -> bool:
        end = PREFIX[:-1] + chr(ord(PREFIX[-1]) + 1)
        question = {"key": _encode(PREFIX), "range_end": _encode(end), "keys_only": True}
        held = {_decode(pair["key"]) for pair in self._ask("kv/range", question).get("kvs", ())}
        return any(PREFIX + name not in held for name in names)

    def close(self) -> None:
        self._http.close()

    def cut(self) -> None:
        self._http.cut()

    # -- requests ------------------------------------------------------------------

    def _look(self, name: str) -> tuple[_Holding | None, str]:
        """Return who holds *name*, and the note."""
        question = [{"request_range": {"key": _encode(prefix + name)}} for prefix in (PREFIX, NOTES)]
        held, noted = (
            answer.get("response_range", {}).get("kvs")
            for answer in self._ask("kv/txn", {"success": question})["responses"]
        )
        note = _decode(noted[0].get("value", "")) if noted else ""
        if not held:
            return None, note
        pair = held[0]
        return _Holding(_decode(pair["value"]), int(pair["create_revision"]), pair.get("lease", "0")), note

    def _transact(self, name: str, owner: str, token: int, *changes: object) -> int:
        """Make *changes* if *owner* holds *name* with *token*, or nobody with 0; return the revision or 0."""
        key = {"key": _encode(PREFIX + name), "result": "EQUAL"}
        conditions = [{**key, "target": "CREATE", "create_revision": str(token)}]
        if token:
            conditions.append({**key, "target": "VALUE", "value": _encode(owner)})
        answer = self._ask("kv/txn", {"compare": conditions, "success": list(changes)})
        return int(answer["header"]["revision"]) if answer.get("succeeded") else 0

    def _grant(self, ttl: float) -> str:
        return str(self._ask("lease/grant", {"TTL": math.ceil(ttl)})["ID"])

    def _revoke(self, lease: str) -> None:
        # It ends by itself, too.
        with contextlib.suppress(StoreError):
            self._ask("lease/revoke", {"ID": lease})

    def _rest(self, lease: str) -> float:
        rest = int(self._ask("lease/timetolive", {"ID": lease}).get("TTL", -1))
        return max(0.0, float(rest))

    def _ask(self, what: str, question: object) -> dict[str, Any]:
        if self._login and not self._authorization:
            self._log_in()
        status, answer = self._http.ask("POST", f"/v3/{what}", question, self._authorization)
        if status == 401 and self._login:
            # The token of before was forgotten or is too old.
            self._log_in()
            status, answer = self._http.ask("POST", f"/v3/{what}", question, self._authorization)
        if status != 200 or "error" in answer:
            raise StoreError(f"etcd said {status}: {_message(answer)}")
        return answer

    def _log_in(self) -> None:
        status, answer = self._http.ask("POST", "/v3/auth/authenticate", self._login)
        if status != 200:
            raise StoreError(f"etcd did not let the user in: {_message(answer)}")
        self._authorization = {"Authorization": answer["token"]}


def _put_note(name: str, note: str) -> object:
    return {"request_put": {"key": _encode(NOTES + name), "value": _encode(note)}}


def _message(answer: dict[str, Any]) -> str:
    error = answer.get("error", answer.get("message", ""))
    return str(error.get("message", "") if isinstance(error, dict) else error)


def _encode(text: str) -> str:
    return b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    return b64decode(text).decode()
