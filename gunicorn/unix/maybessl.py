# SPDX-License-Identifier: MIT
"""The names of ``ssl`` for code that only compares types, without importing the module.

Importing ``ssl`` takes an eighth of a start's import time. If nothing has imported it, no object has its
types, so each name is a class without instances::

    if TYPE_CHECKING:
        import ssl
    else:
        from gunicorn.unix import maybessl as ssl
"""

from __future__ import annotations

import sys
from typing import Any


class _Nothing(Exception):
    """Never raised."""


def __getattr__(name: str) -> Any:
    # If another thread is importing it, there is no TLS socket yet either.
    return getattr(sys.modules.get("ssl"), name, _Nothing)
