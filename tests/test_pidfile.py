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


@pytest.mark.parametrize("text", ["x", "", "-5"])
def test_only_what_names_a_dead_process_is_stale(tmp_path: Path, dead: int, living: int, text: str) -> None:
    for name, content in (("dead", str(dead)), ("living", str(living)), ("other", text)):
        (tmp_path / name).write_text(content)
        Pidfile(str(tmp_path / name)).remove_stale()
    Pidfile(str(tmp_path / "missing")).remove_stale()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["living", "other"]


def test_a_living_process_is_not(tmp_path: Path, living: int) -> None:
    path = tmp_path / "x.pid"
    path.write_text(f"{living}")
    pidfile = Pidfile(str(path))
    with pytest.raises(RuntimeError, match=rf"x\.pid belongs to process {living}"):
        pidfile.create(os.getpid())
    pidfile.unlink()
    assert path.read_text() == f"{living}"


def test_a_zombie_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        # Ended and not collected, which the kernel says without collecting it.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        path.write_text(f"{process.pid}\n")
        Pidfile(str(path)).create(os.getpid())
    assert path.read_text() == f"{os.getpid()}\n"


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    os.mkfifo(path)
    with pytest.raises(RuntimeError, match=r"x\.pid cannot be written: it is not a regular file"):
        Pidfile(str(path)).create(os.getpid())
    assert path.is_fifo() and Pidfile(str(path)).validate() is None
    null = tmp_path / "null"
    null.symlink_to("/dev/null")
    with pytest.raises(RuntimeError, match="it is not a regular file"):
        Pidfile(str(null)).create(os.getpid())
    assert null.is_symlink()


def test_a_link_is_replaced_by_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    path.symlink_to(tmp_path / "nothing")
    Pidfile(str(path)).create(os.getpid())
    assert not path.is_symlink() and path.read_text() == f"{os.getpid()}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_that_cannot_be_read_is_left_alone(short_dir: Path, living: int) -> None:
    path = short_dir / "x.pid"
    path.write_text(f"{living}")
    path.chmod(0)
    os.chown(short_dir, 65534, 65534)
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(65534)
            with pytest.raises(RuntimeError, match="cannot be written: Permission denied"):
                Pidfile(str(path)).create(os.getpid())
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert path.read_text() == f"{living}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be misled")
def test_root_writes_into_no_directory_that_it_was_led_to(short_dir: Path) -> None:
    short_dir.chmod(0o755)
    home, other = short_dir / "home", short_dir / "other"
    home.mkdir()
    other.mkdir()
    os.chown(home, 65534, 65534)
    (home / "run").symlink_to(other)
    os.lchown(home / "run", 65534, 65534)
    with pytest.raises(RuntimeError, match="root does not use it"):
        Pidfile(str(home / "run" / "x.pid")).create(os.getpid())
    assert list(other.iterdir()) == []


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
