# SPDX-License-Identifier: MIT
"""What root opens, makes and gives away in directories that others may write to, and in its own."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import ROOT

from gunicorn.unix import trust

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be misled into giving files away")

NOBODY = 65534
OTHER = 65533
OWNER = (NOBODY, NOBODY)
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


class Ground:
    """Directories of root, of the user nobody and of all users, and a secret of root's."""

    def __init__(self, top: Path) -> None:
        # A descriptor to close at the end.
        self.held: int | None = None
        top.chmod(0o755)
        self.root, self.theirs, self.shared = (top / name for name in ("root", "theirs", "shared"))
        for path, mode in ((self.root, 0o755), (self.theirs, 0o755), (self.shared, 0o1777)):
            path.mkdir()
            path.chmod(mode)
        os.chown(self.theirs, NOBODY, NOBODY)
        self.secret = self.root / "secret"
        self.secret.write_text("secret\n")
        self.secret.chmod(0o600)

    def link(self, path: Path, target: object, owner: int = NOBODY) -> Path:
        path.symlink_to(str(target))
        os.lchown(path, owner, owner)
        return path

    def file(self, path: Path, owner: int) -> Path:
        path.touch()
        os.chown(path, owner, owner)
        return path


@pytest.fixture
def ground(short_dir: Path) -> Iterator[Ground]:
    ground = Ground(short_dir)
    yield ground
    if ground.held is not None:
        os.close(ground.held)


def owner_after(path: Path | str, owner: tuple[int, int] | None = OWNER, flags: int = APPEND) -> int:
    fd = trust.open_file(str(path), flags, owner=owner)
    try:
        os.write(fd, b"x\n")
        return os.fstat(fd).st_uid
    finally:
        os.close(fd)


def swapped(ground: Ground) -> Path:
    """Nobody's directory on the way has become a link into root's."""
    return ground.link(ground.theirs / "logs", ground.root) / "secret"


def made_through_a_link(ground: Ground) -> Path:
    return ground.link(ground.theirs / "logs", ground.root) / "new"


def hard_link(ground: Ground) -> Path:
    os.link(ground.secret, ground.theirs / "error.log")
    return ground.theirs / "error.log"


def hard_link_in_everybody_s_directory(ground: Ground) -> Path:
    os.link(ground.secret, ground.shared / "error.log")
    return ground.shared / "error.log"


def link_of_two_names(ground: Ground) -> Path:
    return second_name(ground, ground.theirs / "error.log")


def link_of_two_names_in_everybody_s_directory(ground: Ground) -> Path:
    return second_name(ground, ground.shared / "error.log")


def second_name(ground: Ground, path: Path) -> Path:
    ground.link(ground.root / "mine", ground.secret, owner=0)
    os.link(ground.root / "mine", path, follow_symlinks=False)
    return path


