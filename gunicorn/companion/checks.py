# SPDX-License-Identifier: MIT
"""How each value of a companion's configuration is checked. Pure.

A check takes the value given and returns its final form; it looks at the value alone, and raises ValueError
with what would be right.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from gunicorn.companion.leasing.store import check_url
from gunicorn.errors import AppImportError
from gunicorn.loading import parse_expression
from gunicorn.settings import redact
from gunicorn.settings.companion import AUTORESTART_WAYS
from gunicorn.settings.foreign import autorestart_hint
from gunicorn.settings.validators import MAX_NUMBER, MAX_SECONDS, parse_address, parse_size

Target = Callable[[], Any] | str

# Each call makes it anew, and each copy of a companion is checked.
VALID_SIGNALS = signal.valid_signals()

NAME_RE = re.compile(r"[A-Za-z0-9._-]+")

START_LIMIT_RE = re.compile(r"(\d+) */ *(\d+(?:\.\d+)?) *([smh]?)")

# Stands for a value that is wrong and has been reported.
INVALID: Any = object()

# More copies than anybody wants: a typing error.
MAX_NUMPROCS = 10_000

# Ports are the highest numbers that copies are known by.
MAX_INDEX = 99_999

# The kernel's own limit is 8192.
MAX_CPUS = 8192

# A file name has at most 255 bytes, and that of a run file or notify socket is longer than the companion's.
MAX_NAME = 200

# More files of old output than anybody looks at.
MAX_BACKUPS = 1000

# A limit on more starts protects nothing.
MAX_START_LIMIT = 1000

# unix(7): the size of sun_path, without the zero at its end.
MAX_SOCKET_PATH = 107

# The name of the web workers among those of companions.
WEB = "web"


def describe_target(target: Target) -> str:
    """Return a target's name: the string itself, or ``module:qualname`` of a callable."""
    if isinstance(target, str):
        return target
    if isinstance(target, functools.partial):
        # Ignore the address of an object: it changes at every reread.
        arguments = re.sub(r" at 0x[0-9a-fA-F]+", "", f"*{target.args!r}, **{target.keywords!r}")
        return f"{describe_target(target.func)}({arguments})"
    qualname = getattr(target, "__qualname__", None)
    if qualname is None:  # an instance with __call__
        return f"{type(target).__module__}:{type(target).__qualname__}"
    return f"{getattr(target, '__module__', None)}:{qualname}"


def parse_signal(value: int | str) -> int:
    """Return a signal's number from its name ("SIGTERM", "TERM") or number. Raises ValueError."""
    number: float
    if isinstance(value, str) and not value.strip().isdecimal():
        name = "SIG" + value.strip().upper().removeprefix("SIG")
        number = signal.Signals.__members__.get(name, 0)
    elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
        # A float may be equal to a number, or not be finite.
        number = int(value) if isinstance(value, str) else value
    else:
        raise ValueError(f"{value!r} is not a signal")
    if number not in VALID_SIGNALS:
        raise ValueError(f"unknown signal {value!r}")
    return int(number)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``stop_sigal: did you mean stop_signal?``, or *word* alone if no known one is similar."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1)
    return f"{word}: did you mean {near[0]}?" if near else word


def check_name(value: Any) -> str:
    if not isinstance(value, str) or not NAME_RE.fullmatch(value):
        raise ValueError(f"{value!r} may only contain letters, digits, '.', '_' and '-'")
    if value.startswith("-"):
        raise ValueError(f"{value!r} begins with '-', which commands would read as an option")
    if len(value) > MAX_NAME:
        raise ValueError(f"it has {len(value)} characters, and at most {MAX_NAME} fit into a file name")
    if value == "all":
        # `gunicorn-companion stop all` means every companion.
        raise ValueError("'all' is reserved for commands")
    if value == WEB:
        raise ValueError("'web' means the web workers, in commands and in after: choose another name")
    return value


