# SPDX-License-Identifier: MIT
"""Leases in Kubernetes: one ``Lease`` of ``coordination.k8s.io/v1`` each.

A change names the resourceVersion that it was made from, and the API server refuses it (409) when another
came first. The API server measures no time. So whoever waits counts it: a lease is free when its record has
been seen unchanged for its duration, on the clock of the one who waits.
"""

from __future__ import annotations

import math
import os
import re
import ssl
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

from gunicorn.companion.leasing.jsonhttp import JsonHTTP
from gunicorn.companion.leasing.remote import RemoteStore
from gunicorn.companion.leasing.store import Answer, LeaseError, Store, StoreError, split_url
from gunicorn.unix import boottime

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
OPTIONS = ("server", "account")
LABEL = {"app.kubernetes.io/managed-by": "gunicorn"}
NOTE = "gunicorn/note"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

Lease = dict[str, Any]


def connect(url: str, timeout: float) -> Store:
    # Each look of each server is a request to the API server, which serves the whole cluster.
    return RemoteStore(lambda: KubernetesClient(url, timeout), timeout, look_every=1.0)


def check(url: str) -> None:
    """Raise ValueError with what to change."""
    parts = urlsplit(url)
    options = _options(parts)
    for name in options:
        if name not in OPTIONS:
            raise ValueError(f"{name!r} is not an option; they are {', '.join(OPTIONS)}")
    if parts.netloc and not _NAME.fullmatch(parts.netloc):
        raise ValueError(f"{parts.netloc!r} is not the name of a namespace")
    if parts.path.strip("/"):
        raise ValueError("leave out the path: the name of the lease is that of the object")
    if "server" in options and split_url(options["server"]).scheme not in ("http", "https"):
        raise ValueError("its server must be a URL, as in ?server=http://127.0.0.1:8001")


