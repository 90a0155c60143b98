# SPDX-License-Identifier: MIT
"""The ticker of examples/asgi: FastAPI and Starlette under the class asgi, beside a companion."""

from __future__ import annotations

import json
import os
import signal

import pytest
from exampletree import example_server
from harness import Background, wait_until

for needed in ("fastapi", "uvicorn"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")
websockets = pytest.importorskip("websockets.sync.client", reason="websockets is not installed")


@pytest.mark.parametrize("target", ["", "starlette_app:app"], ids=["fastapi", "starlette"])
def test_prices_on_http_and_websocket(target: str) -> None:
    server = example_server("asgi", {"TICKER_SECONDS": "0.1"})
    server.target = target
    server.env["TICKER_FILE"] = str(server.dir / "ticker.json")
    with server:
        companion = server.wait_companion("ticker")["pid"]
        found = wait_until(lambda: reply if (reply := server.get("/").json())["number"] else None)
        assert found is not None
        assert found["pid"] == companion and found["worker"] in server.workers()
        with websockets.connect(f"ws://127.0.0.1:{server.port}/live") as live:
            numbers = [json.loads(live.recv(timeout=5))["number"] for _ in range(3)]
            assert numbers[0] < numbers[1] < numbers[2]
            if target:
                # A listener does not delay the stop.
                assert server.stop(timeout=5) == 0
                return
        slow = Background(server, "/slow?seconds=1")
        old = server.workers()
        server.signal(signal.SIGHUP)
        server.wait_workers(2, without=old)
        assert slow.result().status == 200
        assert server.companion("ticker")["pid"] == companion
        assert server.get("/").json()["worker"] not in old
        assert server.stop() == 0
        assert all(f"worker {pid} has served" in server.log() for pid in old)
        assert not os.path.exists(f"/proc/{companion}")
