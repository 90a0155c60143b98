# SPDX-License-Identifier: MIT
"""Write what was found as a part of ``gunicorn.conf.py``."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gunicorn.companion.importing.found import (
    NOT_WITH_SCHEDULE,
    Env,
    Expression,
    Found,
    Mark,
    Program,
    Text,
)

# In these keys %(index)d and its kind are replaced, so that a plain % is written twice.
PLACEHOLDER_KEYS = (
    "command",
    "cwd",
    "env",
    "env_file",
    "stdout",
    "stderr",
    "bind",
    "probe",
    "liveness",
    "lease",
)
WIDTH = 100
# These come first, in this order.
FIRST = (
    "target",
    "command",
    "cwd",
    "env",
    "env_file",
    "numprocs",
    "index_start",
    "group",
    "bind",
    "after",
    "autostart",
    "autorestart",
    "success_exit_codes",
)

_SECRET = re.compile("PASS|SECRET|TOKEN|CREDENTIAL|(API|PRIVATE|ACCESS)_?KEY", re.IGNORECASE)

ENV_HELPER = '''
def _env(name, default=None):
    """The variable's value for a companion's key, in which a % is written twice."""
    value = os.environ[name] if default is None else os.environ.get(name, default)
    return value.replace("%", "%%")
'''


def write(found: Iterable[Found], sources: Iterable[str]) -> str:
    """The text of the file."""
    parts = list(found)
    _spread_defaults(parts)
    programs = [program for part in parts for program in part.programs]
    body: list[str] = []
    for part in parts:
        for block in part.blocks:
            if block.notes:
                body += ["", *_comments(block.source, ""), *_listed(block.notes, "")]
    settings = list(_settings(parts))
    if settings:
        body += ["", *settings]
    body.append("")
    if programs:
        body.append("companion_workers = [")
        for program in programs:
            body += _program(program)
        body.append("]")
    else:
        body.append("# There is nothing to run as a companion.")
    text = "\n".join(body)
    head = [
        "# gunicorn.conf.py",
        *_comments(f"Written by gunicorn-companion import from {', '.join(sources)}", ""),
    ]
    secrets = ", ".join(_secrets(parts))
    if secrets:
        head += _comments(f"Secrets stand here as they are ({secrets}): env_file keeps them apart", "")
    head.append("# Look at each 'guess', then try it: gunicorn --check-config")
    if re.search(r"\bos\.|_env\(", "\n".join(line for line in body if not line.lstrip().startswith("#"))):
        head += ["", "import os"]
    if "_env(" in text:
        head += ["", "", *ENV_HELPER.strip("\n").splitlines(), ""]
    return "\n".join([*head, text, ""])


def _secrets(parts: Iterable[Found]) -> list[str]:
    """The names of variables whose values seem to be secrets."""
    envs = []
    for part in parts:
        envs += [program.values.get("env", {}) for program in part.programs]
        envs += [value for value, _ in part.settings.values() if isinstance(value, dict)]
    return sorted({name for env in envs for name, value in env.items() if value and _SECRET.search(name)})


def _spread_defaults(parts: list[Found]) -> None:
    """Set the defaults of each origin: for all companions at once, or if origins differ for each one."""
    with_programs = [part for part in parts if part.programs]
    together = len({part.origin for part in with_programs}) == 1
    for part in with_programs:
        for key, value in part.defaults.items():
            lacking = [
                program
                for program in part.programs
                if key not in program.values
                and not (key in NOT_WITH_SCHEDULE and "schedule" in program.values)
            ]
            if together and len(lacking) > 1:
                part.settings[f"companion_{key}"] = (value, f"the default of {part.origin}")
                continue
            for program in lacking:
                program.set(key, value, f"the default of {part.origin}")


def _settings(parts: list[Found]) -> Iterator[str]:
    merged: dict[str, tuple[Any, str]] = {}
    for part in parts:
        for name, (value, reason) in part.settings.items():
            if name in merged and isinstance(value, dict):
                value = {**merged[name][0], **value}
            elif name in merged and isinstance(value, list):
                value = list(dict.fromkeys([*merged[name][0], *value]))
            merged[name] = value, reason
    for name, (value, reason) in merged.items():
        yield from _assignment(f"{name} = ", value, "", reason, "", percent=name == "companion_env")


def _program(program: Program) -> Iterator[str]:
    yield "    {"
    indent = " " * 8
    yield from _comments(program.source, indent)
    if program.name != program.old_name:
        yield from _listed([f"its name was {program.old_name}"], indent)
    yield from _listed(program.notes, indent)
    yield from _assignment('"name": ', program.name, ",", "", indent, percent=False)
    rest = [key for key in program.values if key not in FIRST]
    for key in [*(key for key in FIRST if key in program.values), *rest]:
        value = program.values[key]
        reason = program.reasons.get(key, "")
        yield from _assignment(f'"{key}": ', value, ",", reason, indent, percent=key in PLACEHOLDER_KEYS)
    yield "    },"


def _assignment(
    start: str, value: Any, end: str, reason: str, indent: str, *, percent: bool
) -> Iterator[str]:
    line = f"{indent}{start}{literal(value, percent=percent)}{end}"
    comment = f"  # {_printable(reason)}" if reason else ""
    if len(line) <= WIDTH or not isinstance(value, (list, dict)) or not value:
        if comment and len(line + comment) > WIDTH + 10:
            yield from _comments(reason, indent)
            comment = ""
        yield line + comment
        return
    if reason:
        yield from _comments(reason, indent)
    opening, closing = ("{", "}") if isinstance(value, dict) else ("[", "]")
    yield f"{indent}{start}{opening}"
    items = (
        [(f"{literal(key, percent=False)}: ", each) for key, each in value.items()]
        if isinstance(value, dict)
        else [("", each) for each in value]
    )
    for name, each in items:
        yield f"{indent}    {name}{literal(each, percent=percent)},"
    yield f"{indent}{closing}{end}"


def _comments(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        _printable(text),
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _listed(lines: Iterable[str], indent: str) -> Iterator[str]:
    for line in lines:
        yield from textwrap.wrap(
            _printable(line),
            WIDTH,
            initial_indent=f"{indent}# - ",
            subsequent_indent=f"{indent}#   ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _printable(text: str) -> str:
    """*text* without what Python allows not even in a comment."""
    return text.replace("\0", "\\0")


def literal(value: Any, *, percent: bool) -> str:
    """*value* as Python writes it. *percent*: a % in it is written twice."""
    if isinstance(value, Expression):
        return value.code
    if isinstance(value, Text):
        return _formatted(value, percent)
    if isinstance(value, str):
        return _quoted(value, percent)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(literal(each, percent=percent) for each in value)}]"
    if isinstance(value, dict):
        items = (
            f"{literal(key, percent=False)}: {literal(each, percent=percent)}" for key, each in value.items()
        )
        return f"{{{', '.join(items)}}}"
    return repr(value)


def _quoted(text: str, percent: bool) -> str:
    # A string of JSON is one of Python.
    return json.dumps(text.replace("%", "%%") if percent else text, ensure_ascii=False)


def _formatted(text: Text, percent: bool) -> str:
    """A text with variables: an f-string, or a sum where an f-string cannot hold the default of one."""
    simple = len(text.parts) > 1 and all(
        re.fullmatch(r"[^'\"\\{}\n]*", part.default or "") for part in text.parts if isinstance(part, Env)
    )
    computed = any(isinstance(part, (Env, Expression)) for part in text.parts)
    pieces = []
    for part in text.parts:
        if isinstance(part, (Env, Expression)):
            code = (
                part.code
                if isinstance(part, Expression)
                else _environment(part, percent, repr if simple else json.dumps)
            )
            pieces.append(f"{{{code}}}" if simple else code)
        else:
            mark = isinstance(part, Mark)
            quoted = _quoted(part.text if isinstance(part, Mark) else part, percent and not mark)
            if simple:
                quoted = quoted[1:-1]
                pieces.append(quoted.replace("{", "{{").replace("}", "}}") if computed else quoted)
            else:
                pieces.append(quoted)
    if not simple:
        return " + ".join(pieces)
    return f'{"f" if computed else ""}"{"".join(pieces)}"'


def _environment(env: Env, percent: bool, quoted: Callable[[str], str]) -> str:
    name = quoted(env.name)
    default = "" if env.default is None else f", {quoted(env.default)}"
    if percent:
        return f"_env({name}{default})"
    return f"os.environ.get({name}{default})" if default else f"os.environ[{name}]"
