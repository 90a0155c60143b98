# SPDX-License-Identifier: MIT
"""Find and end the processes that a killed manager has left; kill a manager with all that it runs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection, Iterable
from typing import Any

from gunicorn.companion import runfile
from gunicorn.companion.child.mark import Mark, digest
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.runfile import Record
from gunicorn.companion.server.run_directory import ArbitersPart, Places
from gunicorn.companion.supervise import detached
from gunicorn.companion.supervise.orphans import Orphan
from gunicorn.unix import session

# So many managers are remembered before those are forgotten that have left no record.
MANAGERS_NOTED = 20


class Leftovers(ArbitersPart):
    """Knows the managers of this server. Records and marks tell which processes they have started."""

    def __init__(self, arbiter: Any, places: Places) -> None:
        self.arbiter = arbiter
        self.places = places
        # Every manager of this server: pid and `session.identity`, as they are in the records.
        self.managers: set[tuple[int, str]] = set()
        # Whether one of them was killed, so that there may be something to end.
        self.some_killed = False
        self._orphans: list[Orphan] | None = None

    def note_manager(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            if len(self.managers) >= MANAGERS_NOTED:
                named = runfile.records(self.places.run_dir).values()
                self.managers &= {(record.supervisor, record.supervisor_started) for record in named}
            self.managers.add((pid, session.identity(pid) or ""))

    def kill_with_companions(self, pid: int) -> None:
        """SIGKILL to the manager *pid*, and to what its run files name."""
        # Read the records while the manager lives: those that it supervises are meant.
        records = [
            record for record in self._records() if record.supervisor == pid and record.is_supervised()
        ]
        session.send(pid, signal.SIGKILL)
        # If no descriptor is left to find the others, the kernel still ends the leaders.
        with contextlib.suppress(OSError):
            for members in session.members({record.session for record in records}).values():
                for member in members:
                    if self._uid() is None or session.owner(member) == self._uid():
                        session.send(member, signal.SIGKILL)

    @property
    def waiting(self) -> bool:
        """Whether sessions are still ending."""
        return bool(self._orphans)

    def hasten(self, now: float) -> None:
        """End them all now."""
        for orphan in self._orphans or ():
            orphan.deadline = now

    def step(self, now: float, configs: Iterable[CompanionConfig], cap: float | None) -> bool:
        """Take one step of a stop without a manager: True when nothing is left.

        *configs*: the companions. *cap*: what the timeout of each is limited to.
        """
        if self._orphans is None:
            self._orphans = [
                Orphan(record, now, timeout=cap, uid=self._uid()) for record in self._left_behind(configs)
            ]
        self._orphans = [orphan for orphan in self._orphans if not orphan.step(now)]
        if self._orphans:
            return False
        if self.some_killed:
            # What has left its session. A manager that ends by itself does this, too.
            detached.end_left(self._marked, self._tell_left)
        return True

    def record_again(self, configs: Iterable[CompanionConfig]) -> None:
        """Write missing records of companions of a dead manager again, so that the next one waits for them.

        To be called as the companions' user.
        """
        run_dir = self.places.run_dir
        if run_dir is None:
            return
        # The directory may be full or out of reach. Then the next manager kills them, by their marks.
        with contextlib.suppress(OSError):
            for record in self._unrecorded([config for config in configs if config.singleton]):
                run = runfile.RunFile.claim(run_dir, record.name)
                if run is not None:
                    run.write(record)
                    run.close()

    def _unrecorded(self, configs: Iterable[CompanionConfig]) -> list[Record]:
        """Return records for the companions of dead managers that have none.

        Their run files were removed; or they never had one, because they may run several times. Of the
        processes with a companion's mark it is the oldest that leads a session.
        """
        if not self.some_killed:
            return []
        by_digest = {digest(config.name): config for config in configs}
        started = dict(self.managers)
        known = {
            (record.supervisor, digest(record.name))
            for record in runfile.records(self.places.run_dir).values()
        }
        leaders = []
        for pid, mark in self._marked().items():
            info = session.read_stat(pid)
            if info is not None and info.session == pid and mark.name in by_digest:
                leaders.append((int(info.start), pid, mark))
        found = []
        for _, pid, mark in sorted(leaders):
            identity = session.identity(pid)
            if identity is not None and (mark.manager, mark.name) not in known:
                known.add((mark.manager, mark.name))
                config = by_digest[mark.name]
                found.append(
                    Record(
                        config.name,
                        pid,
                        identity,
                        session=pid,
                        supervisor=mark.manager,
                        supervisor_started=started[mark.manager],
                        stop_signal=config.stop_signal,
                        stop_timeout=config.stop_timeout,
                        # The kernel sent it when the manager died.
                        signalled=True,
                        stop_as_group=config.stop_as_group,
                        later_signals=config.later_signals,
                    )
                )
        return found

    def _marked(self) -> dict[int, Mark]:
        """The processes that carry the mark of a dead manager of this server."""
        starts = {(pid, who.rpartition("/")[2]) for pid, who in self.managers}
        found = detached.of_dead_managers(lambda mark: (mark.manager, mark.started) in starts)
        uid = self._uid()
        return {pid: mark for pid, mark in found.items() if uid is None or session.owner(pid) == uid}

    def _left_behind(self, configs: Iterable[CompanionConfig]) -> list[Record]:
        """The sessions whose manager is dead: on a directory of our own all, else those of our managers.

        What another server's manager leaves is for the next manager of that server.
        """
        records = list(
            self._records() if self.places.shared() else runfile.records(self.places.run_dir).values()
        )
        orphaned = [record for record in records if not record.is_supervised()]
        with contextlib.suppress(OSError):
            orphaned += self._unrecorded(configs)
        return orphaned

    def _records(self) -> list[Record]:
        """The records of this server's companions, and none of another server's."""
        records = runfile.records(self.places.run_dir).values()
        return [
            record for record in records if (record.supervisor, record.supervisor_started) in self.managers
        ]

    def _uid(self) -> int | None:
        """The user whose processes a record may make us kill: as root, not everybody's."""
        return self.cfg.uid if os.geteuid() == 0 else None

    def _tell_left(self, pids: Collection[int]) -> None:
        self.log.warning("Companions left behind %s: SIGKILL", session.names_of(pids))
