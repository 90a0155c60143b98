# SPDX-License-Identifier: MIT
"""What a companion is configured to be: validation, defaults, and what a change means."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import inspect
import json
import math
import os
import pwd
import re
import signal
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

Target = Callable[[], Any] | str

NAME_RE = re.compile(r"[A-Za-z0-9._-]+")
INHERIT = (None, "inherit")

# In place of a value that was found wrong, and reported.
INVALID: Any = object()

# The keys that have a global default `companion_<key>`.
GLOBAL_KEYS = (
    "cwd",
    "env",
    "stop_signal",
    "stop_timeout",
    "stop_as_group",
    "reload_timeout",
    "startsecs",
    "restart_delay",
    "stdout",
    "stderr",
)
TIME_KEYS = ("stop_timeout", "reload_timeout", "startsecs", "restart_delay")
BOOL_KEYS = ("stop_as_group", "autostart")


@dataclass(frozen=True)
class CompanionConfig:
    """One validated companion. Times are seconds; ``stop_signal`` is a signal number."""

    name: str
    target: Target
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    stop_signal: int = signal.SIGTERM
    stop_timeout: float = 60
    stop_as_group: bool = False
    reload_timeout: float = 60
    startsecs: float = 1
    restart_delay: float = 5
    autostart: bool = True
    stdout: str | None = None
    stderr: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_signal", parse_signal(self.stop_signal))

    @property
    def target_name(self) -> str:
        """``module:qualname``, whichever form the target has."""
        return describe_target(self.target)

    @functools.cached_property
    def config_hash(self) -> str:
        """SHA-256 over every field but ``restart_delay``, in a canonical form."""
        names = [f.name for f in fields(self) if f.name != "restart_delay"]
        return _digest(self, names)

    @functools.cached_property
    def shape_hash(self) -> str:
        """SHA-256 over the fields that shape the process itself; a change needs a restart."""
        return _digest(self, ["target", "cwd", "env", "stdout", "stderr"])

    @property
    def fingerprint(self) -> str:
        """Stands for all fields: two that have the same one differ in nothing that reread has to report."""
        return f"{self.config_hash}/{float(self.restart_delay)}"


KNOWN_KEYS = tuple(f.name for f in fields(CompanionConfig))


def _digest(config: CompanionConfig, names: Iterable[str]) -> str:
    values: dict[str, Any] = {}
    for name in names:
        value = getattr(config, name)
        if name == "target":
            value = config.target_name
        elif name == "env":
            value = dict(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            value = float(value)  # 60 and 60.0 are one setting
        values[name] = value
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def describe_target(target: Target) -> str:
    """A target's name: the string itself, or ``module:qualname`` of a callable."""
    if isinstance(target, str):
        return target
    if isinstance(target, functools.partial):
        # Where an object lies in memory is no part of what it is: it changes at every reread.
        arguments = re.sub(r" at 0x[0-9a-fA-F]+", "", f"*{target.args!r}, **{target.keywords!r}")
        return f"{describe_target(target.func)}({arguments})"
    qualname = getattr(target, "__qualname__", None)
    if qualname is None:  # an instance with __call__
        return f"{type(target).__module__}:{type(target).__qualname__}"
    return f"{getattr(target, '__module__', None)}:{qualname}"


def parse_signal(value: int | str) -> int:
    """A signal's number from its name ("SIGTERM", "TERM") or number. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a signal")
    if isinstance(value, str) and not value.strip().isdigit():
        name = value.strip().upper()
        name = name if name.startswith("SIG") else "SIG" + name
        try:
            return int(signal.Signals[name])
        except KeyError:
            raise ValueError(f"unknown signal {value!r}") from None
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a signal") from None
    if number != value and not isinstance(value, str):
        raise ValueError(f"{value!r} is not a signal")
    if number not in signal.valid_signals():
        raise ValueError(f"unknown signal {value!r}")
    return number


def build_companion_configs(cfg: Any) -> list[CompanionConfig]:
    """The companions that *cfg* names, omitted keys filled from the global settings.

    Raises ValueError with every mistake at once, each with the companion's name
    (or its index) and the key. Imports no target.
    """
    problems: list[str] = []
    user = WriterIdentity(cfg.uid, cfg.gid, bool(cfg.initgroups))
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
            if name in seen:
                problems.append(f"companion {name!r}: name: used by entries {seen[name]} and {index}")
            seen.setdefault(name, index)
        if config is not None:
            configs.append(config)
    if problems:
        raise ValueError("invalid companion configuration: " + "; ".join(problems))
    return configs


def _build_one(
    index: int, entry: Any, defaults: Mapping[str, Any], user: WriterIdentity, problems: list[str]
) -> CompanionConfig | None:
    """One entry validated; None where it cannot be built, whose reason is in *problems*."""
    if not isinstance(entry, dict):
        problems.append(f"companion #{index}: not a dict but {type(entry).__name__}")
        return None
    name = entry.get("name")
    label = f"companion {name!r}" if isinstance(name, str) else f"companion #{index}"
    values = dict(defaults)
    for required in ("name", "target"):
        if entry.get(required) is None:
            problems.append(f"{label}: {required}: missing")
            values[required] = INVALID
    for key, value in entry.items():
        if key not in KNOWN_KEYS:
            problems.append(f"{label}: unknown key {did_you_mean(str(key), KNOWN_KEYS)}")
        elif values.get(key) is not INVALID or value is not None:
            values[key] = _checked(key, value, f"{label}: {key}", problems)
    _merge_env(values, defaults)
    problems.extend(_output_problems(label, values, user))
    if INVALID in values.values():
        return None
    return CompanionConfig(**values)


def _merge_env(values: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """The companion's variables are merged over those for all of them."""
    layers = (defaults.get("env", {}), values.get("env", {}))
    values["env"] = INVALID if INVALID in layers else {**layers[0], **layers[1]}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``stop_sigal: did you mean stop_signal?``; the word alone where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"{word}: did you mean {near[0]}?" if near else word


