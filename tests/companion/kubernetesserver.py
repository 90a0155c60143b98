# SPDX-License-Identifier: MIT
"""The part of the Kubernetes API that leases need, by its documented rules, kept in one file.

``python kubernetesserver.py PORT FILE TOKEN [CERTIFICATE KEY]``: create (409 if it exists), get, list by
label, and replace (409 unless the resourceVersion is the current one) in ``coordination.k8s.io/v1``.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_PATH = re.compile(r"/apis/coordination\.k8s\.io/v1/namespaces/([a-z0-9-]+)/leases(?:/([a-z0-9.-]+))?")
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class Objects:
    """Leases by namespace and name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.version = 1
        self.leases: dict[str, Any] = {}
        if path.exists():
            self.version, self.leases = json.loads(path.read_text())

    def put(self, key: str, lease: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        lease["metadata"]["resourceVersion"] = str(self.version)
        self.leases[key] = lease
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps([self.version, self.leases]))
        os.replace(new, self.path)
        return lease


def fault(spec: dict[str, Any]) -> str:
    """Return what the API server would refuse."""
    if not isinstance(spec.get("leaseDurationSeconds"), int) or spec["leaseDurationSeconds"] <= 0:
        return "spec.leaseDurationSeconds: must be greater than 0"
    if not 0 <= spec.get("leaseTransitions", 0) < 2**31:
        return "spec.leaseTransitions: must be a non-negative int32"
    for name in ("acquireTime", "renewTime"):
        if name in spec and not _MICRO_TIME.fullmatch(spec[name]):
            return f"spec.{name}: not a MicroTime"
    return ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    objects: Objects
    token: str

    def do_GET(self) -> None:
        self.serve()

    do_POST = do_PUT = do_GET

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.objects.lock:
            status, answer = self.answer(json.loads(body or b"{}"))
        if "kind" not in answer:
            answer |= {"kind": "Status", "status": "Failure", "code": status}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, lease: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"message": "Unauthorized"}
        url = urlsplit(self.path)
        found = _PATH.fullmatch(url.path)
        if not found:
            return 404, {"message": "the server could not find the requested resource"}
        namespace, name = found.groups()
        leases = self.objects.leases
        if self.command == "GET" and name is None:
            labels = dict(item.split("=") for item in parse_qs(url.query).get("labelSelector", []))
            items = [
                lease
                for key, lease in leases.items()
                if key.startswith(namespace + "/")
                and labels.items() <= lease["metadata"].get("labels", {}).items()
            ]
            return 200, {"kind": "LeaseList", "items": items}
        if self.command != "GET" and (reason := fault(lease.get("spec", {}))):
            return 422, {"message": reason}
        if self.command == "POST":
            key = f"{namespace}/{lease['metadata']['name']}"
            if key in leases:
                return 409, {"message": f"leases {key!r} already exists", "reason": "AlreadyExists"}
            return 201, self.objects.put(key, lease)
        key = f"{namespace}/{name}"
        if key not in leases:
            return 404, {"message": f"leases {key!r} not found", "reason": "NotFound"}
        if self.command == "GET":
            return 200, leases[key]
        version = lease["metadata"].get("resourceVersion")
        if version not in (None, leases[key]["metadata"]["resourceVersion"]):
            return 409, {"message": "the object has been modified", "reason": "Conflict"}
        return 200, self.objects.put(key, lease)

    def log_message(self, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    Handler.objects = Objects(Path(sys.argv[2]))
    Handler.token = sys.argv[3]
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    if len(sys.argv) > 4:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*sys.argv[4:])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
