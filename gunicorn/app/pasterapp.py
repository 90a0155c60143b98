# SPDX-License-Identifier: MIT
"""PasteDeploy: applications from its files, and the server as its ``server_runner``."""

from __future__ import annotations

import configparser
import os
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import WSGICallable
from gunicorn.app.configfile import did_you_mean
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.errors import ConfigError, all_mistakes
from gunicorn.loading import getcwd
from gunicorn.settings import redact

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def get_wsgi_app(
    config_uri: str, name: str | None = None, defaults: dict[str, str] | None = None
) -> WSGICallable:
    """The application in a PasteDeploy file, or at another URI that PasteDeploy knows."""
    try:
        from paste.deploy import loadapp
    except ImportError as error:
        raise ConfigError(f"paste: the package PasteDeploy is needed ({error})") from error
    if ":" not in config_uri:
        config_uri = f"config:{config_uri}"
    app: WSGICallable = loadapp(config_uri, name=name, relative_to=getcwd(), global_conf=defaults)
    return app


def has_logging_config(config_file: str) -> bool:
    """Whether the file configures logging as well."""
    parser = configparser.RawConfigParser()
    parser.read([config_file])
    return parser.has_section("loggers")


class PasterServerApplication(WSGIApplication):
    """An application that PasteDeploy has loaded, with the settings of the server section."""

    def __init__(self, app: WSGICallable, global_conf: dict[str, str], settings: dict[str, Any]) -> None:
        self._app = app
        self._global_conf = global_conf
        self._server_section = settings
        super().__init__()

    def init(self, parser: ArgumentParser, opts: Namespace, args: list[str]) -> dict[str, Any] | None:
        return None

    def load_config(self) -> None:
        # The command line belongs to the program that runs PasteDeploy.
        path = self._global_conf.get("__file__")
        settings = dict(self._server_section)
        if path:
            self.cfg.set("default_proc_name", path)
            if has_logging_config(path):
                self.cfg.set("logconfig", path)
        location = settings.pop("config", None) or self._default_config_file()
        if location:
            self.load_config_from_file(location)
        mistakes = []
        for name, value in settings.items():
            if value is None:
                continue
            key = name.lower()
            if key not in self.cfg.settings:
                mistakes.append(f"{name} is not a setting{did_you_mean(key, self.cfg.settings)}")
                continue
            try:
                self._set(f"{name} = {redact.in_value({name: value})[name]}", key, value)
            except ConfigError as error:
                mistakes.append(str(error))
        if mistakes:
            raise ConfigError(all_mistakes("server section", mistakes))
        self._files_read = [source.path for source in self.cfg.sources]
        self.chdir()

    def load(self) -> WSGICallable:
        return self._app


def serve(app: WSGICallable, global_conf: dict[str, str] | None = None, **local_conf: Any) -> None:
    """Serve *app* with the settings in *local_conf*: the entry point of ``use = egg:gunicorn``.

    ``host`` and ``port`` are accepted too. The section outranks a ``config`` file in it.
    """
    host, port = local_conf.pop("host", ""), local_conf.pop("port", "")
    if host and port:
        local_conf["bind"] = f"{host}:{port}"
    elif port:
        local_conf["bind"] = f":{port}"
    elif host:
        local_conf["bind"] = host.split(",")
    conf = dict(global_conf or {})
    if conf.get("__file__"):
        conf["__file__"] = os.path.abspath(conf["__file__"])
    PasterServerApplication(app, conf, local_conf).run()