def check_target(value: Any) -> Target:
    if isinstance(value, str):
        module, colon, expression = value.partition(":")
        try:
            _, call = parse_expression(expression, value)
        except AppImportError as error:
            if "(" in expression:
                raise ValueError(str(error)) from None
            colon = ""
        else:
            if call == ([], {}):
                raise ValueError(f"{value!r} is called by the companion itself: leave '()' away")
        if not colon or not all(part.isidentifier() for part in module.split(".")):
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


def check_time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number of seconds")
    # Not isfinite(): it raises OverflowError for a whole number that is no float.
    if value > MAX_SECONDS:
        raise ValueError(f"it is more than {MAX_SECONDS} seconds")
    if not value >= 0:  # not a number, too
        raise ValueError(f"{value!r} is not a time of 0 or more seconds")
    return value


def check_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither True nor False")
    return value


def check_path(value: Any) -> str:
    try:
        path = os.fspath(value)
    except TypeError:
        path = ""
    if not isinstance(path, str) or not path or not _is_passable(path):
        raise ValueError(f"{value!r} is not a path")
    return path


def _is_passable(text: str) -> bool:
    """Whether *text* can be given to the kernel."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a character that UTF-16 writes as two
        return False


class OutputFile(NamedTuple):
    """``stdout`` or ``stderr`` as a dictionary. No ``max_bytes``: no rotation."""

    file: str
    max_bytes: int | None = None
    backups: int = 10
    compress: bool = False
    stamp: bool = False


def check_output(value: Any) -> str | OutputFile | None:
    if isinstance(value, OutputFile):
        return value
    if isinstance(value, Mapping):
        return _output_file(value)
    return None if value in (None, "inherit") else check_path(value)


def check_stdout(value: Any) -> str | OutputFile | None:
    if value in ("stdout", "stderr"):
        raise ValueError(f"{value!r} is not a file: use None, 'inherit' or a path")
    return check_output(value)


def _output_file(value: Mapping[Any, Any]) -> OutputFile:
    for key in value:
        if key not in OutputFile._fields:
            raise ValueError(f"unknown key {did_you_mean(str(key), OutputFile._fields)}")
    if value.get("file") is None:
        raise ValueError("'file' is missing")
    path = check_path(value["file"])
    backups = checked_key("backups", whole(0, MAX_BACKUPS), value.get("backups", 10))
    max_bytes = value.get("max_bytes")
    if max_bytes is not None:
        max_bytes = checked_key("max_bytes", parse_size, max_bytes)
        if max_bytes < 1:
            raise ValueError("max_bytes: it leaves no room (None: the file grows without a limit)")
    flags = {key: checked_key(key, check_bool, value.get(key, False)) for key in ("compress", "stamp")}
    return OutputFile(path, max_bytes, backups, **flags)


def checked_key(key: str, check: Callable[[Any], Any], value: Any) -> Any:
    """Return what *check* makes of *value*; its error names the key."""
    try:
        return check(value)
    except ValueError as exc:
        raise ValueError(f"{key}: {exc}") from None


def check_env(value: Any) -> dict[str, str | None]:
    """Variables to set; None: to remove."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{redact.in_value(value)!r} is not a dict of strings to strings")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str | None):
            shown = redact.in_value({name: text})
            raise ValueError(f"{name!r}: {shown[name]!r} is not a string to a string")
        if not name or "=" in name or not _is_passable(name + (text or "")):
            raise ValueError(f"{name!r} cannot be an environment variable")
    return dict(value)


