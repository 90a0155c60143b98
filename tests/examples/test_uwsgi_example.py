# SPDX-License-Identifier: MIT
"""The server of examples/uwsgi behind the nginx beside it."""

from __future__ import annotations

import http.client
import subprocess

from exampletree import example_server
from harness import ROOT, free_port, wait_until
from proctools import program


def test_nginx_says_who_asks_for_what() -> None:
    nginx, port = program("nginx"), free_port()

    def get(path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        with connection.getresponse() as answer:
            return answer.read().decode()

    server = example_server("uwsgi", {})
    config = (ROOT / "examples" / "uwsgi" / "nginx.conf").read_text()
    config = config.replace("/tmp/shop.sock", f"{server.dir}/shop.sock").replace("8080", str(port))
    path = server.write("nginx.conf", config)
    server.args[:] = ["-b", f"unix:{server.dir}/shop.sock"]
    server.ready = lambda server: "Worker" in server.log()
    with server:
        process = subprocess.Popen([nginx, "-e", "stderr", "-p", str(server.dir), "-c", str(path)])
        try:
            text = wait_until(lambda: get("/cart"))
            assert "REMOTE_ADDR: 127.0.0.1\n" in text and "PATH_INFO: /cart\n" in text
            text = get("/shop/cart?x")
            assert "SCRIPT_NAME: /shop\nPATH_INFO: /cart\nRAW_URI: /shop/cart?x\n" in text
        finally:
            process.terminate()
            process.wait(10)
