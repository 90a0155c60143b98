# SPDX-License-Identifier: MIT
"""Settings for static files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gunicorn.settings.base import STATIC_FILES, Setting
from gunicorn.settings.kinds import Count, Flag
from gunicorn.settings.validators import type_and_value, validate_list_string

SECTION = STATIC_FILES


def validate_static(val: Any) -> dict[str, str]:
    """Directories by the prefix of their URLs, from a dict or from texts ``PREFIX=DIR``."""
    if isinstance(val, Mapping):
        pairs = list(val.items())
    else:
        pairs = []
        for text in validate_list_string(val):
            prefix, equals, directory = text.partition("=")
            if not equals:
                raise ValueError(f"expected PREFIX=DIR, such as /static=/srv/shop/static, not {text!r}")
            pairs.append((prefix, directory))
    found = {}
    for prefix, directory in pairs:
        if not isinstance(prefix, str) or not isinstance(directory, str):
            wrong = directory if isinstance(prefix, str) else prefix
            raise TypeError(f"expected a prefix and a directory as strings, not {type_and_value(wrong)}")
        prefix, directory = prefix.strip(), directory.strip()
        if not prefix.startswith("/"):
            raise ValueError(f"expected a prefix that begins with a slash, such as /static, not {prefix!r}")
        if not directory or "\0" in directory:
            raise ValueError(f"{prefix}: expected the path of a directory, not {directory!r}")
        found[prefix] = directory
    return found


class Static(
    Setting,
    flags="--static",
    meta="PREFIX=DIR",
    action="append",
    validator=validate_static,
    default={},
    default_text="none",
    flag_help="Serve the files of DIR below the URL path PREFIX; repeat the flag for more.",
):
    """Directories whose files the workers serve, by the path that their URLs begin with.

    In a file it is a dict: ``static = {"/static": "/srv/shop/static"}``. A relative directory starts at
    ``chdir``. The workers look for files when they start, so a new file needs a reload. Needs the extra
    ``gunicorn[static]``.
    """


class StaticMaxAge(Count, default=60):
    """How many seconds browsers and caches may keep a static file without asking again.

    A file with a hash in its name, such as ``app.55e7cbb9ba48.js``, may be kept for ever.
    """


class StaticFollowSymlinks(Flag, section=SECTION):
    """Serve what symbolic links lead to, also if that is outside of its directory or hidden.

    For directories that ``collectstatic --link`` has filled. Without it, such a link is not found.
    """
