# SPDX-License-Identifier: MIT
"""Read files of ``NAME=value`` lines, as for ``env_file``."""

from __future__ import annotations

import os
import re
import stat

from gunicorn.unix.trust import open_file

# More than the kernel passes to a program, execve(2).
MAX_SIZE = 2**21

# Other blanks may be part of a value.
BLANKS = " \t\r"

_LINE = re.compile(r"(?:export[ \t]+)?([^\s=#]+)=(.*)", re.DOTALL)
_SINGLE = re.compile(r"'([^']*)'")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
# In double quotes a backslash makes these ordinary, as in a shell.
_ESCAPED = re.compile(r'\\(["\\$`])')
_COMMENT = re.compile(r"[ \t]+#.*|[ \t]*", re.DOTALL)


class CannotRead(Exception):
    """The file cannot be read; the text names it and the line, and never a value."""


def read(path: str) -> dict[str, str]:
    """Return the variables in the file *path*, the last one of each name. Raises CannotRead."""
    try:
        text = _content(path)
    except OSError as exc:
        raise CannotRead(f"{path}: {exc.strerror}") from None
    found = {}
    # Not splitlines(): other separators may be part of a value.
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            variable = parse(line)
        except ValueError as exc:
            raise CannotRead(f"{path}, line {number}: {exc}") from None
        if variable is not None:
            found[variable[0]] = variable[1]
    return found


def _content(path: str) -> str:
    # Opening a named pipe would wait for a writer.
    fd = open_file(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(0, "it is not a regular file")
        content = file.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise OSError(0, f"it has more than {MAX_SIZE} bytes")
    return content.decode("utf-8-sig", "surrogateescape")


def parse(line: str) -> tuple[str, str] | None:
    """Return name and value of a line; None for a blank line or a comment. Raises ValueError."""
    line = line.strip(BLANKS)
    if not line or line.startswith("#"):
        return None
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("it is not NAME=value")
    name, rest = match[1], match[2]
    if "\0" in line:
        raise ValueError(f"{name}: a value cannot have a zero byte")
    return name, _value(name, rest)


def _value(name: str, text: str) -> str:
    """Return the value without its quotes and the comment after it."""
    start = text.lstrip(BLANKS)
    if not start.startswith(("'", '"')):
        # As in a shell, a comment begins after a blank.
        return re.split(r"[ \t]#", text, maxsplit=1)[0].strip(BLANKS)
    quoted = (_SINGLE if start[0] == "'" else _DOUBLE).match(start)
    if quoted is None:
        raise ValueError(f"{name}: the quotes are not closed on this line")
    if not _COMMENT.fullmatch(start, quoted.end()):
        raise ValueError(f"{name}: there is more after the closing quotes")
    return quoted[1] if start[0] == "'" else _ESCAPED.sub(r"\1", quoted[1])
