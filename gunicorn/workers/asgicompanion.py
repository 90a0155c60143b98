# SPDX-License-Identifier: MIT
"""What is different for the asgi worker in a companion, which the manager has started on its own sockets."""

from __future__ import annotations

import os
import socket
from typing import Any

from gunicorn.companion.child.sdnotify import notify
from gunicorn.config import Config
from gunicorn.errors import AppImportError
from gunicorn.glogging import Logger
from gunicorn.loading import import_app, is_wsgi
from gunicorn.systemd import SD_LISTEN_FDS_START, listen_fds
from gunicorn.workers.base import Worker


class CompanionLife(Worker):
    """A worker without a master: its heartbeat goes to the manager, which replaces it when it ends."""

    def is_parent_alive(self) -> bool:
        # The manager decides how long a companion lives, and a new one takes over from the old one.
        return True

    def notify(self) -> None:
        notify(ready=not self.booted, watchdog=True)
        super().notify()

    def retire(self) -> None:
        if self.alive:
            self.log.info("It has served %s requests, and ends", self.nr)
            self.leave()

    def start(self, application: str) -> None:
        """Load *application*, and serve it until the stop signal. Raises SystemExit then."""
        self.pid = os.getpid()
        self._open_pipe()
        self.init_signals()
        self.wsgi = import_app(application)
        if is_wsgi(self.wsgi):
            raise AppImportError(f"{application} is a WSGI application, and ASGI is served here")
        self.cycle  # noqa: B018 - as in a web worker
        self._running = True
        self.run()


def config_of(settings: dict[str, Any]) -> Config:
    """Return the configuration with *settings*. Raises ValueError or AttributeError for what is none."""
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


def make(worker_class: Any, settings: dict[str, Any]) -> Any:
    """Make a worker of *worker_class* on the sockets of ``bind``. Raises ValueError without any."""
    cfg = config_of(settings)
    worker_class.check_config(cfg, None)
    count = listen_fds()
    if not count:
        raise ValueError('the companion has no address: give it "bind"')
    sockets = [socket.socket(fileno=fd) for fd in range(SD_LISTEN_FDS_START, SD_LISTEN_FDS_START + count)]
    return worker_class(0, os.getppid(), sockets, None, cfg.timeout / 2, cfg, Logger(cfg))
