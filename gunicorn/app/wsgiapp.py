# SPDX-License-Identifier: MIT
"""The ``gunicorn`` command: serve a WSGI callable or a PasteDeploy file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import Application, WSGICallable
from gunicorn.errors import ConfigError
from gunicorn.unix.exit import end_fork

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


class WSGIApplication(Application):
    """The application that the command line or the configuration names; ``app_uri`` is that name."""

    app_uri: str | None = None

    def init(self, parser: ArgumentParser, opts: Namespace, args: list[str]) -> dict[str, Any] | None:
        self.app_uri = None
        if opts.paste:
            self._use_paste(opts.paste)
        elif args:
            if len(args) > 1:
                parser.error(f"expected one application, got {len(args)}: {' '.join(args)}")
            self.cfg.set("default_proc_name", args[0])
            self.app_uri = args[0]
        return None

    def _use_paste(self, location: str) -> None:
        from gunicorn.app.pasterapp import has_logging_config

        self.app_uri = os.path.join(self._start.directory, location)
        path = self.app_uri.partition("#")[0]
        if not os.path.exists(path):
            raise ConfigError(f"paste: there is no file {path}")
        self.cfg.set("default_proc_name", path)
        if has_logging_config(path) and self.cfg.logconfig is None:
            self.cfg.set("logconfig", path)

    def load_config(self) -> None:
        super().load_config()
        if self.app_uri is not None:
            return
        if self.cfg.paste is not None:
            self._use_paste(self.cfg.paste)
        elif self.cfg.wsgi_app is not None:
            self.app_uri = self.cfg.wsgi_app
        else:
            raise ConfigError(
                "no application to serve: name one as MODULE:CALLABLE, for example `gunicorn shop.wsgi:app`, "
                "or set wsgi_app in the configuration file"
            )

    def load_wsgiapp(self) -> WSGICallable:
        from gunicorn.loading import import_app

        return import_app(self.app_uri or "")

    def load_pasteapp(self) -> WSGICallable:
        from gunicorn.app.pasterapp import get_wsgi_app

        return get_wsgi_app(self.app_uri or "", defaults=self.cfg.paste_global_conf)

    def load(self) -> WSGICallable:
        return self.load_pasteapp() if self.cfg.paste is not None else self.load_wsgiapp()


def run(prog: str | None = None) -> None:
    """The console script; *prog* is its name in ``--help``."""
    app = WSGIApplication("%(prog)s [OPTIONS] [MODULE:CALLABLE]", prog=prog)
    pid = os.getpid()
    try:
        app.run()
    except SystemExit as exc:
        # In a worker. Python would not free all that is frozen, but would write to most of it.
        if os.getpid() != pid and app.cfg.preload_app and app.cfg.gc_freeze:
            end_fork(exc)
        raise


if __name__ == "__main__":
    run()
