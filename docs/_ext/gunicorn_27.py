# SPDX-License-Identifier: MIT
"""The table of settings that Gunicorn 24 to 27 added, from the settings themselves.

Written as ``gunicorn_27.inc`` before each build; ``python gunicorn_27.py`` prints it.
"""

from __future__ import annotations

from generated import writes
from settings_page import default

from gunicorn.settings import KNOWN_SETTINGS
from gunicorn.settings.base import ASGI, GUNICORN_27, Setting

HEAD = """\
.. This file is written by _ext/gunicorn_27.py from the settings; changes belong there.

.. list-table::
   :header-rows: 1
   :widths: 34 18 48

   * - setting
     - default
     - here
"""

# The others have a section of their own.
ELSEWHERE = ("protocol", "uwsgi_allow_ips", "enable_backlog_metric")


def added() -> list[type[Setting]]:
    """The settings that Gunicorn 24 to 27 added."""
    return [cls for cls in KNOWN_SETTINGS if cls.section in (ASGI, GUNICORN_27) or cls.name in ELSEWHERE]


def table() -> str:
    return HEAD + "".join(_row(cls) for cls in added())


def _row(cls: type[Setting]) -> str:
    name = str(cls.name)
    here = cls.short if cls.section == GUNICORN_27 else f"Works. {cls.short}"
    return f"   * - :ref:`{name} <setting-{name.replace('_', '-')}>`\n     - {default(cls)}\n     - {here}\n"


setup = writes("gunicorn_27.inc", table)

if __name__ == "__main__":
    print(table(), end="")
