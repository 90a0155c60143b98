# SPDX-License-Identifier: MIT
"""Config: the value of every setting, and values derived from several of them."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gunicorn import __version__
from gunicorn.loading import load_class
from gunicorn.settings import *  # noqa: F403 - every setting and validator is importable from here
from gunicorn.settings import redact
from gunicorn.settings.base import KNOWN_SETTINGS, SECTIONS, Setting, make_settings
from gunicorn.settings.logging import LoggerClass
from gunicorn.settings.monitor import monitor_companion
from gunicorn.settings.validators import Address, describe, parse_address

if TYPE_CHECKING:
    from argparse import ArgumentParser

PLATFORM = sys.platform
STATSD_LOGGER = "gunicorn.instrument.statsd.Statsd"
SYNC_WORKERS = ("sync", "gunicorn.workers.sync.SyncWorker", "egg:gunicorn#sync")
THREAD_WORKER = "gunicorn.workers.gthread.ThreadWorker"

__all__ = ["KNOWN_SETTINGS", "PLATFORM", "Config", "Setting", "get_default_config_file", "make_settings"]


class Config:
    """The settings by name in ``settings``; ``cfg.NAME`` is the value of the setting NAME.

    If a property below has the name of a setting, ``cfg.NAME`` is the effective value, and
    ``cfg.settings[NAME].get()`` the configured one.
    """

    settings: dict[str, Setting]

    def __init__(self, usage: str | None = None, prog: str | None = None) -> None:
        self.settings = make_settings()
        self.usage = usage
        self.prog = prog or os.path.basename(sys.argv[0])
        #: The environment before `raw_env` was applied to it.
        self.env_orig: dict[str, str] = os.environ.copy()
        #: The configuration files that were read, with the names they define, in order.
        self.sources: list[Any] = []
        #: What reading them changed in the process and on the application; `adopt_config` applies it.
        self.effects: Any = None
        self.noted: dict[str, Any] = {}

    def __str__(self) -> str:
        """A line for each setting, without secrets and without values of environments: for the log."""
        return self._lines({}, redact.in_setting)

    def shown(self, derived: Mapping[str, Any]) -> str:
        """A line for each setting, without secrets; *derived* values replace the configured ones."""
        return self._lines(derived, lambda name, value: redact.in_value(value))

    def _lines(self, derived: Mapping[str, Any], hide: Callable[[str, Any], Any]) -> str:
        width = max(map(len, self.settings))
        lines = []
        for name, setting in sorted(self.settings.items()):
            value = hide(name, derived.get(name, setting.get()))
            lines.append(f"{name:<{width}} = {(setting.formatter or _shown)(value)}")
        return "\n".join(lines)

    def __getattr__(self, name: str) -> Any:
        # copy and pickle ask before __init__ has run.
        settings = self.__dict__.get("settings", {})
        if name not in settings:
            raise AttributeError(f"there is no setting {name!r}")
        return settings[name].get()

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "settings" and name in self.__dict__.get("settings", {}):
            raise AttributeError(f"use cfg.set({name!r}, value), so that the value is checked")
        super().__setattr__(name, value)

    def set(self, name: str, value: Any) -> None:
        """Check *value* and set it. Raises AttributeError for an unknown *name*, else as its validator."""
        if name not in self.settings:
            raise AttributeError(f"there is no setting {name!r}")
        self.settings[name].set(value)

    def get_cmd_args_from_env(self) -> list[str]:
        """The flags in ``GUNICORN_CMD_ARGS``, split as a shell does."""
        text = os.environ.get("GUNICORN_CMD_ARGS", "")
        if not text:
            return []
        import shlex

        return shlex.split(text)

    def parser(self) -> ArgumentParser:
        """Return a parser for all flags; a missing flag is None. ``args`` is the rest: the application."""
        import argparse

        from gunicorn.settings.commandline import Parser

        # argparse makes a formatter for each option, which would ask for the width of the terminal.
        formatter = functools.partial(argparse.HelpFormatter, width=80)
        parser = Parser(prog=self.prog, usage=self.usage, formatter_class=formatter)
        parser.add_argument(
            "-v",
            "--version",
            action="version",
            default=argparse.SUPPRESS,
            version=f"%(prog)s (version {__version__})",
            help="show the version and exit",
        )
        parser.add_argument("args", nargs="*", help=argparse.SUPPRESS)
        for section, settings in self._by_section():
            options = [setting for setting in settings if setting.cli]
            group = parser.add_argument_group(section) if options else None
            for setting in options:
                assert group is not None
                setting.add_option(group)
        parser.formatter_class = argparse.HelpFormatter
        return parser

    def _by_section(self) -> list[tuple[str, list[Setting]]]:
        sections: dict[str, list[Setting]] = {name: [] for name in SECTIONS}
        for setting in sorted(self.settings.values(), key=lambda setting: setting.order):
            sections.setdefault(setting.section or "Others", []).append(setting)
        return [(name, settings) for name, settings in sections.items() if settings]

    # -- what follows from the settings ------------------------------------------------------

    @property
    def worker_uri(self) -> Any:
        """The configured worker class; the threaded one instead of ``sync`` if there are ``threads``."""
        uri = self.settings["worker_class"].get()
        if uri in SYNC_WORKERS and self.threads > 1:
            return THREAD_WORKER
        return uri

    @property
    def worker_class_str(self) -> str:
        """The worker class in words: its alias, its path or the name of the class."""
        uri = self.worker_uri
        if isinstance(uri, type):
            return uri.__name__
        return "gthread" if uri == THREAD_WORKER else str(uri)

    @property
    def worker_class(self) -> type[Any]:
        """The worker class itself; its class method ``setup()`` has been called. Raises RuntimeError."""
        worker_class = load_class(self.worker_uri)
        if hasattr(worker_class, "setup"):
            worker_class.setup()
        return worker_class

    @property
    def address(self) -> list[Address]:
        """The addresses in ``bind``: (host, port), a path, or a descriptor's number. Raises RuntimeError."""
        return [parse_address(text) for text in self.settings["bind"].get()]

    @property
    def uid(self) -> int:
        return self.settings["user"].get()  # type: ignore[no-any-return]

    @property
    def gid(self) -> int:
        return self.settings["group"].get()  # type: ignore[no-any-return]

    @property
    def proc_name(self) -> str:
        name: str | None = self.settings["proc_name"].get()
        return name if name is not None else self.settings["default_proc_name"].get()

    @property
    def logger_class(self) -> type[Any]:
        """The logger class; its class method ``install()`` has been called. Raises RuntimeError."""
        uri = self.settings["logger_class"].get()
        if uri in (None, "simple"):
            uri = LoggerClass.default
        if uri == LoggerClass.default and self.settings["statsd_host"].get() is not None:
            uri = STATSD_LOGGER
        logger_class = load_class(uri, default=LoggerClass.default, section="gunicorn.loggers")
        if hasattr(logger_class, "install"):
            logger_class.install()
        return logger_class

    @property
    def is_ssl(self) -> bool:
        return bool(self.certfile or self.keyfile)

    @property
    def ssl_options(self) -> dict[str, Any]:
        """The settings of the section SSL by name."""
        return {name: setting.get() for name, setting in self.settings.items() if setting.section == "SSL"}

    @property
    def env(self) -> dict[str, str]:
        """The variables in ``raw_env``. Raises RuntimeError for entries other than ``KEY=VALUE``."""
        variables = {}
        for text in self.settings["raw_env"].get() or ():
            key, separator, value = text.partition("=")
            if not (separator and key):
                raise RuntimeError(f"raw_env: expected KEY=VALUE, not {text!r}")
            variables[key] = value
        return variables

    @property
    def companion_workers(self) -> list[dict[str, Any]]:
        """The configured companions, and the monitor if there is to be one."""
        found: list[dict[str, Any]] = self.settings["companion_workers"].get()
        return [*found, monitor_companion(self)] if self.monitor else found

    @property
    def sendfile(self) -> bool:
        """Whether the kernel may send files: yes, unless it is turned off."""
        return self.settings["sendfile"].get() is not False

    @property
    def reuse_port(self) -> bool:
        """Whether to set SO_REUSEPORT: configured, and known to this system."""
        if not self.settings["reuse_port"].get():
            return False
        import socket

        return hasattr(socket, "SO_REUSEPORT")

    @property
    def paste_global_conf(self) -> dict[str, str] | None:
        """The variables in ``raw_paste_global_conf``, or None. Raises RuntimeError for a malformed one."""
        pairs = self.settings["raw_paste_global_conf"].get()
        if not pairs:
            return None
        variables = {}
        for text in pairs:
            key, separator, value = text.replace("\\=", "\0").partition("=")
            if not (separator and key):
                raise RuntimeError(f"raw_paste_global_conf: expected KEY=VALUE, not {text!r}")
            variables[key.replace("\0", "=")] = value.replace("\0", "=")
        return variables


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if callable(value):
        return f"<{describe(value)}>"
    if isinstance(value, (list, tuple)):
        left, right = ("[", "]") if isinstance(value, list) else ("(", ")")
        return left + ", ".join(map(_shown_inside, value)) + right
    if isinstance(value, dict):
        return _shown_inside(value)
    # One setting, one line.
    return repr(value) if isinstance(value, str) and "\n" in value else str(value)


def _shown_inside(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_shown_inside(item)}" for key, item in value.items()) + "}"
    if callable(value) or isinstance(value, (list, tuple)):
        return _shown(value)
    return repr(value)


def get_default_config_file() -> str | None:
    """The path of ``gunicorn.conf.py`` in the working directory, or None if there is none."""
    try:
        path = os.path.join(os.path.abspath(os.getcwd()), "gunicorn.conf.py")
    except FileNotFoundError:
        return None  # the directory itself was removed
    return path if os.path.exists(path) else None
