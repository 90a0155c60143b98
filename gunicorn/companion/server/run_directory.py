# SPDX-License-Identifier: MIT
"""Choose a server's control socket and run directory, and detect other users of the directory.

Each server that uses a run directory holds a shared lock on it, which the system takes
away when the server dies. The last one may so know that it is the last.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import weakref
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

from gunicorn.companion import runfile
from gunicorn.companion.client import default_paths
from gunicorn.companion.server import directories
from gunicorn.unix import trust


class Closable(Protocol):
    """An object that only the master may hold."""

    def close(self) -> None: ...


Kept = TypeVar("Kept", bound=Closable)

# Every child closes these, those that application code forks included: a manager would not see the
# master die, and a directory would stay in use.
_closed_in_children: weakref.WeakSet[Closable] = weakref.WeakSet()


def close_in_children(thing: Kept) -> Kept:
    """Have *thing* closed in each process that is forked from now on."""
    _closed_in_children.add(thing)
    return thing


@contextlib.contextmanager
def kept_in_child(*things: Closable | None) -> Iterator[None]:
    """Leave *things* open in a child that is forked within the block."""
    kept = [thing for thing in things if thing is not None]
    _closed_in_children.difference_update(kept)
    try:
        yield
    finally:
        _closed_in_children.update(kept)


def _close_in_child() -> None:
    if not _closed_in_children:
        return
    for thing in list(_closed_in_children):
        thing.close()
    _closed_in_children.clear()


os.register_at_fork(after_in_child=_close_in_child)


class DirectoryUse:
    """A lock that shows to other servers that this one uses a directory."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        close_in_children(self)

    @classmethod
    def begin(cls, path: str) -> DirectoryUse | None:
        """Take the lock; None if that fails, and another server may remove the directory."""
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # Do not wait: the directory is the companions' user's, who might hold the lock for ever.
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BaseException:
                os.close(fd)
                raise
            return cls(fd)
        return None

    def is_at(self, path: str) -> bool:
        """Whether *path* is still the locked directory: it may have been removed and made again."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(path, follow_symlinks=False))
        except OSError:
            return False

    def alone(self) -> bool:
        """Whether no other server uses it."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except OSError:
            # A lock that cannot be made exclusive may be lost (flock(2)).
            alone = False
        with contextlib.suppress(OSError):
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return alone

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class ArbitersPart:
    """Uses the configuration and the log that its arbiter has at the moment."""

    arbiter: Any

    @property
    def cfg(self) -> Any:
        return self.arbiter.cfg

    @property
    def log(self) -> Any:
        return self.arbiter.log


