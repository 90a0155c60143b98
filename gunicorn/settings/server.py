# SPDX-License-Identifier: MIT
"""Settings for the configuration file, the listeners, and the server's place in the system."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from gunicorn.errors import ConfigError
from gunicorn.loading import getcwd
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
    is_missing,
    parse_address,
    type_and_value,
    validate_bool,
    validate_list_string,
    validate_pos_int,
    validate_string,
)


def validate_umask(val: Any) -> int:
    """A mask of permission bits; text is read as on the command line."""
    if isinstance(val, str):
        try:
            val = auto_int(None, val)
        except ValueError:
            raise ValueError(f"expected a mask such as 022, which is octal, not {val!r}") from None
    return validate_pos_int(val)


def validate_bind(val: Any) -> list[str]:
    addresses = validate_list_string(val)
    for address in addresses:
        try:
            parse_address(address)
        except RuntimeError as error:
            raise ValueError(f"{address!r}: {error}") from None
    return addresses


def validate_assignments(val: Any) -> list[str]:
    """A list of ``KEY=VALUE`` texts."""
    pairs = validate_list_string(val)
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise ValueError(f"expected KEY=VALUE, not {pair!r}")
    return pairs


def validate_user(val: Any) -> int:
    """A user id from a number or a name; None is the user that runs this."""
    if val is None:
        return os.geteuid()
    import pwd

    return _id(val, "user", lambda name: pwd.getpwnam(name).pw_uid)


def validate_group(val: Any) -> int:
    """A group id from a number or a name; None is the group that runs this."""
    if val is None:
        return os.getegid()
    import grp

    return _id(val, "group", lambda name: grp.getgrnam(name).gr_gid)


def _id(val: Any, kind: str, look_up: Callable[[str], int]) -> int:
    if isinstance(val, int) and not isinstance(val, bool):
        return val
    if not isinstance(val, str):
        raise TypeError(f"expected a name or a number, not {type_and_value(val)}")
    name = val.strip()
    try:
        return int(name) if name.isdecimal() else look_up(name)
    except KeyError:
        raise ConfigError(f"no {kind} is named {val!r}; give a name that exists or a number") from None


def validate_chdir(val: Any) -> str:
    """The absolute path of a directory that exists; ``~`` is not expanded, symbolic links are kept."""
    text = validate_string(val)
    if text is None:
        raise TypeError("expected the path of a directory, not None")
    here = getcwd()
    path = os.path.normpath(os.path.join(here, text))
    if path == here:
        return path  # it may be removed, and a later layer name another one
    if is_missing(path) or os.path.isfile(path):
        raise ConfigError(f"there is no directory {path!r} to change to")
    return path


class ConfigFile(
    Text, section=CONFIG_FILE, name="config", flags="-c --config", meta="CONFIG", default="./gunicorn.conf.py"
):
    """The configuration file.

    A path, ``file:PATH``, or ``python:MODULE.NAME`` for a module that can be imported. The file is Python:
    each variable with the name of a setting sets it, everything else in it is yours. Without this flag the
    server reads ``gunicorn.conf.py`` in the current directory, if it exists.

    Only useful on the command line, in ``GUNICORN_CMD_ARGS``, or set by an embedding application.
    """


class WSGIApp(Text, section=CONFIG_FILE, flags=None):
    """The application to serve, if the command line names none.

    ``MODULE:CALLABLE``, ``MODULE:FACTORY(ARGUMENTS)`` with literal arguments, or ``MODULE`` alone, whose
    callable is then ``application``. Dots are allowed on either side of the colon.
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
    """The address to listen on; for several, repeat the flag or give a list.

    ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT``, ``unix:PATH`` for a Unix socket, or ``fd://N`` for a socket
    that the parent process opened as descriptor N. The default port is 8000.

    If the environment has ``PORT``, the default is ``0.0.0.0:$PORT``, as hosting platforms expect. Behind a
    proxy on the same machine a Unix socket is the cheapest choice.
    """

    def from_env(self, text: str) -> list[str]:
        return [f"0.0.0.0:{text.strip()}"] if text.strip() else list(self.default)


