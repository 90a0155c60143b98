# SPDX-License-Identifier: MIT
"""Values that files of several kinds share: numbers, times, sizes, signals and command lines."""

from __future__ import annotations

import re
import shlex
import signal
from typing import Any

from gunicorn.companion.importing.found import Expression, Program

UNITS = {
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec"), 0.001),
    **dict.fromkeys(("us", "usec", "µs"), 0.000001),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604800.0),
}

# More than the kernel passes to a program as one argument, execve(2).
MAX_LINE = 2**17

# What only a shell understands, outside single quotes.
_SHELL = re.compile(r"[|&;<>()$`*?\[\]{}~#!\n]")
# With one of these a line is more than one simple command.
_COMPOUND = re.compile(r"[|;()`\n]|(?<![<>])&(?!>)")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def boolean(text: str) -> bool:
    """Raises ValueError."""
    word = text.strip().lower()
    if word in ("true", "yes", "on", "1", "y"):
        return True
    if word in ("false", "no", "off", "0", "n"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def whole(text: str) -> int:
    """Raises ValueError."""
    try:
        return int(text)
    except (TypeError, ValueError):
        raise ValueError(f"{text!r} is not a whole number") from None


def octal(text: str) -> Expression:
    """Raises ValueError."""
    try:
        return Expression(f"0o{int(text, 8):03o}")
    except ValueError:
        raise ValueError(f"{text!r} is not an octal number") from None


def number(value: float) -> float:
    """*value*, without a fraction that is zero."""
    return int(value) if float(value).is_integer() else round(value, 6)


def seconds(text: str, unit: float = 1.0) -> float | None:
    """The time of ``90``, ``1min 30s`` or ``1.5h``; None for ``infinity``. Raises ValueError."""
    text = str(text).strip()
    if text in ("infinity", "0infinity"):
        return None
    found = re.findall(r"(\d+(?:\.\d+)?)\s*([a-zµ]*)", text.lower())
    if not found or re.sub(r"(\d+(?:\.\d+)?)\s*([a-zµ]*)|\s", "", text.lower()):
        raise ValueError(f"{text!r} is not a time")
    total = 0.0
    for amount, word in found:
        if word not in UNITS:
            raise ValueError(f"{text!r} is not a time: the unit {word!r} is not known")
        total += float(amount) * (UNITS[word] if word else unit)
    return number(total)


def some_seconds(text: str) -> float:
    """A time that has an end. Raises ValueError."""
    value = seconds(text)
    if value is None:
        raise ValueError(f"{text!r} is not a time with an end")
    return value


def size(text: str) -> str:
    """``300M`` from ``300MB``, ``300mb`` or ``300m``. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", str(text).strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a size")
    return match[1] + match[2].upper()


def bytes_of(text: str) -> int:
    """The number of bytes of a size. Raises ValueError."""
    short = size(text)
    unit = short[-1] if short[-1].isalpha() else " "
    return int(float(short.rstrip("KMGT")) * 1024 ** " KMGT".index(unit))


def signal_name(text: str) -> str:
    """``SIGTERM`` from ``TERM``, ``SIGTERM`` or ``15``. Raises ValueError."""
    word = str(text).strip().upper()
    if word.isdecimal():
        try:
            return signal.Signals(int(word)).name
        except ValueError:
            raise ValueError(f"{text!r} is not a signal") from None
    name = "SIG" + word.removeprefix("SIG")
    if name not in signal.Signals.__members__:
        raise ValueError(f"{text!r} is not a signal")
    return name


def check_length(text: str) -> None:
    """Raise ValueError for a line that shlex would need minutes for."""
    if len(text) > MAX_LINE:
        raise ValueError(f"it has {len(text)} characters, and at most {MAX_LINE} are read")


def split(text: str) -> list[str]:
    """The words of a command line. Raises ValueError."""
    check_length(text)
    try:
        return shlex.split(text)
    except ValueError as exc:
        raise ValueError(f"{text!r}: {str(exc)[0].lower()}{str(exc)[1:]}") from None


def needs_shell(line: str) -> bool:
    """Whether only a shell understands *line*."""
    return _SHELL.search(_outside_quotes(line)) is not None


def _outside_quotes(line: str) -> str:
    return re.sub(r"'[^']*'|\\.", "", line)


def use_shell(program: Program, script: str) -> None:
    """Let ``sh`` run *script*; the program itself takes the shell's place if that is possible."""
    rest = _outside_quotes(re.sub(r'"[^"`$]*"', "", script))
    if not _COMPOUND.search(rest):
        program.set("command", ["sh", "-c", _with_exec(script)])
        return
    *first, last = re.split(r"\s&&\s", script)
    others = _outside_quotes(" ".join(re.split(r"\s&&\s", rest)))
    if first and not _COMPOUND.search(others):
        program.set("command", ["sh", "-c", " && ".join([*first, _with_exec(last)])])
        return
    program.set("command", ["sh", "-c", script])
    program.set("stop_as_group", True, "a shell passes no signal on")


def _with_exec(command: str) -> str:
    """*command* with ``exec`` behind its assignments of variables."""
    match = re.match(r"\s*((?:[A-Za-z_]\w*=(?:'[^']*'|\"[^\"]*\"|[^\s'\"])*\s+)*)(.*)", command, re.DOTALL)
    assert match is not None  # it fits anything
    rest = match[2].strip()
    if rest.split(None, 1)[:1] in (["exec"], ["cd"], ["export"], ["."]):
        return command.strip()
    return f"{match[1]}exec {rest}"


def run_line(program: Program, line: str) -> None:
    """Run a line that a shell ran there: by its words if that is the same, otherwise by ``sh``.

    Raises ValueError.
    """
    line = line.strip()
    found = re.fullmatch(r"cd\s+('[^']+'|[\w./-]+)\s*&&\s*(.+)", line, re.DOTALL)
    if found and "cwd" not in program.values:
        program.set("cwd", found[1].strip("'"))
        line = found[2].strip()
    if needs_shell(line):
        use_shell(program, line)
        return
    words = split(line)
    env: dict[str, Any] = {}
    if words[:1] == ["env"] and len(words) > 1 and _ASSIGNMENT.match(words[1]):
        del words[0]
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    if words[:1] == ["exec"]:
        del words[0]
    if not words:
        raise ValueError(f"{line!r} names no program")
    program.set("command", words)
    if env:
        program.set("env", {**program.values.get("env", {}), **env})