class Places(ArbitersPart):
    """The path of the control socket and the run directory of one server; None if there can be none.

    *inherited*: the run directory of the old master, which its successor uses all its life. With two
    directories, the two masters would not know of each other's companions. "": the old master has companions
    and no run directory.
    """

    def __init__(self, arbiter: Any, inherited: str | None = None) -> None:
        self.arbiter = arbiter
        self.inherited = inherited
        self.control_path: str | None = None
        self.run_dir: str | None = None
        self.chosen = False
        self._use: DirectoryUse | None = None
        self._usable = True
        self._complained = False
        # The run directory when it was looked at last: which names had a file there, and which had none.
        self._files: set[str] = set()
        self._missing: set[str] = set()

    # -- choosing --------------------------------------------------------------

    def choose(self) -> None:
        """Choose the paths of the next manager, and create what it cannot create itself."""
        if self.inherited and self._hindrance(self.inherited):
            # The old master is gone, and this one cannot use its directory.
            with contextlib.suppress(OSError):
                os.rmdir(self.inherited)
            self.inherited = None
        default = self._default()
        self.control_path = self._control_path(default, self.arbiter.pid)
        if self.cfg.companion_control_socket and self.control_path is not None:
            self._prepare("control socket", os.path.dirname(self.control_path))
        run_dir = self._run_dir(default)
        if run_dir is not None and not self._may_use(run_dir):
            run_dir = None
        if run_dir != self.run_dir:
            self._leave()
        self.run_dir = run_dir
        self.chosen = True
        self._enter()

    def planned(self) -> tuple[str | None, str | None]:
        """Return both as a server would choose them now, without creating them; the pid is ``PID``."""
        default = directories.likely_default_directory(os.environ, self.cfg.uid, self.cfg.gid)
        return self._control_path(default, "PID"), self._run_dir(default)

    def told_successor(self) -> str | None:
        """Return what the successor has as *inherited*."""
        if not self.chosen:
            return self.inherited
        return self.run_dir if self.usable else ""

    @property
    def usable(self) -> bool:
        """Whether there is a run directory that can be used, as far as we know."""
        return self.run_dir is not None and self._usable

    def must_wait(self) -> bool:
        """Whether companions have to wait until the old master is gone.

        They need not if both masters can use the same run directory.
        """
        if not self.arbiter.master_pid or self.inherited is None:
            return False
        reason = self._hindrance(self.inherited)
        if reason and not self._complained:
            self._complained = True
            self.log.warning("Companions will start when the old master is gone: %s", reason)
        return bool(reason)

    def _hindrance(self, run_dir: str) -> str:
        if not run_dir:
            return "its companions leave no run files"
        try:
            # Another user's, for one.
            directories.prepare_directory(run_dir, self.cfg.uid, self.cfg.gid)
        except directories.Unusable as exc:
            return f"its run files are out of reach: {exc}"
        return ""

    def _default(self) -> str | None:
        """Return the default directory, created if need be; None if none is needed, or none can be used."""
        cfg = self.cfg
        if cfg.companion_control_socket is not None and (cfg.companion_run_dir or self.inherited):
            return None
        try:
            return directories.usable_default_directory(os.environ, cfg.uid, cfg.gid)
        except directories.Unusable as exc:
            self.log.warning(
                "No directory for the companions' control socket and run files: %s;"
                " set companion_control_socket and companion_run_dir",
                exc,
            )
            return None

    def _control_path(self, default: str | None, pid: object) -> str | None:
        wanted: str | None = self.cfg.companion_control_socket
        if wanted is None and default is not None:
            return os.path.join(default, default_paths.socket_name(pid))
        return os.path.abspath(wanted) if wanted else None

    def _run_dir(self, default: str | None) -> str | None:
        if self.inherited or self.cfg.companion_run_dir:
            return self.inherited or os.path.abspath(self.cfg.companion_run_dir)
        return os.path.join(default, "run-" + self._digest()) if default is not None else None

    def _may_use(self, run_dir: str) -> bool:
        """Whether others cannot change what *run_dir* leads to. Log a warning if it is not as configured."""
        wanted = self.cfg.companion_run_dir
        if self.inherited:
            if wanted and os.path.abspath(wanted) != run_dir:
                self.log.warning(
                    "Run files stay in %s with those of the old master; companion_run_dir"
                    " applies from the next restart of the service",
                    run_dir,
                )
        elif wanted:
            # In a directory like /tmp it is root's alone once it exists.
            with contextlib.suppress(directories.Unusable):
                directories.prepare_directory(run_dir, self.cfg.uid, self.cfg.gid)
            try:
                directories.check_owned_by_root(run_dir, self.cfg.uid)
            except directories.Unusable as exc:
                self.log.warning("No run files in companion_run_dir: %s", exc)
                return False
        return True

    def _digest(self) -> str:
        """Return a name for this service among others of the same user, the same after a restart."""
        cfg = self.cfg
        config_file = os.path.abspath(cfg.config) if cfg.config else ""
        parts = [config_file, os.getcwd(), application(self.arbiter), *sorted(map(str, cfg.address))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def _prepare(self, what: str, directory: str) -> bool:
        try:
            directories.prepare_directory(directory, self.cfg.uid, self.cfg.gid)
        except directories.Unusable as exc:
            # The manager tries all the same: it may have access by groups or access lists.
            self.log.debug("The directory of the companions' %s: %s", what, exc)
            return False
        return True

    # -- using -----------------------------------------------------------------

    def _enter(self) -> None:
        """Make the run directory if it is missing, and lock it."""
        if self.run_dir is None or (self._use is not None and self._use.is_at(self.run_dir)):
            return
        self._leave()
        # Twice: another server that ends may remove it before we have locked it.
        for _ in range(2):
            self._usable = self._prepare("run files", self.run_dir)
            directories.hand_over_run_files(self.run_dir, runfile.SUFFIX, self.cfg.uid, self.cfg.gid)
            self._use = DirectoryUse.begin(self.run_dir)
            if self._use is not None and self._use.is_at(self.run_dir):
                return
            self._leave()

    def restore(self) -> None:
        """Make the run directory again if it was removed."""
        parent = os.path.dirname(self.run_dir or "")
        if parent and not os.path.lexists(parent):
            self._prepare("run files", parent)
        self._enter()

    def lost_run_files(self, wanted: set[str]) -> bool:
        """Recreate the run directory if it was removed; return whether files in it are gone.

        *wanted*: the names of companions that usually have one. One that was missing at the last call, too,
        has released its file.
        """
        if self.run_dir is None:
            return False
        self.restore()
        known, self._files = self._files | wanted, set(runfile.names(self.run_dir))
        missing = known - self._files
        lost, self._missing = missing - self._missing, missing
        return bool(lost)

    def _leave(self) -> None:
        if self._use is not None:
            self._use.close()
            self._use = None

    def shared(self) -> bool:
        """Whether another server uses the run directory, now or once this one is gone."""
        if self.arbiter.master_pid or self.arbiter.reexec_pid:
            return True
        return self._use is not None and not self._use.alone()

    def tidy_up(self) -> None:
        """Remove what is on disk: a killed manager could not, and no manager knows that it is the last."""
        path, self.control_path = self.control_path, None
        if path is not None:
            with contextlib.suppress(OSError):
                trust.remove_stale_socket(path)
        if self.run_dir is not None and not self.shared():
            runfile.remove_dead(self.run_dir)
            # It fails if another server has made a file in it just now.
            with contextlib.suppress(OSError):
                os.rmdir(self.run_dir)
        self._leave()


def application(arbiter: Any) -> str:
    """The name of the application."""
    return str(getattr(arbiter.app, "app_uri", None) or arbiter.cfg.wsgi_app or arbiter.cfg.proc_name)