def check_command(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ValueError(
            f"{redact.in_value(value)!r} is one string, but there is no shell: write it as a list, "
            f"{redact.in_value(_words(value))!r}"
        )
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(
            f"{redact.in_value(value)!r} is not a list of strings: the program and its arguments"
        )
    for word in value:
        if not isinstance(word, str) or not _is_passable(word):
            raise ValueError(f"{word!r} cannot be an argument of a program")
    if not value[0]:
        raise ValueError("its first word, the program, is empty")
    return tuple(value)


def _words(line: str) -> list[str]:
    """Split *line* like a shell, or if it cannot, at its blanks."""
    import shlex

    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def check_count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a number of 1 or more")
    if value > MAX_NUMBER:
        raise ValueError("the number is too large")
    return value


def whole(least: int, most: int) -> Callable[[Any], int]:
    """The check of a whole number."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"{value!r} is not a whole number from {least} to {most}")
        return value

    return check


def check_umask(value: Any) -> int:
    """A mask of permission bits; text is octal, with or without ``0o``."""
    mask = value
    if isinstance(value, str):
        try:
            mask = int(value, 8)
        except ValueError:
            raise ValueError(f"expected a mask in octal, such as 022, not {value!r}") from None
    if isinstance(mask, bool) or not isinstance(mask, int) or not 0 <= mask <= 0o777:
        raise ValueError(f"{value!r} is no mask of permissions: write it in octal, 0o027 or '027'")
    return mask


def check_oom_score_adj(value: Any) -> int:
    if sys.platform != "linux":
        raise ValueError("it needs Linux")
    return whole(-1000, 1000)(value)


def check_rlimits(value: Any) -> dict[str, tuple[int, int | None]]:
    """Limits by the lower-case names of setrlimit(2), each soft and hard; hard is None if it is to stay."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f'{value!r} is not a dict of limits, such as {{"nofile": 4096}}')
    known = [name[7:].lower() for name in dir(resource) if re.fullmatch("RLIMIT_[A-Z]+", name)]
    for name in value:
        if name not in known:
            raise ValueError(f"no limit {did_you_mean(str(name), known)}")
    return {name: checked_key(name, _soft_and_hard, limit) for name, limit in value.items()}


def _soft_and_hard(value: Any) -> tuple[int, int | None]:
    if not isinstance(value, (list, tuple)):
        return _limit(value), None
    if len(value) != 2:
        raise ValueError(f"{value!r} is neither one limit nor [soft, hard]")
    soft, hard = _limit(value[0]), _limit(value[1])
    if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
        raise ValueError(f"{value!r}: the soft limit is above the hard one")
    return soft, hard


def _limit(value: Any) -> int:
    if value in ("unlimited", "infinity"):
        return resource.RLIM_INFINITY
    try:
        size = parse_size(value)
    except ValueError:
        size = -1
    if size < 0:
        raise ValueError(f"{value!r} is not a number, a size like '512M' or 'unlimited'")
    return size


def check_cpu_affinity(value: Any) -> tuple[int, ...]:
    """The numbers of CPUs, from a list or text like '0-3,6'."""
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("this system has no such call (it needs Linux)")
    numbers = _numbers(value) if isinstance(value, str) else value
    if (
        not isinstance(numbers, (list, tuple))
        or not numbers
        or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < MAX_CPUS for n in numbers)
    ):
        raise ValueError(f"{value!r} is not a list of CPUs, such as [0, 1], or text like '0-3,6'")
    return tuple(sorted(set(numbers)))


