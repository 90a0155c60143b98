# SPDX-License-Identifier: MIT
"""Write ``settings.rst`` from the settings themselves.

As a Sphinx extension it writes it before each build; ``python settings_page.py`` prints the page.
"""

from __future__ import annotations

from generated import writes

from gunicorn.settings import KNOWN_SETTINGS, SECTIONS
from gunicorn.settings.base import Setting

HEAD = """\
.. This page is written by _ext/settings_page.py from the settings; changes belong there.

.. _settings:

Settings
========

Each setting has a default. Later entries of this list override earlier ones:

1. the defaults, with the environment variables ``WEB_CONCURRENCY``, ``PORT`` and ``FORWARDED_ALLOW_IPS``;
2. settings of an embedding application or framework;
3. the configuration file: the one that ``-c`` names, else ``gunicorn.conf.py`` in the current directory;
4. the file in ``companion_config_file``, for companions only;
5. flags in the environment variable ``GUNICORN_CMD_ARGS``, for example ``--bind 127.0.0.1:8001 --workers 3``;
6. flags on the command line.

The configuration file is Python, and a setting is a variable with its name::

    bind = "unix:/run/shop.sock"
    workers = 4
    preload_app = True

    def post_fork(server, worker):
        worker.log.info("worker %s is here", worker.pid)

Other names are your own variables; only names that begin with ``companion_`` must be settings.
``gunicorn --check-config`` checks the configuration, and ``gunicorn --print-config`` shows the result.
SIGHUP reads everything again; if anything is wrong, the server logs it and keeps the old configuration.
"""


def page() -> str:
    """The whole page in reStructuredText."""
    sections: dict[str, list[type[Setting]]] = {name: [] for name in SECTIONS}
    for cls in KNOWN_SETTINGS:
        if cls.__module__.startswith("gunicorn.settings."):
            sections.setdefault(cls.section or "Others", []).append(cls)
    blocks = [HEAD]
    for section, settings in sections.items():
        blocks.append(_title(section, "-"))
        blocks += [_entry(cls) for cls in settings]
    return "\n".join(blocks)


def _title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def _entry(cls: type[Setting]) -> str:
    name = str(cls.name)
    facts = []
    if cls.cli:
        facts.append(f":Flag: {', '.join(f'``{flag}{_value(cls)}``' for flag in cls.cli)}")
    facts.append(f":Default: {default(cls)}")
    return f".. _setting-{name.replace('_', '-')}:\n\n{_title(f'``{name}``', '~')}\n" + "\n".join(
        [*facts, "", cls.desc or "", ""]
    )


def _value(cls: type[Setting]) -> str:
    if cls.action in ("store_true", "store_const"):
        return ""
    return f" {cls.meta or str(cls.name).upper()}"


def default(cls: type[Setting]) -> str:
    """The default as a reader would write it."""
    if cls.default_text is not None:
        return cls.default_text
    if cls.default is None:
        return "none"
    return f"``{cls.default!r}``"


setup = writes("settings.rst", page)

if __name__ == "__main__":
    print(page(), end="")
