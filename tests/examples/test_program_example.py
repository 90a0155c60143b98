# SPDX-License-Identifier: MIT
"""The shop of examples/program: a Node server as a companion, on sockets that it is given."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator

import pytest
from exampletree import FORM, example_server
from harness import Background, Server, free_port, is_alive, wait_until

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


class Page:
    """An open page: what it has received of the live server."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=15)
        self.sock.sendall(b"GET /events HTTP/1.1\r\nHost: shop\r\n\r\n")
        self.text = b""

    def wait(self, text: bytes) -> None:
        while text not in self.text:
            chunk = self.sock.recv(4096)
            assert chunk, self.text
            self.text += chunk

    def wait_end(self) -> None:
        while self.sock.recv(4096):
            pass
        self.sock.close()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def shop(port: int) -> Iterator[Server]:
    with example_server("program", {"LIVE_PORT": str(port)}) as server:
        server.wait_companion("live")
        yield server


def test_an_order_shows_on_every_page(shop: Server, port: int) -> None:
    assert f":{port}/events" in shop.get("/").text
    live = shop.companion("live")["pid"]
    pages = [Page(port), Page(port)]
    for page in pages:
        page.wait(b"event: hello\ndata: %d\n" % live)
    reply = shop.post("/orders", "item=a+brass+unicorn", headers=FORM)
    assert reply.json() == {"item": "a brass unicorn", "live": {"pid": live, "pages": 2}}
    for page in pages:
        page.wait(b'data: {"item":"a brass unicorn"}\n')
        page.sock.close()
    assert shop.post("/orders", "item=", headers=FORM).status == 400
    assert shop.get("/nothing").status == 404


def test_no_order_fails_while_the_live_server_restarts(shop: Server, port: int) -> None:
    old = shop.companion("live")["pid"]
    page = Page(port)
    page.wait(b"hello")
    assert shop.ask("restart", "live")["ok"]
    page.wait_end()
    reply = shop.post("/orders", "item=x", headers=FORM, timeout=15)
    assert reply.json()["live"]["pid"] not in (old, None)
    # And where it was killed.
    pid = shop.wait_companion("live", without=[old])["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    waiting = Background(shop, "/")
    assert shop.ask("start", "live")["ok"]
    assert shop.post("/orders", "item=y", headers=FORM, timeout=15).json()["live"]["pid"] != pid
    assert waiting.result().status == 200
    assert shop.stop() == 0
    assert not (shop.dir / "live.socket").exists()
