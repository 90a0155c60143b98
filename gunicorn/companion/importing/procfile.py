# SPDX-License-Identifier: MIT
"""Read a Procfile, as Heroku, Foreman, Honcho and Overmind run it."""

from __future__ import annotations

import os
import re

from gunicorn.companion.importing import inifile, values
from gunicorn.companion.importing.found import Found, Source, SourceError

TITLE = "a Procfile"
DEFAULTS: dict[str, object] = {}

#: Lines of a Procfile.
HERE = {
    "web": "no companion: ``wsgi_app``, ``bind`` and ``workers``, if it runs a web server",
    "release": "a companion that runs once; web workers wait for it (``web_after``), and so do others "
    "(``after``)",
    "NAME": "a companion; ``command`` is the list of its words",
    "cd DIR && …": "``cwd``",
    "A=b program": "``env``",
    "$VAR, pipes, &&": '``["sh", "-c", "exec …"]``',
    ".env": "``env_file``, a guess, if the file lies beside the Procfile",
}
INSTEAD: dict[str, str] = {}

_LINE = re.compile(r"([A-Za-z0-9_-]+)\s*:\s*(.*)")


def translate(source: Source) -> Found:
    """Raises SourceError."""
    found = Found(origin=TITLE)
    here = os.path.dirname(os.path.abspath(source.path))
    # Foreman and Honcho read it; Heroku has variables of its own.
    env_file = os.path.join(here, ".env")
    for number, raw in enumerate(source.text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or not match[2]:
            raise SourceError(source.path, number, f"{inifile.one(line)} is not NAME: COMMAND")
        name, command = match[1], match[2]
        program = found.add(name, f"{name}: in {source.path}, line {number}")
        try:
            values.run_line(program, command)
        except ValueError as exc:
            raise SourceError(source.path, number, str(exc)) from None
        if os.path.exists(env_file):
            program.guess("env_file", env_file, "Foreman and Honcho read it")
        if name == "release":
            program.set_job("it runs once")
            program.set("start_retries", 1, "a release that fails ends the start")
    if release := found.named("release"):
        found.settings["web_after"] = [release.name], "the web workers wait for the release"
        for program in found.programs:
            if program is not release:
                program.set("after", [release.name])
    return found
