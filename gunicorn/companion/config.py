# SPDX-License-Identifier: MIT
"""The configuration of a companion: validation, defaults, and the effect of changes."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gunicorn.companion import placeholders
from gunicorn.companion.checks import INVALID, OutputFile, Rung, describe_target, did_you_mean, parse_signal
from gunicorn.companion.graph import order_problems
from gunicorn.companion.keys import (
    FIELDS,
    GLOBAL_KEYS,
    KEYS,
    KNOWN_KEYS,
    PLACEHOLDER_KEYS,
    SHAPE_KEYS,
    Keys,
)
from gunicorn.companion.leasing.store import check_name, hide_password
from gunicorn.companion.leasing.timing import Timing
from gunicorn.companion.schedule import Every, Timetable, host_zone_is_usable, timetable
from gunicorn.errors import all_mistakes
from gunicorn.settings.foreign import key_hint
from gunicorn.settings.monitor import MONITOR_TARGET
from gunicorn.unix.access import User


@dataclass(frozen=True)
class CompanionConfig(Keys):
    """One validated companion. Times are seconds, sizes bytes; ``stop_signal`` is a signal number.

    With `stop_signals`, ``stop_signal`` is the first of them, and ``stop_timeout`` the sum of their times.

    Of a *numprocs* set this is one copy: ``name`` is ``group:index``. Placeholders are filled.
    """

    index: int | None = None
    # What the placeholders were filled in; None: there were none.
    template: CompanionConfig | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_signal", parse_signal(self.stop_signal))
        if self.stop_signals:
            # So that `stop_timeout` is the longest that a stop may take, in any case.
            object.__setattr__(self, "stop_signal", self.stop_signals[0][0])
            object.__setattr__(self, "stop_timeout", sum(seconds for _, seconds in self.stop_signals))

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The stop signals in their order, each with the seconds until the next one or SIGKILL."""
        return self.stop_signals or ((self.stop_signal, self.stop_timeout),)

    @property
    def later_signals(self) -> tuple[Rung, ...]:
        """The stop signals after the first one, each with the seconds that it leaves before SIGKILL."""
        ends = itertools.accumulate(seconds for _, seconds in reversed(self.rungs))
        later = [(signum, left) for (signum, _), left in zip(reversed(self.rungs), ends, strict=True)]
        return tuple(reversed(later))[1:]

    @property
    def group(self) -> str:
        """The name without the index of a copy."""
        return self.name if self.index is None else self.name.rpartition(":")[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """Every word that means this companion in a command and in `after`."""
        names = (self.name,) if self.index is None else (self.name, self.group)
        return (*names, *(f"@{group}" for group in self.groups))

    @property
    def socket_owner(self) -> str:
        """The name that its sockets of `bind` are kept under: all copies share them, or each has its own."""
        own = self.template is not None and placeholders.differs(self.template.bind)
        return self.name if own else self.group

    @property
    def lease_name(self) -> str | None:
        """The name of the lease that it needs."""
        return self.group if self.lease is True else self.lease or None

    @property
    def lease_timing(self) -> Timing:
        return Timing.of(self.lease_ttl, self.lease_margin)

    @property
    def is_job(self) -> bool:
        """Whether it is meant to finish: it may exit for good, and does not say when it is ready."""
        return self.autorestart != "always" and self.ready == "startsecs" and self.probe is None

    @property
    def times(self) -> Timetable | None:
        """When it runs; None if it has no schedule."""
        return None if self.schedule is None else timetable(self.schedule, self.schedule_timezone)

    def output(self, key: str) -> OutputFile | None:
        """The file of *key*, ``stdout`` or ``stderr``, as seen from `cwd`; None if it has none of its own."""
        value = getattr(self, key)
        if value is None or (key == "stderr" and value == "stdout"):
            return None
        return value if isinstance(value, OutputFile) else OutputFile(value)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that a copy depends on, which ``numprocs`` is not: a change is a new one."""
        unused = ("numprocs", "index_start", "template")
        return _digest(self, [*(f.name for f in fields(self) if f.name not in unused), *self._of_sockets])

    @functools.cached_property
    def shape_hash(self) -> str:
        """SHA-256 over the keys that shape the process itself; a change needs a restart."""
        return _digest(self, [*SHAPE_KEYS, *self._of_sockets])

    @property
    def _of_sockets(self) -> tuple[str, ...]:
        """What counts with `bind`: the first copy may keep the address and not share its socket any more."""
        return ("socket_owner",) if self.bind else ()


def unknown_key(key: str) -> str:
    """*key*, and what to write instead: our key for that of another program, or a similar one."""
    hint = key_hint(key)
    return f"{key}: {hint}" if hint else did_you_mean(key, KNOWN_KEYS)


def _digest(config: CompanionConfig, names: Iterable[str]) -> str:
    values: dict[str, Any] = {}
    for name in names:
        value = getattr(config, name)
        if name == "target":
            value = None if value is None else describe_target(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            value = float(value)  # 60 and 60.0 are one setting
        values[name] = value
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def build_companion_configs(cfg: Any, *, outputs: bool = True) -> list[CompanionConfig]:
    """Return the companions that *cfg* names, with omitted keys from the global settings.

    Raises ValueError with all mistakes, each with the companion's name (or its index) and the key. Imports no
    target. *outputs*: check whether the files of ``stdout`` and ``stderr`` can be written.
    """
    problems: list[str] = []
    user = User(cfg.uid, cfg.gid, bool(cfg.initgroups)) if outputs else None
    entries = cfg.companion_workers or []
    defaults: dict[str, Any] = {}
    if entries:
        for key in GLOBAL_KEYS:
            defaults[key] = _checked(key, getattr(cfg, "companion_" + key), "companion_" + key, problems)
    configs: list[CompanionConfig] = []
    seen: dict[str, int] = {}
    for index, entry in enumerate(entries):
        config = _build_one(index, entry, defaults, user, problems)
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str):
            if name in seen and is_monitor(entry):
                problems.append(
                    f"companion {name!r}: name: the setting monitor adds one of that name, rename yours"
                )
            elif name in seen:
                problems.append(f"companion {name!r}: name: used by entries {seen[name]} and {index}")
            seen.setdefault(name, index)
        if config is not None:
            configs.append(config)
    problems.extend(order_problems(configs, _names(entries, configs), cfg.web_after))
    problems.extend(
        f"web_after: {config.name} needs a lease, and web workers would wait for it on all servers but one"
        for config in configs
        if config.lease_name is not None and {config.name, *config.labels} & set(cfg.web_after)
    )
    all_copies = [copy for config in configs for copy in copies(config, config.numprocs)]
    problems.extend(address_problems(all_copies))
    problems.extend(_shared_lease_problems(all_copies))
    if not getattr(cfg, "companion_log_lines", 1):
        problems.extend(_log_problems(configs))
    if entries and is_monitor(entries[-1]):
        problems.extend(_monitor_problems(cfg, configs))
    if problems:
        raise ValueError(all_mistakes("invalid companion configuration", problems))
    return all_copies


def copies(config: CompanionConfig, numprocs: int | None) -> list[CompanionConfig]:
    """Return *numprocs* copies of *config*, named ``group:0`` …; *config* alone if that is None.

    Raises ValueError if what is filled in makes a value wrong, such as a port that is too high.
    """
    base = config.template or config
    if numprocs is None:
        return [_copy(base, None)]
    first = base.index_start
    return [_copy(base, index) for index in range(first, first + numprocs)]


def _first_and_last(config: CompanionConfig) -> tuple[int | None, ...]:
    """The index of the first copy and of the last one; None if there are no copies."""
    if config.numprocs is None:
        return (None,)
    return config.index_start, config.index_start + config.numprocs - 1


def _copy(base: CompanionConfig, index: int | None) -> CompanionConfig:
    """Return *base* with its placeholders filled; the copy with *index*, if it is not None."""
    name = base.name if index is None else f"{base.group}:{index}"
    filled = _fill(base, PLACEHOLDER_KEYS, name, index or 0)
    return replace(base, name=name, index=index, template=base if filled else None, **filled)


def _fill(base: CompanionConfig, keys: Iterable[str], name: str, index: int) -> dict[str, Any]:
    """Return those values of *keys* in which something is filled in; the other ones are as they are."""
    values = {"name": name, "group": base.group, "index": index}
    found = {}
    for key in keys:
        value = getattr(base, key)
        if placeholders.has_any(value):
            try:
                found[key] = KEYS[key].check(placeholders.fill(value, values))
            except ValueError as exc:
                raise ValueError(f"companion {name!r}: {key}: {exc}") from None
    return found


def _build_one(
    index: int, entry: Any, defaults: Mapping[str, Any], user: User | None, problems: list[str]
) -> CompanionConfig | None:
    """Validate one entry; return None, with the reasons in *problems*, if it is wrong."""
    if not isinstance(entry, dict):
        problems.append(f"companion #{index}: not a dict but {type(entry).__name__}")
        return None
    name = entry.get("name")
    label = f"companion {name!r}" if isinstance(name, str) else f"companion #{index}"
    values = dict(defaults)
    if name is None:
        problems.append(f"{label}: name: missing")
        values["name"] = INVALID
    if entry.get("target") is None and entry.get("command") is None:
        problems.append(f"{label}: target: missing")
        values["target"] = INVALID
    elif entry.get("target") is not None and entry.get("command") is not None:
        problems.append(f"{label}: target: give either target or command, not both")
    for key, value in entry.items():
        if key not in KNOWN_KEYS:
            problems.append(f"{label}: unknown key {unknown_key(str(key))}")
        elif values.get(key) is not INVALID or value is not None:
            values[key] = _checked(key, value, f"{label}: {key}", problems)
    _merge_env(values, defaults)
    if user is not None:
        problems.extend(_output_problems(label, values, user))
    problems.extend(_combination_problems(label, entry, values))
    if values.get("schedule") is not None:
        problems.extend(_schedule_problems(label, entry, values))
        # Settings for all companions that are not for jobs.
        values.update({key: KEYS[key].default for key in NOT_WITH_SCHEDULE}, autorestart="never")
    if any(value is INVALID for value in values.values()):
        return None
    config = CompanionConfig(**{FIELDS[key]: value for key, value in values.items()})
    try:
        # A port may be too high for the last copy alone.
        for number in _first_and_last(config):
            _copy(config, number)
    except ValueError as exc:
        problems.append(str(exc))
        return None
    return config


def _combination_problems(label: str, entry: Mapping[Any, Any], values: Mapping[str, Any]) -> list[str]:
    """Report keys that are valid alone but not together: those of *entry*, and those it has by default."""
    problems = []
    delay, longest = values.get("restart_delay"), values.get("restart_delay_max")
    # A longer `restart_delay` alone raises the default limit.
    if "restart_delay_max" not in entry and longest == KEYS["restart_delay_max"].default:
        longest = None
    if INVALID not in (delay, longest) and delay is not None and longest is not None and longest < delay:
        problems.append(f"{label}: restart_delay_max: {longest:g} is less than restart_delay, {delay:g}")
    probe, limit = values.get("probe"), values.get("start_timeout")
    if INVALID not in (probe, limit) and probe is not None and limit is not None and probe.delay >= limit:
        problems.append(
            f"{label}: probe: delay: {probe.delay:g} is not less than start_timeout, {limit:g}, "
            "within which it must be ready"
        )
    if values.get("index_start") and values.get("numprocs") is None:
        problems.append(f"{label}: index_start: has no effect without numprocs")
    if values.get("start_retries") is None and values.get("start_limit") is None:
        for key in ("on_give_up", "retry_after"):
            if values.get(key) is not INVALID and entry.get(key) not in (None, KEYS[key].default):
                problems.append(f"{label}: {key}: has no effect without start_retries or start_limit")
    problems.extend(_lease_problems(label, entry, values))
    if values.get("schedule") is None:
        problems += [
            f"{label}: {key}: has no effect without schedule"
            for key, value in entry.items()
            if str(key).startswith("schedule_") and key in KEYS and value not in (None, KEYS[key].default)
        ]
    if entry.get("stop_signals") is not None:
        for key in ("stop_signal", "stop_timeout"):
            if key in entry:
                problems.append(f"{label}: {key}: stop_signals has the signals and their times, remove one")
    return problems


def _lease_problems(label: str, entry: Mapping[Any, Any], values: Mapping[str, Any]) -> list[str]:
    """Report what is wrong with the lease of *entry*."""
    problems = []
    if not values.get("lease"):
        keys = [key for key in entry if str(key).startswith("lease_") and key in KNOWN_KEYS]
        return [f"{label}: {key}: has no effect without lease" for key in keys]
    if values.get("lease_store") is None and values["lease"] is not INVALID:
        problems.append(
            f"{label}: lease: needs a store of leases: set companion_lease_store, such as "
            "redis://HOST:6379/0, or file:///DIRECTORY for servers on one host"
        )
    if values.get("singleton") is False:
        problems.append(f"{label}: lease: contradicts singleton, which is False: remove one of them")
    ttl, margin = values.get("lease_ttl"), values.get("lease_margin")
    if INVALID not in (ttl, margin) and ttl is not None:
        problem = Timing.of(ttl, margin).problem
        problems += [f"{label}: {problem}"] if problem else []
    return problems


def _shared_lease_problems(configs: Iterable[CompanionConfig]) -> list[str]:
    """Report leases that their store can't have, or that companions are to keep in different ways."""
    problems = []
    first: dict[tuple[str | None, str], CompanionConfig] = {}
    for config in configs:
        if config.lease_name is not None:
            try:
                if config.lease_store is not None:
                    check_name(config.lease_store, config.lease_name)
            except ValueError as exc:
                problems.append(f"companion {config.name!r}: lease: {exc}")
            other = first.setdefault((config.lease_store, config.lease_name), config)
            if other.lease_timing != config.lease_timing:
                problems.append(
                    f"companion {config.name!r}: lease: {config.lease_name} of "
                    f"{hide_password(config.lease_store or '')} is also that of {other.name!r}: "
                    "give both the same lease_ttl and lease_margin"
                )
            if other is not config and (config.schedule or other.schedule):
                one_each = (
                    "write %(index)d into it" if other.group == config.group else "give it another name"
                )
                problems.append(
                    f"companion {config.name!r}: lease: {config.lease_name} is also that of {other.name!r}, "
                    f"and a schedule needs one for itself: {one_each}"
                )
    return problems


# Keys that a companion with a schedule cannot have, with what to do instead.
NOT_WITH_SCHEDULE = {
    "autorestart": "each time is a run of its own; schedule_retries tries a failed one again",
    "start_retries": "schedule_retries says how often a failed run is tried again",
    "start_limit": "schedule_retries says how often a failed run is tried again",
    "on_give_up": "the next time comes whatever has become of a run",
    "retry_after": "the next time comes whatever has become of a run",
    "max_memory": "it would begin a run anew; rlimits bounds memory, and the run fails",
    "max_lifetime": "it would begin a run anew; max_runtime ends a run",
    "max_lifetime_jitter": "schedule_jitter is the one of a schedule",
    "ready": "a run is over when it exits, and nobody waits for it to be ready",
    "probe": "a run is over when it exits, and nobody waits for it to be ready",
    "singleton": "no run begins beside another one; schedule_overlap says what happens instead",
}


def _schedule_problems(label: str, entry: Mapping[Any, Any], values: Mapping[str, Any]) -> list[str]:
    """Report keys that contradict a schedule."""
    allowed = {key: KEYS[key].default for key in NOT_WITH_SCHEDULE} | {"autorestart": "never"}
    problems = [
        f"{label}: {key}: not with schedule: {instead}"
        for key, instead in NOT_WITH_SCHEDULE.items()
        if entry.get(key) not in (None, allowed[key])
    ]
    schedule, jitter = values["schedule"], values.get("schedule_jitter")
    by_wall = schedule is not INVALID and timetable(schedule, None).by_wall
    if by_wall and values.get("schedule_timezone") is None and not host_zone_is_usable():
        problems.append(
            f"{label}: schedule: the time zone of this host, TZ={os.environ.get('TZ')!r}, is a day or more "
            "from UTC: set schedule_timezone, or TZ, as in TZ=Europe/Berlin"
        )
    if INVALID not in (schedule, jitter) and jitter is not None:
        times = timetable(schedule, None)
        if isinstance(times, Every) and jitter >= times.seconds:
            problems.append(
                f"{label}: schedule_jitter: {jitter:g} seconds leave nothing of {schedule!r}: give less"
            )
    return problems


def _names(entries: Iterable[Any], configs: Iterable[CompanionConfig]) -> set[str]:
    """The names of all companions and copies; an entry with other mistakes has a name all the same."""
    names = {
        entry["name"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    }
    return names | {copy.name for config in configs for copy in copies(config, config.numprocs)}


def address_problems(configs: Sequence[CompanionConfig]) -> list[str]:
    """Report addresses of *configs*, which are all copies, that two want for themselves."""
    problems = []
    taken: dict[str, CompanionConfig] = {}
    for config in configs:
        for address in config.bind:
            other = taken.setdefault(address, config)
            if other.socket_owner == config.socket_owner:
                continue
            if other.group == config.group:
                problems.append(
                    f"companion {config.group!r}: bind: {address} is the same for all copies: "
                    "write %(index)d into each address, or into none"
                )
            else:
                problems.append(
                    f"companion {config.group!r}: bind: {address} is already used by {other.group!r}"
                )
    return list(dict.fromkeys(problems))


def _log_problems(configs: Iterable[CompanionConfig]) -> list[str]:
    """Report checks of output that is not captured."""
    return [
        f"companion {config.name!r}: {key}: log needs captured output, and companion_log_lines is 0"
        for config in configs
        for key, probe in (("probe", config.probe), ("liveness", config.liveness))
        if probe is not None and probe.kind == "log"
    ]


def is_monitor(entry: Any) -> bool:
    """Whether *entry* of ``companion_workers`` comes from the setting ``monitor``."""
    return isinstance(entry, dict) and entry.get("target") == MONITOR_TARGET


def _monitor_problems(cfg: Any, configs: Iterable[CompanionConfig]) -> list[str]:
    known = {copy.name for config in configs for copy in copies(config, config.numprocs)}
    known |= {config.name for config in configs}
    problems = [
        f"monitor_ready: no companion named {did_you_mean(name, known)}"
        for name in cfg.monitor_ready
        if name not in known
    ]
    problems += [
        f"monitor_ready: {config.name} runs only at its times: leave it out"
        for config in configs
        if config.schedule is not None and set(config.labels) & set(cfg.monitor_ready)
    ]
    if cfg.companion_control_socket == "":
        problems.append("monitor: it needs the control socket, and companion_control_socket is empty")
    return problems


def _merge_env(values: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Merge the companion's variables over those for all companions."""
    layers = (defaults.get("env", {}), values.get("env", {}))
    values["env"] = INVALID if INVALID in layers else {**layers[0], **layers[1]}


def _checked(key: str, value: Any, label: str, problems: list[str]) -> Any:
    """Return *value* in its final form; INVALID, with a line in *problems*, if it is wrong."""
    try:
        found = KEYS[key].check(value)
        if KEYS[key].placeholders:
            placeholders.check(found)
        return found
    # The others come from values that no check expects, such as a list that is nested very deeply.
    except (ValueError, TypeError, OverflowError, RecursionError) as exc:
        problems.append(f"{label}: {exc}")
        return INVALID


def _output_problems(label: str, values: Mapping[str, Any], user: User) -> list[str]:
    """Report which files of the first copy cannot be written."""
    problems = []
    first = _first_copy(values)
    cwd = placeholders.fill(values.get("cwd"), first)
    for key in ("stdout", "stderr"):
        path = placeholders.fill(values.get(key), first)
        if path is None or path is INVALID or (key == "stderr" and path == "stdout"):
            continue
        if isinstance(path, OutputFile):
            path = path.file
        if cwd is INVALID and not os.path.isabs(path):
            continue  # relative to an unknown directory
        problem = _output_problem(path if cwd is INVALID else os.path.join(cwd or "", path), user)
        if problem:
            problems.append(f"{label}: {key}: {problem}")
    return problems


def _first_copy(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is filled into the first copy of an entry, which may have other mistakes."""
    group, index = str(values.get("name")), values.get("index_start", 0)
    if values.get("numprocs") is None or not isinstance(index, int):
        return {"name": group, "group": group, "index": 0}
    return {"name": f"{group}:{index}", "group": group, "index": index}


def _output_problem(path: str, user: User) -> str | None:
    """Why *path* cannot be opened for append by *user*; None if it can."""
    path = os.path.abspath(path)
    parent = os.path.dirname(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as exc:
        return f"{path}: {exc.strerror}"
    if not os.path.isdir(parent):
        return f"directory {parent} does not exist"
    if mode is not None and stat.S_ISDIR(mode):
        return f"{path} is a directory"
    blocked = user.first_closed(parent)
    if blocked:
        return f"{path}: {user.name} may not enter {blocked}"
    if mode is None and not user.may(parent, os.W_OK | os.X_OK):
        return f"directory {parent} is not writable for {user.name}"
    if mode is not None and not user.may(path, os.W_OK):
        return f"{path} is not writable for {user.name}"
    return None
