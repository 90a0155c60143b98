# SPDX-License-Identifier: MIT
"""Where the configuration comes from, where the server listens, and how it sits in the system."""

from __future__ import annotations

import os

from gunicorn.settings.base import (
    CONFIG_FILE,
    PROCESS_NAMING,
    SERVER_MECHANICS,
    SERVER_SOCKET,
    Setting,
    auto_int,
)
from gunicorn.settings.kinds import Count, Flag, Text
from gunicorn.settings.validators import (
    validate_assignments,
    validate_bind,
    validate_bool,
    validate_chdir,
    validate_group,
    validate_list_string,
    validate_umask,
    validate_user,
)


class ConfigFile(
    Text, section=CONFIG_FILE, name="config", flags="-c --config", meta="CONFIG", default="./gunicorn.conf.py"
):
    """The configuration file.

    A path, ``file:PATH``, or ``python:MODULE.NAME`` for a module that can be imported. The file is
    Python: each variable with the name of a setting sets it, everything else in it is yours.
    Without this flag ``gunicorn.conf.py`` in the directory of the start is read if it is there.

    Only useful on the command line, in ``GUNICORN_CMD_ARGS``, or set by an embedding application.
    """


class WSGIApp(Text, section=CONFIG_FILE, flags=None):
    """The application to serve, where the command line names none.

    ``MODULE:CALLABLE``, ``MODULE:FACTORY(ARGUMENTS)`` with literal arguments, or ``MODULE`` alone,
    whose callable is then ``application``. Dots are allowed on either side of the colon.
    """


class Bind(
    Setting,
    section=SERVER_SOCKET,
    flags="-b --bind",
    meta="ADDRESS",
    action="append",
    validator=validate_bind,
    default=["127.0.0.1:8000"],
    env_var="PORT",
):
    """The address to listen on; repeat the flag, or give a list, for several.

    ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT``, ``unix:PATH`` for a Unix socket, or ``fd://N`` for a
    socket that whoever started the server opened as descriptor N. The port is 8000 unless it is
    given.

    Where the environment has ``PORT``, the default is ``0.0.0.0:$PORT``, as hosting platforms
    expect. Behind a proxy on the same machine a Unix socket is the cheapest choice.
    """

    def from_env(self, text: str) -> list[str]:
        return [f"0.0.0.0:{text.strip()}"] if text.strip() else list(self.default)


class Backlog(Count, section=SERVER_SOCKET, default=2048):
    """How many connections may wait in the kernel to be accepted.

    A client beyond that sees its connection delayed or refused. The kernel has a limit of its own
    (``net.core.somaxconn`` on Linux) and takes the lower of the two. A lower number lets a load
    balancer notice sooner that this server is behind; 64 to 2048 is usual.
    """


class Sendfile(
    Setting,
    section=SERVER_MECHANICS,
    flags="--no-sendfile",
    action="store_const",
    const=False,
    validator=validate_bool,
    default_text="True",
    flag_help="Don't let the kernel send files by itself.",
):
    """Whether files that the application answers with are sent by the kernel, without a copy in the worker.

    Turn it off where a file system or a virtual machine's shared folder shows stale content. It is
    used for ``wsgi.file_wrapper``, and never with TLS.
    """


class ReusePort(Flag, section=SERVER_MECHANICS):
    """Set ``SO_REUSEPORT`` on the listening sockets.

    Several servers can then listen on one address at once, and the kernel spreads new connections
    over them. Note that it also lets a second server start by mistake without an error.
    """


class Chdir(
    Setting,
    section=SERVER_MECHANICS,
    validator=validate_chdir,
    default=".",
    default_text="the current directory",
):
    """The directory to change to before the application is loaded.

    It is put on the import path too. A relative path starts at the directory of the start.
    """


class Daemon(Flag, section=SERVER_MECHANICS, flags="-D --daemon"):
    """Detach from the terminal and run in the background.

    Leave it off under systemd, supervisors and in containers: they watch the process that they
    started. With it, set ``errorlog`` and ``pidfile``, or there is no trace of the server.
    """


