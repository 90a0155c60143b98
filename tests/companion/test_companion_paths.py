# SPDX-License-Identifier: MIT
"""Where control sockets and run files are when nobody says where."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from gunicorn.companion.client import default_paths
from gunicorn.companion.server import directories

ME = os.getuid()
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives directories to another user")


@pytest.mark.parametrize(
    ("environ", "directories"),
    [
        ({"RUNTIME_DIRECTORY": "/run/shop", "XDG_RUNTIME_DIR": "/run/user/1", "HOME": "/home/a"},
         ["/run/shop", "/run/user/1/gunicorn", "/home/a/.gunicorn"]),
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b", "HOME": "/h"}, ["/run/a", "/h/.gunicorn"]),
        ({"XDG_RUNTIME_DIR": "/run/user/1", "HOME": "/h"}, ["/run/user/1/gunicorn", "/h/.gunicorn"]),
        # Never relative to wherever the process happens to be.
        ({"RUNTIME_DIRECTORY": "shop", "XDG_RUNTIME_DIR": ".", "HOME": "/h"}, ["/h/.gunicorn"]),
        ({"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": "", "HOME": "h"}, []),
    ],
)  # fmt: skip
def test_default_directories(environ, directories):
    assert default_paths.default_directories(environ, ME) == directories


@as_root
def test_root_with_the_home_of_another_user_has_one_of_its_own(short_dir):
    os.chown(short_dir, NOBODY, NOBODY)
    own = os.path.join(pwd.getpwuid(0).pw_dir, ".gunicorn")
    environ = {"HOME": str(short_dir)}
    assert default_paths.default_directories(environ, 0) == [str(short_dir / ".gunicorn"), own]


def test_the_home_of_another_user_is_that_on_record():
    other = next(entry for entry in pwd.getpwall() if entry.pw_uid != ME and entry.pw_dir.startswith("/"))
    assert default_paths.home_directory({"HOME": "/mine"}, other.pw_uid) == other.pw_dir
    assert default_paths.home_directory({"HOME": "/mine"}, ME) == "/mine"
    assert default_paths.home_directory({}, ME) == pwd.getpwuid(ME).pw_dir
    assert default_paths.home_directory({}, 4_000_000) is None


def test_candidate_sockets(tmp_path):
    runtime, xdg = tmp_path / "rt[1]", tmp_path / "xdg"
    (xdg / "gunicorn").mkdir(parents=True)
    runtime.mkdir()
    for path in (runtime / "companion-7.sock", runtime / "other.sock", xdg / "gunicorn" / "companion-8.sock"):
        path.touch()
    (runtime / "companion-9.sock").symlink_to(xdg / "gunicorn" / "companion-8.sock")
    environ = {"RUNTIME_DIRECTORY": str(runtime), "XDG_RUNTIME_DIR": str(xdg), "HOME": str(tmp_path)}
    found = [path for path in default_paths.candidate_sockets(environ, ME) if path.startswith(str(tmp_path))]
    assert found == [str(runtime / "companion-7.sock"), str(xdg / "gunicorn" / "companion-8.sock")]


def test_the_name_of_the_socket_is_found_by_the_pattern(tmp_path):
    (tmp_path / default_paths.socket_name(42)).touch()
    found = default_paths.candidate_sockets({"RUNTIME_DIRECTORY": str(tmp_path)}, ME)
    assert str(tmp_path / "companion-42.sock") in found


@pytest.mark.parametrize("umask", [0o022, 0o777, 0o000])
def test_a_directory_is_made_for_its_user_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        directories.prepare_directory(str(tmp_path / "d"), ME, os.getgid())
    finally:
        os.umask(before)
    info = (tmp_path / "d").stat()
    assert (info.st_mode & 0o777, info.st_uid) == (0o700, ME)
    # Again is no fault, and what is there keeps its mode.
    (tmp_path / "d").chmod(0o750)
    directories.prepare_directory(str(tmp_path / "d"), ME, os.getgid())
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda path: path.write_text(""), "is no directory"),
        (lambda path: (path.mkdir(), path.chmod(0o777)), "may be written by everybody"),
        (lambda path: path.parent.rmdir(), "No such file or directory"),
        (lambda path: path.symlink_to("/nonexistent"), "No such file or directory"),
    ],
)
def test_what_will_not_do(tmp_path, prepare, reason):
    (tmp_path / "p").mkdir()
    path = tmp_path / "p" / "d"
    prepare(path)
    with pytest.raises(directories.Unusable, match=reason):
        directories.prepare_directory(str(path), ME, os.getgid())


@as_root
def test_a_directory_is_given_to_the_user_that_the_manager_becomes(short_dir):
    directories.prepare_directory(str(short_dir / "d"), NOBODY, NOBODY)
    info = (short_dir / "d").stat()
    assert (info.st_mode & 0o777, info.st_uid, info.st_gid) == (0o700, NOBODY, NOBODY)
    (short_dir / "mine").mkdir(0o700)
    with pytest.raises(directories.Unusable, match="not writable for user 65534"):
        directories.prepare_directory(str(short_dir / "mine"), NOBODY, NOBODY)


@as_root
def test_a_directory_that_the_user_cannot_reach_is_none(short_dir):
    closed, home = short_dir / "closed", short_dir / "home"
    closed.mkdir(0o700)
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    with pytest.raises(directories.Unusable, match=f"may not enter {closed}"):
        directories.prepare_directory(str(closed / "gunicorn"), NOBODY, NOBODY)
    assert list(closed.iterdir()) == []
    directories.prepare_directory(str(closed / "gunicorn"), ME, os.getgid())


@as_root
def test_the_first_directory_that_the_user_can_use_is_taken(short_dir, monkeypatch):
    closed, home = short_dir / "closed", short_dir / "home"
    closed.mkdir(0o700)
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    monkeypatch.setattr(default_paths, "home_directory", lambda environ, uid: str(home))
    # The session directory of a root that has logged in is not for nobody.
    environ = {"XDG_RUNTIME_DIR": str(closed)}
    assert directories.usable_default_directory(environ, NOBODY, NOBODY) == str(home / ".gunicorn")
    assert (home / ".gunicorn").stat().st_uid == NOBODY
    assert directories.usable_default_directory(environ, 0, 0) == str(closed / "gunicorn")


@as_root
def test_the_runtime_directory_of_the_unit_is_given_to_the_user(short_dir):
    runtime = short_dir / "shop"
    runtime.mkdir(0o755)
    environ = {"RUNTIME_DIRECTORY": str(runtime)}
    assert directories.usable_default_directory(environ, NOBODY, NOBODY) == str(runtime)
    assert runtime.stat().st_uid == NOBODY


def test_without_any_it_says_what_is_wrong_with_each(tmp_path):
    environ = {"RUNTIME_DIRECTORY": str(tmp_path / "a"), "HOME": str(tmp_path / "b")}
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    with pytest.raises(directories.Unusable) as caught:
        directories.usable_default_directory(environ, ME, os.getgid())
    assert str(caught.value).count(str(tmp_path)) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_run_files_that_root_left_are_given_to_the_user(tmp_path: Path) -> None:
    for name in ("mailer.run", "notes.txt", "other.run"):
        (tmp_path / name).touch()
    os.chown(tmp_path / "other.run", 1, 1)
    (tmp_path / "link.run").symlink_to("/etc/hostname")
    # Where the system lets anybody make a second name for any file.
    secret = tmp_path.parent / "secret"
    secret.touch()
    os.link(secret, tmp_path / "hard.run")
    os.mkfifo(tmp_path / "pipe.run")
    directories.hand_over_run_files(str(tmp_path), ".run", 65534, 65534)
    owners = {path.name: path.lstat().st_uid for path in tmp_path.iterdir()}
    assert owners == {
        "mailer.run": 65534,
        "notes.txt": 0,
        "other.run": 1,
        "link.run": 0,
        "hard.run": 0,
        "pipe.run": 0,
    }
    assert os.stat("/etc/hostname").st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be misled into giving files away")
def test_a_link_of_the_user_s_leads_root_nowhere(short_dir: Path) -> None:
    short_dir.chmod(0o755)
    home, other = short_dir / "home", short_dir / "other"
    home.mkdir()
    os.chown(home, 65534, 65534)
    other.mkdir()
    (other / "mailer.run").touch()
    (home / ".gunicorn").symlink_to(other)
    os.lchown(home / ".gunicorn", 65534, 65534)
    directories.hand_over_run_files(str(home / ".gunicorn"), ".run", 65534, 65534)
    assert (other / "mailer.run").stat().st_uid == 0
    with pytest.raises(directories.Unusable, match="root does not use it"):
        directories.prepare_directory(str(home / ".gunicorn" / "run"), 65534, 65534)
    assert not (other / "run").exists()
