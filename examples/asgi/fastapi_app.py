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
    # In each worker, after its fork: the place to open connections to databases.
    print(f"worker {os.getpid()} begins", flush=True)
    yield
    print(f"worker {os.getpid()} has served", flush=True)


app = FastAPI(title="Ticker", lifespan=lifespan)


@app.get("/")
async def prices() -> dict[str, Any]:
    return {"worker": os.getpid(), **ticker.latest()}


@app.get("/slow")
async def slow(seconds: float = 1.0) -> dict[str, Any]:
    """Stands for a slow service behind the application; others are served meanwhile."""
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
            # Listens for the end, too: of the client, or of this worker, which waits for what goes on here.
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(websocket.receive_text(), 0.1)
    except WebSocketDisconnect:
        pass
