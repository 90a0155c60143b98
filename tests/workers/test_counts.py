# SPDX-License-Identifier: MIT
"""What workers of every class note on the scoreboard: their requests, while these run and at their end."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from e2e_companions import companion_server, entry
from harness import Server, wait_until
from workertools import ADAPTED, APP

HEAD = "{} HTTP/1.1\r\nHost: x\r\n{}\r\n"


def totals(server: Server) -> dict[str, Any]:
    found = server.ask("web")["web"]["totals"]
    assert isinstance(found, dict)
    return found


def oldest(server: Server) -> Any:
    [worker] = server.ask("web")["web"]["workers"]
    return worker["oldest"] and (worker["oldest"]["method"], worker["oldest"]["path"])


def send(server: Server, request: str, fields: str = "", more: str = "") -> socket.socket:
    client = server.connect()
    client.sendall((HEAD.format(request, fields) + more).encode())
    return client


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent", "gevent_pywsgi", "tornado", "asgi"])
def test_each_request_is_counted_once_however_it_ends(kind: str) -> None:
    settings = {"workers": 1, "worker_class": kind, "threads": 4, "max_requests": 0}
    if kind == "sync":
        del settings["threads"]
    elif kind == "asgi":
        settings.update(ADAPTED)
    with companion_server(entry("a", "idle"), app_option=APP, **settings) as server:
        server.wait_companion("a")
        # Of the request that found the server ready; a class may write out up to 100 ms later what it counts.
        wait_until(lambda: totals(server)["requests"], 10, "the first request is counted")
        before = totals(server)
        for request, status in [("GET /", 200), ("HEAD /", 200), ("GET /boom", 500), ("GET /exit", 500)]:
            with send(server, request, "Connection: close\r\n") as client:
                assert client.recv(100).split()[1] == str(status).encode()
        with send(server, "GET /", "Host: y\r\n") as client:
            assert client.recv(100).split()[1] == b"400"
        with send(server, "GET /until?go", "Connection: close\r\n") as client:
            wait_until(lambda: oldest(server) == ("GET", "/until"), 10, lambda: str(totals(server)))
            assert totals(server)["running"] == 1
            server.write("go", "")
            assert client.recv(100).split()[1] == b"200"
        # The client leaves in the middle of its body.
        send(server, "POST /length", "Content-Length: 100\r\n", "abc").close()
        wait_until(
            lambda: totals(server)["requests"] - before["requests"] == 7 and not totals(server)["running"],
            10,
            lambda: str(totals(server)),
        )
        after = totals(server)
        answers = {name: count - before["answers"][name] for name, count in after["answers"].items()}
        assert answers == {"1xx": 0, "2xx": 3, "3xx": 0, "4xx": 2, "5xx": 2}
        wait_until(lambda: totals(server)["bytes"] > before["bytes"], 5, "the bytes")
        assert oldest(server) is None
