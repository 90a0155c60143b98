# SPDX-License-Identifier: MIT
"""Open, create and give away files as root, by paths that other users may change.

A directory is *trusted* if only root can change its entries and those of each directory above it. In
any other directory a user may have replaced a file by a link, a hard link or a device, so that root
writes to a file, or gives one away, that this user has no right to. docs/trust.rst has the rules.

For every other user these functions are a plain ``open()``: the kernel checks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Iterator

# O_PATH: passing through a directory needs no right to list it.
_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# As many links as the kernel follows, path_resolution(7).
_MOST_LINKS = 40
# Names of open descriptors, and of nothing.
_OUTPUTS = {"/dev/stdout": 1, "/dev/stderr": 2}
_STANDARD_STREAMS = ("/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/null")
_STREAM = re.compile(r"/dev/fd/\d+|/proc/(?:self|thread-self|\d+)/fd/\d+")

# The user and group that a file is to belong to.
Owner = tuple[int, int]


class Untrusted(PermissionError):
    """Root refuses to use a path; ``strerror`` says why."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(errno.EPERM, f"root does not use it: {why}", path)


class Place:
    """The end of a path: an open directory, and a name in it."""

    def __init__(self, path: str | bytes) -> None:
        self.path = os.path.abspath(os.fsdecode(path))
        self.fd = os.open("/", _DIRECTORY)
        self.name = "."
        self.trusted = _only_root_writes(os.fstat(self.fd))
        # Whether the name is that of a stream, which the kernel follows.
        self.stream = False
        # The user whose link led here, who must own the file.
        self.link_owner: int | None = None
        self._links = 0

    def close(self) -> None:
        os.close(self.fd)

    def walk(self, path: str, follow: bool) -> None:
        """Go to the directory of *path*; with *follow* also through a link that its last name is."""
        if os.path.isabs(path):
            # Not through everybody's link to a descriptor: that would be another way to a file.
            if follow and (path in _STANDARD_STREAMS or (self.trusted and is_stream(path))):
                self.stream, self.name = True, path
                return
            # A path in an untrusted link is untrusted from its beginning.
            self._move(os.open("/", _DIRECTORY), self.trusted)
        parts = [part for part in path.split("/") if part not in ("", ".")] or ["."]
        for part in parts[:-1]:
            self._enter(part)
        self.name = parts[-1]
        target = self._follow() if follow else None
        if target is not None:
            self.walk(target, follow)

    def _follow(self) -> str | None:
        """The target of the name if it is a link, else None. Remembers the link's owner."""
        info = self.info()
        if info is None or not stat.S_ISLNK(info.st_mode):
            return None
        info, target = self._read_link(self.name)
        owner = self._owner_of_link(info)
        if owner is not None:
            if self.link_owner not in (None, owner):
                raise self.bad_link(owner)
            self.link_owner = owner
        self.trusted = self.trusts(info)
        return target

    def info(self) -> os.stat_result | None:
        """Return the status of the path, without following a link; None if it does not exist."""
        try:
            return os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def trusts(self, info: os.stat_result) -> bool:
        """Whether only root can have created the entry *info* of this directory."""
        if not self.trusted or not os.fstat(self.fd).st_mode & stat.S_ISVTX:
            return self.trusted
        # Everybody may create hard links to root's files there.
        return info.st_uid == 0 and (stat.S_ISDIR(info.st_mode) or info.st_nlink <= 1)

    def _enter(self, name: str) -> None:
        info = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        if not stat.S_ISLNK(info.st_mode):
            fd = os.open(name, _DIRECTORY, dir_fd=self.fd)
            self._move(fd, self.trusts(info) and _only_root_writes(os.fstat(fd)))
            return
        info, target = self._read_link(name)
        owner = self._owner_of_link(info)
        self.trusted = self.trusts(info)
        self.walk(target, follow=False)
        self._enter(self.name)
        if owner is not None and os.fstat(self.fd).st_uid != owner:
            raise self.bad_link(owner)

    def _read_link(self, name: str) -> tuple[os.stat_result, str]:
        """Status and target of a link, of the same one even if it is replaced meanwhile."""
        self._links += 1
        if self._links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self.path)
        if not hasattr(os, "O_PATH"):
            info = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            return info, os.readlink(name, dir_fd=self.fd)
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            # readlink(2): an empty path is the link that the descriptor is open on.
            return os.fstat(fd), os.readlink("", dir_fd=fd)
        finally:
            os.close(fd)

    def _owner_of_link(self, info: os.stat_result) -> int | None:
        """The user who must own the target of a link; None for a link of root, which may lead anywhere."""
        if self.trusts(info):
            return None
        if info.st_nlink > 1:
            raise Untrusted(self.path, "a link on the way has a hard link")
        return info.st_uid or None

    def bad_link(self, owner: int) -> Untrusted:
        return Untrusted(self.path, f"a link of user {owner} leads to something that user does not own")

    def check(self, info: os.stat_result, user: int, made: bool = False) -> None:
        """Raise Untrusted unless the file *info* may be root's or *user*'s; *made*: we have created it."""
        if made:
            return
        if self.link_owner not in (None, info.st_uid):
            raise self.bad_link(self.link_owner or 0)
        if self.trusted and self.trusts(info):
            return
        directory = os.fstat(self.fd)
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISFIFO(info.st_mode)):
            raise Untrusted(self.path, "it is not a file, and others may write to its directory")
        # Some file systems in user space do not count names.
        if info.st_nlink > 1:
            raise Untrusted(self.path, "it has a hard link, and others may write to its directory")
        if directory.st_mode & stat.S_ISVTX and info.st_uid not in (0, user, directory.st_uid):
            raise Untrusted(
                self.path,
                f"it is user {info.st_uid}'s, and everybody may create files in its directory",
            )

    def check_before_making(self) -> None:
        """Raise Untrusted if the owner of the link that led here has no directory here."""
        if self.link_owner not in (None, os.fstat(self.fd).st_uid):
            raise self.bad_link(self.link_owner or 0)

    def _move(self, fd: int, trusted: bool) -> None:
        os.close(self.fd)
        self.fd, self.trusted = fd, trusted


