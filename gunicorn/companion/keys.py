# SPDX-License-Identifier: MIT
"""The keys of a companion: the table that describes each once.

From the table `Keys` follow the fields of `CompanionConfig`, what ``companion_workers`` may hold, which keys
have a global setting, and what a change does to a running companion.
"""

from __future__ import annotations

# ruff: noqa: RUF009 (`key` returns a dataclass field)
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple

from gunicorn.companion.checks import (
    MAX_INDEX,
    MAX_START_LIMIT,
    OutputFile,
    Rung,
    StartLimit,
    Target,
    check_autorestart,
    check_bind,
    check_bool,
    check_command,
    check_count,
    check_cpu_affinity,
    check_env,
    check_exit_codes,
    check_groups,
    check_lease,
    check_lease_store,
    check_limit,
    check_name,
    check_names,
    check_numprocs,
    check_oom_score_adj,
    check_output,
    check_path,
    check_paths,
    check_rlimits,
    check_some_time,
    check_start_limit,
    check_stdout,
    check_stop_signals,
    check_target,
    check_time,
    check_umask,
    one_of,
    optional,
    parse_signal,
    whole,
)
from gunicorn.companion.probe import Probe, check_probe
from gunicorn.companion.schedule import check_jitter, check_schedule, check_timezone
from gunicorn.settings import companion as settings
from gunicorn.settings.base import Setting
from gunicorn.settings.validators import check_size


class Key(NamedTuple):
    """The properties of a key, besides its name and type."""

    # From the value given to its final form; raises ValueError.
    check: Callable[[Any], Any]
    # For the manual.
    meaning: str
    # As a user would write it.
    default: Any
    # Whether it shapes the process itself, so that a change needs a new process. Other keys apply to the
    # running one.
    shapes: bool
    # The setting ``companion_KEY``, which sets the default for all companions, if there is one.
    setting: type[Setting] | None
    # Whether its texts may differ from copy to copy: see `placeholders`. The filled value is checked again.
    placeholders: bool


def key(
    check: Callable[[Any], Any],
    meaning: str,
    default: Any = None,
    *,
    shapes: bool = False,
    setting: type[Setting] | None = None,
    placeholders: bool = False,
    called: str | None = None,
) -> Any:
    """A field of `Keys`. A key with a global *setting* has its default from there.

    *called*: the name of the key, if the field has another one.

    The setting is not made from the key, because a server without companions knows its settings but does not
    import this package.
    """
    if setting is not None:
        default = setting.default
    described = {"key": Key(check, meaning, default, shapes, setting, placeholders), "called": called}
    if default is MISSING:
        return field(metadata=described)
    value = check(default)
    if isinstance(value, dict):  # a fresh one for each companion
        return field(default_factory=value.copy, metadata=described)
    return field(default=value, metadata=described)


