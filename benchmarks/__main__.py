# SPDX-License-Identifier: MIT
"""``python -m benchmarks``: measure this server beside its peers."""

from __future__ import annotations

import sys

from benchmarks.cli import main

if __name__ == "__main__":
    sys.exit(main())
