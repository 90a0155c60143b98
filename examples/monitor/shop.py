# SPDX-License-Identifier: MIT
"""A web application with quick, slow and failing pages."""

import time


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        time.sleep(3)
    elif path == "/broken":
        raise RuntimeError("the shop is closed")
    body = f"You are at {path}; try / and /slow and /broken\n".encode()
    start_response(
        "200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    )
    return [body]
