# SPDX-License-Identifier: MIT
"""What clients of the control socket want of the master: the manager passes it on, over the link.

This is called in the middle of a turn of the loop, which acts on signals in its next one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gunicorn.master.upgrade import BOOT_LIMIT

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter

Reply = dict[str, Any]


def answer(arbiter: Arbiter, cmd: str, **wanted: Any) -> Reply:
    """Do *cmd*, and return what to answer. Raises ValueError with the reason if it is refused."""
    reply = COMMANDS[cmd](arbiter, **wanted)
    if cmd != "web":
        arbiter.log.info("By command: %s", reply["message"])
    arbiter.wakeup()
    return reply


def _reload(arbiter: Arbiter) -> Reply:
    _refuse_beside_another(arbiter)
    arbiter.signal(signal.SIGHUP)
    but = ", but its preloaded application stays: `upgrade` brings new code" if arbiter.preloaded else ""
    # Several that wait are one.
    return {"message": f"the server reloads{but}", "number": arbiter.reload_number + 1}


def _upgrade(arbiter: Arbiter, timeout: float = BOOT_LIMIT) -> Reply:
    _refuse_beside_another(arbiter)
    if arbiter.last_reload is not None and arbiter.last_reload["result"] == "pending":
        raise ValueError("a reload is under way; retry when its workers have booted")
    if arbiter.pid == 1:
        raise ValueError("the container ends with this master, its process 1: start a new container instead")
    if os.environ.get("SYSTEMD_EXEC_PID") == str(arbiter.pid) and arbiter.unit.announcer is None:
        raise ValueError("systemd ends the server with this master, unless the unit has Type=notify")
    begun = arbiter.upgrade.begin(timeout)
    return {
        "message": f"process {begun['pid']} is to take over",
        "number": begun["number"],
        "pid": begun["pid"],
    }


def _shutdown(arbiter: Arbiter, now: bool) -> Reply:
    successor = arbiter.reexec_pid
    if successor and not (now and arbiter.upgrade.can_be_rolled_back):
        more = ", or end both with --now" if arbiter.upgrade.can_be_rolled_back else ""
        raise ValueError(
            f"an upgrade is under way: process {successor} is to take over; retry when it has{more}"
        )
    if now:
        arbiter.end_at_once = True
    arbiter.signal(signal.SIGINT if now else signal.SIGTERM)
    return {"message": "the server ends now" if now else "the server stops", "pid": arbiter.pid}


def _refuse_beside_another(arbiter: Arbiter) -> None:
    if arbiter.reexec_pid:
        raise ValueError(f"an upgrade is under way: process {arbiter.reexec_pid} is to take over")
    if arbiter.stopping:
        raise ValueError("the server is stopping")
    if arbiter.master_pid:
        raise ValueError(
            f"an upgrade is under way: process {arbiter.pid} waits until process {arbiter.master_pid} is gone"
        )


COMMANDS: dict[str, Callable[..., Reply]] = {
    "web": lambda arbiter, **wanted: arbiter.steer_workers(**wanted),
    "reload": _reload,
    "upgrade": _upgrade,
    "shutdown": _shutdown,
}
