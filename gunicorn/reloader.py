# SPDX-License-Identifier: MIT
"""Watch the files of the running program and report changes."""

from __future__ import annotations

import fnmatch
import glob
import importlib.machinery
import importlib.util
import logging
import math
import os
import re
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.unix.unpatched import threads_are_greenlets

COMPILED_EXT_RE = re.compile(r"\.py[co]\Z")

# What changes when a file is written or replaced. The size is for file systems with coarse times.
Stamp = tuple[int, int, int]
Callback = Callable[[str], Any]

# Seconds between two looks for more directories to watch.
LOOK_AROUND = 1.0
# Milliseconds for an editor or a checkout to finish its changes.
SETTLE_MS = 100


# The state of each source when its module was loaded. The first check may come seconds later, when a large
# application is complete, and must notice a file that was saved meanwhile.
_loaded: dict[str, Stamp | None] = {}


def note_loads() -> None:
    """Remember the state of each source before it is loaded, from now on."""
    loader = importlib.machinery.SourceFileLoader
    ask = loader.path_stats
    if getattr(ask, "notes_loads", False):
        return

    def path_stats(self: importlib.machinery.SourceFileLoader, path: str) -> Any:
        _loaded[path] = _stamp(path)
        return ask(self, path)

    path_stats.notes_loads = True  # type: ignore[attr-defined]
    loader.path_stats = path_stats  # type: ignore[method-assign]


class Reloader(threading.Thread):
    """Checks every *interval* seconds whether a loaded module or one of *extra_files* has changed.

    Until ``stop()`` it calls *callback* in this thread with the path of each change. Extra files may be
    patterns with ``*``, ``?``, ``[…]`` and ``**``; a new match counts as a change.
    """

    def __init__(
        self,
        extra_files: Iterable[str] | None = None,
        interval: float = 1,
        callback: Callback | None = None,
    ) -> None:
        super().__init__(name="gunicorn-reloader", daemon=True)
        # Another thread may add one: the set is replaced, not changed.
        self._patterns: frozenset[str] = frozenset()
        self._stamps: dict[str, Stamp | None] = {}
        self._interval = interval
        self._callback = callback
        self._stopped = threading.Event()
        self._started_looking = False
        # Files that changed between being added and the start.
        self._early: list[str] = []
        # Modules that were loaded before the program: a new process inherits them.
        self._inherited = loaded_sources()
        note_loads()
        for path in extra_files or ():
            self.add_extra_file(path, now=False)

    def add_extra_file(self, filename: str, *, now: bool = True) -> None:
        """Also watch *filename*, which may be a pattern. Compare with its state *now*, or at the start."""
        self._patterns |= {filename}
        if now:
            for path in (filename, *glob.glob(filename, recursive=True)):
                self._stamps.setdefault(path, _loaded.get(path) or _stamp(path))

    def get_files(self) -> list[str]:
        """The watched files: the sources of all loaded modules, and the extra files that exist."""
        return sorted(loaded_sources() | self._matches())

    def _matches(self) -> set[str]:
        return {path for pattern in self._patterns for path in glob.glob(pattern, recursive=True)}

    def is_inherited(self, path: str) -> bool:
        """Whether the process inherited the module at *path*: then no restart of it brings new code."""
        return path in self._inherited

    def start(self) -> None:
        # Here, not in the thread, which might miss a change right after the start.
        self._early = self.look()
        super().start()

    def run(self) -> None:
        self._call_back(self._early)
        self._early = []
        while not self._stopped.wait(self._interval):
            self.report()

    def stop(self) -> None:
        """End the thread; there are no more callbacks."""
        self._stopped.set()

    def report(self) -> None:
        """Call back for each file that has changed since the last look."""
        self._call_back(self.look())

    def _call_back(self, paths: list[str]) -> None:
        for path in paths:
            if self._callback is not None and not self._stopped.is_set():
                self._callback(path)

    def look(self) -> list[str]:
        """The files that have changed since the last look.

        A module is compared with its state before it was loaded. A new match of a pattern, or a file that
        comes back, has changed. A file that is gone has not: an editor may be about to replace it.
        """
        first, self._started_looking = not self._started_looking, True
        matches = self._matches()
        changed = []
        for path in self.get_files():
            now = _stamp(path)
            if path not in self._stamps and path in _loaded and path not in self._inherited:
                self._stamps[path] = _loaded[path]
            if path not in self._stamps:
                self._stamps[path] = now
                if not first and path in matches:
                    changed.append(path)
            elif now is not None and now != self._stamps[path]:
                self._stamps[path] = now
                changed.append(path)
        return changed


