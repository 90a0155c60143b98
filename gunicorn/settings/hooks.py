# SPDX-License-Identifier: MIT
"""The functions that the server calls at the turns of its life; set in a configuration file."""

from __future__ import annotations

from typing import Any

from gunicorn.settings.base import SERVER_HOOKS
from gunicorn.settings.kinds import hook
from gunicorn.settings.validators import validate_post_request


def own_hook(cfg: Any, name: str) -> Any:
    """The hook *name* of *cfg*; None for the default, which does nothing and need not be called."""
    setting = cfg.settings[name]
    hook = setting.get()
    return None if hook is setting.default else hook


@hook("OnStarting", section=SERVER_HOOKS)
def on_starting(server: Any) -> None:
    """Called in the master before anything is set up; the log is there, listeners are not."""


@hook("OnReload", section=SERVER_HOOKS)
def on_reload(server: Any) -> None:
    """Called in the master on SIGHUP, when the new configuration is in place, before new workers start."""


@hook("WhenReady", section=SERVER_HOOKS)
def when_ready(server: Any) -> None:
    """Called in the master once it listens, before the first worker is forked."""


@hook("Prefork", section=SERVER_HOOKS)
def pre_fork(server: Any, worker: Any) -> None:
    """Called in the master before each fork of a worker."""


@hook("Postfork", section=SERVER_HOOKS)
def post_fork(server: Any, worker: Any) -> None:
    """Called in each worker right after its fork.

    The place to make again what must not be shared with a preloaded application: database
    connections, threads, clients of other services. For companions there is
    ``companion_post_fork``.
    """


@hook("PostWorkerInit", section=SERVER_HOOKS)
def post_worker_init(worker: Any) -> None:
    """Called in each worker when it has loaded the application and is about to serve."""


@hook("WorkerInt", section=SERVER_HOOKS)
def worker_int(worker: Any) -> None:
    """Called in a worker that got SIGINT or SIGQUIT."""


@hook("WorkerAbort", section=SERVER_HOOKS)
def worker_abort(worker: Any) -> None:
    """Called in a worker that got SIGABRT, which is how the master ends one that was silent for ``timeout``.

    The place to write down where it hangs, with ``faulthandler`` for example.
    """


@hook("PreExec", section=SERVER_HOOKS)
def pre_exec(server: Any) -> None:
    """Called in the child that is about to become the new master on SIGUSR2."""


@hook("PreRequest", section=SERVER_HOOKS)
def pre_request(worker: Any, req: Any) -> None:
    """Called in the worker before each request is given to the application."""


@hook("PostRequest", section=SERVER_HOOKS, validator=validate_post_request)
def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """Called in the worker after each request.

    A function that takes the first two or three arguments only is given these.
    """


@hook("ChildExit", section=SERVER_HOOKS)
def child_exit(server: Any, worker: Any) -> None:
    """Called in the master after a worker has ended."""


@hook("WorkerExit", section=SERVER_HOOKS)
def worker_exit(server: Any, worker: Any) -> None:
    """Called in a worker right before it ends, if it ends by itself."""


@hook("NumWorkersChanged", section=SERVER_HOOKS)
def nworkers_changed(server: Any, new_value: Any, old_value: Any) -> None:
    """Called in the master when the wanted number of workers has changed.

    The old value is None the first time.
    """


@hook("OnExit", section=SERVER_HOOKS)
def on_exit(server: Any) -> None:
    """Called in the master right before it exits."""


@hook(
    "NewSSLContext",
    section=SERVER_HOOKS,
    does="returns ``default_ssl_context_factory()``",
)
def ssl_context(config: Any, default_ssl_context_factory: Any) -> Any:
    """Called to make the ``ssl.SSLContext`` of connections.

    Take what ``default_ssl_context_factory()`` returns, with the settings of the section SSL
    applied, and change it, or make one of your own. For example, to refuse what is older than TLS
    1.3::

        def ssl_context(config, default_ssl_context_factory):
            import ssl
            context = default_ssl_context_factory()
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            return context
    """
    return default_ssl_context_factory()
