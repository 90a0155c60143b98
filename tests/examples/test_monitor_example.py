# SPDX-License-Identifier: MIT
"""The monitor of examples/monitor: probes, and the action that its README shows."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from exampletree import example_server
from harness import free_port, wait_until


def test_it_shows_and_acts() -> None:
    address = f"127.0.0.1:{free_port()}"

    def ask(path: str, action: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": "Bearer try-me", "Content-Type": "application/json"}
        data = None if action is None else json.dumps(action).encode()
        request = urllib.request.Request(f"http://{address}{path}", data, headers if action else {})
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    with example_server("monitor", {"SHOP_MONITOR": address}) as server:
        wait_until(lambda: ask("/ready")[0] == 200, 10, "a server that is ready")
        server.wait_log("stock | 1 teapots in stock")
        assert ask("/api/action", {"action": "stop", "name": "stock"})[0] == 200
        missing = {"ready": False, "missing": ["companion stock is STOPPED"]}
        wait_until(lambda: ask("/ready") == (503, missing), 10, "what is missing")
        assert ask("/api/action", {"action": "start", "name": "stock"})[0] == 200
        wait_until(lambda: ask("/ready")[0] == 200, 10, "a server that is ready again")