def loaded_sources() -> set[str]:
    """The source files of all modules that are loaded."""
    return {path for module in list(sys.modules.values()) if (path := _source_of(module))}


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
    """Checks when the operating system reports a change beside a watched file, by the package ``watchfiles``.

    Without the package, or if a native wait would block all greenlets of gevent, it polls.
    """

    def __init__(self, extra_files: Iterable[str] | None = None, callback: Callback | None = None) -> None:
        super().__init__(extra_files=extra_files, callback=callback)

    def run(self) -> None:
        self._call_back(self._early)
        self._early = []
        reason = _why_not_native()
        if not reason:
            try:
                self._run_native()
                return
            except Exception as exc:
                # The limit of watches, a file system without events, …
                reason = f"{type(exc).__name__}: {exc}"
        logging.getLogger("gunicorn.error").warning("Files are polled for changes: %s", reason)
        super().run()

    def _run_native(self) -> None:
        import watchfiles

        while not self._stopped.is_set():
            directories = self.get_directories()
            events = watchfiles.watch(
                *sorted(directories),
                # With a filter, irrelevant changes would not end the wait: a busy log would delay the regular
                # check for ever.
                watch_filter=None,
                debounce=SETTLE_MS * 4,
                step=SETTLE_MS,
                stop_event=self._stopped,
                rust_timeout=int(LOOK_AROUND * 1000),
                yield_on_timeout=True,
                raise_interrupt=False,
                recursive=False,
            )
            looked = -math.inf
            for changes in events:
                concerned = any(self._concerns(path) for _, path in changes)
                due = time.monotonic() - looked >= LOOK_AROUND
                # The first time in any case: a change before the watch began has made no event.
                if concerned or looked < 0:
                    self.report()
                if concerned or due:
                    looked = time.monotonic()
                    if self.get_directories() != directories:
                        break

    def get_directories(self) -> set[str]:
        """The directories to watch, without those of the standard library.

        Directories, because a watch on a file is lost when an editor replaces it.
        """
        files = {path for path in loaded_sources() if not path.startswith(_STANDARD) or "-packages" in path}
        files |= self._matches()
        found = {
            os.path.dirname(path)
            for file in files
            for path in (os.path.abspath(file), os.path.realpath(file))
        }
        for pattern in self._patterns:
            found.update(
                map(os.path.abspath, glob.glob(os.path.dirname(pattern) or os.curdir, recursive=True))
            )
        return {path for path in found if os.path.isdir(path)}

    def _concerns(self, path: str) -> bool:
        """Whether *path* is watched: logs and databases may be beside sources."""
        if path.endswith(".py"):
            return True
        name = os.path.basename(path)
        if any(fnmatch.fnmatch(name, os.path.basename(pattern)) for pattern in self._patterns):
            return True
        return path in {os.path.realpath(file) for file in self.get_files()}


_STANDARD = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})


def _why_not_native() -> str:
    """Why native events cannot be used; "" if they can."""
    if importlib.util.find_spec("watchfiles") is None:
        return "the package watchfiles is not installed (it is the extra 'reload')"
    if threads_are_greenlets():
        return "a wait for native events would hold up all greenlets"
    return ""


preferred_reloader: type[Reloader] = InotifyReloader if importlib.util.find_spec("watchfiles") else Reloader

reloader_engines: dict[str, type[Reloader]] = {
    "auto": preferred_reloader,
    "poll": Reloader,
    "inotify": InotifyReloader,
}
