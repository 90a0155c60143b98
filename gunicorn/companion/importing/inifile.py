# SPDX-License-Identifier: MIT
"""Read INI files and systemd's units into sections of keys, each with its line.

Unlike configparser it keeps keys that are repeated, which uWSGI and systemd use for lists.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from gunicorn.companion.importing.found import Source, SourceError, read_source

T = TypeVar("T")


class Style(NamedTuple):
    """What differs between the dialects."""

    # Characters that begin a comment at the start of a line, and behind a blank within it.
    comments: str = "#;"
    inline: str = ""
    delimiters: str = "="
    # A value goes on where a line is indented, or behind a backslash.
    indent: bool = False
    backslash: bool = False
    # A key may be without a value.
    bare: bool = False
    lower: bool = False


class Entry(NamedTuple):
    key: str
    value: str
    line: int


@dataclass
class Section:
    name: str
    line: int
    path: str
    entries: list[Entry] = field(default_factory=list)

    @property
    def place(self) -> str:
        return f"[{self.name}] in {self.path}, line {self.line}"

    def last(self) -> dict[str, Entry]:
        """The entries by key; of those that are repeated the last."""
        return {entry.key: entry for entry in self.entries}

    def all(self, key: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.key == key]

    def get(self, key: str, parse: Callable[[str], T], default: T) -> T:
        """What *parse* makes of the value of *key*; *default* if there is none. Raises SourceError."""
        entry = self.last().get(key)
        return default if entry is None else self.parse(entry, parse)

    def parse(self, entry: Entry, parse: Callable[[str], T]) -> T:
        """What *parse* makes of the value of *entry*. Raises SourceError."""
        with self.naming(entry):
            return parse(entry.value)

    @contextlib.contextmanager
    def naming(self, entry: Entry) -> Iterator[None]:
        """Turn a ValueError into a SourceError that names *entry*."""
        try:
            yield
        except ValueError as exc:
            raise self.error(entry, str(exc)) from None

    def error(self, entry: Entry, text: str) -> SourceError:
        return SourceError(self.path, entry.line, f"{entry.key}: {text}")


def read(source: Source, style: Style) -> list[Section]:
    """The sections of a file; one that is repeated goes on. Raises SourceError."""
    sections: dict[str, Section] = {}
    section: Section | None = None
    # Whether the line before ended in a backslash, and how far its key was indented.
    continued, indent = False, 0
    for number, raw in enumerate(source.text.split("\n"), 1):
        line = _without_comment(raw, style)
        stripped = line.strip()
        if not stripped:
            # A comment may stand within a value that goes on.
            continued = continued and bool(raw.strip())
            continue
        deeper = style.indent and len(line) - len(line.lstrip()) > indent
        if (continued or deeper) and section is not None and section.entries:
            before = section.entries[-1]
            joint = "" if not before.value else " " if style.backslash else "\n"
            section.entries[-1] = before._replace(value=f"{before.value}{joint}{stripped}")
        elif stripped.startswith("["):
            match = re.match(r"\[(.+)\]", stripped)
            if match is None:
                raise SourceError(source.path, number, f"the section {one(stripped)} does not end with ]")
            name = match[1].strip()
            section = sections.setdefault(name, Section(name, number, source.path))
        else:
            if section is None:
                raise SourceError(source.path, number, f"{one(stripped)} stands before the first [section]")
            section.entries.append(_entry(source, number, stripped, style))
            indent = len(line) - len(line.lstrip())
        continued = style.backslash and stripped.endswith("\\")
        if continued and section is not None and section.entries:
            before = section.entries[-1]
            section.entries[-1] = before._replace(value=before.value[:-1].rstrip())
    return list(sections.values())


def read_included(path: str, section: Section, entry: Entry, style: Style) -> list[Section]:
    """The sections of a file that *entry* names. Raises SourceError."""
    try:
        with open(path, "rb") as file:
            return read(read_source(path, file), style)
    except OSError as exc:
        raise section.error(entry, f"cannot read {path}: {exc.strerror}") from None


def one(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _without_comment(line: str, style: Style) -> str:
    if line.lstrip().startswith(tuple(style.comments)):
        return ""
    if style.inline:
        line = re.split(rf"\s[{re.escape(style.inline)}]", line, maxsplit=1)[0]
    return line.rstrip()


def _entry(source: Source, number: int, line: str, style: Style) -> Entry:
    key, delimiter, value = _split(line, style.delimiters)
    if not key or not (delimiter or style.bare):
        raise SourceError(source.path, number, f"{one(line)} is not KEY = VALUE")
    return Entry(key.lower() if style.lower else key, value, number)


def _split(line: str, delimiters: str) -> tuple[str, str, str]:
    match = re.search(f"[{delimiters}]", line)
    if match is None:
        return line, "", ""
    return line[: match.start()].strip(), match[0], line[match.end() :].strip()