@dataclass(frozen=True)
class Keys:
    """The table, in the order of the manual. Times are seconds, sizes bytes."""

    name: str = key(check_name, "its unique name in logs and commands", MISSING)
    target: Target | None = key(optional(check_target), "the callable to run", shapes=True)
    command: tuple[str, ...] | None = key(
        optional(check_command), "the program to run instead: :doc:`programs`", shapes=True, placeholders=True
    )
    cwd: str | None = key(
        optional(check_path),
        "its working directory",
        shapes=True,
        placeholders=True,
        setting=settings.CompanionCwd,
    )
    env: Mapping[str, str | None] = key(
        check_env,
        "variables to add to its environment; None removes one",
        shapes=True,
        placeholders=True,
        setting=settings.CompanionEnv,
    )
    env_file: tuple[str, ...] = key(
        check_paths,
        "files of ``NAME=value`` lines to read at each start",
        [],
        shapes=True,
        placeholders=True,
    )
    stop_signal: int = key(
        parse_signal,
        "the signal that asks it to stop: a name or a number",
        setting=settings.CompanionStopSignal,
    )
    stop_timeout: float = key(
        check_time,
        "seconds from the stop signal to SIGKILL",
        setting=settings.CompanionStopTimeout,
    )
    stop_signals: tuple[Rung, ...] | None = key(
        optional(check_stop_signals),
        "several stop signals in the place of ``stop_signal`` and ``stop_timeout``, each with its seconds",
    )
    stop_as_group: bool = key(
        check_bool,
        "send the stop signal to its whole process group",
        setting=settings.CompanionStopAsGroup,
    )
    reload_timeout: float = key(
        check_time, "the ``stop_timeout`` of a restart", setting=settings.CompanionReloadTimeout
    )
    startsecs: float = key(
        check_time, "seconds it must live to count as RUNNING", setting=settings.CompanionStartsecs
    )
    restart_delay: float = key(
        check_time,
        "seconds from an unexpected exit to the next start",
        setting=settings.CompanionRestartDelay,
    )
    autostart: bool = key(check_bool, "False: it waits for ``gunicorn-companion start``", True)
    stdout: str | OutputFile | None = key(
        check_stdout,
        "the file to append its output to; none: the server's output; a dictionary rotates the file: "
        ":doc:`output`",
        shapes=True,
        placeholders=True,
        setting=settings.CompanionStdout,
    )
    stderr: str | OutputFile | None = key(
        check_output,
        'the same for its errors; ``"stdout"``: where stdout goes',
        shapes=True,
        placeholders=True,
        setting=settings.CompanionStderr,
    )
    numprocs: int | None = key(optional(check_numprocs), "the number of copies")
    index_start: int = key(whole(0, MAX_INDEX), "the number of the first copy, for ``%(index)d``", 0)
    # `CompanionConfig.group` is the name of a set.
    groups: tuple[str, ...] = key(
        check_groups, "groups that it belongs to: commands take ``@GROUP``", [], called="group"
    )
    after: tuple[str, ...] = key(
        check_names,
        "companions that must be RUNNING before it starts, or ``web``; it stops before them",
        [],
    )
    stop_after: tuple[str, ...] = key(
        check_names, "companions, or ``web``, that must be gone before it is stopped, beyond ``after``", []
    )
    autorestart: str = key(
        check_autorestart,
        "the exits that lead to a restart",
        setting=settings.CompanionAutorestart,
    )
    success_exit_codes: tuple[int, ...] = key(
        check_exit_codes, "the exit codes of a success, for ``autorestart`` and ``after``", [0]
    )
    restart_delay_max: float | None = key(
        optional(check_limit),
        "the delay doubles with each failure, up to this many seconds; none: it stays the same",
        setting=settings.CompanionRestartDelayMax,
    )
    start_retries: int | None = key(
        optional(check_count),
        "give up after this many failed starts in a row",
        setting=settings.CompanionStartRetries,
    )
    start_limit: StartLimit | None = key(
        optional(check_start_limit),
        'give up rather than start more often, such as ``"5/60s"``',
        setting=settings.CompanionStartLimit,
    )
    on_give_up: str = key(
        one_of(*settings.GIVE_UP_WAYS),
        '``"shutdown"``: stop the server when it gives up',
        setting=settings.CompanionOnGiveUp,
    )
    retry_after: float | None = key(
        optional(check_limit),
        "seconds after a give-up at which to try again; none: never",
        setting=settings.CompanionRetryAfter,
    )
    max_memory: int | None = key(
        optional(check_size),
        'restart it above this much private memory, such as ``"300M"``',
        setting=settings.CompanionMaxMemory,
    )
    max_lifetime: float | None = key(
        optional(check_limit),
        "restart it after this many seconds",
        setting=settings.CompanionMaxLifetime,
    )
    max_lifetime_jitter: float = key(
        check_time,
        "add up to this many seconds at random",
        setting=settings.CompanionMaxLifetimeJitter,
    )
    max_runtime: float | None = key(
        optional(check_limit), "stop a job that runs for this many seconds, as failed"
    )
    schedule: str | None = key(
        optional(check_schedule),
        'run it at these times, as a job: ``"30 3 * * *"``, ``"@daily"``, ``"every 15m"``; :doc:`schedules`',
    )
    schedule_timezone: str | None = key(
        optional(check_timezone),
        "the time zone of its schedule, such as ``Europe/Berlin``; none: that of the host",
        setting=settings.CompanionScheduleTimezone,
    )
    schedule_overlap: str = key(
        one_of("skip", "queue", "restart"),
        'what happens when it still runs at its next time: ``"skip"`` that time, ``"queue"`` one run, '
        '``"restart"`` it',
        "skip",
    )
    schedule_catch_up: bool = key(
        check_bool, "make up by one run for times that were missed, and for a run that was cut short", False
    )
    schedule_jitter: float = key(
        check_jitter,
        "start each run up to this many seconds later, at random",
        setting=settings.CompanionScheduleJitter,
    )
    schedule_retries: int = key(
        whole(0, MAX_START_LIMIT - 1), "try a failed run again so many times, after ``restart_delay``", 0
    )
    ready: str = key(
        one_of("startsecs", "notify"),
        '``"notify"``: it reports itself when it is RUNNING; :doc:`readiness`',
        "startsecs",
    )
    probe: Probe | None = key(
        optional(check_probe),
        "how the manager finds out that it is ready: :doc:`probes`",
        placeholders=True,
    )
    start_timeout: float = key(
        check_some_time,
        "seconds within which it must be ready, by ``ready`` or ``probe``",
        setting=settings.CompanionStartTimeout,
    )
    # The process was told its time when it started.
    watchdog: float | None = key(
        optional(check_limit),
        "restart it when it sends no heartbeat for so long; :doc:`readiness`",
        shapes=True,
        setting=settings.CompanionWatchdog,
    )
    liveness: Probe | None = key(
        optional(check_probe),
        "how the manager finds out that it still works: :doc:`probes`",
        placeholders=True,
    )
    bind: tuple[str, ...] = key(
        check_bind, "addresses to listen on for it: :doc:`programs`", shapes=True, placeholders=True
    )
    singleton: bool = key(check_bool, "False: it may run beside an older process of its own", True)
    # The process was told its token when it started.
    lease: str | bool | None = key(
        check_lease,
        "the lease that it must hold to run, one in the fleet; True: of its own name; :doc:`fleet`",
        shapes=True,
        placeholders=True,
    )
    lease_store: str | None = key(
        optional(check_lease_store),
        "the URL of the store of leases",
        shapes=True,
        setting=settings.CompanionLeaseStore,
    )
    lease_ttl: float = key(
        check_some_time,
        "seconds after which its lease is free if it is not renewed",
        setting=settings.CompanionLeaseTtl,
    )
    lease_margin: float | None = key(
        optional(check_time),
        "seconds before the end of its lease at which it is killed; none: a tenth of ``lease_ttl``, and "
        "1 at least",
        setting=settings.CompanionLeaseMargin,
    )
    lease_on_loss: str = key(
        one_of(*settings.LEASE_LOSS_WAYS),
        '``"keep"``: it runs on when it has lost its lease',
        setting=settings.CompanionLeaseOnLoss,
    )
    nice: int | None = key(
        optional(whole(-20, 19)), "its nice value, from -20 to 19; none: that of the server", shapes=True
    )
    umask: int | None = key(
        optional(check_umask), "its umask, such as ``0o027``; none: that of the server", shapes=True
    )
    oom_score_adj: int | None = key(
        optional(check_oom_score_adj),
        "from -1000 to 1000: the higher, the sooner the kernel kills it for memory",
        shapes=True,
    )
    rlimits: Mapping[str, tuple[int, int | None]] = key(
        check_rlimits, 'its limits by setrlimit(2), such as ``{"nofile": 4096}``', {}, shapes=True
    )
    cpu_affinity: tuple[int, ...] | None = key(
        optional(check_cpu_affinity), 'the CPUs that it may use: ``[0, 1]`` or ``"0-3"``', shapes=True
    )


# The field of each key.
FIELDS = {each.metadata["called"] or each.name: each.name for each in fields(Keys)}
KEYS: dict[str, Key] = {each.metadata["called"] or each.name: each.metadata["key"] for each in fields(Keys)}
KNOWN_KEYS = tuple(KEYS)
GLOBAL_KEYS = tuple(name for name, key in KEYS.items() if key.setting is not None)
SHAPE_KEYS = tuple(name for name, key in KEYS.items() if key.shapes)
PLACEHOLDER_KEYS = tuple(name for name, key in KEYS.items() if key.placeholders)
