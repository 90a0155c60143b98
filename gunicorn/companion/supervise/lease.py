# SPDX-License-Identifier: MIT
"""What the manager knows of one lease: who holds it, for how long, and what is wrong with it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gunicorn.companion.leasing.store import hide_password
from gunicorn.companion.leasing.timing import Timing
from gunicorn.companion.leasing.words import LeaseMemory
from gunicorn.companion.process import CompanionProcess
from gunicorn.companion.status import format_age
from gunicorn.unix.kernel import Kernel


def new_owner(pid: int) -> str:
    """Return what a manager of the master *pid* is called in stores: for people, and unique by its last word.

    So the next manager waits as others do, until what this one may leave behind is dead.
    """
    return f"{os.uname().nodename} (pid {pid}) {os.urandom(4).hex()}"


def shown(owner: str) -> str:
    """``web-2 (pid 4711)``"""
    return owner.rpartition(" ")[0] or owner


@dataclass(eq=False)
class Lease:
    """What the manager knows of one. Times with ``boot`` in their name are of the boot-time clock."""

    store: str
    name: str
    slot: int
    memory: LeaseMemory
    kernel: Kernel
    timing: Timing
    # The number of the present attempt to hold it; 0: there is none.
    serial: int = 0
    # Since when the keeper has been expected to do something.
    boot_asked: float = 0.0
    # The companions with a process that was started with it.
    living: set[str] = field(default_factory=set)
    # Of the present holding; 0: it is not held.
    token: int = 0
    since: float = 0.0
    # All its processes are ending: what starts next needs another token.
    spent: bool = False
    # Who else has it, as the keeper was told; None: not known. Since when it has been held by nobody.
    other: str | None = None
    free_since: float | None = None
    # The token of the last holding.
    last_token: int = 0
    # How often it was taken or lost here.
    transitions: int = 0
    # What a holder has stored with it, or is to; and whether it is stored.
    note: str = ""
    noted: bool = True
    # It was given away by command: others have until then.
    hold_off: float = 0.0
    # Since when its store cannot be asked, and why not.
    down_since: float | None = None
    down_why: str = ""
    # Whether that is so for this lease alone.
    down_alone: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.store, self.name

    @property
    def words(self) -> Any:
        return self.memory.slot(self.slot)

    def left(self) -> float:
        """Seconds until its end, unless it is renewed; 0 if it is not held."""
        return float(self.words.left(self.token, self.kernel.boottime())) if self.token else 0.0

    def set_down(self, why: str | None, now: float, *, alone: bool = False) -> None:
        """Note that it cannot be asked for, and *why*; None: it can."""
        self.down_since = None if why is None else now if self.down_since is None else self.down_since
        self.down_why, self.down_alone = why or "", alone

    @property
    def address(self) -> str:
        """The store for people."""
        return hide_password(self.store)

    @property
    def description(self) -> str:
        """``held by web-2 (pid 4711) for another 9 s``: what a companion waits for."""
        now = self.kernel.now()
        if self.hold_off > now and not self.serial:
            return f"given away by command for {self.hold_off - now:.0f} s"
        if self.down_since is not None:
            what = f"lease {self.name} unusable" if self.down_alone else f"{self.address} unreachable"
            return f"{what} for {format_age(now - self.down_since)}: {self.down_why}"
        if self.other:
            left = max(0.0, self.words.other - self.kernel.boottime())
            return f"held by {shown(self.other)} for another {left:.0f} s"
        return f"asking {self.address} for lease {self.name}" if self.other is None else "held by nobody"

    @property
    def summary(self) -> str:
        """``shop-scheduler, token 12, for another 9 s``; without it ``shop-scheduler, held by web-2 …``."""
        if not self.token:
            return f"{self.name}, {self.description}"
        trouble = "" if self.down_since is None else f"; {self.address}: {self.down_why}"
        return f"{self.name}, token {self.token}, for another {self.left():.0f} s{trouble}"

    @property
    def end_of_holding(self) -> str:
        """``gave up lease shop (token 12)``, or what else becomes of a holding that is over."""
        which, left = f"lease {self.name} (token {self.token})", self.left()
        if not left:
            return f"lost {which}: it was not renewed in time"
        if self.down_since is not None or left < self.timing.ttl / 2:
            why = self.down_why or "its renewal is late"
            return f"gives up {which}, which ends in {left:.0f} s at the latest: {why}"
        return f"gave up {which}"

    @property
    def unheld_for(self) -> float | None:
        """Seconds for which nobody is known to hold it; None while somebody does."""
        since = self.down_since or (None if self.other else self.free_since)
        return None if self.left() or since is None else self.kernel.now() - since

    def as_dict(self) -> dict[str, Any]:
        held = bool(self.token)
        left = self.left() if held else max(0.0, self.words.other - self.kernel.boottime())
        unheld = self.unheld_for
        return {
            "name": self.name,
            "summary": self.summary,
            "store": self.address,
            "store_up": self.down_since is None,
            "held": held and left > 0,
            "token": self.token or None,
            "holder": None if held else shown(self.other or "") or None,
            "expires_in": round(left, 1) if held or self.other else None,
            "ttl": self.timing.ttl,
            "margin": self.timing.margin,
            "unheld_for": None if unheld is None else round(unheld, 1),
            "trouble": self.down_why or None,
            "transitions": self.transitions,
        }


class Living(NamedTuple):
    """A process that runs, or of whose session something is left."""

    lease: Lease
    token: int
    pid: int

    def left(self) -> float:
        """Seconds until the end of the lease, unless it is renewed; 0 if it is lost."""
        return self.lease.left() if self.token == self.lease.token else 0.0


def time_until_stop(lease: Lease, process: CompanionProcess, left: float) -> float:
    """Seconds until *process* is sent its stop signal, if its lease ends in *left* seconds."""
    return left - lease.timing.margin - lease.timing.grace(process.config.stop_timeout)


def why_lost(lease: Lease, left: float) -> str:
    """Why a process is ended whose lease ends in *left* seconds."""
    if left <= 0 and lease.other:
        return f"lease {lease.name} was lost to {shown(lease.other)}"
    if lease.down_since is not None:
        return f"lease {lease.name} was not renewed: {lease.address}: {lease.down_why}"
    if left <= 0:
        return f"lease {lease.name} was lost: {lease.address} has it no more"
    return f"lease {lease.name} was not renewed in time"
