# SPDX-License-Identifier: MIT
"""Notices that a file of the running program has changed, and says so once."""

from __future__ import annotations

import glob
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

COMPILED_EXT_RE = re.compile(r"\.py[co]\Z")

# Of a file: what changes when it is written or replaced. Size too, for file systems with coarse times.
Stamp = tuple[int, int, int]


class Reloader(threading.Thread):
    """Looks every *interval* seconds whether a loaded module or one of *extra_files* has changed.

    *callback* is called in this thread with the path of each change. Extra files may hold ``*``, ``?``,
    ``[…]`` and ``**``; what newly matches counts as a change.
    """

    def __init__(
        self,
        extra_files: Iterable[str] | None = None,
        interval: float = 1,
        callback: Callable[[str], Any] | None = None,
    ) -> None:
        super().__init__(name="gunicorn-reloader", daemon=True)
        self._extra_files = set(extra_files or ())
        self._patterns = {path for path in self._extra_files if glob.has_magic(path)}
        self._extra_files -= self._patterns
        self._interval = interval
        self._callback = callback
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._stamps: dict[str, Stamp | None] = {}

    def add_extra_file(self, filename: str) -> None:
        """Watch *filename* as well, from how it is now."""
        with self._lock:
            self._extra_files.add(filename)
            self._stamps.setdefault(filename, _stamp(filename))

    def get_files(self) -> list[str]:
        """The files that are watched: sources of the modules that are loaded by now, and the extra ones."""
        files = {path for module in list(sys.modules.values()) if (path := _source_of(module))}
        with self._lock:
            files |= self._extra_files
            for pattern in self._patterns:
                files.update(glob.glob(pattern, recursive=True))
        return sorted(files)

    def start(self) -> None:
        # Here, not in the thread: a change right after the start must not be taken for the beginning.
        self.look()
        super().start()

    def run(self) -> None:
        while not self._stopped.wait(self._interval):
            for path in self.look():
                if self._callback is not None:
                    self._callback(path)

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def look(self) -> list[str]:
        """The files that have changed since the last look.

        A module that is loaded later is first seen as it is then; a file that a pattern newly finds, or
        that comes back, has changed. One that is gone has not: an editor may be about to replace it.
        """
        first = not self._stamps
        changed = []
        for path in self.get_files():
            now = _stamp(path)
            if path not in self._stamps:
                self._stamps[path] = now
                if not first and self._is_from_pattern(path):
                    changed.append(path)
            elif now is not None and now != self._stamps[path]:
                self._stamps[path] = now
                changed.append(path)
        return changed

    def _is_from_pattern(self, path: str) -> bool:
        return any(path in glob.glob(pattern, recursive=True) for pattern in self._patterns)


def _source_of(module: Any) -> str | None:
    path = getattr(module, "__file__", None)
    # A frozen or built-in module has none; a package without __init__ has None.
    return COMPILED_EXT_RE.sub(".py", path) if isinstance(path, str) and path else None


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class InotifyReloader(Reloader):
    """The engine ``inotify``. Without events from the system to rely on everywhere, it polls more often."""

    def __init__(
        self, extra_files: Iterable[str] | None = None, callback: Callable[[str], Any] | None = None
    ) -> None:
        super().__init__(extra_files=extra_files, interval=0.25, callback=callback)


preferred_reloader = Reloader

reloader_engines: dict[str, type[Reloader]] = {
    "auto": preferred_reloader,
    "poll": Reloader,
    "inotify": InotifyReloader,
}