def device(ground: Ground) -> Path:
    os.mknod(ground.theirs / "error.log", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return ground.theirs / "error.log"


def in_a_group_s_directory(ground: Ground) -> Path:
    ground.root.chmod(0o775)
    return ground.link(ground.root / "error.log", ground.secret)


def descriptor(ground: Ground) -> Path:
    ground.held = os.open(ground.secret, os.O_RDONLY)
    return ground.link(ground.theirs / "error.log", f"/proc/{os.getpid()}/fd/{ground.held}")


ATTACKS: dict[str, Callable[[Ground], Path]] = {
    "link": lambda ground: ground.link(ground.theirs / "error.log", ground.secret),
    "relative link": lambda ground: ground.link(ground.theirs / "error.log", "../root/secret"),
    "link to a link": lambda ground: ground.link(
        ground.theirs / "error.log", ground.link(ground.theirs / "between", ground.secret)
    ),
    "dangling link": lambda ground: ground.link(ground.theirs / "error.log", ground.root / "new"),
    "link on the way": swapped,
    "new file through a link on the way": made_through_a_link,
    "hard link": hard_link,
    "hard link to a link of root's": link_of_two_names,
    "device": device,
    "link in everybody's directory": lambda ground: ground.link(ground.shared / "error.log", ground.secret),
    "somebody's file in everybody's directory": lambda ground: ground.file(
        ground.shared / "error.log", OTHER
    ),
    "hard link in everybody's directory": hard_link_in_everybody_s_directory,
    "hard link to a link of root's in everybody's directory": link_of_two_names_in_everybody_s_directory,
    "link in a group's directory": in_a_group_s_directory,
    "descriptor of a process": descriptor,
    "loop": lambda ground: ground.link(ground.theirs / "error.log", "error.log"),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("flags", [APPEND, os.O_WRONLY | os.O_CREAT | os.O_TRUNC], ids=["append", "cut"])
def test_root_is_not_misled(ground: Ground, attack: Callable[[Ground], Path], flags: int) -> None:
    path = attack(ground)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        owner_after(path, flags=flags)
    # Descriptors that other tests have left open may be closed meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= before
    assert ground.secret.read_text() == "secret\n"
    assert (ground.secret.stat().st_uid, ground.secret.stat().st_mode & 0o777) == (0, 0o600)
    assert not (ground.root / "new").exists()


def root_s_link(ground: Ground) -> Path:
    ground.link(ground.root / "error.log", ground.file(ground.root / "there", 0), owner=0)
    return ground.root / "error.log"


def linked_directory(ground: Ground) -> Path:
    return ground.link(ground.root / "logs", ground.theirs, owner=0) / "error.log"


def capistrano(ground: Ground) -> Path:
    """Links of the deployer's to the deployer's directories."""
    (ground.theirs / "shared" / "log").mkdir(parents=True)
    (ground.theirs / "releases").mkdir()
    for path in (ground.theirs / "shared", ground.theirs / "shared/log", ground.theirs / "releases"):
        os.chown(path, NOBODY, NOBODY)
    ground.link(ground.theirs / "releases" / "log", "../shared/log")
    ground.link(ground.theirs / "current", "releases")
    return ground.theirs / "current" / "log" / "error.log"


ORDINARY: dict[str, tuple[Callable[[Ground], Path], int]] = {
    "new in root's directory": (lambda ground: ground.root / "error.log", NOBODY),
    "root's file in root's directory": (lambda ground: ground.file(ground.root / "error.log", 0), NOBODY),
    "an earlier user's in root's directory": (
        lambda ground: ground.file(ground.root / "error.log", OTHER),
        NOBODY,
    ),
    "new in the user's directory": (lambda ground: ground.theirs / "error.log", NOBODY),
    "the user's in the user's directory": (
        lambda ground: ground.file(ground.theirs / "error.log", NOBODY),
        NOBODY,
    ),
    # An attacker may have put it there, so its owner stays.
    "root's in the user's directory": (lambda ground: ground.file(ground.theirs / "error.log", 0), 0),
    "new in everybody's directory": (lambda ground: ground.shared / "error.log", NOBODY),
    "root's in everybody's directory": (lambda ground: ground.file(ground.shared / "error.log", 0), NOBODY),
    "root's link to a file": (root_s_link, NOBODY),
    "root's link to the user's directory": (linked_directory, NOBODY),
    "the user's links to the user's directories": (capistrano, NOBODY),
    "the user's link to the user's file": (
        lambda ground: ground.link(ground.theirs / "error.log", ground.file(ground.theirs / "there", NOBODY)),
        NOBODY,
    ),
    "root's link to a stream": (
        lambda ground: ground.link(ground.root / "error.log", "/dev/null", owner=0),
        0,
    ),
    "nothing": (lambda ground: Path("/dev/null"), 0),
}


@pytest.mark.parametrize(("make", "owner"), ORDINARY.values(), ids=ORDINARY)
def test_an_ordinary_path(ground: Ground, make: Callable[[Ground], Path], owner: int) -> None:
    path = make(ground)
    assert owner_after(path) == owner
    assert path.resolve().stat().st_uid == owner


def test_without_an_owner_nothing_is_given(ground: Ground) -> None:
    assert owner_after(ground.root / "new", owner=None) == 0
    assert owner_after(ground.file(ground.root / "there", OTHER), owner=None) == OTHER


def test_a_directory_on_the_way_that_is_a_file(ground: Ground) -> None:
    with pytest.raises(NotADirectoryError):
        owner_after(ground.secret / "error.log")
    with pytest.raises(FileNotFoundError):
        owner_after(ground.root / "missing" / "error.log")


@contextlib.contextmanager
def a_pipe_of(ground: Ground, directory: Path) -> Iterator[Path]:
    path = directory / "pipe"
    os.mkfifo(path)
    os.chown(path, NOBODY, NOBODY)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield path
    finally:
        os.close(reader)


@pytest.mark.parametrize("where", ["root", "theirs"])
def test_a_named_pipe(ground: Ground, where: str) -> None:
    with a_pipe_of(ground, getattr(ground, where)) as path:
        assert owner_after(path) == NOBODY


def test_the_streams_of_this_process(ground: Ground) -> None:
    reader, writer = os.pipe()
    try:
        for path in (f"/proc/self/fd/{writer}", f"/dev/fd/{writer}", f"/proc/{os.getpid()}/fd/{writer}"):
            assert owner_after(path) == 0
            assert os.read(reader, 10) == b"x\n"
        # As images for containers do.
        ground.link(ground.root / "access.log", f"/proc/self/fd/{writer}", owner=0)
        assert owner_after(ground.root / "access.log") == 0
        assert os.read(reader, 10) == b"x\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_directory_is_made_where_it_is_meant_to_be(ground: Ground) -> None:
    trust.make_directory(str(ground.theirs / "run"), OWNER)
    info = (ground.theirs / "run").stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (NOBODY, 0o700)
    trust.make_directory(str(ground.theirs / "run"), (OTHER, OTHER))
    assert (ground.theirs / "run").stat().st_uid == NOBODY
    ground.link(ground.theirs / "to-root", ground.root)
    with pytest.raises(trust.Untrusted):
        trust.make_directory(str(ground.theirs / "to-root" / "run"), OWNER)
    assert not (ground.root / "run").exists()


def test_a_socket_is_given_and_nothing_in_its_place(ground: Ground) -> None:
    path = ground.theirs / "web.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        trust.give_socket(str(path), OWNER)
    assert path.stat().st_uid == NOBODY
    for swap in (lambda: os.link(ground.secret, path), lambda: ground.link(path, ground.secret)):
        path.unlink()
        swap()
        with pytest.raises(trust.Untrusted):
            trust.give_socket(str(path), OWNER)
    assert ground.secret.stat().st_uid == 0


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("root", True),
        ("root/new/deeper", True),
        ("theirs", False),
        ("theirs/new", False),
        ("theirs/made-by-root", False),
        ("shared", True),
        ("shared/made-by-root", True),
        ("link-of-root", True),
        ("theirs/link", False),
        ("root/group", True),
        ("root/group/in-it", False),
    ],
)
def test_directories_of_root_s(ground: Ground, path: str, expected: bool) -> None:
    for name in ("theirs/made-by-root", "shared/made-by-root", "root/group", "root/group/in-it"):
        (ground.root.parent / name).mkdir()
    (ground.root / "group").chmod(0o770)
    ground.link(ground.root.parent / "link-of-root", ground.root, owner=0)
    ground.link(ground.theirs / "link", ground.root)
    assert trust.is_owned_by_root(str(ground.root.parent / path)) is expected


def test_nothing_is_removed_that_a_link_leads_to(ground: Ground) -> None:
    ground.link(ground.theirs / "dir", ground.root)
    with pytest.raises(trust.Untrusted):
        trust.remove(str(ground.theirs / "dir" / "secret"))
    assert ground.secret.exists()
    trust.remove(str(ground.link(ground.theirs / "link", ground.secret)))
    trust.remove(os.fsencode(ground.file(ground.theirs / "file", NOBODY)))
    assert ground.secret.exists() and os.listdir(ground.theirs) == ["dir"]


def test_a_standard_stream_that_is_a_socket() -> None:
    """As under systemd, whose journal is one; open() does not take it."""
    code = (
        "import os; from gunicorn.unix import trust\n"
        "for name in ('stdout', 'stderr'):\n"
        "    os.write(trust.open_file(f'/dev/{name}', os.O_WRONLY | os.O_APPEND), name.encode())"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=theirs, cwd=ROOT, check=True)
        assert ours.recv(100) == b"stdoutstderr"