class Backlog(Count, section=SERVER_SOCKET, default=2048):
    """The number of connections that may wait in the kernel to be accepted.

    The kernel delays or refuses further clients. It has its own limit (``net.core.somaxconn`` on Linux) and
    uses the lower of the two. With a lower number a load balancer notices sooner that this server is
    overloaded; 64 to 2048 is usual.
    """


class Sendfile(
    Setting,
    section=SERVER_MECHANICS,
    flags="--no-sendfile",
    action="store_const",
    const=False,
    validator=validate_bool,
    default_text="True",
    flag_help="Don't let the kernel send files.",
):
    """Let the kernel send the files that the application answers with, without a copy in the worker.

    Turn it off if a file system or a virtual machine's shared folder delivers stale content. It applies to
    ``wsgi.file_wrapper``, and never with TLS.
    """


class ReusePort(Flag, section=SERVER_MECHANICS):
    """Set ``SO_REUSEPORT`` on the listening sockets.

    Several servers can then listen on one address, and the kernel distributes new connections among them. It
    also lets you start a second server by mistake without an error.
    """


class Chdir(
    Setting,
    section=SERVER_MECHANICS,
    validator=validate_chdir,
    default=".",
    default_text="the current directory",
):
    """The directory to change to before the application is loaded.

    The server also adds it to the import path. A relative path starts at the current directory.
    """


class Daemon(Flag, section=SERVER_MECHANICS, flags="-D --daemon"):
    """Detach from the terminal and run in the background.

    Leave it off under systemd, supervisors and in containers: they watch the process that they started. If
    you use it, set ``errorlog`` and ``pidfile`` too, or the server leaves no trace.
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

    In a file it is a list: ``raw_env = ["DJANGO_SETTINGS_MODULE=shop.settings"]``. The server sets the
    variables before it loads the application, and removes those that are gone after a reload.
    """


class Pidfile(Text, section=SERVER_MECHANICS, flags="-p --pid", meta="FILE"):
    """The file for the process id of the master.

    Without it no pid file is written. The server removes it when it ends. During an upgrade by USR2 the new
    master writes ``<pidfile>.2`` until the old one is gone. If the file names a running process, cannot be
    read, or is not a regular file, the server leaves it alone and does not start.
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

    The master keeps the user that started it, so that it can listen on low ports and reload. The setting
    works only if the server is started as root.
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

    See ``user``. ``initgroups`` sets supplementary groups.
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

    On the command line, and as text in a file, ``022``, ``0o22`` and ``18`` are the same: decimal unless it
    begins with a 0. As a number in a file write ``0o22``. The mask also decides the mode of Unix sockets in
    ``bind``: with 0 everybody may connect.
    """


class Initgroups(Flag, section=SERVER_MECHANICS):
    """Give the workers all groups of ``user``, in addition to ``group``.

    Needed if the application reads files that only a supplementary group may read.
    """


class PythonPath(Text, section=SERVER_MECHANICS, name="pythonpath"):
    """Comma-separated directories to put first on the import path.

    For example ``/srv/shop,/srv/shop/vendor``.
    """


class Paste(Text, section=SERVER_MECHANICS, flags="--paste --paster"):
    """A PasteDeploy configuration file whose application is served.

    Name another section than ``main`` after a ``#``: ``production.ini#admin``. If the file configures
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

    These are the defaults for ``%(KEY)s`` in the file. Write a ``=`` within the key as ``\\=``.
    """


class Procname(Text, section=PROCESS_NAMING, name="proc_name", flags="-n --name"):
    """The name in the process titles, so that ``ps`` and ``top`` tell several servers apart.

    Needs the package setproctitle; without it titles do not change. The default is ``default_proc_name``.
    """


class DefaultProcName(Text, section=PROCESS_NAMING, flags=None, meta=None, default="gunicorn"):
    """The name in the process titles if ``proc_name`` is not set.

    It becomes the name of the application on start.
    """