def check_name(name: str) -> None:
    """Raise ValueError with what to change."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} can't be the name of a lease in Kubernetes: "
            "use at most 63 small letters, digits and hyphens"
        )


def _options(parts: SplitResult) -> dict[str, str]:
    return dict(parse_qsl(parts.query, keep_blank_values=True))


class KubernetesClient:
    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        options = _options(parts)
        self._account = Path(options.get("account", ACCOUNT))
        server = urlsplit(options.get("server") or _server_of_cluster())
        self._has_account = self._account.is_dir()
        context = None
        try:
            if server.scheme == "https":
                authority = self._account / "ca.crt"
                context = ssl.create_default_context(cafile=authority if authority.exists() else None)
            namespace = parts.netloc or (self._account / "namespace").read_text().strip()
        except OSError as exc:
            raise StoreError(f"the service account can't be read: {exc}") from exc
        port = server.port or (443 if context else 80)
        self._http = JsonHTTP([(server.hostname or "localhost", port)], timeout, context)
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        # What we have last seen of each lease.
        self._leases: dict[str, Lease] = {}
        # Since when its record has been the same.
        self._unchanged: dict[str, tuple[object, float]] = {}

    def acquire(self, name: str, owner: str, ttl: float) -> Answer:
        lease = self._get(name)
        if lease is None:
            new = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "labels": LABEL},
                "spec": _spec(owner, 1, ttl),
            }
            if self._write("POST", "", name, new):
                return Answer(True, owner, 1, ttl, "")
        elif self._is_free(name, lease) or _owner(lease) == owner:
            token = _token(lease) + 1
            if self._write("PUT", name, name, {**lease, "spec": _spec(owner, token, ttl)}):
                return Answer(True, owner, token, ttl, _note(lease))
        else:
            return self._answer(name, lease)
        # Somebody else was faster.
        lease = self._get(name)
        return Answer(False, "", 0, None, "") if lease is None else self._answer(name, lease)

    def renew(self, name: str, owner: str, token: int, ttl: float, note: str | None) -> bool:
        return self._change(name, owner, token, {"holderIdentity": owner, **_times(ttl)}, note)

    def release(self, name: str, owner: str, token: int, note: str | None) -> None:
        self._change(name, owner, token, {"holderIdentity": ""}, note)

    def any_free(self, names: Sequence[str]) -> bool:
        selector = ",".join(f"{key}={value}" for key, value in LABEL.items())
        answer = self._ask("GET", f"{self._path}?labelSelector={quote(selector)}")
        found = {lease["metadata"]["name"]: lease for lease in (answer or {}).get("items", ())}
        # Look at all of them, to notice which have not changed.
        return bool([name for name in names if name not in found or self._is_free(name, found[name])])

    def close(self) -> None:
        self._http.close()

    def cut(self) -> None:
        self._http.cut()

    # -- the record ------------------------------------------------------------------

    def _is_free(self, name: str, lease: Lease) -> bool:
        return not _owner(lease) or self._rest(name, lease) <= 0

    def _rest(self, name: str, lease: Lease) -> float:
        """Seconds until *lease* is free unless it changes."""
        spec = lease.get("spec", {})
        record = (_owner(lease), _token(lease), spec.get("renewTime"))
        now = boottime.now()
        known, since = self._unchanged.get(name, (None, now))
        if known != record:
            self._unchanged[name] = record, now
            since = now
        return float(since + spec.get("leaseDurationSeconds", 1) - now)

    def _answer(self, name: str, lease: Lease) -> Answer:
        rest = max(0.0, self._rest(name, lease)) if _owner(lease) else 0.0
        return Answer(False, _owner(lease), _token(lease), rest, _note(lease))

    def _change(self, name: str, owner: str, token: int, spec: Lease, note: str | None) -> bool:
        """Change the lease if it is held by *owner* with *token*."""
        known = self._leases.get(name)
        for lease in (known, None):
            if lease is None:
                lease = self._get(name)
            if lease is None or (_owner(lease), _token(lease)) != (owner, token):
                if known is not None and lease is known:
                    continue
                return False
            changed = {**lease, "spec": {**lease["spec"], **spec}}
            if note is not None:
                annotations = {**(lease["metadata"].get("annotations") or {}), NOTE: note}
                changed["metadata"] = {**lease["metadata"], "annotations": annotations}
            if self._write("PUT", name, name, changed):
                return True
        return False

    # -- requests ----------------------------------------------------------------------

    def _get(self, name: str) -> Lease | None:
        self._leases.pop(name, None)
        answer = self._ask("GET", f"{self._path}/{name}", allowed=404)
        if answer is None:
            return None
        if not isinstance(answer.get("metadata"), dict) or not isinstance(answer.get("spec"), dict):
            raise LeaseError("what the API server answers is no lease")
        self._leases[name] = answer
        return answer

    def _write(self, method: str, path: str, name: str, lease: Lease) -> bool:
        """False when another change came first."""
        self._leases.pop(name, None)
        answer = self._ask(method, f"{self._path}/{path}".rstrip("/"), lease, allowed=409)
        if answer is None:
            return False
        if (_owner(answer), _token(answer)) != (_owner(lease), _token(lease)):
            raise LeaseError("the API server answers with another lease than the one that it was given")
        self._leases[name] = answer
        return True

    def _ask(self, method: str, path: str, body: object = None, allowed: int = 0) -> dict[str, Any] | None:
        """Return the answer; None if its status is *allowed*."""
        status, answer = self._http.ask(method, path, body, self._authorization())
        if status == allowed:
            return None
        if status in (200, 201):
            return answer
        message = answer.get("message", "")
        if status in (401, 403):
            message += "; its role must allow get, list, create and update of leases in coordination.k8s.io"
        # The role may name some leases; a request may be wrong for one.
        kind = LeaseError if status in (400, 403, 422) else StoreError
        raise kind(f"the API server said {status}: {message}")

    def _authorization(self) -> dict[str, str]:
        if not self._has_account:
            return {}
        try:
            # It is replaced by a new one every hour.
            token = (self._account / "token").read_text().strip()
        except OSError as exc:
            raise StoreError(f"the service account can't be read: {exc}") from exc
        return {"Authorization": f"Bearer {token}"}


def _server_of_cluster() -> str:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise StoreError(
            "this is no pod of Kubernetes: KUBERNETES_SERVICE_HOST is not set, and the URL names no server"
        )
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _owner(lease: Lease) -> str:
    return lease.get("spec", {}).get("holderIdentity") or ""


def _token(lease: Lease) -> int:
    return int(lease.get("spec", {}).get("leaseTransitions") or 0)


def _note(lease: Lease) -> str:
    return str((lease["metadata"].get("annotations") or {}).get(NOTE, ""))


def _times(ttl: float) -> Lease:
    return {"leaseDurationSeconds": math.ceil(ttl), "renewTime": _now()}


def _spec(owner: str, token: int, ttl: float) -> Lease:
    return {"holderIdentity": owner, "leaseTransitions": token, "acquireTime": _now(), **_times(ttl)}


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
