# SPDX-License-Identifier: MIT
"""A minimal worker, which notes what happens to it.

It answers each request in the same way. How it behaves is in the environment variable
``TINY``: ``deaf`` ignores SIGTERM and SIGQUIT, ``drains`` goes on without a heartbeat after
SIGTERM, ``frozen`` never beats its heart, ``undead`` neither
and ignores SIGABRT, ``slow`` needs a second to boot, ``boot`` fails to, ``exit:N`` ends with N
while booting, ``late:N`` ends with N once it has served.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import struct
import sys
import time
from typing import Any


def note(*words: object) -> None:
    """Add a line to the file ``events`` of the server's directory: one write, so lines stay whole."""
    with open(os.environ["EVENTS"], "a") as stream:
        stream.write(" ".join(map(str, words)) + "\n")


class Heart:
    """A heartbeat in memory that master and worker share."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)
        self.notify()

    def notify(self) -> None:
        self.memory[:8] = struct.pack("d", time.monotonic())

    def last_update(self) -> float:
        return float(struct.unpack("d", self.memory[:8])[0])

    def close(self) -> None:
        self.memory.close()


class TinyWorker:
    def __init__(
        self, age: int, ppid: int, sockets: Any, app: Any, timeout: float, cfg: Any, log: Any
    ) -> None:
        self.age, self.ppid, self.sockets, self.app = age, ppid, sockets, app
        self.timeout, self.cfg, self.log = timeout, cfg, log
        self.pid = 0
        self.booted = False
        self.aborted = False
        self.alive = True
        self.mode = os.environ.get("TINY", "")
        self.tmp = Heart()

    def __str__(self) -> str:
        return f"<tiny {self.pid}>"

    def notify(self) -> None:
        if self.mode not in ("frozen", "undead"):
            self.tmp.notify()

    def init_process(self) -> None:
        if self.mode == "boot":
            raise RuntimeError("it will not boot")
        if self.mode.startswith("exit:"):
            os._exit(int(self.mode[5:]))
        if self.mode in ("slow", "hangs"):
            time.sleep(1 if self.mode == "slow" else 60)
        signal.signal(signal.SIGTERM, self.handle_exit)
        signal.signal(signal.SIGQUIT, self.handle_quit)
        signal.signal(signal.SIGINT, self.handle_quit)
        signal.signal(signal.SIGABRT, self.handle_abort)
        self.app.wsgi()
        self.booted = True
        self.cfg.post_worker_init(self)
        self.run()

    def handle_exit(self, sig: int, frame: object) -> None:
        note("term", self.pid)
        self.alive = self.mode in ("deaf", "drains")
        if self.mode == "drains":
            self.mode = "frozen"

    def handle_quit(self, sig: int, frame: object) -> None:
        note("quit", self.pid)
        if self.mode != "deaf":
            self.alive = False

    def handle_abort(self, sig: int, frame: object) -> None:
        note("abort", self.pid)
        if self.mode != "undead":
            sys.exit(1)

    def handle_usr1(self, sig: int, frame: object) -> None:
        note("usr1", self.pid)

    def run(self) -> None:
        signal.signal(signal.SIGUSR1, self.handle_usr1)
        # First: once it is noted, the master is to take it for booted.
        self.notify()
        note("run", self.pid)
        while self.alive and os.getppid() == self.ppid:
            self.notify()
            if self.mode in ("frozen", "undead"):
                time.sleep(0.05)
                continue
            ready, _, _ = select.select(self.sockets, [], [], 0.05)
            for listener in ready:
                try:
                    client, _ = listener.accept()
                except BlockingIOError:
                    continue
                with client:
                    client.setblocking(True)
                    client.recv(4096)
                    body = str(os.getpid()).encode()
                    client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                if self.mode.startswith("late:"):
                    os._exit(int(self.mode[5:]))
