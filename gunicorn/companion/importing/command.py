# SPDX-License-Identifier: MIT
"""The command ``gunicorn-companion import``: which kind each file is, and where the answer goes."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from gunicorn.companion.importing.found import Found, Source, SourceError, read_source
from gunicorn.companion.importing.webservers import replace_web_servers
from gunicorn.companion.importing.writer import write

ORIGINS = ("supervisord", "procfile", "circus", "uwsgi", "systemd", "compose", "pm2")

# What the text of each kind contains.
_SECTIONS = {
    "compose": r"^services:\s*$",
    "uwsgi": r"^\s*\[uwsgi\]",
    "circus": r"^\s*\[(circus|watcher:[^]]+)\]",
    "supervisord": r"^\s*\[(supervisord|program:[^]]+|fcgi-program:[^]]+|eventlistener:[^]]+|group:[^]]+)\]",
    "systemd": r"^\s*\[(Service|Timer|Unit)\]",
}


def translate(paths: Sequence[str], origin: str | None = None) -> str:
    """The configuration for the programs in the files. Raises SourceError."""
    by_origin: dict[str, list[Source]] = {}
    for path in paths:
        source = _read(path)
        by_origin.setdefault(origin or recognise(source), []).append(source)
    found: list[Found] = []
    for name, sources in by_origin.items():
        module: Any = importlib.import_module(f"gunicorn.companion.importing.{name}")
        try:
            if name == "systemd":
                found.append(module.translate_all(sources))
            else:
                found += map(module.translate, sources)
        except RecursionError:
            raise SourceError(sources[0].path, None, "it is nested too deeply") from None
    for each in found:
        replace_web_servers(each)
        each.finish()
    _tell_apart(found)
    return write(found, paths)


def _read(path: str) -> Source:
    try:
        if path == "-":
            return read_source("standard input", sys.stdin.buffer)
        with open(path, "rb") as file:
            return read_source(path, file)
    except OSError as exc:
        raise SourceError(path, None, f"cannot read it: {exc.strerror}") from None


def recognise(source: Source) -> str:
    """The kind of a file, by its name or its text. Raises SourceError."""
    name = os.path.basename(source.path).lower()
    ending = os.path.splitext(name)[1]
    if ending in (".service", ".socket", ".timer", ".target", ".path", ".slice"):
        return "systemd"
    if ending in (".yml", ".yaml"):
        return "compose"
    if ending in (".json", ".js", ".cjs", ".mjs", ".ts"):
        return "pm2"
    if re.match(r"\s*(\{|\[\s*\{)", source.text):
        return "pm2"
    for origin, pattern in _SECTIONS.items():
        if re.search(pattern, source.text, re.MULTILINE):
            return origin
    if "procfile" in name or re.match(r"(?:\s*#.*\n|\s*\n)*[A-Za-z0-9_-]+:\s*\S", source.text):
        return "procfile"
    raise SourceError(source.path, None, f"what kind of file is it? --from says so: {', '.join(ORIGINS)}")


def _tell_apart(found: Iterable[Found]) -> None:
    """Give programs of several files that have one name a name each."""
    taken: set[str] = set()
    for part in found:
        renamed: dict[str, str] = {}
        for program in part.programs:
            name, number = program.name, 1
            while name in taken:
                number += 1
                name = f"{program.name}-{number}"
            renamed[program.name] = program.name = name
            taken.add(name)
        for program in part.programs:
            if "after" in program.values:
                program.values["after"] = [renamed.get(each, each) for each in program.values["after"]]
        if "web_after" in part.settings:
            names, reason = part.settings["web_after"]
            part.settings["web_after"] = [renamed[each] for each in names], reason


def run(options: Any) -> str | None:
    """Print the configuration, or write it to a new file. Return what is wrong, if something is."""
    try:
        text = translate(options.files, options.origin)
    except SourceError as exc:
        return str(exc)
    if options.output is None:
        sys.stdout.write(text)
        return None
    try:
        # It may hold secrets of the source, so only its owner may read it.
        fd = os.open(options.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return f"{options.output} exists already, and is not overwritten"
    except OSError as exc:
        return f"cannot write {options.output}: {exc.strerror}"
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"written to {options.output}; try it: gunicorn --check-config -c {options.output} MODULE:APP")
    return None
