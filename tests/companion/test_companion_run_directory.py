# SPDX-License-Identifier: MIT
"""Where the control socket and the run files are, and whether another server uses the same run directory."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from companiontools import Script
from harness import wait_until

from gunicorn.companion.runfile import RunFile
from gunicorn.companion.server.run_directory import DirectoryUse, Places


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, text: str, *args: Any) -> None:
        self.lines.append(text % args)

    debug = warning


Make = Callable[..., Places]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Places of one server after the other; keywords ending in ``_pid`` are the arbiter's."""
    (tmp_path / "default").mkdir(mode=0o700)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "default"))
    made: list[Places] = []

    def make(inherited: str | None = None, **settings: Any) -> Places:
        pids = {name: settings.pop(name, 0) for name in ("master_pid", "reexec_pid")}
        cfg = {
            "companion_control_socket": None,
            "companion_run_dir": None,
            "uid": os.geteuid(),
            "gid": os.getegid(),
            "config": "/etc/shop.py",
            "address": [("127.0.0.1", 8000)],
            "wsgi_app": "shop:app",
            "proc_name": "shop",
            **settings,
        }
        arbiter = SimpleNamespace(
            pid=123, cfg=SimpleNamespace(**cfg), app=SimpleNamespace(), log=Log(), **pids
        )
        places = Places(arbiter, inherited)
        made.append(places)
        return places

    yield make
    for places in made:
        places.tidy_up()


def test_the_defaults(make: Make, tmp_path: Path) -> None:
    places = make()
    places.choose()
    assert places.control_path == str(tmp_path / "default" / "companion-123.sock")
    assert places.run_dir is not None
    run_dir = Path(places.run_dir)
    assert run_dir.parent == tmp_path / "default" and run_dir.name.startswith("run-")
    assert run_dir.stat().st_mode & 0o777 == 0o700
    again, other = make(), make(config="/etc/other.py")
    again.choose()
    other.choose()
    assert again.run_dir == places.run_dir != other.run_dir


def test_those_that_are_configured(make: Make, tmp_path: Path) -> None:
    places = make(companion_control_socket=str(tmp_path / "c.sock"), companion_run_dir=str(tmp_path / "run"))
    places.choose()
    assert (places.control_path, places.run_dir) == (str(tmp_path / "c.sock"), str(tmp_path / "run"))
    assert (tmp_path / "run").is_dir()
    places.tidy_up()
    assert not (tmp_path / "run").exists()
    assert places.arbiter.log.lines == []