def _numbers(text: str) -> list[int]:
    """The numbers in '0-3,6'; none if it is something else."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            return []
        found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


def check_paths(value: Any) -> tuple[str, ...]:
    """A path or a list of them."""
    paths = () if value is None else value if isinstance(value, (list, tuple)) else (value,)
    return tuple(map(check_path, paths))


def check_groups(value: Any) -> tuple[str, ...]:
    groups = _texts(value, "groups' names")
    for group in groups:
        if not NAME_RE.fullmatch(group):
            raise ValueError(f"{group!r} may only contain letters, digits, '.', '_' and '-'")
    return groups


def check_numprocs(value: Any) -> int:
    if value == 0 and isinstance(value, int) and not isinstance(value, bool):
        raise ValueError("0 is not a number of 1 or more: to run none, stop it or set autostart to False")
    count = check_count(value)
    if count > MAX_NUMPROCS:
        raise ValueError(f"{count} is more than {MAX_NUMPROCS}")
    return count


def check_some_time(value: Any) -> float:
    if check_time(value) == 0:
        raise ValueError("0 leaves no time")
    return check_time(value)


def check_exit_codes(value: Any) -> tuple[int, ...]:
    codes = value if isinstance(value, (list, tuple)) else [value]
    for code in codes:
        if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code <= 255:
            raise ValueError(f"{code!r} is not an exit code from 0 to 255")
    if not codes:
        raise ValueError("it is empty: with no code of success no exit would be one")
    return tuple(dict.fromkeys(codes))


class StartLimit(NamedTuple):
    """At most so many starts within *seconds*."""

    starts: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.starts} start{'s' if self.starts != 1 else ''} within {self.seconds:g}s"


def check_start_limit(value: Any) -> StartLimit:
    match = START_LIMIT_RE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            f"{value!r} is not like '5/60s', which allows 5 starts within 60 seconds (units: s, m, h)"
        )
    count, seconds = int(match[1]), float(match[2]) * {"s": 1, "m": 60, "h": 3600}[match[3] or "s"]
    if not 1 <= count <= MAX_START_LIMIT:
        raise ValueError(f"{value!r}: {count} is not a number of starts from 1 to {MAX_START_LIMIT}")
    if not seconds:
        raise ValueError(f"{value!r} leaves no time (None turns the limit off)")
    return StartLimit(count, seconds)


# A stop signal, and the seconds until the next one or SIGKILL.
Rung = tuple[int, float]


def check_stop_signals(value: Any) -> tuple[Rung, ...]:
    example = "[['SIGTERM', 60], ['SIGQUIT', 10]]"
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{value!r} is not a list of signals, each with seconds, as in {example}")
    rungs = []
    for rung in value:
        if not isinstance(rung, (list, tuple)) or len(rung) != 2:
            raise ValueError(f"{rung!r} is not a signal with seconds, as in {example}")
        rungs.append((parse_signal(rung[0]), float(check_some_time(rung[1]))))
    return tuple(rungs)


def check_limit(value: Any) -> float:
    """A time after which something is done; None turns that off."""
    if check_time(value) == 0:
        raise ValueError("0 leaves no time (None turns it off)")
    return check_time(value)


def check_names(value: Any) -> tuple[str, ...]:
    return _texts(value, "companions' names")


def check_lease(value: Any) -> str | bool | None:
    """The name of a lease, or True for the companion's own."""
    if value is None or isinstance(value, bool):
        return value or None
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{value!r} is no name of a lease: give a text, or True for its own name")
    if len(value.encode()) > MAX_NAME:
        raise ValueError(f"a name of a lease has at most {MAX_NAME} bytes")
    return value


def check_lease_store(value: Any) -> str:
    """A URL of a store of leases. What is wrong with it is told without its password."""
    if not isinstance(value, str):
        raise ValueError(f"expected the URL of a store, not {redact.in_value(value)!r}")
    check_url(value)
    return value


def check_bind(value: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_address, _texts(value, "addresses"))))


def _texts(value: Any, kind: str) -> tuple[str, ...]:
    """One text or a list of them, each once; None is an empty list."""
    texts = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{value!r} is not a list of {kind}")
    return tuple(dict.fromkeys(texts))


def _address(text: str) -> str:
    """Return an address in the canonical form, for comparing and opening; one with placeholders as it is."""
    if "%(" in text:
        return text
    try:
        address = parse_address(text)
    except RuntimeError as exc:
        raise ValueError(str(exc).replace(";", ":")) from None
    if isinstance(address, int):
        raise ValueError(f"{text!r}: a descriptor cannot be used here, give an address")
    if isinstance(address, str):
        length = len(os.fsencode(address))
        if length > MAX_SOCKET_PATH:
            raise ValueError(f"the path of a Unix socket has at most {MAX_SOCKET_PATH} bytes, not {length}")
        return f"unix:{address}"
    if not _names_port(text):
        raise ValueError(f"{text!r} has no port")
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _names_port(text: str) -> bool:
    # An IPv6 address without brackets ends like that too.
    return re.search(r":\d+\Z", text) is not None and ("]:" in text or text.count("::") == 0)


def optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """*check*, but None is a value too."""
    return lambda value: None if value is None else check(value)


def one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"{value!r} is none of {', '.join(words)}")
        return str(value)

    return check


def check_autorestart(value: Any) -> str:
    hint = autorestart_hint(value)
    if hint and value not in AUTORESTART_WAYS:
        raise ValueError(f"{value!r}: here it is {hint!r}")
    return one_of(*AUTORESTART_WAYS)(value)