@contextlib.contextmanager
def place_of(path: str | bytes, follow: bool = True) -> Iterator[Place]:
    """The directory of *path*, open, and the name in it. Raises OSError, Untrusted among them."""
    place = Place(path)
    try:
        place.walk(place.path, follow)
        yield place
    finally:
        place.close()


def is_stream(path: str) -> bool:
    """Whether *path* is a name for an open descriptor, or /dev/null."""
    return path in _STANDARD_STREAMS or _STREAM.fullmatch(path) is not None


def _only_root_writes(info: os.stat_result) -> bool:
    """Whether only root makes or replaces names in a directory; in a sticky one, root's names."""
    return info.st_uid == 0 and (not info.st_mode & 0o022 or bool(info.st_mode & stat.S_ISVTX))


def open_file(path: str, flags: int, mode: int = 0o666, owner: Owner | None = None) -> int:
    """Open *path* for writing, close-on-exec. As root, check the path and the file. Raises OSError.

    With *owner*, a regular file is given to that user and group if it is new, or if only root can have put it
    there.
    """
    flags |= os.O_CLOEXEC | os.O_NOCTTY
    if os.geteuid() != 0 or is_stream(os.path.abspath(path)):
        return _open(path, flags, mode)
    with place_of(path) as place:
        if place.stream:
            return _open(place.name, flags, mode)
        # Truncate it only after the check.
        fd, made = _open_or_make(place, flags & ~os.O_TRUNC, mode)
        try:
            info = os.fstat(fd)
            place.check(info, owner[0] if owner is not None else 0, made)
            sole = stat.S_ISREG(info.st_mode) and info.st_nlink <= 1
            ours = made or (sole and place.trusts(info))
            if owner is not None and ours and (info.st_uid, info.st_gid) != owner:
                os.fchown(fd, *owner)
            if flags & os.O_TRUNC and stat.S_ISREG(info.st_mode):
                os.ftruncate(fd, 0)
        except BaseException:
            os.close(fd)
            raise
        return fd


def _open(path: str, flags: int, mode: int) -> int:
    try:
        return os.open(path, flags, mode)
    except OSError as exc:
        # A socket, systemd's journal for one, cannot be opened by such a name.
        if exc.errno != errno.ENXIO or path not in _OUTPUTS:
            raise
        return os.dup(_OUTPUTS[path])


def _open_or_make(place: Place, flags: int, mode: int) -> tuple[int, bool]:
    """The open file, and whether it is new."""
    # Others may create and remove it meanwhile, but not for ever.
    for _ in range(10):
        info = place.info()
        if info is None and flags & os.O_CREAT:
            place.check_before_making()
            with contextlib.suppress(FileExistsError):
                return os.open(place.name, flags | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=place.fd), True
            continue
        if info is not None:
            # Before it is opened, which may change the state of a device.
            place.check(info, info.st_uid)
        with contextlib.suppress(FileNotFoundError):
            return os.open(place.name, flags & ~os.O_CREAT | os.O_NOFOLLOW, dir_fd=place.fd), False
        if not flags & os.O_CREAT:
            break
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place.path)


