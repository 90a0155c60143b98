# SPDX-License-Identifier: MIT
"""Takes the lowest descriptors while others are imported, as the master does where it reads its files.

From libffi 3.5 on one stays open where ctypes is imported.
"""

from __future__ import annotations

import os

TAKEN = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]


def give_back() -> None:
    while TAKEN:
        os.close(TAKEN.pop())
