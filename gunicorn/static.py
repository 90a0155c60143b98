# SPDX-License-Identifier: MIT
"""Static files: which directories are served, and which of their files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from gunicorn.errors import ConfigError
from gunicorn.loading import is_asgi, is_asgi_worker

# Where the base classes of applications for other servers are defined. They are callable too.
OTHER_APPLICATIONS = {"tornado.httputil", "aiohttp.web_app"}


def check(cfg: Any) -> dict[str, str]:
    """The directories of `static` by prefix, without symbolic links. Raises ConfigError."""
    try:
        import whitenoise  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"static needs the library whitenoise: pip install 'gunicorn[static]' ({error})"
        ) from error
    found = {}
    # The files of the longest prefix are added last, and win.
    for prefix, directory in sorted(cfg.static.items(), key=lambda item: len(item[0].rstrip("/"))):
        # A deploy that switches a link has no effect until the reload, as with the code.
        found[prefix] = os.path.realpath(os.path.join(cfg.chdir, directory))
        try:
            os.scandir(found[prefix]).close()
        except OSError as error:
            raise ConfigError(
                f"static: {prefix}: cannot read the directory {directory}: {error.strerror}"
            ) from None
    return found


def wrap(app: Callable[..., Any], cfg: Any) -> Callable[..., Any]:
    """An application that serves the files of `static`, and *app* for all else. Raises ConfigError."""
    directories = check(cfg)
    if any(cls.__module__ in OTHER_APPLICATIONS for cls in type(app).__mro__):
        raise ConfigError(
            "static works with WSGI and ASGI applications; let the framework or the proxy serve the files"
        )
    from gunicorn import staticfiles

    asgi = is_asgi(app) or is_asgi_worker(cfg.settings["worker_class"].get())
    kind = staticfiles.ASGI if asgi else staticfiles.WSGI
    files = kind(app, max_age=cfg.static_max_age, follow=cfg.static_follow_symlinks)
    for prefix, directory in directories.items():
        try:
            files.add_files(directory, prefix)
        except OSError as error:
            raise ConfigError(f"static: {prefix}: cannot read {error.filename}: {error.strerror}") from None
    return files


def servable(root: str, follow: bool = False) -> Iterator[tuple[str, os.stat_result]]:
    """The files below *root*, a path without links, that anybody may have.

    Not those whose path has a part that begins with a dot, nor what is no regular file. A link counts as what
    it leads to; it does not count if that is missing, or, unless *follow* is true, outside or hidden.
    """
    return _walk(root, root, follow, (root,))


def _walk(
    root: str, directory: str, follow: bool, above: tuple[str, ...]
) -> Iterator[tuple[str, os.stat_result]]:
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        real = os.path.join(above[-1], entry.name)
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            if not follow and not _is_inside(root, real):
                continue
        try:
            status = os.stat(real)
        except OSError:  # a link to nothing, or a file that has just been removed
            continue
        if stat.S_ISREG(status.st_mode):
            yield entry.path, status
        # A link to a directory that it is in would never end.
        elif stat.S_ISDIR(status.st_mode) and real not in above:
            yield from _walk(root, entry.path, follow, (*above, real))


def _is_inside(root: str, real: str) -> bool:
    """Whether *real*, a path without links, is below *root*, and neither hidden nor in a hidden directory."""
    below = real.removeprefix(root.rstrip("/") + "/")
    return below != real and not any(part.startswith(".") for part in below.split("/"))


def status_of(root: str, path: str, follow: bool) -> os.stat_result | None:
    """The status of a single file that `servable` has named before; None if it is no longer servable."""
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or not (follow or _is_inside(root, real)):
        return None
    return status
