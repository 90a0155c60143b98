# SPDX-License-Identifier: MIT
"""Restart companions on changed files, in development: each watches the modules it has loaded.

Only it knows which modules those are. It tells the manager through a pipe, and the manager
restarts it like anybody who asks for it, with its stop signal and its time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from select import PIPE_BUF
from typing import Any

from gunicorn.companion.child import descriptors
from gunicorn.reloader import Reloader, loaded_sources


@dataclass(frozen=True)
class Change:
    """What a companion says: *path*, which it has loaded, has changed.

    *inherited*: the server's master has loaded it too, and a restart of the companion brings the old code.
    """

    pid: int
    path: str
    inherited: bool


class SourceWatch:
    """The pipe between the companions and their manager; *make* gives a Reloader with the callback given."""

    def __init__(self, make: Callable[[Callable[[str], Any]], Reloader]) -> None:
        self._make = make
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    # -- in the manager ----------------------------------------------------

    def fileno(self) -> int:
        """Readable while there are changes to ``receive()``."""
        return self._read

    def receive(self) -> Iterator[Change]:
        """The changes that have been told."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._read, 65536):
                data += chunk
        for line in data.splitlines():
            with contextlib.suppress(ValueError, TypeError):
                yield Change(**json.loads(line))

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    # -- in the companion --------------------------------------------------

    def lift(self, count: int) -> None:
        """Free the numbers of *count* sockets that are handed over."""
        self._write = descriptors.lift(self._write, count)

    def loaded(self) -> set[str]:
        """The sources that are loaded, for ``begin()``."""
        return loaded_sources()

    def begin(self, inherited: set[str]) -> None:
        """Watch from now on. *inherited*: the sources that were loaded before the target was imported.

        Call it after the import, in which gevent may have patched threads.
        """

        def tell(path: str) -> None:
            change = Change(os.getpid(), path, path in inherited)
            if not change.inherited:
                # The rest of a checkout changes nothing more for this process.
                reloader.stop()
            # If the manager is gone, or has not read for long, nothing would restart this one.
            with contextlib.suppress(OSError):
                os.write(self._write, _message(change))

        reloader = self._make(tell)
        reloader.start()


def _message(change: Change) -> bytes:
    """One line, of a length that a pipe takes in one piece or not at all."""
    for path in (change.path, os.path.basename(change.path), "a file"):
        line = json.dumps(asdict(replace(change, path=path))).encode() + b"\n"
        if len(line) <= PIPE_BUF:
            break
    return line
