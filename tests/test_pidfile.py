# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from gunicorn.pidfile import Pidfile


@pytest.fixture
def living() -> Iterator[int]:
    """Another process that lives."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate()


@pytest.fixture
def dead() -> int:
    """The pid of a process that is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_written_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    pidfile = Pidfile(str(path))
    pidfile.create(os.getpid())
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]
    pidfile.create(os.getpid())
    assert pidfile.validate() == os.getpid()
    pidfile.unlink()
    pidfile.unlink()
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "x", "-5", "0", "12 34", "1.5", "\u0661", "9" * 60])
def test_content_that_names_nobody(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.pid"
    path.write_text(text)
    pidfile = Pidfile(str(path))
    assert pidfile.validate() is None
    pidfile.create(os.getpid())
    assert path.read_text() == f"{os.getpid()}\n"


def test_no_file() -> None:
    assert Pidfile("/nothing/of/that/name").validate() is None


def test_a_dead_process_is_replaced(tmp_path: Path, dead: int) -> None:
    path = tmp_path / "x.pid"
    path.write_text(f"{dead}\n")
    Pidfile(str(path)).create(os.getpid())
    assert path.read_text() == f"{os.getpid()}\n"


def test_a_living_process_is_not(tmp_path: Path, living: int) -> None:
    path = tmp_path / "x.pid"
    path.write_text(f"{living}")
    pidfile = Pidfile(str(path))
    with pytest.raises(RuntimeError, match=rf"x\.pid belongs to process {living}"):
        pidfile.create(os.getpid())
    pidfile.unlink()
    assert path.read_text() == f"{living}"


def test_a_process_of_somebody_else_lives(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    path.write_text("1")
    with mock.patch("os.kill", side_effect=PermissionError) as kill:
        assert Pidfile(str(path)).validate() == 1
    kill.assert_called_once_with(1, 0)


@pytest.mark.parametrize("name", ["nothing/x.pid", "", "."])
def test_a_path_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeError, match="cannot be written"):
        Pidfile(str(tmp_path / name)).create(os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_successor_is_left_alone(tmp_path: Path, living: int) -> None:
    path = tmp_path / "x.pid"
    pidfile = Pidfile(str(path))
    pidfile.create(os.getpid())
    path.write_text(f"{living}\n")
    pidfile.unlink()
    assert path.exists()


def test_rename(tmp_path: Path, dead: int) -> None:
    old, new = tmp_path / "x.pid.2", tmp_path / "x.pid"
    new.write_text(f"{dead}\n")
    pidfile = Pidfile(str(old))
    pidfile.create(os.getpid())
    pidfile.rename(str(new))
    assert not old.exists() and new.read_text() == f"{os.getpid()}\n"
    assert pidfile.fname == str(new)
    pidfile.rename(str(new))
    assert new.exists()
    pidfile.unlink()
    assert not new.exists()


def test_rename_onto_a_living_process(tmp_path: Path, living: int) -> None:
    old, new = tmp_path / "x.pid.2", tmp_path / "x.pid"
    new.write_text(f"{living}\n")
    pidfile = Pidfile(str(old))
    pidfile.create(os.getpid())
    with pytest.raises(RuntimeError):
        pidfile.rename(str(new))
    assert old.exists() and pidfile.fname == str(old)


def test_a_relative_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Pidfile("x.pid").create(os.getpid())
    assert (tmp_path / "x.pid").exists()
