# SPDX-License-Identifier: MIT
"""The companions: a store of numbers, a migration, a job worker, and a visitor of the site."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from types import FrameType

from gunicorn.companion import notify

ADDRESS = os.environ.get("ORDER_ADDRESS", "127.0.0.1:8000")
STORE = "store.sock"
NUMBERS = Path("numbers.json")
SCHEMA = Path("schema.txt")


class Told(BaseException):
    """The companion is to stop."""


def stop(signum: int, frame: FrameType | None) -> None:
    raise Told


def count(what: str) -> int:
    """Have the store count *what*; return how often that was."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(STORE)
        sock.sendall(what.encode())
        return int(sock.recv(100))


def store() -> None:
    """Count what it is told, until SIGTERM; then write the numbers down."""
    numbers = Counter(json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {})
    Path(STORE).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(STORE)
    listener.listen(100)
    signal.signal(signal.SIGTERM, stop)
    notify(ready=True)
    try:
        while True:
            client, _ = listener.accept()
            with client:
                what = client.recv(100).decode()
                numbers[what] += 1
                client.sendall(str(numbers[what]).encode())
    except Told:
        Path(STORE).unlink()
        NUMBERS.write_text(json.dumps(numbers))


def migrate() -> None:
    """Take some time, and succeed; or fail if there is a file ``broken``."""
    time.sleep(float(os.environ.get("ORDER_MIGRATION_SECONDS", "3")))
    if os.path.exists("broken"):
        sys.exit("the migration fails because of the file 'broken'")
    SCHEMA.write_text("2\n")


def packer() -> None:
    """Pack a parcel each half second, and count it; finish the last one before the end."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: told.set())
    while not told.wait(0.5):
        count("parcels")
    count("parcels")


def visitor() -> None:
    """Visit the site each second, and once more before the end."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: told.set())
    last = False
    while not last:
        last = told.wait(1)
        with urllib.request.urlopen(f"http://{ADDRESS}/", timeout=5) as reply:
            print("the last" if last else "a", reply.read().decode().strip(), flush=True)