def remove(path: str | bytes) -> None:
    """Remove the file *path*; as root, not through links that others control. Raises OSError."""
    if os.geteuid() != 0:
        os.unlink(path)
        return
    with place_of(path, follow=False) as place:
        os.unlink(place.name, dir_fd=place.fd)


def remove_stale_socket(path: str | bytes) -> None:
    """Remove the file of a Unix socket on which nobody listens, if there is one.

    Raises OSError: EADDRINUSE if somebody listens, EEXIST if the file is no socket.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, ValueError):
        # ValueError: a name of the abstract namespace, which begins with NUL and has no file.
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "something that is not a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A full backlog answers EAGAIN; a blocking connect would wait for a place in it.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                remove(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "another server is listening there")


def check_path(path: str) -> None:
    """Raise Untrusted if a link that others control is on the way to *path*. Does nothing unless root."""
    if os.geteuid() == 0:
        with place_of(path, follow=False):
            pass


def is_owned_by_root(path: str) -> bool:
    """Whether *path* is a directory of root's, or can become one, that only root can replace.

    Others may have the right to create files in it.
    """
    try:
        with place_of(path) as place:
            info = place.info()
            if info is None or not stat.S_ISDIR(info.st_mode):
                return place.trusted
            return place.trusts(info) and info.st_uid == 0
    except (FileNotFoundError, NotADirectoryError):
        return is_owned_by_root(os.path.dirname(os.path.abspath(path)))
    except OSError:
        return False


def open_directory(path: str) -> int:
    """Open the directory *path* for reading; as root, not through links of others. Raises OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if os.geteuid() != 0:
        return os.open(path, flags)
    with place_of(path) as place:
        fd = os.open(place.name, flags | os.O_NOFOLLOW, dir_fd=place.fd)
        if place.link_owner not in (None, os.fstat(fd).st_uid):
            os.close(fd)
            raise place.bad_link(place.link_owner or 0)
        return fd


def make_directory(path: str, owner: Owner) -> None:
    """Create *path* with mode 0700 for *owner*, if there is nothing. Raises OSError."""
    # By the umask: chmod() would follow a link.
    umask = os.umask(0o077)
    try:
        if os.geteuid() != 0:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            return
        with place_of(path, follow=False) as place, contextlib.suppress(FileExistsError):
            os.mkdir(place.name, 0o700, dir_fd=place.fd)
            _give_empty_directory(place, owner)
    finally:
        os.umask(umask)


def make_directories(path: str) -> None:
    """Create *path* and what is missing above it, as os.makedirs does. Raises OSError."""
    if os.geteuid() != 0:
        os.makedirs(path, exist_ok=True)
        return
    try:
        _make_one(path)
    except FileNotFoundError:
        make_directories(os.path.dirname(os.path.abspath(path)))
        _make_one(path)


def _make_one(path: str) -> None:
    with place_of(path) as place:
        place.check_before_making()
        with contextlib.suppress(FileExistsError):
            os.mkdir(place.name, dir_fd=place.fd)


def _give_empty_directory(place: Place, owner: Owner) -> None:
    if owner[0] == 0:
        return
    fd = os.open(place.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd)
    try:
        # A user with the right to write to its parent may have replaced it by another directory of root's.
        if os.fstat(fd).st_uid != 0 or os.listdir(fd):
            raise Untrusted(place.path, "it was replaced as soon as it was made")
        os.fchown(fd, *owner)
    finally:
        os.close(fd)


def give_socket(path: str, owner: Owner) -> None:
    """Give the socket file *path*, which this process has just created, to *owner*. Raises OSError."""
    if os.geteuid() != 0:
        os.chown(path, *owner, follow_symlinks=False)
        return
    with place_of(path, follow=False) as place:
        _check_socket(place, place.info())
        if not hasattr(os, "O_PATH") or not os.path.exists("/proc/self/fd"):
            # The file may be replaced in between; the system has no better way.
            os.chown(place.name, *owner, dir_fd=place.fd, follow_symlinks=False)
            return
        fd = os.open(place.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd)
        try:
            _check_socket(place, os.fstat(fd))
            # fchown() refuses such a descriptor, open(2), but chown() takes its name in /proc.
            os.chown(f"/proc/self/fd/{fd}", *owner)
        finally:
            os.close(fd)


def _check_socket(place: Place, info: os.stat_result | None) -> None:
    if info is None or not stat.S_ISSOCK(info.st_mode) or info.st_nlink > 1 or info.st_uid != 0:
        raise Untrusted(place.path, "it was replaced as soon as it was made")
