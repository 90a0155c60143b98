# SPDX-License-Identifier: MIT
"""Settings for companion processes, and the defaults of their keys."""

from __future__ import annotations

import re
from typing import Any

from gunicorn.settings import redact
from gunicorn.settings.base import COMPANION_PROCESSES, Setting
from gunicorn.settings.foreign import autorestart_hint
from gunicorn.settings.kinds import Count, Flag, OptionalSeconds, Seconds, Text, hook
from gunicorn.settings.validators import (
    one_of,
    or_none,
    validate_bool,
    validate_dict,
    validate_list_string,
    validate_number,
    validate_string,
)

SECTION = COMPANION_PROCESSES

RELOAD_WAYS = ("changed", "all")
GIVE_UP_WAYS = ("ignore", "shutdown")
STOP_ORDERS = ("reverse", "together")
LEASE_LOSS_WAYS = ("stop", "keep")
AUTORESTART_WAYS = ("always", "on-failure", "never")
LOG_FIELDS = ("asctime", "name", "pid", "stream", "message")


def validate_companion_workers(val: Any) -> list[dict[str, Any]]:
    """Return a list of dicts; their contents are checked where companions are built."""
    if val is None:
        return []
    if not isinstance(val, (list, tuple)):
        raise TypeError(
            f"expected a list of dicts, one for each companion, not {redact.in_value(val)!r} "
            f"({type(val).__name__})"
        )
    for index, entry in enumerate(val):
        if not isinstance(entry, dict):
            raise TypeError(
                f"expected a list of dicts, one for each companion; number {index} is "
                f"{redact.in_value(entry)!r} ({type(entry).__name__})"
            )
    return list(val)


def validate_size_or_none(val: Any) -> int | str | None:
    """Return a size as given; text is checked where companions are built."""
    if val is None or (isinstance(val, (int, str)) and not isinstance(val, bool)):
        return val
    raise TypeError(f"expected a size, such as '300M', not {val!r} ({type(val).__name__})")


def validate_file_mode(val: Any) -> int:
    """Return the permission bits of a file; text is octal, with or without ``0o``."""
    if isinstance(val, str):
        try:
            val = int(val.strip(), 8)
        except ValueError:
            raise ValueError(f"expected a file mode in octal, such as 660, not {val!r}") from None
    if isinstance(val, bool) or not isinstance(val, int):
        raise TypeError(f"expected a file mode, such as 0o660, not {val!r} ({type(val).__name__})")
    if not 0 <= val <= 0o777:
        raise ValueError(f"expected a file mode from 0 to 0o777, not {val!r}")
    return val


def validate_output(val: Any) -> str | dict[Any, Any] | None:
    """Return a dictionary as given; its contents are checked where companions are built."""
    return dict(val) if isinstance(val, dict) else validate_string(val)


def validate_log_format(val: Any) -> str:
    """Return ``json``, ``raw``, or text with %(message)s at one place."""
    text = validate_string(val) or ""
    if text in ("json", "raw"):
        return text
    names = []
    for match in re.finditer(r"%\((\w+)\)([sd])|%%|%", text):
        if match[0] == "%":
            raise ValueError(f"{text!r}: '%' stands neither before a name in brackets nor before another '%'")
        if match[1] is not None:
            if match[1] not in LOG_FIELDS:
                raise ValueError(f"{text!r}: {match[1]!r} is none of {', '.join(LOG_FIELDS)}")
            if match[2] == "d" and match[1] != "pid":
                raise ValueError(f"{text!r}: {match[1]!r} is not a number: write %({match[1]})s")
            names.append(match[1])
    if names.count("message") != 1 or "\n" in text:
        raise ValueError(f"{text!r} is neither 'json' nor 'raw', nor one line with %(message)s in it, once")
    return text


def validate_signal(val: Any) -> int | str:
    """A signal as it was given, number or name; whether there is such a one is checked later."""
    if isinstance(val, bool) or not isinstance(val, (int, str)):
        raise TypeError(f"expected the name or number of a signal, not {val!r} ({type(val).__name__})")
    if isinstance(val, str):
        text = val.strip()
        return int(text) if text.isdecimal() else text
    return val


