# SPDX-License-Identifier: MIT
"""What the manual says exists: settings, flags, commands; and its Python is Python."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
from harness import ROOT

from gunicorn.companion.ctl import COMMANDS
from gunicorn.companion.status import Cause
from gunicorn.companion.supervise.commands import COMMANDS as PROTOCOL
from gunicorn.settings import KNOWN_SETTINGS, foreign

# The settings page is written by the documentation's own build.
PAGES = [
    page for pattern in ("README.rst", "docs/*.rst", "examples/*/README.rst") for page in ROOT.glob(pattern)
]
PAGES = sorted(page for page in PAGES if page.name != "settings.rst")
KNOWN = {str(cls.name) for cls in KNOWN_SETTINGS}
FLAGS = {flag for cls in KNOWN_SETTINGS for flag in cls.cli or ()}
# The keys of supervisord that have another name here.
SUPERVISORD = {
    key: foreign.RENAMED_KEYS[key]
    for key in ("directory", "environment", "startretries", "stopsignal", "stopwaitsecs", "stopasgroup")
}
# Flags that the argument parsers themselves add, or that belong to gunicorn-companion.
OTHER_FLAGS = {"--version", "--help", "--json", "--timeout", "--no-wait"}


def commands(text: str, program: str) -> list[str]:
    """The command lines in *text* that call *program*, without what follows a comment or a pipe."""
    return re.findall(rf"(?:\$|#|then|shop) {program}( [^#|;>\n\"]*|$)", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"``(companion_[a-z_]+[a-z])(?: = [^`]*)?``", text))
    assert named <= KNOWN, f"no such setting: {named - KNOWN}"
    for line in commands(text, "gunicorn"):
        flags = set(re.findall(r"(?<=\s)--[a-z-]+", line))
        assert flags <= FLAGS | OTHER_FLAGS, f"no such flag in {line!r}: {flags - FLAGS}"
    for line in commands(text, "gunicorn-companion"):
        words = [word for word in line.split() if not word.startswith(("-", "/"))]
        assert not words or words[0] in COMMANDS, f"no such command in {line!r}"


def test_the_page_for_migration_says_what_the_messages_say() -> None:
    text = (ROOT / "docs/migrating.rst").read_text()
    told = dict(re.findall(r"^``(\w+)``(?: \(\S+\))? +``(\w+)``", text, re.MULTILINE))
    assert {key: told.get(key) for key in SUPERVISORD} == SUPERVISORD
    for key in foreign.OTHER_KEYS.keys() & {
        "priority",
        "user",
        "umask",
        "exitcodes",
        "killasgroup",
        "serverurl",
    }:
        assert f"\n``{key}``" in text, key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_a_page_compiles(page: Path) -> None:
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:[ ]+.*\n|\n)+)", page.read_text(), re.MULTILINE)
    for block in blocks:
        compile(textwrap.dedent(block), str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_brings_another_gunicorn(page: Path) -> None:
    text = page.read_text()
    for line in re.findall(r"^ +.*pip install.*$", text, re.MULTILINE):
        # These require, or are, the distribution of that name on PyPI.
        if re.search(r"\b(gunicorn|uvicorn-worker)\b", line.partition("pip install")[2].partition("&&")[0]):
            from_here = re.search(r"(?<=\s)'?(/|\.\.?/)\S+", line) or "--constraint" in line
            # With a version, the other one is meant: the way back.
            assert from_here or "PIP_CONSTRAINT" in text or "gunicorn==" in line, line


def column(start: str) -> set[str]:
    """The words in the first column of the table in the manual whose head begins with *start*."""
    rows = (ROOT / "docs/companions.rst").read_text().split(f"\n{start}", 1)[1].splitlines()
    ends = [number for number, row in enumerate(rows) if row.startswith("====")]
    return set(re.findall(r"^``([a-z_ ]+)``", "\n".join(rows[ends[0] : ends[1]]), re.MULTILINE))


def test_the_table_of_causes_is_complete() -> None:
    assert column("cause     ") == {cause.value for cause in Cause}


def test_the_table_of_the_protocol_is_complete() -> None:
    rows = (ROOT / "docs/companions.rst").read_text().split('``"cmd"``, and', 1)[1].partition("\n\n")[0]
    named, before = set(), ""
    for row in rows.splitlines():
        cell = row[:35].strip()
        # What follows a comma belongs to the line before it.
        if cell.startswith("``") and not before.endswith(","):
            named.update(re.findall("[a-z]+", cell.partition(";")[0]))
        before = cell or before
    assert named == PROTOCOL.keys()