def _checked(key: str, value: Any, label: str, problems: list[str]) -> Any:
    """*value* in its final form; INVALID, and a line in *problems*, where it is wrong."""
    try:
        return CHECKS[key](value)
    except ValueError as exc:
        problems.append(f"{label}: {exc}")
        return INVALID


def _check_name(value: Any) -> str:
    if not isinstance(value, str) or not NAME_RE.fullmatch(value):
        raise ValueError(f"{value!r} is not made of letters, digits, '.', '_' and '-'")
    if value == "all":
        # `gunicorn-companion stop all` means every companion.
        raise ValueError("'all' stands for every companion in commands")
    return value


def _check_target(value: Any) -> Target:
    if isinstance(value, str):
        module, colon, attribute = value.partition(":")
        parts = [*module.split("."), *attribute.split(".")]
        if not colon or not all(part.isidentifier() for part in parts):
            raise ValueError(f"{value!r} is not of the form 'module:callable'")
        return value
    if not callable(value):
        raise ValueError(f"{value!r} is neither a callable nor 'module:callable'")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # a builtin that does not tell
        return value  # type: ignore[no-any-return]
    try:
        signature.bind()
    except TypeError as exc:
        raise ValueError(f"{describe_target(value)} is called without arguments, but: {exc}") from None
    return value  # type: ignore[no-any-return]


def _check_time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number of seconds")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is not a time of 0 or more seconds")
    return value


def _check_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither True nor False")
    return value


def _check_signal(value: Any) -> int:
    return parse_signal(value)


def _check_path(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError(f"{value!r} is not a path")
    path = os.fspath(value)
    if not isinstance(path, str) or "\0" in path:
        raise ValueError(f"{value!r} is not a path")
    return path


def _check_output(value: Any) -> str | None:
    return None if value in INHERIT else _check_path(value)


def _check_stdout(value: Any) -> str | None:
    if value in ("stdout", "stderr"):
        raise ValueError(f"{value!r} is no file: use None, 'inherit' or a path")
    return _check_output(value)


def _check_env(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a dict of strings to strings")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(f"{name!r}: {text!r} is not a string to a string")
        if not name or "=" in name or "\0" in name + text:
            raise ValueError(f"{name!r} cannot be an environment variable")
    return dict(value)


CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": _check_name,
    "target": _check_target,
    "cwd": _check_path,
    "env": _check_env,
    "stop_signal": _check_signal,
    "stdout": _check_stdout,
    "stderr": _check_output,
    **dict.fromkeys(TIME_KEYS, _check_time),
    **dict.fromkeys(BOOL_KEYS, _check_bool),
}


class WriterIdentity:
    """Who will write the companions' output files: they are checked for that user, not for ours."""

    def __init__(self, uid: int, gid: int, initgroups: bool = False) -> None:
        self.uid = uid
        self.myself = uid == os.geteuid() and gid == os.getegid()
        self.groups = {gid, *self._supplementary_groups(uid, gid, initgroups)}

    @staticmethod
    def _supplementary_groups(uid: int, gid: int, initgroups: bool) -> Collection[int]:
        """Those after the change of user, which keeps ours unless *initgroups* gives it its own."""
        if initgroups and uid and gid:
            with contextlib.suppress(KeyError):
                return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
        return os.getgroups()

    @property
    def name(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"

    def may(self, path: str, want: int) -> bool:
        """Whether that user has the permission bits *want* (of os.R_OK, W_OK, X_OK) on *path*."""
        if self.myself:
            return os.access(path, want, effective_ids=os.access in os.supports_effective_ids)
        if self.uid == 0:
            return True
        info = os.stat(path)
        if info.st_uid == self.uid:
            bits = info.st_mode >> 6
        elif info.st_gid in self.groups:
            bits = info.st_mode >> 3
        else:
            bits = info.st_mode
        return bits & want == want


def _output_problems(label: str, values: Mapping[str, Any], user: WriterIdentity) -> list[str]:
    problems = []
    for key in ("stdout", "stderr"):
        path, cwd = values.get(key), values.get("cwd")
        if path is None or path is INVALID or (key == "stderr" and path == "stdout"):
            continue
        if cwd is INVALID and not os.path.isabs(path):
            continue  # nobody knows where that would be
        problem = _output_problem(path if cwd is INVALID else os.path.join(cwd or "", path), user)
        if problem:
            problems.append(f"{label}: {key}: {problem}")
    return problems


def _output_problem(path: str, user: WriterIdentity) -> str | None:
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
    blocked = _first_closed_directory(parent, user)
    if blocked:
        return f"{path}: {user.name} may not enter {blocked}"
    if mode is None and not user.may(parent, os.W_OK | os.X_OK):
        return f"directory {parent} is not writable for {user.name}"
    if mode is not None and not user.may(path, os.W_OK):
        return f"{path} is not writable for {user.name}"
    return None


def _first_closed_directory(directory: str, user: WriterIdentity) -> str | None:
    parts = directory.split(os.sep)
    for end in range(1, len(parts) + 1):
        prefix = os.sep.join(parts[:end]) or os.sep
        if not user.may(prefix, os.X_OK):
            return prefix
    return None
