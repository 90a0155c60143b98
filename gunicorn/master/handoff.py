# SPDX-License-Identifier: MIT
"""The environment variables that pass listening sockets from one master, or a service manager, to the next.

An old master passes ``GUNICORN_PID`` (its own) and ``GUNICORN_FD`` (descriptors, separated by commas). With
companions it passes ``GUNICORN_COMPANION_RUN_DIR``, where their records are, so that those of the new master
wait for them; ``GUNICORN_COMPANION_STATE``, a descriptor of the file that has what is asked of them by
command; ``GUNICORN_COMPANION_SOCKETS``, their listening sockets; and ``GUNICORN_SCOREBOARD``, a descriptor of
the file that has what its workers have done. In an upgrade by command it passes ``GUNICORN_UPGRADE``: a
descriptor to report to, and the number of the upgrade. A service manager passes ``LISTEN_PID`` (for which
process) and ``LISTEN_FDS`` (how many, from 3 on); a master that was started so passes them on likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

SD_LISTEN_FDS_START = 3

MASTER_PID = "GUNICORN_PID"
MASTER_FDS = "GUNICORN_FD"
COMPANION_RUN_DIR = "GUNICORN_COMPANION_RUN_DIR"
COMPANION_STATE = "GUNICORN_COMPANION_STATE"
COMPANION_SOCKETS = "GUNICORN_COMPANION_SOCKETS"
SCOREBOARD = "GUNICORN_SCOREBOARD"
UPGRADE = "GUNICORN_UPGRADE"
LISTEN_PID = "LISTEN_PID"
LISTEN_FDS = "LISTEN_FDS"
WATCHDOG_PID = "WATCHDOG_PID"
LISTEN_VARIABLES = (LISTEN_PID, LISTEN_FDS, "LISTEN_FDNAMES", "LISTEN_PIDFDID")


class Inherited(NamedTuple):
    """What a master was given at its start: the master that it is to replace (0: none), and sockets.

    *companion_run_dir*: the old master's run directory; "": it has companions and no run directory; None:
    it has no companions. *companion_state_fd*: see `gunicorn.companion.supervise.sharedstate`;
    *scoreboard_fd*: see `gunicorn.scoreboard`; *report_fd* and *upgrade*, its number: see
    `gunicorn.master.upgrade`; *companion_sockets*: see `gunicorn.companion.server.keptsockets`.
    """

    master_pid: int = 0
    fds: tuple[int, ...] = ()
    systemd: bool = False
    companion_run_dir: str | None = None
    companion_state_fd: int | None = None
    scoreboard_fd: int | None = None
    report_fd: int | None = None
    upgrade: int = 0
    companion_sockets: str = ""


def inherited(environ: Mapping[str, str], pid: int) -> Inherited:
    """Read *environ* as the process *pid*.

    ``GUNICORN_PID`` counts even if that is not the parent: the old master may be gone already. Raises
    ValueError for descriptors that are not numbers.
    """
    master_pid = _number(environ.get(MASTER_PID, ""))
    run_dir = environ.get(COMPANION_RUN_DIR) if master_pid else None
    state, board = (
        (_number(environ.get(name, "")) or None) if master_pid else None
        for name in (COMPANION_STATE, SCOREBOARD)
    )
    report, number = report_to(environ) if master_pid else (None, 0)
    more = (run_dir, state, board, report, number, environ.get(COMPANION_SOCKETS, "") if master_pid else "")
    count = listen_fd_count(environ, pid)
    if count:
        fds = tuple(range(SD_LISTEN_FDS_START, SD_LISTEN_FDS_START + count))
        return Inherited(master_pid, fds, True, *more)
    if not master_pid:
        return Inherited()
    names = [name for name in environ.get(MASTER_FDS, "").split(",") if name.strip()]
    try:
        fds = tuple(int(name) for name in names)
        return Inherited(master_pid, fds, False, *more)
    except ValueError:
        raise ValueError(f"{MASTER_FDS}={environ[MASTER_FDS]!r} is not a list of descriptors") from None


def report_to(environ: Mapping[str, str]) -> tuple[int | None, int]:
    """The descriptor of the report to the old master, and the number of the upgrade."""
    fd, _, number = environ.get(UPGRADE, "").partition(",")
    return _number(fd) or None, _number(number)


def listen_fd_count(environ: Mapping[str, str], pid: int) -> int:
    """How many sockets a service manager has passed to the process *pid*."""
    if _number(environ.get(LISTEN_PID, "")) != pid:
        return 0
    return _number(environ.get(LISTEN_FDS, ""))


def forget(environ: MutableMapping[str, str]) -> None:
    """Remove what `inherited` has read: it is not for the children of this process."""
    names = (MASTER_PID, MASTER_FDS, COMPANION_RUN_DIR, COMPANION_STATE, COMPANION_SOCKETS, SCOREBOARD)
    for name in (*names, UPGRADE, *LISTEN_VARIABLES):
        environ.pop(name, None)


def reexec_environment(environ: Mapping[str, str], given: Inherited, pid: int) -> dict[str, str]:
    """Return *environ* for the successor with *pid*, in which `inherited` returns *given*.

    Sockets of a service manager must be numbered from 3 on, as they were received. The successor inherits the
    watchdog, too.
    """
    result = dict(environ)
    forget(result)
    if result.get(WATCHDOG_PID, "").strip() == str(given.master_pid):
        result[WATCHDOG_PID] = str(pid)
    result[MASTER_PID] = str(given.master_pid)
    if given.companion_run_dir is not None:
        result[COMPANION_RUN_DIR] = given.companion_run_dir
    if given.companion_state_fd is not None:
        result[COMPANION_STATE] = str(given.companion_state_fd)
    if given.companion_sockets:
        result[COMPANION_SOCKETS] = given.companion_sockets
    if given.scoreboard_fd is not None:
        result[SCOREBOARD] = str(given.scoreboard_fd)
    if given.report_fd is not None:
        result[UPGRADE] = f"{given.report_fd},{given.upgrade}"
    if given.systemd:
        result[LISTEN_PID] = str(pid)
        result[LISTEN_FDS] = str(len(given.fds))
    else:
        result[MASTER_FDS] = ",".join(map(str, given.fds))
    return result


def _number(text: str) -> int:
    """Return a count or a pid; 0 if *text* is none."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() else 0