def test_none_at_all(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    places = make(companion_control_socket="")
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    places.choose()
    assert (places.control_path, places.run_dir) == (None, None)
    assert len(places.arbiter.log.lines) == 1
    # A successor is told so, and waits.
    assert places.told_successor() == ""
    assert make("", master_pid=7).must_wait()


@pytest.mark.parametrize("configured", [None, "{tmp}/mine", "{tmp}/old"])
def test_a_successor_has_the_run_directory_of_the_old_master(
    make: Make, tmp_path: Path, configured: str | None
) -> None:
    old = str(tmp_path / "old")
    wanted = configured and configured.format(tmp=tmp_path)
    places = make(old, master_pid=7, companion_run_dir=wanted)
    places.choose()
    assert places.run_dir == old
    assert len(places.arbiter.log.lines) == (1 if wanted not in (None, old) else 0)
    # And keeps it: somebody may still be ending there.
    places.arbiter.master_pid = 0
    places.choose()
    assert places.run_dir == places.told_successor() == old


def test_a_successor_is_told_nothing_where_there_is_nothing(make: Make) -> None:
    assert make().told_successor() is None
    assert make("/run/older").told_successor() == "/run/older"


def test_the_last_one_takes_the_directory_away(make: Make, tmp_path: Path) -> None:
    first, second = (make(companion_run_dir=str(tmp_path / "run")) for _ in range(2))
    first.choose()
    assert not first.shared()
    second.choose()
    assert first.shared() and second.shared()
    first.tidy_up()
    assert (tmp_path / "run").is_dir()
    assert not second.shared()
    second.tidy_up()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("which", ["master_pid", "reexec_pid"])
def test_it_stays_over_an_upgrade(make: Make, tmp_path: Path, which: str) -> None:
    places = make(companion_run_dir=str(tmp_path / "run"), **{which: 7})
    places.choose()
    assert places.shared()
    places.tidy_up()
    assert (tmp_path / "run").is_dir()


def test_one_that_is_not_empty_stays(make: Make, tmp_path: Path) -> None:
    places = make(companion_run_dir=str(tmp_path / "run"))
    places.choose()
    # Of another server, which has begun just now.
    held = RunFile.claim(str(tmp_path / "run"), "rq")
    assert held is not None
    places.tidy_up()
    assert held.in_place
    held.release()


def test_a_directory_that_was_made_again_is_in_use_again(make: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = (make(companion_run_dir=str(run)) for _ in range(2))
    first.choose()
    run.rmdir()
    first.choose()
    assert run.is_dir()
    second.choose()
    assert second.shared()


def test_run_files_that_are_lost_are_noticed_once(make: Make, tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    places = make(companion_run_dir=str(run))
    run.parent.mkdir()
    places.choose()
    for name in ("a", "b"):
        (run / f"{name}.run").touch()
    assert not places.lost_run_files({"a", "b"})
    # One that is seen though nobody spoke of it, and one that never had a file.
    (run / "rq:5.run").touch()
    assert [places.lost_run_files({"a", "b", "off"}) for _ in range(3)] == [True, False, False]
    for name in ("a", "rq:5"):
        (run / f"{name}.run").unlink()
        assert [places.lost_run_files({"a", "b", "off"}) for _ in range(2)] == [True, False]
    (run / "a.run").touch()
    assert not places.lost_run_files({"a", "b", "off"})
    shutil.rmtree(run.parent)
    assert [places.lost_run_files({"a", "b", "off"}) for _ in range(2)] == [True, False]
    assert run.is_dir() and run.stat().st_mode & 0o777 == 0o700
    assert not make(companion_control_socket="x", companion_run_dir=None).lost_run_files({"a"})


def test_a_use_ends_with_its_process_and_is_no_child_s() -> None:
    script = Script(
        """
        import os, sys, tempfile
        from gunicorn.companion.server.run_directory import DirectoryUse
        path = tempfile.mkdtemp()
        use = DirectoryUse.begin(path)
        pid = os.fork()
        if pid == 0:
            os.write(1, b"%d\\n" % use.fd)
            os.read(0, 1)
            os._exit(0)
        os.write(1, path.encode() + b"\\n")
        os._exit(0)
        """
    )
    try:
        lines = {script.line(), script.line()}
        lines.remove("-1")
        (path,) = lines
        use = DirectoryUse.begin(path)
        assert use is not None
        wait_until(use.alone, 10, "the end of the process")
        use.close()
        os.rmdir(path)
    finally:
        script.go_on()
        script.wait_closed()
        script.end()


def test_what_cannot_be_locked_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.symlink(tmp_path, tmp_path / "link")
    for name in ("nothing", "file", "link"):
        assert DirectoryUse.begin(str(tmp_path / name)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only companions of root are worth more than the directory")
@pytest.mark.parametrize("which", ["configured", "default"])
def test_companions_of_root_have_no_run_files_that_others_may_write(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Whoever writes a record names processes to be signalled."""
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, 65534, 65534)
    if which == "configured":
        places = make(companion_run_dir=str(theirs / "run"))
    else:
        # As with sudo, which may leave it: root's own is the next choice, and here it is closed, too.
        monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_dir=str(theirs / "root")))
        monkeypatch.delenv("RUNTIME_DIRECTORY")
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setenv("HOME", str(theirs))
        places = make()
    places.choose()
    assert places.run_dir is None and places.told_successor() == ""
    assert list(theirs.iterdir()) == []
    assert ["others may change what it leads to" in line for line in places.arbiter.log.lines] == [True]


def test_what_is_planned_is_not_made(make: Make, tmp_path: Path) -> None:
    places = make(companion_run_dir=str(tmp_path / "run"))
    assert places.planned() == (str(tmp_path / "default" / "companion-PID.sock"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
