# SPDX-License-Identifier: MIT
"""A shop whose orders appear on every open page at once: it sends them to the live server."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path
from urllib.parse import parse_qs

PAGE = Path(__file__).with_name("shop.html")
LIVE_SOCKET = str(Path(__file__).with_name("live.socket"))


class LiveServer(http.client.HTTPConnection):
    """HTTP over the companion's Unix socket."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(LIVE_SOCKET)


def tell(event):
    """Send *event* to all pages. If the live server restarts, this waits for it."""
    live = LiveServer("live", timeout=10)
    try:
        live.request("POST", "/", json.dumps(event), {"Content-Type": "application/json"})
        return json.loads(live.getresponse().read())
    finally:
        live.close()


def app(environ, start_response):
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    if (method, path) == ("POST", "/orders"):
        form = parse_qs(environ["wsgi.input"].read().decode())
        item = form.get("item", [""])[0].strip()
        if not item:
            return answer(start_response, "400 Bad Request", {"error": "order something"})
        return answer(start_response, "201 Created", {"item": item, "live": tell({"item": item})})
    if (method, path) == ("GET", "/"):
        text = PAGE.read_text().replace("{port}", os.environ["LIVE_PORT"])
        start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
        return [text.encode()]
    return answer(start_response, "404 Not Found", {"error": "no such page"})


def answer(start_response, status, value):
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(value).encode()]
