# SPDX-License-Identifier: MIT
"""How many workers there are, of which kind, how long they live; and what helps during development."""

from __future__ import annotations

from gunicorn.settings.base import DEBUGGING, SERVER_MECHANICS, WORKER_PROCESSES, Setting
from gunicorn.settings.kinds import Count, Flag, Seconds, Text
from gunicorn.settings.validators import (
    validate_list_of_existing_files,
    validate_reload_engine,
    validate_worker_class,
)


class Workers(Count, section=WORKER_PROCESSES, flags="-w --workers", default=1, env_var="WEB_CONCURRENCY"):
    """The number of worker processes.

    Two to four for each core is a fair start; then measure. More workers use more memory, though
    with ``preload_app`` they share most of it. The signals TTIN and TTOU change the number while
    the server runs.

    Where the environment has ``WEB_CONCURRENCY``, that is the default.
    """


class WorkerClass(
    Setting,
    section=WORKER_PROCESSES,
    flags="-k --worker-class",
    meta="STRING",
    validator=validate_worker_class,
    default="sync",
):
    """The kind of worker: ``sync``, ``gthread``, ``gevent``, ``tornado``, or a class of your own.

    ``sync`` serves one request at a time and needs a buffering proxy in front. ``gthread`` serves
    ``threads`` requests at a time and keeps idle connections without a thread. ``gevent`` and
    ``tornado`` need the packages of these names. Anything else is a class by its dotted path,
    ``egg:DISTRIBUTION#NAME``, or the name of an entry point in the group ``gunicorn.workers``; in a
    file it may be the class itself.

    ``sync`` with ``threads`` above 1 means ``gthread``.
    """


class WorkerThreads(Count, section=WORKER_PROCESSES, name="threads", default=1):
    """The number of threads that each ``gthread`` worker serves requests with.

    Each thread serves one request at a time. Useful for applications that wait for databases and
    other services; the application must be safe to call from several threads. The other worker
    classes ignore it.
    """


class WorkerConnections(Count, section=WORKER_PROCESSES, default=1000):
    """The number of connections that one worker keeps open at the same time.

    For ``gthread`` (idle and waiting connections count) and ``gevent``. Keep it below the limit on
    open files (``ulimit -n``).
    """


class MaxRequests(Count, section=WORKER_PROCESSES, default=0):
    """The number of requests after which a worker is replaced by a new one; 0 for never.

    It keeps memory that the application leaks within bounds. Nothing in flight is lost by it.
    Companions are not touched.
    """


class MaxRequestsJitter(Count, section=WORKER_PROCESSES, default=0):
    """The largest random number of requests that a worker adds to ``max_requests``.

    So that not all workers are replaced at the same moment. A tenth of ``max_requests`` is plenty.
    """


class Timeout(Count, section=WORKER_PROCESSES, flags="-t --timeout", default=30):
    """The seconds that a worker may be silent before it is killed and replaced; 0 for no limit.

    For ``sync`` that is the longest time that one request can take. The other classes say that they
    are alive while requests are served, so that there it finds only a worker that hangs as a whole.
    """


class RequestTimeout(Seconds, section=WORKER_PROCESSES, default=0):
    """The seconds that one request may take with ``gthread`` and ``gevent``; 0 for no limit.

    A request that takes longer has its stack logged, which shows where it hangs, and its worker is
    retired: another one takes its place, the other requests are finished, and what still hangs after
    ``graceful_timeout`` ends with the process. Python gives no safe way to end a thread alone. With
    ``sync`` the setting ``timeout`` does this.
    """


class GracefulTimeout(Count, section=WORKER_PROCESSES, default=30):
    """The seconds that workers have to finish their requests on a stop or a reload.

    What is still running then is killed. A service manager's own limit must be longer. Companions
    have limits of their own, see ``companion_stop_timeout``.
    """


class Keepalive(Count, section=WORKER_PROCESSES, flags="--keep-alive", default=2):
    """The seconds that an idle connection is kept for the client's next request; 0 closes it after each one.

    1 to 5 where clients connect directly; longer than the idle limit of a load balancer that reuses
    connections. The ``sync`` worker keeps no connections.
    """


class WorkerTmpDir(
    Text, section=SERVER_MECHANICS, meta="DIR", default_text="the system's directory for temporary files"
):
    """The directory of the files by which workers say that they are alive.

    Such a file is written to at least once a second: on a disk that stalls, a worker stalls too. Choose a
    directory in memory where the default is none, such as ``/dev/shm`` in containers.
    """


class TmpUploadDir(Text, section=SERVER_MECHANICS, flags=None, meta="DIR"):
    """A directory for uploads in progress, for worker classes that store them.

    None of the worker classes that come with the server does; it is there for others.
    """


class PreloadApp(Flag, section=SERVER_MECHANICS, flags="--preload"):
    """Load the application once, in the master, before workers and companions are forked.

    They then share its memory and start at once. Connections, threads and open files that the
    application makes while it is loaded are shared as well and must be made again in ``post_fork``.
    The price: a reload by HUP does not bring new code, since the master has the old one in memory;
    USR2 or a restart does.
    """


class Reload(Flag, section=DEBUGGING):
    """Restart workers and companions whenever a source file that they have loaded changes.

    For development, so that what runs is the code on disk: ``preload_app`` is therefore without
    effect. An application that does not load is answered for by a page with the traceback, until
    a file changes. Changes of the configuration still take a HUP.
    """


class ReloadEngine(
    Setting, section=DEBUGGING, meta="STRING", validator=validate_reload_engine, default="auto"
):
    """How changes are noticed for ``reload``: ``auto``, ``poll`` or ``inotify``.

    ``poll`` looks at the files once a second. ``inotify`` is told by the operating system, on Linux
    and elsewhere, through the package ``watchfiles`` (``pip install watchfiles``); without
    that it polls and says so. ``auto`` is ``inotify`` where the package is installed, and ``poll`` where
    not. Choose ``poll`` for network file systems and for folders shared with a virtual machine.
    """


class ReloadExtraFiles(
    Setting,
    section=DEBUGGING,
    flags="--reload-extra-file",
    meta="FILES",
    action="append",
    validator=validate_list_of_existing_files,
    default=[],
):
    """A further file that ``reload`` watches, such as a template; repeat the flag for more.

    A pattern such as ``templates/*.html`` stands for all files that it fits, those of later too.
    """


class Spew(Flag, section=DEBUGGING):
    """Print every line of Python that the server runs.

    The last resort in debugging, and very slow.
    """


class ConfigCheck(Flag, section=DEBUGGING, name="check_config"):
    """Check the configuration, load the application, and exit: 0 if all is well, 1 if not.

    Companions are checked too. Variables of the configuration file whose names nearly are those of
    settings get a warning. Worth running before each reload of a server in production.
    """


class PrintConfig(Flag, section=DEBUGGING):
    """Print every setting with the value that all layers of configuration give it, check as
    ``--check-config`` does, and exit.
    """
