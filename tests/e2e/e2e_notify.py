# SPDX-License-Identifier: MIT
"""A service manager as a server sees it: a datagram socket, which keeps the messages and their senders."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from harness import wait_until


@dataclass(frozen=True)
class Told:
    """One message: when it came, its sender as the kernel tells it, and its assignments."""

    at: float
    pid: int
    lines: dict[str, str]


class ServiceManager:
    """Listens on *address*, a path or a name of the abstract namespace (with ``@`` in front)."""

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self.told: list[Told] = []
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.sock.bind("\0" + self.address[1:] if self.address.startswith("@") else self.address)
        self.sock.settimeout(0.1)
        self._done = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        size = struct.calcsize("3i")
        while not self._done:
            try:
                data, ancillary, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(size))
            except TimeoutError:
                continue
            pid = struct.unpack("3i", ancillary[0][2][:size])[0]
            lines = dict(line.split("=", 1) for line in data.decode().splitlines())
            self.told.append(Told(time.monotonic(), pid, lines))

    def having(self, name: str, value: str | None = None, since: int = 0) -> list[Told]:
        """The messages with the assignment *name*, of *value* if that is given."""
        return [
            told
            for told in self.told[since:]
            if name in told.lines and (value is None or told.lines[name] == value)
        ]

    def wait(self, name: str, value: str | None = None, *, since: int = 0, timeout: float = 10.0) -> Told:
        """The first such message, once it is there."""
        found = wait_until(
            lambda: self.having(name, value, since),
            timeout,
            lambda: f"{name}={value}; told {self.told[since:]}",
        )
        return found[0]

    def wait_status(self, fits: Callable[[str], bool], timeout: float = 10.0, since: int = 0) -> Told:
        return wait_until(
            lambda: next(
                (told for told in self.having("STATUS", since=since) if fits(told.lines["STATUS"])), None
            ),
            timeout,
            lambda: f"a status; told {self.told[since:]}",
        )

    def __enter__(self) -> ServiceManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done = True
        self._thread.join()
        self.sock.close()
        if not self.address.startswith("@"):
            os.unlink(self.address)


#: Runs a server as a service manager does, which knows the pid that it starts.
AS_WATCHED = ["sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh"]
