# SPDX-License-Identifier: MIT
"""Find what gevent has replaced in the standard library.

A configuration file or an application may call ``monkey.patch_all()`` under every worker class.
"""

from __future__ import annotations

import sys
from typing import Any


def original(module: str, name: str) -> Any:
    """Return the attribute *name* of *module* as it was before gevent replaced it; None if there is none."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(sys.modules[module], name, None)
    try:
        return monkey.get_original(module, name)
    except AttributeError:
        return None


def threads_are_greenlets() -> bool:
    """Whether gevent starts a greenlet for each new thread: all of them run in one thread."""
    # It may just be in its import, in another thread.
    is_patched = getattr(sys.modules.get("gevent.monkey"), "is_module_patched", None)
    return is_patched is not None and bool(is_patched("threading"))
