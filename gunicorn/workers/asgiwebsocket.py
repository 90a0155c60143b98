# SPDX-License-Identifier: MIT
"""uvicorn's protocol for WebSocket, with the ends, hooks and counts of this server."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gunicorn.http.errors import ClientAnswer
from gunicorn.workers.asgirequest import Request
from gunicorn.workers.connection import State


class WebSocket(WebSocketsSansIOProtocol):  # type: ignore[misc]
    """A WebSocket on a connection that began with HTTP."""

    more_expected = True

    # The latest answer to a ping, while the client takes nothing.
    _pong = b""

    def __init__(self, http: Any, config: Any, server_state: Any, app_state: Any) -> None:
        super().__init__(config, server_state, app_state, http.loop)
        self.worker = http.worker
        self.connection = http.connection
        self._http_scope = http.scope
        self.http_request = WebSocketRequest(self, http)
        self.app = self.http_request

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        scope = self._http_scope
        self.client = scope["client"]
        self.scheme = "wss" if scope["scheme"] in ("https", "wss") else "ws"
        self.connection.state = State.BUSY
        self.connection.is_websocket = True
        self.worker.begin_request(self.http_request)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.closing = True
        super().connection_lost(exc)
        self.worker.forget(self.connection)
        request = self.http_request
        if request.status_code is None and request.task is None:
            # It was no handshake, and the library has answered.
            request.answered(self.response.status_code)
        request.lost()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        elif frames := self.conn.data_to_send():
            # Only the latest ping needs an answer (RFC 6455 section 5.5.3), and all could fill the memory.
            self._pong = frames[-1]

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._pong:
            self.transport.write(self._pong)
            self._pong = b""

    def give_up(self, error: ClientAnswer) -> None:
        self.connection.abort()

    def waits_since(self, now: float) -> float:
        return 0.0


class WebSocketRequest(Request):
    """The handshake of a WebSocket. What follows is no request any more.

    uvicorn calls it as the application.
    """

    #: uvicorn's own way to send.
    pass_on: Any = None

    def __init__(self, websocket: Any, http: Any) -> None:
        super().__init__(http)
        self.websocket = websocket

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.task = asyncio.current_task()
        self.pass_on = send
        await self.run(scope, receive)

    async def send(self, message: dict[str, Any]) -> None:
        if self.status_code is None:
            self._note(message)
        await self.pass_on(message)

    def _note(self, message: dict[str, Any]) -> None:
        """Take note of the answer to the handshake."""
        kind = message["type"]
        if kind == "websocket.accept":
            self.answered(101, message.get("headers") or ())
        elif kind == "websocket.close":
            self.answered(403)
        elif kind == "websocket.http.response.start":
            self.answered(message["status"], message.get("headers") or ())

    def disconnect(self) -> None:
        self.websocket.disconnected = True

    def answered(self, status: int, fields: Any = ()) -> None:
        self.status_code, self.fields = status, fields
        self.worker.end_request(self)

    @property
    def is_answered(self) -> bool:
        return self.status_code is not None

    @property
    def is_gone(self) -> bool:
        # An application that pushes learns only by an error that the server has closed.
        return self.conn.closing

    async def _fail(self, status: int, reason: str, text: str) -> None:
        if self.status_code is not None:
            # The application is done: uvicorn closes.
            if not self.is_gone and not self.websocket.close_sent:
                await self.pass_on({"type": "websocket.close", "code": 1011})
            return
        self.answered(status)
        self.websocket.send_500_response()
