# SPDX-License-Identifier: MIT
"""The keys of a companion, each described once.

`Keys` is the table. From it follow the fields of `CompanionConfig`, what ``companion_workers`` may hold,
which keys have a global setting, and what a change does to a running companion.
"""

from __future__ import annotations

# ruff: noqa: RUF009 (`key` returns a dataclass field)
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple

from gunicorn.companion import checks
from gunicorn.companion.checks import Target
from gunicorn.settings import companion as settings
from gunicorn.settings.base import Setting


class Key(NamedTuple):
    """The properties of a key, besides its name and type."""

    # From the value given to its final form; raises ValueError.
    check: Callable[[Any], Any]
    # For the manual.
    meaning: str
    # As a user would write it.
    default: Any
    # Whether it shapes the process itself: a change needs a new process. Any other key applies to the
    # running one.
    shapes: bool
    # The setting ``companion_KEY``, which sets the default for all companions, if there is one.
    setting: type[Setting] | None


def key(
    check: Callable[[Any], Any],
    meaning: str,
    default: Any = None,
    *,
    shapes: bool = False,
    setting: type[Setting] | None = None,
) -> Any:
    """A field of `Keys`. A key with a global *setting* has its default from there.

    The setting is not made from the key, because a server without companions knows its settings but does not
    import this package.
    """
    if setting is not None:
        default = setting.default
    described = {"key": Key(check, meaning, default, shapes, setting)}
    if default is MISSING:
        return field(metadata=described)
    value = check(default)
    if isinstance(value, dict):  # a fresh one for each companion
        return field(default_factory=value.copy, metadata=described)
    return field(default=value, metadata=described)


@dataclass(frozen=True)
class Keys:
    """The table, in the order of the manual. Times are seconds, sizes bytes."""

    name: str = key(checks.check_name, "its unique name in logs and commands", MISSING)
    target: Target | None = key(checks.check_target, "the callable to run", shapes=True)
    command: tuple[str, ...] | None = key(
        checks.check_command, "the program to run instead: :doc:`programs`", shapes=True
    )
    cwd: str | None = key(
        checks.check_path, "its working directory", shapes=True, setting=settings.CompanionCwd
    )
    env: Mapping[str, str] = key(
        checks.check_env, "variables to add to its environment", shapes=True, setting=settings.CompanionEnv
    )
    stop_signal: int = key(
        checks.parse_signal,
        "the signal that asks it to stop: a name or a number",
        setting=settings.CompanionStopSignal,
    )
    stop_timeout: float = key(
        checks.check_time,
        "seconds from the stop signal to SIGKILL",
        setting=settings.CompanionStopTimeout,
    )
    stop_as_group: bool = key(
        checks.check_bool,
        "send the stop signal to its whole process group",
        setting=settings.CompanionStopAsGroup,
    )
    reload_timeout: float = key(
        checks.check_time, "the ``stop_timeout`` of a restart", setting=settings.CompanionReloadTimeout
    )
    startsecs: float = key(
        checks.check_time, "seconds it must live to count as RUNNING", setting=settings.CompanionStartsecs
    )
    restart_delay: float = key(
        checks.check_time,
        "seconds from an unexpected exit to the next start",
        setting=settings.CompanionRestartDelay,
    )
    autostart: bool = key(checks.check_bool, "False: it waits for ``gunicorn-companion start``", True)
    stdout: str | None = key(
        checks.check_stdout,
        "the file to append its output to; none: the server's output",
        shapes=True,
        setting=settings.CompanionStdout,
    )
    stderr: str | None = key(
        checks.check_output,
        'the same for its errors; ``"stdout"``: where stdout goes',
        shapes=True,
        setting=settings.CompanionStderr,
    )
    numprocs: int | None = key(checks.check_numprocs, "the number of copies")
    after: tuple[str, ...] = key(
        checks.check_names, "companions that must be RUNNING before it starts; it stops before them", []
    )
    autorestart: str = key(
        checks.check_autorestart,
        "the exits that lead to a restart",
        setting=settings.CompanionAutorestart,
    )
    restart_delay_max: float | None = key(
        checks.check_positive_time,
        "let the delay double with each failure, up to this many seconds",
        setting=settings.CompanionRestartDelayMax,
    )
    start_retries: int | None = key(
        checks.check_count,
        "give up after this many failed starts in a row",
        setting=settings.CompanionStartRetries,
    )
    on_give_up: str = key(
        checks.one_of("ignore", "shutdown"),
        '``"shutdown"``: stop the server when it gives up',
        "ignore",
    )
    max_memory: int | None = key(
        checks.check_size,
        'restart it above this much private memory, such as ``"300M"``',
        setting=settings.CompanionMaxMemory,
    )
    max_lifetime: float | None = key(
        checks.check_positive_time,
        "restart it after this many seconds",
        setting=settings.CompanionMaxLifetime,
    )
    max_lifetime_jitter: float = key(
        checks.check_time,
        "add up to this many seconds at random",
        setting=settings.CompanionMaxLifetimeJitter,
    )
    ready: str = key(
        checks.one_of("startsecs", "notify"),
        '``"notify"``: it reports itself when it is RUNNING; :doc:`readiness`',
        "startsecs",
    )
    start_timeout: float = key(
        checks.check_some_time,
        "seconds within which it must report that",
        setting=settings.CompanionStartTimeout,
    )
    # The process was told its time when it started.
    watchdog: float | None = key(
        checks.check_positive_time,
        "restart it when it sends no heartbeat for so long; :doc:`readiness`",
        shapes=True,
        setting=settings.CompanionWatchdog,
    )
    bind: tuple[str, ...] = key(
        checks.check_bind, "addresses to listen on for it: :doc:`programs`", shapes=True
    )
    singleton: bool = key(checks.check_bool, "False: it may run beside an older process of its own", True)
    nice: int | None = key(
        checks.check_nice, "its nice value, from -20 to 19; none: that of the server", shapes=True
    )


KEYS: dict[str, Key] = {each.name: each.metadata["key"] for each in fields(Keys)}
KNOWN_KEYS = tuple(KEYS)
GLOBAL_KEYS = tuple(name for name, key in KEYS.items() if key.setting is not None)
SHAPE_KEYS = tuple(name for name, key in KEYS.items() if key.shapes)
