# SPDX-License-Identifier: MIT
"""Remember how the server was started, and restore that to read the configuration again."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from gunicorn.loading import getcwd


class Start(NamedTuple):
    """Command line, directory and environment of the start: the input of the layers of configuration."""

    argv: list[str]
    directory: str
    environ: Mapping[str, str]

    @classmethod
    def here(cls) -> Start:
        return cls(sys.argv[1:], getcwd(), dict(os.environ))


class Surroundings(NamedTuple):
    """What a process inherits if it is forked now: environment, import path, working directory."""

    environ: Mapping[str, str]
    path: list[str]
    # Device and inode of the directory: its name does not show that a symbolic link on the way to it was
    # switched. None if it cannot be looked at.
    directory: tuple[int, int] | None

    @classmethod
    def here(cls, *more: str) -> Surroundings:
        """*more*: further directories for the import path."""
        path = [entry for entry in sys.path if isinstance(entry, str)]
        path[:0] = [entry for entry in more if entry not in path]
        try:
            info = os.stat(".")
        except OSError:
            return cls(dict(os.environ), path, None)
        return cls(dict(os.environ), path, (info.st_dev, info.st_ino))

    def changes_since(self, before: Surroundings) -> dict[str, Any]:
        """What a process that was forked at *before* lacks, as JSON values."""
        changes: dict[str, Any] = {}
        if environ := environ_changes(before.environ, self.environ):
            changes["environ"] = environ
        if self.path != before.path:
            changes["path"] = self.path
        if self.directory not in (None, before.directory):
            with contextlib.suppress(OSError):
                changes["directory"] = os.getcwd()
        return changes


def follow_surroundings(changes: Mapping[str, Any]) -> None:
    """Make *changes* (see `Surroundings`) in this process, the directory last. Raises OSError for that."""
    apply_environ(changes.get("environ", {}))
    if "path" in changes:
        sys.path[:] = changes["path"]
    # A link to another release may leave the times of change as they were.
    importlib.invalidate_caches()
    if "directory" in changes:
        os.chdir(changes["directory"])


class Effects:
    """The changes that a block of `as_at_start` made to the process. They are undone until `apply`."""

    def __init__(self) -> None:
        self.environ: dict[str, str | None] = {}
        self.path: list[str] = []

    def apply(self) -> None:
        """Make them again for good: configuration files set variables and extend the import path."""
        apply_environ(self.environ)
        sys.path[:0] = [entry for entry in self.path if entry not in sys.path]


@contextlib.contextmanager
def as_at_start(start: Start) -> Iterator[Effects]:
    """Restore directory and environment of the start within the block, and undo its changes at the end.

    If the block raises, modules that it replaced in ``sys.modules`` are put back too.
    """
    effects = Effects()
    environ, path, modules = dict(os.environ), list(sys.path), dict(sys.modules)
    with _directory_kept() as movable:
        set_environ(start.environ)
        # The user that the process has changed to may have no access to the directory. Paths are absolute
        # where it matters, and a file that cannot be read is an error of its own.
        with contextlib.suppress(OSError):
            if movable and not os.path.samefile(start.directory, "."):
                os.chdir(start.directory)
        try:
            yield effects
        except BaseException:
            _put_back_modules(modules)
            raise
        finally:
            effects.environ = environ_changes(start.environ, os.environ)
            effects.path = [entry for entry in dict.fromkeys(sys.path) if entry not in path]
            set_environ(environ)
            sys.path[:] = path


@contextlib.contextmanager
def _directory_kept() -> Iterator[bool]:
    """Return to the present directory at the end; the value is False if that would be impossible."""
    try:
        # By descriptor: the directory may have been removed or renamed.
        here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        try:
            if not _is_here(here):
                os.fchdir(here)
        finally:
            os.close(here)


def _is_here(fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat("."))
    except OSError:
        return False


def environ_changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """Return the changes from *before* to *after*: values by name, None for a removed one."""
    changes: dict[str, str | None] = {name: None for name in before if name not in after}
    changes.update({name: value for name, value in after.items() if before.get(name) != value})
    return changes


def apply_environ(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def set_environ(wanted: Mapping[str, str]) -> None:
    # Only the differences, so that no other thread sees an empty environment.
    apply_environ(environ_changes(dict(os.environ), wanted))


def _put_back_modules(modules: Mapping[str, ModuleType]) -> None:
    for name, module in modules.items():
        if sys.modules.get(name) is module:
            continue
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, module)
