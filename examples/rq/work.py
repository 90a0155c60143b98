# SPDX-License-Identifier: MIT
"""The jobs. RQ runs each in a work horse, a child that the worker forks for it."""

from __future__ import annotations

import os
import time
from typing import Any

import store

PACKING_SECONDS = float(os.environ.get("SHOP_PACKING_SECONDS", 1))


def pack(item: str) -> dict[str, Any]:
    """Pack an order (simulated)."""
    time.sleep(PACKING_SECONDS)
    return _done(f"packed: {item}")


def take_stock() -> dict[str, Any]:
    """Count what has been done."""
    return _done(f"{store.queue().finished_job_registry.count} jobs on record")


def _done(text: str) -> dict[str, Any]:
    return {
        "text": text,
        "companion": os.environ.get("GUNICORN_COMPANION_NAME", ""),
        "worker_pid": os.getppid(),
        "horse_pid": os.getpid(),
    }
