# SPDX-License-Identifier: MIT
"""The names of ``ssl`` for those who only ask whether an error or a socket is of that kind.

``ssl`` is an eighth of what a start imports. Where nothing has imported it there can be neither: each name
stands for a class that nothing is of::

    if TYPE_CHECKING:
        import ssl
    else:
        from gunicorn import maybessl as ssl
"""

from __future__ import annotations

import sys
from typing import Any


class _Nothing(Exception):
    """Never raised."""


def __getattr__(name: str) -> Any:
    # Half imported, by another thread, it has made no socket either.
    return getattr(sys.modules.get("ssl"), name, _Nothing)
