# SPDX-License-Identifier: MIT
"""Settings for hooks: functions in the configuration file that the server calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gunicorn.settings.base import SERVER_HOOKS
from gunicorn.settings.kinds import hook
from gunicorn.settings.validators import accepts, describe, validate_callable

SECTION = SERVER_HOOKS


def validate_post_request(val: Any) -> Callable[..., Any]:
    """Return a hook of 4 arguments; wrap older ones of 3 (without the response) or 2."""
    hook: Callable[..., Any] = validate_callable(-1)(val)
    if accepts(hook, 4):
        return hook
    if accepts(hook, 3):
        return lambda worker, req, environ, resp: hook(worker, req, environ)
    if accepts(hook, 2):
        return lambda worker, req, environ, resp: hook(worker, req)
    raise TypeError(f"expected a callable that takes 4 arguments; {describe(hook)} does not")


def own_hook(cfg: Any, name: str) -> Any:
    """The hook *name* of *cfg*; None if it is the default, which does nothing."""
    setting = cfg.settings[name]
    hook = setting.get()
    return None if hook is setting.default else hook


@hook("OnStarting")
def on_starting(server: Any) -> None:
    """Called in the master before any set-up. The log is ready, but there are no listeners yet."""


@hook("OnReload")
def on_reload(server: Any) -> None:
    """Called in the master on SIGHUP, between reading the new configuration and starting new workers."""


@hook("WhenReady")
def when_ready(server: Any) -> None:
    """Called in the master when it listens, before it forks the first worker."""


@hook("Prefork")
def pre_fork(server: Any, worker: Any) -> None:
    """Called in the master before each fork of a worker."""


@hook("Postfork")
def post_fork(server: Any, worker: Any) -> None:
    """Called in each worker right after its fork.

    Create here again what must not be shared with a preloaded application: database connections, threads,
    clients of other services. Companions have ``companion_post_fork``.
    """


@hook("PostWorkerInit")
def post_worker_init(worker: Any) -> None:
    """Called in each worker after it has loaded the application, before it serves."""


@hook("WorkerInt")
def worker_int(worker: Any) -> None:
    """Called in a worker that got SIGINT or SIGQUIT."""


@hook("WorkerAbort")
def worker_abort(worker: Any) -> None:
    """Called in a worker that got SIGABRT, which the master sends when the worker was silent for
    ``timeout``.

    Use it to log where the worker hangs, for example with ``faulthandler``.
    """


@hook("PreExec")
def pre_exec(server: Any) -> None:
    """Called in the child that is about to become the new master on SIGUSR2."""


@hook("PreRequest")
def pre_request(worker: Any, req: Any) -> None:
    """Called in the worker before it passes each request to the application."""


@hook("PostRequest", validator=validate_post_request)
def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """Called in the worker after each request.

    A function with only two or three parameters gets the first ones.
    """


@hook("ChildExit")
def child_exit(server: Any, worker: Any) -> None:
    """Called in the master after a worker has ended."""


@hook("WorkerExit")
def worker_exit(server: Any, worker: Any) -> None:
    """Called in a worker right before it ends by itself."""


@hook("NumWorkersChanged")
def nworkers_changed(server: Any, new_value: Any, old_value: Any) -> None:
    """Called in the master when the number of workers to run has changed.

    The old value is None the first time.
    """


@hook("OnExit")
def on_exit(server: Any) -> None:
    """Called in the master right before it exits."""


@hook("NewSSLContext", does="returns ``default_ssl_context_factory()``")
def ssl_context(config: Any, default_ssl_context_factory: Any) -> Any:
    """Called to create the ``ssl.SSLContext`` of connections.

    Call ``default_ssl_context_factory()`` for a context with the settings of the section SSL, and change it,
    or create your own. For example, to refuse versions older than TLS 1.3::

        def ssl_context(config, default_ssl_context_factory):
            import ssl
            context = default_ssl_context_factory()
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            return context
    """
    return default_ssl_context_factory()
