# SPDX-License-Identifier: MIT
"""What was found in files of another supervisor: programs, settings and comments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

# Up to this many seconds the delay between two starts grows, unless a companion says otherwise.
RESTART_DELAY_MAX = 60
# The longest time that a companion has for its end at a restart, unless it says otherwise.
RELOAD_TIMEOUT = 60

# Bytes of a file that are read: far more than anybody writes.
MAX_SIZE = 2**20
# Characters of a name that are kept. A companion may have some more, for the number of a second one.
LONGEST_NAME = 190

#: Keys that a companion with a schedule cannot have.
NOT_WITH_SCHEDULE = (
    "autorestart",
    "start_retries",
    "start_limit",
    "on_give_up",
    "retry_after",
    "max_memory",
    "max_lifetime",
    "max_lifetime_jitter",
    "ready",
    "probe",
    "singleton",
)

OTHER_USER = (
    "companions run as the server's user (setting ``user``); another one needs a server that runs as root, "
    "and a command that begins with ``setpriv --reuid NAME --init-groups``"
)


class SourceError(Exception):
    """A file cannot be read or makes no sense. The text begins with the file and, if known, the line."""

    def __init__(self, path: str, line: int | None, text: str) -> None:
        super().__init__(f"{path}, line {line}: {text}" if line else f"{path}: {text}")


class Source(NamedTuple):
    """A file to translate."""

    path: str
    text: str


def read_source(path: str, file: IO[bytes]) -> Source:
    """The text of *file*. Raises OSError and SourceError."""
    # A device may have no end.
    data = file.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise SourceError(path, None, f"it has more than {MAX_SIZE} bytes: is it a configuration?")
    try:
        return Source(path, data.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as exc:
        raise SourceError(path, data.count(b"\n", 0, exc.start) + 1, "it is not UTF-8") from None


class Env(NamedTuple):
    """A variable of the server's environment, as a part of a text."""

    name: str
    default: str | None = None


class Mark(NamedTuple):
    """A placeholder of ours, such as ``%(index)02d``, as a part of a text."""

    text: str


class Expression(NamedTuple):
    """A value that the file computes, such as ``os.cpu_count()``."""

    code: str


class Text(NamedTuple):
    """A text that is not known before the server runs."""

    parts: tuple[str | Env | Mark | Expression, ...]


def join(parts: Iterable[str | Env | Mark | Expression]) -> str | Text:
    """One text of *parts*; a plain string if it holds nothing else."""
    joined: list[str | Env | Mark | Expression] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    if not joined:
        return ""
    return joined[0] if len(joined) == 1 and isinstance(joined[0], str) else Text(tuple(joined))


def expand(text: str, pattern: re.Pattern[str], replace: Callable[[re.Match[str]], Any]) -> str | Text:
    """Replace each match of *pattern* in *text*; *replace* returns a part, or None to keep what is there."""
    parts: list[str | Env | Mark | Expression] = []
    end = 0
    for match in pattern.finditer(text):
        part = replace(match)
        parts += [text[end : match.start()], match[0] if part is None else part]
        end = match.end()
    return join([*parts, text[end:]])


@dataclass
class Commented:
    """What has comments: what has no counterpart, and what to do instead."""

    notes: list[str] = field(default_factory=list, kw_only=True)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def instead(self, shown: str, hint: str) -> None:
        """Say what to do instead of *shown*; what has the same hint shares it."""
        ending = f": {hint}"
        for place, note in enumerate(self.notes):
            if note.endswith(ending):
                self.notes[place] = f"{note.removesuffix(ending)}, {shown}{ending}"
                return
        self.note(f"{shown}{ending}")


@dataclass
class Program(Commented):
    """A companion to be: its keys, why each is as it is, and comments."""

    name: str
    source: str
    old_name: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, reason: str = "") -> None:
        self.values[key] = value
        if reason:
            self.reasons[key] = reason

    def guess(self, key: str, value: Any, reason: str) -> None:
        """Set a key to what is probably meant."""
        self.set(key, value, f"guess: {reason}")

    def set_job(self, reason: str) -> None:
        """Make it a job: what comes after it waits until it has ended with 0."""
        self.set("autorestart", "on-failure", reason)
        # Until then it is not RUNNING.
        self.set("startsecs", 86400, "longer than it takes, so that others wait for its end")

    def set_schedule(self, schedule: str, reason: str = "") -> None:
        """Make it a job that runs at its times."""
        values = self.values
        if "max_lifetime" in values:
            values.setdefault("max_runtime", values["max_lifetime"])
        if "max_memory" in values:
            self.note(f"a memory limit of {values['max_memory']}: rlimits bounds that of a run")
        for key in (*NOT_WITH_SCHEDULE, "startsecs"):
            values.pop(key, None)
            self.reasons.pop(key, None)
        self.set("schedule", schedule, reason)

    def copies(self, number: int) -> None:
        """Let so many copies run; one needs no number, and none waits for a command."""
        if number > 1:
            self.set("numprocs", number)
        elif number < 1:
            self.set("autostart", False, "no copies there")

    def stop_within(self, seconds: float | None, reason: str = "") -> None:
        """Set the time between the stop signal and SIGKILL, for a restart as well."""
        if seconds is None:
            self.guess("stop_timeout", 3600, "without a limit there; here an hour")
            seconds = 3600
        else:
            self.set("stop_timeout", seconds, reason)
        if seconds > RELOAD_TIMEOUT:
            self.set("reload_timeout", seconds, "a restart waits as long")