def validate_companion_autorestart(val: Any) -> str:
    hint = autorestart_hint(val)
    if hint and val not in AUTORESTART_WAYS:
        raise ValueError(f"{val!r}: here it is {hint!r}")
    return one_of(*AUTORESTART_WAYS)(val)


def validate_companion_env(val: Any) -> dict[Any, Any]:
    return {} if val is None else dict(validate_dict(val))


def _companion_flag(_: Any, text: str) -> dict[str, Any]:
    name, separator, target = text.partition("=")
    if not (separator and name.strip() and ":" in target.strip(" :")):
        from argparse import ArgumentTypeError

        raise ArgumentTypeError(f"expected NAME=MODULE:CALLABLE, not {text!r}")
    return {"name": name.strip(), "target": target.strip()}


def _env_flag(_: Any, text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (separator and key):
        from argparse import ArgumentTypeError

        raise ArgumentTypeError(f"expected KEY=VALUE, not {text!r}")
    return key, value


class CompanionWorkers(
    Setting,
    flags="--companion-worker",
    meta="NAME=MODULE:CALLABLE",
    action="append",
    type=_companion_flag,
    validator=validate_companion_workers,
    default=[],
    flag_help="A companion process that runs beside the web workers; repeat the flag for more.",
):
    """The companion processes that run beside the web workers, each a dictionary.

    Each needs a ``name`` (unique; letters, digits, ``.``, ``_``, ``-``) and one of two: ``target``, a
    callable without arguments, or ``"module:callable"``, which the companion itself imports; or ``command``,
    a program and its arguments as a list, which runs without a shell. ``"module:factory('slow')"`` is what
    the factory returns, called with these literals.

    All other keys have a default. For most of them a setting below sets it for all companions: the default of
    ``stop_timeout`` is ``companion_stop_timeout``. The page about companions has a table of the keys.

    For example::

        companion_workers = [
            {"name": "scheduler", "target": "shop.jobs:run_scheduler"},
            {"name": "mailer", "target": "shop.mail:run", "stop_timeout": 120, "env": {"QUEUE": "mail"}},
            {"name": "rq", "target": "shop.jobs:run_worker", "numprocs": 4, "after": ["scheduler"]},
            {"name": "socketio", "command": ["node", "live.js"], "bind": "127.0.0.1:9000"},
        ]

    The flag can be repeated and adds simple companions to those of the file.
    """

    def set_from_command_line(self, val: Any) -> None:
        self.set([*self.get(), *val])


class WebAfter(
    Setting,
    meta="NAME",
    action="append",
    validator=validate_list_string,
    default=[],
    flag_help="A companion that web workers wait for when the server starts; repeat the flag for more.",
):
    """The companions that web workers come after: a migration, a store that requests need.

    When the server starts, it listens at once, so clients wait and are not refused. Web workers start when
    each companion named here is RUNNING. A job (``autorestart`` is ``on-failure`` or ``never``, and it does
    not report itself ready) must have finished with exit code 0 instead. If one of them gives up or fails for
    good, the server stops with exit status 1 and says why. A reload does not wait.

    When the server stops, these companions are stopped after the web workers, so that requests find them to
    the end.

    A list of names; that of a group means all its copies. The key ``after`` of a companion may name ``web``
    for the other direction.
    """


class CompanionConfigFile(Text, meta="FILE"):
    """A Python file with only ``companion_*`` settings, read after the configuration file.

    For companions that are deployed or changed separately from the server. It overrides the configuration
    file; ``GUNICORN_CMD_ARGS`` and flags override both. A relative path starts at the current directory.
    """


class CompanionControlSocket(Text, meta="PATH", default_text="found by ``gunicorn-companion`` itself"):
    """The path of the Unix socket that ``gunicorn-companion`` talks to; empty for no socket.

    By default it is ``companion-<master pid>.sock`` in ``$RUNTIME_DIRECTORY``, else in
    ``$XDG_RUNTIME_DIR/gunicorn``, else in ``~/.gunicorn`` of the user that the companions run as.
    """


class CompanionControlSocketMode(
    Setting,
    meta="OCTAL",
    validator=validate_file_mode,
    default=0o600,
    default_text="``0o600``",
    formatter=oct,
):
    """The permissions of the control socket; octal on the command line.

    Everyone who may write to it can stop and start companions. ``0o660`` lets the group in.
    """


class CompanionRunDir(Text, meta="DIR", default_text="beside the default control socket"):
    """The directory for records of the running companions.

    From these records a new manager, or a new server, knows which companions have outlived an old one, and
    runs none of them twice. Two servers with the same application and address need separate directories;
    otherwise you need not set it. Do not empty it while the server runs.
    """


class CompanionCwd(Text, meta="DIR", default_text="the server's own"):
    """The directory that companions change to before they start; key ``cwd``.

    ``%(name)s``, ``%(group)s`` and ``%(index)d`` in it are those of the companion; a plain ``%`` is written
    ``%%``.
    """


class CompanionEnv(
    Setting, meta="KEY=VALUE", action="append", type=_env_flag, validator=validate_companion_env, default={}
):
    """Variables to add to the environment of companions; key ``env``, which adds to these.

    A dictionary of strings. The flag can be repeated and adds to, or replaces, those of the file.
    ``%(name)s``, ``%(group)s`` and ``%(index)d`` in a value are those of the companion; a plain ``%`` is
    written ``%%``.
    """

    def set_from_command_line(self, val: Any) -> None:
        self.set({**self.get(), **dict(val)})


class CompanionStopSignal(Setting, meta="SIGNAL", validator=validate_signal, default="SIGTERM"):
    """The signal that asks a companion to stop; key ``stop_signal``.

    A name, with or without ``SIG``, or a number.
    """


class CompanionStopTimeout(Seconds, default=60):
    """The seconds from the stop signal to SIGKILL for a companion and its children; key ``stop_timeout``.

    Choose it longer than the longest job that must finish, and the limit of your service manager longer than
    the longest ``stop_timeout``.
    """


class CompanionStopAsGroup(Flag, section=SECTION):
    """Send the stop signal to the companion's whole process group; key ``stop_as_group``.

    For shells and launchers, which don't pass a signal on. The companion is stopped when all of them are
    gone, and what is left at the end of ``stop_timeout`` is killed. Don't use it for a job worker that
    forks: it should get the signal alone and finish its job.
    """


class CompanionStopOrder(Setting, meta="ORDER", validator=one_of(*STOP_ORDERS), default="reverse"):
    """The order in which companions that stop together get their stop signals: ``reverse`` or ``together``.

    ``reverse`` is the reverse order of their ``after``: a companion gets its signal when all that come after
    it are gone, web workers included (``web_after``). The stop of the server may then take as long as the
    longest chain of them.
    """


class CompanionReloadTimeout(Seconds, default=60):
    """The ``companion_stop_timeout`` of a companion that stops to restart; key ``reload_timeout``."""


class CompanionStartsecs(Seconds, default=1):
    """The seconds that a companion must live to count as RUNNING; key ``startsecs``."""


class CompanionRestartDelay(Seconds, default=5):
    """The seconds from a companion's unexpected exit to its next start; key ``restart_delay``.

    An exit that nobody asked for is unexpected, whatever its code.
    """


class CompanionRestartDelayMax(OptionalSeconds, default=60):
    """Let the delay double with each failure in a row, up to this many seconds; key ``restart_delay_max``.

    The first is ``restart_delay``, so the default is 5, 10, 20, 40, 60, 60 … seconds. They vary a little at
    random, so that companions that wait for the same database do not come back all at once. After a run
    longer than this limit, or one that ended well, the delay is ``restart_delay`` again. None: it never
    grows.
    """


class CompanionAutorestart(Setting, meta="WHEN", validator=validate_companion_autorestart, default="always"):
    """When to restart a companion that exits by itself: always, on-failure or never; key ``autorestart``.

    With ``on-failure`` exit code 0 means that it has finished. A companion that is not restarted is STOPPED,
    with the reason "exited".
    """


class CompanionStartRetries(
    Setting, meta="N", validator=or_none(validate_number), default_text="none: retry for ever"
):
    """Give up on a companion after this many failed starts in a row; key ``start_retries``.

    A start has failed if the companion exits, or is killed, before it is RUNNING. After the last one it is
    STOPPED with the reason "gave up", until somebody starts it or ``retry_after`` has passed. See also
    ``on_give_up``.
    """


class CompanionStartLimit(Text, meta="N/TIME", default_text="none: no limit"):
    """Give up on a companion rather than start it more often than this; key ``start_limit``.

    ``5/60s`` allows 5 starts within 60 seconds, however long each life lasted; the units are s, m and h.
    Restarts by command, by a reload or for a limit (``max_memory``, ``max_lifetime``) don't count: with each
    of them the count begins anew.
    """


class CompanionRetryAfter(OptionalSeconds, default_text="none: it stays stopped"):
    """Try a companion again so many seconds after the server gave up on it; key ``retry_after``.

    Its failed starts and delays are counted anew then.
    """


class CompanionOnGiveUp(Setting, meta="WHAT", validator=one_of(*GIVE_UP_WAYS), default="ignore"):
    """What follows when the server gives up on a companion: ignore or shutdown; key ``on_give_up``.

    ``shutdown`` stops the server gracefully with exit status 1, which its service manager sees.
    """


class CompanionStartTimeout(Seconds, default=60):
    """The seconds within which a companion with ``ready = "notify"`` or a ``probe`` must be ready; key
    ``start_timeout``.

    Otherwise it is stopped, and retried after its ``restart_delay``.
    """


class CompanionWatchdog(OptionalSeconds, default_text="none: no watchdog"):
    """Kill and restart a companion that sends no heartbeat for this many seconds; key ``watchdog``.

    While RUNNING it must send ``WATCHDOG=1`` at least that often, with systemd's protocol (``WATCHDOG_USEC``
    in its environment has the time); half of the time is a good interval. A companion that is silent for
    longer gets SIGABRT, on which a Python target writes the stacks of its threads to its standard error,
    then SIGKILL. It restarts after its ``restart_delay``.
    """


class CompanionMaxMemory(
    Setting, meta="SIZE", validator=validate_size_or_none, default_text="none: no limit"
):
    """Restart a companion gracefully above this much private memory; key ``max_memory``.

    Text such as ``300M`` or ``1.5G``, or a number of bytes, at least 1 MiB. Memory that the companion and
    its children share with the server does not count. Only one of several copies restarts at a time. Linux
    only: other systems do not tell private memory, and the limit has no effect there.
    """


class CompanionMaxLifetime(OptionalSeconds, default_text="none: no limit"):
    """Restart a companion gracefully after this many seconds, against slow leaks; key ``max_lifetime``.

    Only one of several copies restarts at a time.
    """


class CompanionMaxLifetimeJitter(Seconds, default=0):
    """Add up to this many seconds at random to ``max_lifetime``; key ``max_lifetime_jitter``."""


class CompanionScheduleTimezone(Text, meta="ZONE", default_text="that of the host"):
    """The time zone of companions with a ``schedule``; key ``schedule_timezone``.

    A name of the IANA's database, such as ``Europe/Berlin`` or ``UTC``.
    """


class CompanionScheduleJitter(Seconds, default=0):
    """Start each run of a schedule up to this many seconds later, at random; key ``schedule_jitter``.

    So that not all jobs begin in the same second, here and on other hosts.
    """


class CompanionStdout(Setting, meta="FILE", validator=validate_output, default_text="``inherit``"):
    """The file that companions' standard output is appended to; key ``stdout``.

    ``inherit``, or nothing, sends it to the server's own. A dictionary, as in ``{"file": "rq.log",
    "max_bytes": "50M", "backups": 10}``, rotates the file. ``%(name)s``, ``%(group)s`` and ``%(index)d`` in
    the path are those of the companion; a plain ``%`` is written ``%%``.
    """


class CompanionStderr(Setting, meta="FILE", validator=validate_output, default_text="``inherit``"):
    """The file that companions' standard error is appended to; key ``stderr``.

    ``stdout`` sends it where standard output goes; ``inherit``, or nothing, to the server's own. A dictionary
    is possible as for ``companion_stdout``.
    """


class CompanionLogLines(Count, default=1000):
    """The most lines of each companion that ``gunicorn-companion logs`` shows.

    They are kept in memory, at most 256 KiB for each companion. With 0 the output is not captured: companions
    write directly to the server's output or to their files, which are not rotated then.
    """


class CompanionLogFormat(
    Setting,
    meta="STRING",
    validator=validate_log_format,
    default="%(name)s | %(message)s",
):
    """The form of companions' lines in the server's own output.

    It may hold ``%(name)s``, ``%(asctime)s``, ``%(pid)s`` and ``%(stream)s``, and holds ``%(message)s`` once.
    ``json`` writes one object a line, ``raw`` the bytes as they are.
    """


class CompanionLeaseStore(Text, meta="URL", default_text="none"):
    """The store through which servers agree which of them runs a companion with ``lease``.

    ``redis://``, ``rediss://``, ``sentinel://``, ``postgresql://``, ``etcd://``, ``kubernetes://``,
    ``file:///DIRECTORY``, or ``MODULE:CALLABLE``. The page about leases has a section for each.
    """


class CompanionLeaseTtl(Seconds, default=15):
    """The seconds after which a lease that is not renewed is free.

    So long it takes until another server takes over from one that has crashed. It must be more than a third
    of itself + ``companion_lease_margin`` + 2.
    """


class CompanionLeaseMargin(OptionalSeconds, default_text="a tenth of the ttl, 1 at least"):
    """The seconds before the end of a lease at which a companion is killed that has not got it renewed.

    The stop signal comes ``stop_timeout`` before that, as far as the ttl allows.
    """


class CompanionLeaseOnLoss(Setting, meta="WHAT", validator=one_of(*LEASE_LOSS_WAYS), default="stop"):
    """What becomes of a companion that has lost its lease: ``stop``, or ``keep``.

    ``keep`` is for those who prefer two to none: it runs on, which is logged, beside the one that another
    server may start.
    """


class CompanionManagerShutdownBuffer(Seconds, default=10):
    """The seconds that the manager has beyond the longest stop of its companions.

    The defaults of the two timeouts below include it.
    """


class CompanionManagerStopTimeout(
    OptionalSeconds, default_text="the longest ``stop_timeout`` plus ``companion_manager_shutdown_buffer``"
):
    """The seconds that the master waits for the companion manager when the server stops.

    After that it kills the manager and all companions. Web workers have ``graceful_timeout`` meanwhile.
    """


class CompanionManagerReloadTimeout(
    OptionalSeconds, default_text="the longest ``reload_timeout`` plus ``companion_manager_shutdown_buffer``"
):
    """The seconds that the master waits for the companion manager when it replaces it.

    The web workers keep serving meanwhile.
    """


class CompanionReload(Setting, meta="WHICH", validator=one_of(*RELOAD_WAYS), default="changed"):
    """Which companions SIGHUP restarts: ``changed``, those with a changed configuration, or ``all``.

    ``all`` also replaces the manager; this is how companions get new code without ``preload_app``.
    """


@hook("CompanionPostFork")
def companion_post_fork(manager: Any, companion: Any) -> None:
    """Called in each companion after its fork, before its target.

    Create here again what must not be shared with a preloaded application: connections, threads, error
    reporters. If it raises, the start has failed and is retried after ``restart_delay``.
    """


@hook("CompanionPreFork")
def companion_pre_fork(manager: Any, companion: Any) -> None:
    """Called in the companion manager before each fork of a companion.

    If it raises, that is logged, and the companion starts anyway.
    """


@hook("CompanionExit")
def companion_exit(manager: Any, companion: Any) -> None:
    """Called in the companion manager when a companion's process has ended.

    ``companion.last_exit_code`` and ``companion.last_exit_signal`` say how. If it raises, that is logged and
    changes nothing else.
    """


@hook("CompanionGiveUp")
def companion_give_up(manager: Any, companion: Any) -> None:
    """Called in the companion manager when it has given up on a companion: send an alarm.

    ``companion.verdict`` says after what. If it raises, that is logged and changes nothing else.
    """


class GcFreeze(
    Setting,
    flags="--no-gc-freeze",
    action="store_const",
    const=False,
    validator=validate_bool,
    default=True,
    flag_help="Don't freeze the garbage collector's heap before the first fork of a preloaded application.",
):
    """Keep the garbage collector of workers and companions away from the memory shared with the master.

    With ``preload_app`` the master collects garbage once before the first fork and freezes what is left.
    Then a collection in a child does not write to each page of the application, which would copy it. The
    flag turns it off.
    """
