# SPDX-License-Identifier: MIT
"""Restart companions on changed files, in development.

Each companion watches the modules that it has loaded, because no other process knows them. It reports a
change through a pipe, and the manager restarts it as if by command.
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
    """A report of companion *pid*: the file *path*, which it has loaded, has changed.

    *inherited*: the master has loaded it too, so a restart of the companion would bring the old code.
    """

    pid: int
    path: str
    inherited: bool


class SourceWatch:
    """The pipe from the companions to their manager. *make* returns a Reloader with the given callback."""

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
        """Yield the reports that have arrived."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._read, 65536):
                data += chunk
        for line in data.splitlines():
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                yield Change(**json.loads(line))

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    # -- in the companion --------------------------------------------------

    def lift(self, count: int) -> None:
        """Make way for the numbers of *count* sockets."""
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
                # One restart is enough for all files of a checkout.
                reloader.stop()
            # It fails if the manager is gone, or has not read the pipe for long.
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