@dataclass
class Block(Commented):
    """Comments on one part of a file that becomes no companion; without any it is not written."""

    source: str


@dataclass
class Found:
    """All that was found. *defaults* are those of the other supervisor that differ from ours."""

    programs: list[Program] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    origin: str = ""

    def block(self, source: str) -> Block:
        self.blocks.append(Block(source))
        return self.blocks[-1]

    def named(self, name: str) -> Program | None:
        """The program that is, or was there, called *name*."""
        return next((program for program in self.programs if name in (program.name, program.old_name)), None)

    def add(self, name: str, source: str) -> Program:
        """A new program. Its name becomes one that a companion may have, and that no other has."""
        made = clean(name) or "program"
        wanted, number = made, 1
        while made in ("all", "web") or self.named(made):
            number += 1
            made = f"{wanted}-{number}"
        program = Program(made, source, old_name=name)
        self.programs.append(program)
        return program

    def drop_waits(self) -> None:
        """Let nobody wait for a program that is not started by itself, as it would wait for ever."""
        idle = {
            program.name
            for program in self.programs
            if not program.values.get("autostart", True) or "schedule" in program.values
        }
        for program in self.programs:
            after = program.values.get("after", [])
            for name in idle.intersection(after):
                program.note(f"it does not wait for {name}, which is not started by itself")
            if idle.intersection(after):
                program.values["after"] = [name for name in after if name not in idle]
                if not program.values["after"]:
                    del program.values["after"]

    def finish(self) -> None:
        """Make what was found fit together."""
        self.drop_waits()
        for program in self.programs:
            delay = program.values.get("restart_delay", 0)
            if delay > program.values.get("restart_delay_max", RESTART_DELAY_MAX):
                program.set("restart_delay_max", delay, "the delay grows no further")

    def order(self, steps: dict[str, Any]) -> None:
        """Let each program come after those of the step before its own; *steps* has them by name.

        Nobody waits for a program that is not started or is not meant to stay up.
        """
        waited = [
            program.name
            for program in self.programs
            if program.values.get("autostart", True)
            and program.values.get("autorestart") != "never"
            and "schedule" not in program.values
        ]
        by_step: dict[Any, list[str]] = {}
        for name in waited:
            by_step.setdefault(steps[name], []).append(name)
        for program in self.programs:
            lower = [step for step in by_step if step < steps[program.name]]
            if lower:
                program.guess("after", by_step[max(lower)], "by priority; it is stopped before them")


def leftover(
    place: Commented, key: str, value: str, instead: Mapping[str, str], known: Iterable[str]
) -> None:
    """Say what to do instead of ``key = value``, which has no counterpart."""
    shown = f"{key} = {one_line(value)}" if value else key
    if key in instead:
        place.instead(shown, plain(instead[key]))
    elif key not in known:
        place.instead(shown, "not known, and left out")


def present(needed: list[str], optional: list[str]) -> str | list[str] | Expression:
    """Files, of which *optional* ones may be missing."""
    if optional:
        # A list of JSON is one of Python.
        start = "".join(f"{json.dumps(path)}, " for path in needed)
        return Expression(f"[{start}*filter(os.path.exists, {json.dumps(optional)})]")
    return needed[0] if len(needed) == 1 else needed


def one_line(text: str, longest: int = 70) -> str:
    """*text* on one line of a comment, cut where it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def clean(name: str) -> str:
    """*name* with the letters that names of companions and groups may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[:LONGEST_NAME]


def plain(text: str) -> str:
    """The text of the manual's table, for a comment."""
    return re.sub(r":doc:`([^`<]*)`", r"the page '\1' of the manual", text).replace("``", "")
