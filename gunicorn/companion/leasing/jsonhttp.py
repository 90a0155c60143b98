# SPDX-License-Identifier: MIT
"""Ask servers that speak JSON over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

from gunicorn.companion.leasing.store import StoreError

# Bytes of an answer.
_MOST = 16 << 20


class JsonHTTP:
    """One connection to one of *addresses*, made when it is needed; with *context* in TLS.

    `ask` raises StoreError when none of them answers. A request may reach the server twice, because a
    connection may break before the answer.
    """

    def __init__(
        self, addresses: Sequence[tuple[str, int]], timeout: float, context: ssl.SSLContext | None
    ) -> None:
        self._addresses = list(addresses)
        self._timeout = timeout
        self._context = context
        self._connection: http.client.HTTPConnection | None = None
        self._cut = False

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        data = None if body is None else json.dumps(body).encode()
        fields = {"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
        # The first try may find that the server has closed the connection.
        tries = len(self._addresses) + (self._connection is not None)
        for left in reversed(range(tries)):
            try:
                return self._exchange(method, path, data, fields)
            except TimeoutError as exc:
                self._next_address()
                raise StoreError(f"no answer within {self._timeout:g}s") from exc
            except (OSError, http.client.HTTPException) as exc:
                self._next_address()
                if self._cut or not left:
                    raise StoreError(_sentence(exc)) from exc
            except ValueError:
                self.close()
                # What is wrong may be a header with a token, which must not be shown.
                raise StoreError(
                    "the request can't be sent: its host, password or token has forbidden characters"
                ) from None
        raise AssertionError("tries is at least 1")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def cut(self) -> None:
        """End the connection from another thread, and make no other."""
        self._cut = True
        with contextlib.suppress(AttributeError, OSError):
            sock: socket.socket = self._connection.sock  # type: ignore[union-attr]
            sock.shutdown(socket.SHUT_RDWR)

    def _next_address(self) -> None:
        if self._connection is not None:
            self.close()
        self._addresses.append(self._addresses.pop(0))

    def _exchange(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]]:
        if self._connection is None:
            host, port = self._addresses[0]
            self._connection = (
                http.client.HTTPConnection(host, port, timeout=self._timeout)
                if self._context is None
                else http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._context)
            )
        self._connection.request(method, path, data, dict(headers))
        response = self._connection.getresponse()
        text = response.read(_MOST) or b"{}"
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as exc:
            self.close()
            raise StoreError(f"its answer is no JSON: {exc}") from exc
        return response.status, answer if isinstance(answer, dict) else {}


def _sentence(error: Exception) -> str:
    if not isinstance(error, OSError):
        return f"its answer is no HTTP: {type(error).__name__}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was not accepted: {error.verify_message}"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
