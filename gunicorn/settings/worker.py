# SPDX-License-Identifier: MIT
"""Settings for the number and class of workers, their lifetime, and for development."""

from __future__ import annotations

from typing import Any

from gunicorn.errors import ConfigError
from gunicorn.loading import EVENTLET, EVENTLET_NAMES
from gunicorn.settings.base import DEBUGGING, SERVER_MECHANICS, WORKER_PROCESSES, Setting
from gunicorn.settings.kinds import Count, Flag, Seconds, Text
from gunicorn.settings.validators import (
    check_size,
    or_none,
    validate_class,
    validate_file_exists,
    validate_list_string,
    validate_number,
)

RELOAD_ENGINES = ("auto", "poll", "inotify")

# The scoreboard shows what so many workers do.
MOST_BY_LOAD = 1024


def validate_list_of_existing_files(val: Any) -> list[str]:
    """A list of paths, each of a file that exists or a pattern such as ``templates/*.html``."""
    paths = validate_list_string(val)
    for path in paths:
        if not path:
            raise ValueError("expected the path of a file, not ''")
        if not any(char in path for char in "*?["):
            validate_file_exists(path)
    return paths


def validate_worker_class(val: Any) -> Any:
    chosen = validate_class(val)
    if isinstance(chosen, str) and chosen.lower() in EVENTLET_NAMES:
        raise ValueError(EVENTLET)
    return chosen


def validate_workers_max(val: Any) -> int:
    number = validate_number(val)
    if number > MOST_BY_LOAD:
        raise ValueError(f"at most {MOST_BY_LOAD}, not {number}")
    return number


def worker_warnings(cfg: Any) -> list[str]:
    """What to warn of: a setting that has no effect."""
    if not 0 < cfg.workers_max < cfg.workers:
        return []
    return [f"workers_max is {cfg.workers_max}, but there are {cfg.workers} workers anyway: raise it"]


def validate_reload_engine(val: Any) -> str:
    if val not in RELOAD_ENGINES:
        raise ConfigError(f"expected one of {', '.join(RELOAD_ENGINES)}, not {val!r}")
    return str(val)


class Workers(Count, section=WORKER_PROCESSES, flags="-w --workers", default=1, env_var="WEB_CONCURRENCY"):
    """The number of worker processes.

    Start with two to four for each core; then measure. More workers use more memory, though with
    ``preload_app`` they share most of it. The signals TTIN and TTOU change the number while the server runs.

    If the environment has ``WEB_CONCURRENCY``, that is the default.
    """


class WorkersMax(
    Setting, section=WORKER_PROCESSES, meta="INT", type=int, validator=validate_workers_max, default=0
):
    """The most worker processes while the load asks for more than ``workers``; 0 for no more than those.

    The server starts another worker whenever fewer than ``workers_spare`` are idle, quickly in a burst. It
    ends idle ones, one at a time, when there have been more for half a minute.
    """


class WorkersSpare(Count, section=WORKER_PROCESSES, validator=validate_number, default=1):
    """How many workers are to be idle, while ``workers_max`` allows it."""


class WorkerClass(
    Setting,
    section=WORKER_PROCESSES,
    flags="-k --worker-class",
    meta="STRING",
    validator=validate_worker_class,
    default="sync",
):
    """The kind of worker: ``sync``, ``gthread``, ``gevent``, ``tornado``, ``asgi``, or your own class.

    ``sync`` serves one request at a time and needs a buffering proxy in front. ``gthread`` serves
    ``threads`` requests at a time and keeps idle connections without a thread. ``gevent`` and ``tornado``
    need the packages of these names. ``asgi`` serves ASGI applications; it needs ``gunicorn[asgi]``. Any
    other value names a class by its dotted path, ``egg:DISTRIBUTION#NAME``, or an entry point in the group
    ``gunicorn.workers``; in a file it may be the class itself.

    ``sync`` with ``threads`` above 1 means ``gthread``.
    """


class WorkerThreads(Count, section=WORKER_PROCESSES, name="threads", default=1):
    """The number of threads in each ``gthread`` worker.

    Each thread serves one request at a time. Useful for applications that wait for databases and other
    services; the application must be thread-safe. The other worker classes ignore it.
    """


class WorkerConnections(Count, section=WORKER_PROCESSES, default=1000):
    """The number of connections that one worker keeps open at the same time.

    For ``gthread`` (idle and waiting connections count) and ``gevent``. Keep it below the limit on
    open files (``ulimit -n``).
    """


class MaxRequests(Count, section=WORKER_PROCESSES, default=0):
    """Replace a worker after this many requests; 0 for never.

    This limits the memory that the application leaks. The worker serves until its replacement has booted;
    of several workers one is replaced at a time. No request is lost, and companions are not affected.
    """


class MaxRequestsJitter(Count, section=WORKER_PROCESSES, default=0):
    """Add up to this many requests at random to ``max_requests``.

    This keeps workers from being due all at once. A tenth of ``max_requests`` is plenty.
    """


