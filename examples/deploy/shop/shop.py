"""Change VERSION and deploy; or write an error into this file, and see the old release go on."""

import os
import signal
import time

VERSION = "one"
RELEASE = os.path.basename(os.path.realpath(os.getcwd()))


def app(environ, start_response):
    body = f"version {VERSION}, release {RELEASE}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def clerk():
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    while not asked:
        time.sleep(1)
        print(f"the clerk of version {VERSION} has worked on an order", flush=True)
