# SPDX-License-Identifier: MIT
"""Apply ``logconfig``, ``logconfig_dict`` and ``logconfig_json``, and undo a setup that fails."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from typing import Any

from gunicorn.errors import ConfigError
from gunicorn.logs.files import open_safely_later, opening_safely, report_write_error

ERROR_FORMAT = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
DATE_FORMAT = "[%Y-%m-%d %H:%M:%S %z]"

#: `logconfig_dict` and `logconfig_json` replace single keys of it.
CONFIG_DEFAULTS: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "INFO", "handlers": ["console"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["error_console"], "propagate": False},
        "gunicorn.access": {"level": "INFO", "handlers": ["console"], "propagate": False},
    },
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "formatter": "generic",
            "stream": "ext://sys.stdout",
        },
        "error_console": {
            "class": "logging.StreamHandler",
            "formatter": "generic",
            "stream": "ext://sys.stderr",
        },
    },
    "formatters": {
        "generic": {"format": ERROR_FORMAT, "datefmt": DATE_FORMAT, "class": "logging.Formatter"},
    },
}


def loggers() -> list[logging.Logger]:
    """Return all loggers, the root logger first."""
    # Copied in one step, because threads may ask for new loggers meanwhile.
    existing = list(logging.root.manager.loggerDict.values())
    return [logging.root, *(log for log in existing if isinstance(log, logging.Logger))]


@contextlib.contextmanager
def all_or_nothing() -> Iterator[list[logging.Handler]]:
    """If the block raises, restore every logger; else close the handlers that it put in the list."""
    before = [(log, log.level, list(log.handlers), log.propagate, log.disabled) for log in loggers()]
    replaced: list[logging.Handler] = []
    try:
        yield replaced
    except BaseException:
        for log, level, handlers, propagate, disabled in before:
            for handler in [found for found in log.handlers if found not in handlers]:
                handler.close()
            log.handlers[:] = handlers
            log.setLevel(level)
            log.propagate, log.disabled = propagate, disabled
        raise
    in_use = {id(handler) for log in loggers() for handler in log.handlers}
    for handler in replaced:
        if id(handler) not in in_use:
            handler.close()


def apply_logconfig(cfg: Any) -> None:
    _drop_logconfig()
    if not (cfg.logconfig_dict or cfg.logconfig_json or cfg.logconfig):
        return
    # Not at the top: it imports sockets and pickles, most of the time that logging takes at a start.
    import json
    import logging.config

    before = {id(handler) for log in loggers() for handler in log.handlers}
    try:
        with opening_safely(cfg):
            if cfg.logconfig_dict:
                logging.config.dictConfig({**CONFIG_DEFAULTS, **cfg.logconfig_dict})
            elif cfg.logconfig_json:
                with open(cfg.logconfig_json, encoding="utf-8") as file:
                    logging.config.dictConfig({**CONFIG_DEFAULTS, **json.load(file)})
            else:
                _apply_logconfig_file(cfg.logconfig)
    except Exception as error:
        # The errors of the standard library name only the place; their cause is the reason.
        cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
        where = cfg.logconfig_json or cfg.logconfig
        name = "logconfig_dict" if cfg.logconfig_dict else f"log configuration {where!r}"
        # A KeyError has only the name.
        reason = f"there is no section or key {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"{name}: {reason}{cause}") from error
    for log in loggers():
        for handler in log.handlers:
            if id(handler) not in before:
                handler._gunicorn_logconfig = True  # type: ignore[attr-defined]
                open_safely_later(handler, cfg)
                if type(handler).handleError is logging.Handler.handleError:
                    handler.handleError = functools.partial(report_write_error, handler)  # type: ignore[method-assign]


def _apply_logconfig_file(path: str) -> None:
    if not os.path.exists(path):
        raise FileNotFoundError("there is no such file")
    import logging.config

    logging.config.fileConfig(
        path,
        defaults={"__file__": path, "here": os.path.dirname(os.path.abspath(path))},
        disable_existing_loggers=False,
    )


def _drop_logconfig() -> None:
    """Remove the handlers of an earlier logconfig: the next may name other loggers, or be none."""
    for log in loggers():
        for handler in list(log.handlers):
            if getattr(handler, "_gunicorn_logconfig", False):
                log.removeHandler(handler)
