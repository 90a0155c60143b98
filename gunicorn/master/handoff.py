# SPDX-License-Identifier: MIT
"""The environment variables that carry listening sockets from one process image to the next.

Two ways exist. An old master passes ``GUNICORN_PID`` (itself), ``GUNICORN_FD`` (numbers, separated by
commas), and with companions ``GUNICORN_COMPANION_RUN_DIR`` (where they leave their records, so that
those of the new master wait for them) and ``GUNICORN_COMPANION_STATE`` (the number of a descriptor: there
the old manager leaves what is asked of them by command, now and later). A service manager passes
``LISTEN_PID`` (who is meant) and ``LISTEN_FDS`` (how many, from 3 on); a master that was started so passes
them on in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import NamedTuple

SD_LISTEN_FDS_START = 3

MASTER_PID = "GUNICORN_PID"
MASTER_FDS = "GUNICORN_FD"
COMPANION_RUN_DIR = "GUNICORN_COMPANION_RUN_DIR"
COMPANION_STATE = "GUNICORN_COMPANION_STATE"
LISTEN_PID = "LISTEN_PID"
LISTEN_FDS = "LISTEN_FDS"
WATCHDOG_PID = "WATCHDOG_PID"
LISTEN_VARIABLES = (LISTEN_PID, LISTEN_FDS, "LISTEN_FDNAMES", "LISTEN_PIDFDID")


class Inherited(NamedTuple):
    """What a master was given at its start: the master it is to replace (0: none), and its sockets.

    *companion_run_dir*: where the old master's companions leave their records; "" for nowhere, none where
    it has no companions. *companion_state_fd*: a `gunicorn.companion.supervise.sharedstate` of its manager.
    """

    master_pid: int = 0
    fds: tuple[int, ...] = ()
    systemd: bool = False
    companion_run_dir: str | None = None
    companion_state_fd: int | None = None


def inherited(environ: Mapping[str, str], pid: int) -> Inherited:
    """Read *environ* as the process *pid*.

    ``GUNICORN_PID`` counts whoever the parent is: the old master may have gone already, and its
    sockets live on in this process. Raises ValueError for descriptors that are not numbers.
    """
    master_pid = _number(environ.get(MASTER_PID, ""))
    run_dir = environ.get(COMPANION_RUN_DIR) if master_pid else None
    state = (_number(environ.get(COMPANION_STATE, "")) or None) if master_pid else None
    count = listen_fd_count(environ, pid)
    if count:
        fds = tuple(range(SD_LISTEN_FDS_START, SD_LISTEN_FDS_START + count))
        return Inherited(master_pid, fds, True, run_dir, state)
    if not master_pid:
        return Inherited()
    names = [name for name in environ.get(MASTER_FDS, "").split(",") if name.strip()]
    try:
        return Inherited(master_pid, tuple(int(name) for name in names), False, run_dir, state)
    except ValueError:
        raise ValueError(f"{MASTER_FDS}={environ[MASTER_FDS]!r} is not a list of descriptors") from None


def listen_fd_count(environ: Mapping[str, str], pid: int) -> int:
    """How many sockets a service manager has passed to the process *pid*."""
    if _number(environ.get(LISTEN_PID, "")) != pid:
        return 0
    return _number(environ.get(LISTEN_FDS, ""))


def forget(environ: MutableMapping[str, str]) -> None:
    """Remove what ``inherited()`` has read: it is not for the children of this process."""
    for name in (MASTER_PID, MASTER_FDS, COMPANION_RUN_DIR, COMPANION_STATE, *LISTEN_VARIABLES):
        environ.pop(name, None)


def reexec_environment(
    environ: Mapping[str, str],
    *,
    master_pid: int,
    fds: Iterable[int],
    systemd_pid: int | None = None,
    pid: int | None = None,
    companion_run_dir: str | None = None,
    companion_state_fd: int | None = None,
) -> dict[str, str]:
    """*environ* for the successor of the master *master_pid*, which gets the sockets *fds*.

    With *systemd_pid*, the pid of the successor itself, they are passed as a service manager
    does it; they must then be numbered from 3 on, as they were when they came. *pid* is the
    successor too: it inherits the watchdog of the old master.
    """
    result = dict(environ)
    forget(result)
    if pid is not None and result.get(WATCHDOG_PID, "").strip() == str(master_pid):
        result[WATCHDOG_PID] = str(pid)
    result[MASTER_PID] = str(master_pid)
    if companion_run_dir is not None:
        result[COMPANION_RUN_DIR] = companion_run_dir
    if companion_state_fd is not None:
        result[COMPANION_STATE] = str(companion_state_fd)
    numbers = list(fds)
    if systemd_pid is not None:
        result[LISTEN_PID] = str(systemd_pid)
        result[LISTEN_FDS] = str(len(numbers))
    else:
        result[MASTER_FDS] = ",".join(map(str, numbers))
    return result


def _number(text: str) -> int:
    """A count or a pid; 0 for what is not one."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() else 0
