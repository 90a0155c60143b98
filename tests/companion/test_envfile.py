# SPDX-License-Identifier: MIT
"""Files of variables: each form of a line, and the errors, which show no value."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from gunicorn.companion.child.envfile import MAX_SIZE, CannotRead, parse, read


@pytest.mark.parametrize(
    ("line", "variable"),
    [
        ("A=1", ("A", "1")),
        ("  export A=1  ", ("A", "1")),
        ("A=", ("A", "")),
        ("A=b c", ("A", "b c")),
        ("A= b ", ("A", "b")),
        ("A=b=c", ("A", "b=c")),
        ("A=b # a comment", ("A", "b")),
        ("A=b#c", ("A", "b#c")),
        ("A=#b", ("A", "#b")),
        ("A=$HOME/${B} `c`", ("A", "$HOME/${B} `c`")),
        ("A=it's", ("A", "it's")),
        ('A="b # c"', ("A", "b # c")),
        ("A='b \" c' # a comment", ("A", 'b " c')),
        (r"""A="say \"hi\" \\ \$B \n" """, ("A", r'say "hi" \ $B \n')),
        (r"A='\\'", ("A", r"\\")),
        ('A = "b"', None),
        ("A=b\r", ("A", "b")),
        ("a.b-c=1", ("a.b-c", "1")),
        ("exported=1", ("exported", "1")),
    ],
)
def test_a_line(line: str, variable: tuple[str, str] | None) -> None:
    if variable is None:
        with pytest.raises(ValueError, match="it is not NAME=value"):
            parse(line)
    else:
        assert parse(line) == variable


@pytest.mark.parametrize("line", ["", "   ", "# A=1", "\t# export"])
def test_a_line_that_sets_nothing(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("XYZZY", "it is not NAME=value"),
        ("=XYZZY", "it is not NAME=value"),
        ("export XYZZY", "it is not NAME=value"),
        ("A='XYZZY", "A: the quotes are not closed on this line"),
        ('A="XYZZY\\"', "A: the quotes are not closed on this line"),
        ("A='XYZZY'XYZZY", "A: there is more after the closing quotes"),
        ("A='XYZZY'#XYZZY", "A: there is more after the closing quotes"),
        ("A=XYZZY\0", "A: a value cannot have a zero byte"),
    ],
)
def test_a_wrong_line_is_named_without_its_value(line: str, mistake: str, tmp_path: Path) -> None:
    path = tmp_path / "rq.env"
    path.write_text(f"# two lines\n\n{line}\n")
    with pytest.raises(CannotRead, match=re.escape(f"{path}, line 3: {mistake}")) as caught:
        read(str(path))
    assert "XYZZY" not in str(caught.value)


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "rq.env"
    path.write_bytes("\ufeffA=1\r\nexport B='é'\nC=\u2028x\nA=2\nD=".encode() + b"\xff")
    assert read(str(path)) == {"A": "2", "B": "é", "C": "\u2028x", "D": "\udcff"}


@pytest.mark.parametrize(
    ("kind", "mistake"),
    [
        ("missing", "No such file or directory"),
        ("directory", "Is a directory"),
        ("pipe", "it is not a regular file"),
        ("large", f"it has more than {MAX_SIZE} bytes"),
    ],
)
def test_what_cannot_be_read(kind: str, mistake: str, tmp_path: Path) -> None:
    path = tmp_path / "rq.env"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(b"#" * (MAX_SIZE + 1))
    with pytest.raises(CannotRead, match=re.escape(f"{path}: {mistake}")):
        read(str(path))