class ReloadBatch(Count, section=WORKER_PROCESSES, validator=validate_number, default=0):
    """How many web workers a reload replaces at once; 0 for all of them.

    Old and new workers run side by side for a moment, because old ones serve until new ones have booted. On
    a small host that may be too much memory: ``reload_batch = 1`` needs room for one worker more. The reload
    takes longer. It is refused as a whole if the first batch fails; if a later one fails, it stops there.
    """


class MaxMemory(
    Setting,
    section=WORKER_PROCESSES,
    meta="SIZE",
    validator=or_none(check_size),
    default_text="none: no limit",
):
    """Replace a worker that has more private memory than this, such as ``300M`` or ``1.5G``.

    Memory that it shares with the master and with other workers does not count. It is measured every five
    seconds, and the worker is replaced as for ``max_requests``. If the limit is less than the application
    needs, new workers are left alone for longer and longer, and the log says so. Linux only: other systems
    do not tell private memory.
    """


class MaxLifetime(Seconds, section=WORKER_PROCESSES, default=0):
    """Replace a worker after this many seconds, as for ``max_requests``; 0 for never."""


class MaxLifetimeJitter(Seconds, section=WORKER_PROCESSES, default=0):
    """Add up to this many seconds at random to ``max_lifetime``."""


class Timeout(Count, section=WORKER_PROCESSES, flags="-t --timeout", default=30):
    """Kill and replace a worker that is silent for this many seconds; 0 for no limit.

    For ``sync`` that limits how long one request can take. The other classes send heartbeats while they
    serve requests, so for them it detects only a worker that hangs as a whole.
    """


class RequestTimeout(Seconds, section=WORKER_PROCESSES, default=0):
    """The seconds that one request may take with ``gthread``, ``gevent`` and ``asgi``; 0 for no limit.

    If a request takes longer, the worker logs its stack, which shows where it hangs, and retires: another
    worker takes its place, the other requests finish, and what still hangs after ``graceful_timeout`` ends
    with the process. Python has no safe way to end a single thread. With ``asgi`` the request is cancelled
    instead, and answered with status 503 if its answer has not begun; the limit is for streams, too. With
    ``sync`` the setting ``timeout`` does this.
    """


class GracefulTimeout(Count, section=WORKER_PROCESSES, default=30):
    """The seconds that workers have to finish their requests on a stop or a reload.

    After that they are killed. A service manager's own limit must be longer. Companions have their own
    limits, see ``companion_stop_timeout``.
    """


class Keepalive(Count, section=WORKER_PROCESSES, flags="--keep-alive", default=2):
    """The seconds to keep an idle connection for the client's next request; 0 closes it after each one.

    Use 1 to 5 if clients connect directly, and more than the idle limit of a load balancer that reuses
    connections. The ``sync`` worker keeps no connections.
    """


class WorkerTmpDir(
    Text, section=SERVER_MECHANICS, meta="DIR", default_text="the system's directory for temporary files"
):
    """The directory for the heartbeat files of workers.

    A worker writes to its file at least once a second: on a disk that stalls, the worker stalls too. If the
    default is not in memory, choose a directory that is, such as ``/dev/shm`` in containers.
    """


class TmpUploadDir(Text, section=SERVER_MECHANICS, flags=None, meta="DIR"):
    """A directory for uploads in progress, for worker classes that store them.

    None of the included worker classes does.
    """


class PreloadApp(Flag, section=SERVER_MECHANICS, flags="--preload"):
    """Load the application once, in the master, before it forks workers and companions.

    They then share its memory and start at once. They also share connections, threads and open files that
    the application creates while it is loaded; create these again in ``post_fork``. The price: a reload by
    HUP does not bring new code, because the master has the old one in memory; USR2 or a restart does. You
    also need one of them after you have turned ``preload_app`` on or off.
    """


class Reload(Flag, section=DEBUGGING):
    """Restart workers and companions whenever a source file that they have loaded changes.

    For development. ``preload_app`` has no effect then, so that the code on disk is the code that runs. If
    the application does not load, every page shows the traceback until a file changes. Changes of the
    configuration still need a HUP.
    """


class ReloadEngine(
    Setting, section=DEBUGGING, meta="STRING", validator=validate_reload_engine, default="auto"
):
    """How ``reload`` notices changes: ``auto``, ``poll`` or ``inotify``.

    ``poll`` checks the files once a second. ``inotify`` gets changes from the operating system, on Linux and
    elsewhere, through the package ``watchfiles`` (``pip install watchfiles``); without the package it polls
    and logs that. ``auto`` is ``inotify`` if the package is installed, else ``poll``. Choose ``poll`` for
    network file systems and for folders shared with a virtual machine.
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

    A pattern such as ``templates/*.html`` stands for all files that match it, including those created later.
    """


class Spew(Flag, section=DEBUGGING):
    """Print every line of Python that the server runs.

    A last resort in debugging, and very slow.
    """


class ConfigCheck(Flag, section=DEBUGGING, name="check_config"):
    """Check the configuration, load the application, and exit with 0 if all is well, else with 1.

    This checks companions too, and warns of variables in the configuration file that look like misspelt
    settings. Run it before each reload of a server in production.
    """


class PrintConfig(Flag, section=DEBUGGING):
    """Print every setting with the value that all layers of configuration give it, check as
    ``--check-config`` does, and exit.
    """
