# SPDX-License-Identifier: MIT
"""Companion processes, which run beside the web workers under the same server.

The package is imported only where companions are configured, so that a plain
web server pays nothing for it. A target takes `notify` and `lease` from here.
"""

from gunicorn.companion.child.lease import lease
from gunicorn.companion.child.sdnotify import notify

__all__ = ["lease", "notify"]
