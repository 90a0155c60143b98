# SPDX-License-Identifier: MIT
"""The ticker on FastAPI: the latest prices, and a WebSocket that pushes each change."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import ticker
from fastapi import FastAPI, WebSocket, WebSocketDisconnect


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # In each worker, after its fork: open connections to databases here.
    print(f"worker {os.getpid()} begins", flush=True)
    yield
    print(f"worker {os.getpid()} has served", flush=True)


app = FastAPI(title="Ticker", lifespan=lifespan)


@app.get("/")
async def prices() -> dict[str, Any]:
    return {"worker": os.getpid(), **ticker.latest()}


@app.get("/slow")
async def slow(seconds: float = 1.0) -> dict[str, Any]:
    """Simulate a slow service behind the application; the worker serves other requests meanwhile."""
    await asyncio.sleep(seconds)
    return {"worker": os.getpid()}


@app.websocket("/live")
async def live(websocket: WebSocket) -> None:
    await websocket.accept()
    shown = 0
    try:
        while True:
            found = ticker.latest()
            if found["number"] != shown:
                shown = found["number"]
                await websocket.send_json(found)
            # Also listens: it notices when the client leaves, or when this worker stops and waits for us.
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(websocket.receive_text(), 0.1)
    except WebSocketDisconnect:
        pass
