# SPDX-License-Identifier: MIT
"""The names of ``ssl`` for code that only compares types, without importing the module.

Importing ``ssl`` takes an eighth of a start's import time. If nothing has imported it, no object can be of
its types, so each name stands for a class without instances::

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
    # Half imported, by another thread, it has made no socket either.
    return getattr(sys.modules.get("ssl"), name, _Nothing)
