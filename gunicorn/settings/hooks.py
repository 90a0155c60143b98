# SPDX-License-Identifier: MIT
"""The functions that the server calls at the turns of its life; set in a configuration file."""

from __future__ import annotations

from typing import Any

from gunicorn.settings.base import Setting
from gunicorn.settings.validators import validate_callable, validate_post_request


def own_hook(cfg: Any, name: str) -> Any:
    """The hook *name* of *cfg*; None for the default, which does nothing and need not be called."""
    setting = cfg.settings[name]
    hook = setting.get()
    return None if hook is setting.default else hook


class OnStarting(Setting):
    name = "on_starting"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(1)
    default_text = "``def on_starting(server)``, does nothing"
    desc = """\
        Called in the master before anything is set up; the log is there, listeners are not.
        """

    def on_starting(server: Any) -> None:
        pass

    default = on_starting


class OnReload(Setting):
    name = "on_reload"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(1)
    default_text = "``def on_reload(server)``, does nothing"
    desc = """\
        Called in the master on SIGHUP, when the new configuration is in place, before new workers start.
        """

    def on_reload(server: Any) -> None:
        pass

    default = on_reload


class WhenReady(Setting):
    name = "when_ready"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(1)
    default_text = "``def when_ready(server)``, does nothing"
    desc = """\
        Called in the master once it listens, before the first worker is forked.
        """

    def when_ready(server: Any) -> None:
        pass

    default = when_ready


class Prefork(Setting):
    name = "pre_fork"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(2)
    default_text = "``def pre_fork(server, worker)``, does nothing"
    desc = """\
        Called in the master before each fork of a worker.
        """

    def pre_fork(server: Any, worker: Any) -> None:
        pass

    default = pre_fork


class Postfork(Setting):
    name = "post_fork"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(2)
    default_text = "``def post_fork(server, worker)``, does nothing"
    desc = """\
        Called in each worker right after its fork.

        The place to make again what must not be shared with a preloaded application: database
        connections, threads, clients of other services. For companions there is
        ``companion_post_fork``.
        """

    def post_fork(server: Any, worker: Any) -> None:
        pass

    default = post_fork


class PostWorkerInit(Setting):
    name = "post_worker_init"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(1)
    default_text = "``def post_worker_init(worker)``, does nothing"
    desc = """\
        Called in each worker when it has loaded the application and is about to serve.
        """

    def post_worker_init(worker: Any) -> None:
        pass

    default = post_worker_init


class WorkerInt(Setting):
    name = "worker_int"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(1)
    default_text = "``def worker_int(worker)``, does nothing"
    desc = """\
        Called in a worker that got SIGINT or SIGQUIT.
        """

    def worker_int(worker: Any) -> None:
        pass

    default = worker_int


class WorkerAbort(Setting):
    name = "worker_abort"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(1)
    default_text = "``def worker_abort(worker)``, does nothing"
    desc = """\
        Called in a worker that got SIGABRT, which is how the master ends one that was silent for ``timeout``.

        The place to write down where it hangs, with ``faulthandler`` for example.
        """

    def worker_abort(worker: Any) -> None:
        pass

    default = worker_abort


class PreExec(Setting):
    name = "pre_exec"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(1)
    default_text = "``def pre_exec(server)``, does nothing"
    desc = """\
        Called in the child that is about to become the new master on SIGUSR2.
        """

    def pre_exec(server: Any) -> None:
        pass

    default = pre_exec


class PreRequest(Setting):
    name = "pre_request"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(2)
    default_text = "``def pre_request(worker, req)``, does nothing"
    desc = """\
        Called in the worker before each request is given to the application.
        """

    def pre_request(worker: Any, req: Any) -> None:
        pass

    default = pre_request


class PostRequest(Setting):
    name = "post_request"
    section = "Server Hooks"
    type = callable
    validator = validate_post_request
    default_text = "``def post_request(worker, req, environ, resp)``, does nothing"
    desc = """\
        Called in the worker after each request.

        A function that takes the first two or three arguments only is given these.
        """

    def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
        pass

    default = post_request


class ChildExit(Setting):
    name = "child_exit"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(2)
    default_text = "``def child_exit(server, worker)``, does nothing"
    desc = """\
        Called in the master after a worker has ended.
        """

    def child_exit(server: Any, worker: Any) -> None:
        pass

    default = child_exit


class WorkerExit(Setting):
    name = "worker_exit"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(2)
    default_text = "``def worker_exit(server, worker)``, does nothing"
    desc = """\
        Called in a worker right before it ends, if it ends by itself.
        """

    def worker_exit(server: Any, worker: Any) -> None:
        pass

    default = worker_exit


class NumWorkersChanged(Setting):
    name = "nworkers_changed"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(3)
    default_text = "``def nworkers_changed(server, new_value, old_value)``, does nothing"
    desc = """\
        Called in the master when the wanted number of workers has changed.

        The old value is None the first time.
        """

    def nworkers_changed(server: Any, new_value: Any, old_value: Any) -> None:
        pass

    default = nworkers_changed


class OnExit(Setting):
    name = "on_exit"
    section = "Server Hooks"
    validator = validate_callable(1)
    default_text = "``def on_exit(server)``, does nothing"
    desc = """\
        Called in the master right before it exits.
        """

    def on_exit(server: Any) -> None:
        pass

    default = on_exit


class NewSSLContext(Setting):
    name = "ssl_context"
    section = "Server Hooks"
    type = callable
    validator = validate_callable(2)
    default_text = (
        "``def ssl_context(config, default_ssl_context_factory)``, returns ``default_ssl_context_factory()``"
    )
    desc = """\
        Called to make the ``ssl.SSLContext`` of connections.

        Take what ``default_ssl_context_factory()`` returns, with the settings of the section SSL
        applied, and change it, or make one of your own. For example, to refuse what is older than TLS
        1.3::

            def ssl_context(config, default_ssl_context_factory):
                import ssl
                context = default_ssl_context_factory()
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                return context
        """

    def ssl_context(config: Any, default_ssl_context_factory: Any) -> Any:
        return default_ssl_context_factory()

    default = ssl_context
