# SPDX-License-Identifier: MIT
"""The ticker on Starlette alone."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

import ticker
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


async def prices(request: Request) -> JSONResponse:
    return JSONResponse({"worker": os.getpid(), **ticker.latest()})


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


app = Starlette(routes=[Route("/", prices), WebSocketRoute("/live", live)])