class Env(
    Setting,
    section=SERVER_MECHANICS,
    name="raw_env",
    flags="-e --env",
    meta="ENV",
    action="append",
    validator=validate_assignments,
    default=[],
):
    """A variable for the environment of the application, as ``KEY=VALUE``; repeat the flag for more.

    In a file it is a list: ``raw_env = ["DJANGO_SETTINGS_MODULE=shop.settings"]``. The variables
    are set before the application is loaded, and those that are gone after a reload are taken back.
    """


class Pidfile(Text, section=SERVER_MECHANICS, flags="-p --pid", meta="FILE"):
    """The file that the process id of the master is written to.

    None is written unless this is set. It is removed when the server ends. During an upgrade by
    USR2 the new master writes ``<pidfile>.2`` until the old one is gone. A file that names a process which
    runs is left alone, and so is one that cannot be read or is no regular file: the server does not start.
    """


class User(
    Setting,
    section=SERVER_MECHANICS,
    flags="-u --user",
    meta="USER",
    validator=validate_user,
    default=os.geteuid(),
    default_text="the user that starts the server",
):
    """The user that the workers and the companions run as, by name or number.

    The master keeps the user that started it, so that it can listen on low ports and be reloaded. To take
    effect it must be started as root.
    """


class Group(
    Setting,
    section=SERVER_MECHANICS,
    flags="-g --group",
    meta="GROUP",
    validator=validate_group,
    default=os.getegid(),
    default_text="the group that starts the server",
):
    """The group that the workers and the companions run as, by name or number.

    See ``user``. Supplementary groups are set by ``initgroups``.
    """


class Umask(
    Setting,
    section=SERVER_MECHANICS,
    flags="-m --umask",
    meta="INT",
    type=auto_int,
    validator=validate_umask,
    default=0,
):
    """Permission bits removed from files that the server creates (umask).

    On the command line ``022``, ``0o22`` and ``18`` are the same; in a file write ``0o22`` or
    ``"022"``. It also decides the mode of Unix sockets in ``bind``: with 0 everybody may connect.
    """


class Initgroups(Flag, section=SERVER_MECHANICS):
    """Give the workers all groups that ``user`` is a member of, beside ``group``.

    Needed where the application reads files that only a supplementary group may read.
    """


class PythonPath(Text, section=SERVER_MECHANICS, name="pythonpath"):
    """Directories to put first on the import path, with commas in between.

    For example ``/srv/shop,/srv/shop/vendor``.
    """


class Paste(Text, section=SERVER_MECHANICS, flags="--paste --paster"):
    """A PasteDeploy configuration file whose application is served.

    A section other than ``main`` is named after a ``#``: ``production.ini#admin``. If the file configures
    logging, that configuration is used, unless ``logconfig`` is set. Needs the package PasteDeploy.
    """


class PasteGlobalConf(
    Setting,
    section=SERVER_MECHANICS,
    name="raw_paste_global_conf",
    flags="--paste-global",
    meta="CONF",
    action="append",
    validator=validate_list_string,
    default=[],
):
    """A variable for the PasteDeploy file, as ``KEY=VALUE``; repeat the flag for more.

    They are the defaults that ``%(KEY)s`` in the file refers to. A ``=`` within the key is written
    ``\\=``.
    """


class Procname(Text, section=PROCESS_NAMING, name="proc_name", flags="-n --name"):
    """The name in the process titles, so that ``ps`` and ``top`` tell several servers apart.

    Needs the package setproctitle; without it titles stay as they are. ``default_proc_name`` where
    it is not set.
    """


class DefaultProcName(Text, section=PROCESS_NAMING, flags=None, meta=None, default="gunicorn"):
    """The name in the process titles where ``proc_name`` is not set.

    It becomes the name of the application on start.
    """
