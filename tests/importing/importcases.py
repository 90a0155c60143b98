# SPDX-License-Identifier: MIT
"""The files that the tests import, and what is expected of each.

``python tests/importing/importcases.py`` writes the expected texts anew: look at the difference.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from gunicorn.companion.importing.command import translate

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
EXPECTED = HERE / "expected"

# Variables that the files mention.
VARIABLES = {
    "APP_HOME": "/srv/shop",
    "CACHE_HOST": "cache",
    "CELERY_BIN": "celery",
    "DATABASE_URL": "postgres://shop:50%25@db/shop",
    "STAGE": "live",
    "VIRTUAL_ENV": "/srv/shop/venv",
}

# Units of systemd that belong together.
UNITS = {
    "celery": ["celery.service"],
    "chat": ["chat.service", "chat.socket", "migrate.service"],
    "multi": ["multi.service"],
    "shop": ["shop-rq@.service"],
    "template": ["rq@.service"],
    "timer": ["backup.service", "backup.timer"],
    "timers": ["report.service", "report.timer", "sweep.service", "sweep.timer", "odd.service", "odd.timer"],
    "web": ["web.service", "web-worker.service"],
}


def cases() -> dict[str, list[str]]:
    """The files of each case by its name, relative to `DATA`."""
    found = {
        str(path.relative_to(DATA)): [str(path.relative_to(DATA))]
        for path in sorted(DATA.glob("*/*"))
        if path.is_file() and path.parent.name != "systemd"
    }
    return found | {f"systemd/{name}": [f"systemd/{unit}" for unit in units] for name, units in UNITS.items()}


CASES = cases()


@functools.cache
def _copy() -> Path:
    """The files at a path of one length on every host, as long lines are broken."""
    place = Path(tempfile.mkdtemp(prefix="data-", dir="/tmp"))
    atexit.register(shutil.rmtree, place)
    shutil.copytree(DATA, place, dirs_exist_ok=True)
    return place


@functools.cache
def translated(*files: str) -> str:
    """The translation, without the place of the files."""
    before = os.getcwd()
    os.chdir(_copy())
    try:
        text = translate(files)
    finally:
        os.chdir(before)
    return text.replace(str(_copy()), "/data")


def expected(case: str) -> Path:
    return EXPECTED / f"{case.replace('/', '-')}.txt"


if __name__ == "__main__":
    for case, files in CASES.items():
        expected(case).write_text(translated(*files))
