# SPDX-License-Identifier: MIT
"""Grant the right to start a companion, and stop older processes that stand in its way.

Processes that a dead manager left behind are stopped; those that another manager supervises are waited for.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gunicorn.companion import runfile
from gunicorn.companion.runfile import Record, RunFile
from gunicorn.companion.supervise.orphans import Orphan, orphans
from gunicorn.companion.supervise.sharedstate import Rights
from gunicorn.unix.kernel import KERNEL, Kernel

# Seconds that a list of the run files serves for: it is the same for all that start at once.
LISTING = 0.02


@dataclass(frozen=True)
class Blocked:
    """An older process lives, as *pid* (None: unknown).

    *session*: the session that this manager is stopping; None if the process has another supervisor.
    """

    pid: int | None
    session: int | None = None


def _right(name: str) -> str:
    return "companion " + name


class StartRights:
    """The run files that this manager holds, by companion name, in *run_dir* (none: files without a name)."""

    def __init__(
        self, run_dir: str | None, log: Any, rights: Rights | None = None, *, kernel: Kernel = KERNEL
    ) -> None:
        self.kernel = kernel
        self.run_dir = run_dir
        self.log = log
        self.rights = rights or Rights()
        self._runs: dict[str, RunFile] = {}
        # Older processes of companions that are to start here.
        self.older: dict[str, Orphan] = {}
        # Other older processes, as of companions that are no longer configured.
        self.orphans: dict[str, Orphan] = {}
        # The names whose wait for another server has been logged.
        self._waiting: set[str] = set()
        # Likewise the waits for the other form of a companion, and which form that is.
        self._logged_form: dict[str, str] = {}
        self._complaint: str | None = None
        # The names that have a run file, by group, as of a moment.
        self._listed: dict[str, list[str]] = {}
        self._listed_at = float("-inf")

    def held(self, name: str) -> RunFile | None:
        return self._runs.get(name)

    def descriptors(self) -> list[int]:
        return [fd for run in self._runs.values() for fd in run.descriptors()]

    # -- claiming ----------------------------------------------------------

    def claim(self, name: str, now: float, *, singleton: bool = True) -> RunFile | Blocked:
        """Return the locked, empty run file of *name*, or what is in the way. Raises OSError."""
        run = self._held_in_place(name)
        if singleton and run is not None and self._can_have_name(name, run):
            self.release(name)
            run = None
        if run is not None and name not in self.older and run.read() is None:
            # It was granted before, and its last process has ended.
            return run if run.clear() else self._without_room(name, run)
        if run is None:
            run = self._take(name) if singleton else RunFile.claim(None, name)
            if run is not None:
                self._runs[name] = run
                if singleton:
                    self.rights.hold(_right(name))
        record = run.read() if run is not None else runfile.peek(self.run_dir, name)
        if singleton and record is None and run is not None and run.path is None:
            # The directory may be readable, though not writable.
            record = self._older_process(name)
        orphaned = record is not None and not record.is_supervised(self.kernel)
        if record is not None and orphaned and not self._end_older(name, record, run, now):
            return Blocked(record.pid, record.session)
        if run is None:
            return self._blocked_elsewhere(name, record)
        if singleton and (other := self._other_form(name, now)) is not None:
            # Do not keep the right: the other form may be waiting for it.
            self.release(name)
            return other
        self._waiting.discard(name)
        return run if run.clear() else self._without_room(name, run)

    def _can_have_name(self, name: str, run: RunFile) -> bool:
        """Whether *run*, which nothing uses, has no name because `singleton` was False, or for lack of a
        directory that there is now.
        """
        unused = name not in self.older and run.read() is None
        return unused and run.path is None and run.locked is None and self.usable_run_dir() is not None

    def _held_in_place(self, name: str) -> RunFile | None:
        """The run file of *name* that is held, in the directory again if that is possible."""
        run = self._runs.get(name)
        if run is not None and (named := run.locked) is not None:
            # The disk was full; there may be room again.
            run.locked = None
            run.release()
            self._runs[name] = run = named
        if run is not None and not run.in_place and not self._renew(name, run):
            # Nobody would find its record; and another server may have made a new file.
            self.release(name)
        return self._runs.get(name)

    def _end_older(self, name: str, record: Record, run: RunFile | None, now: float) -> bool:
        """Do what is due to end the older process of *name*; return whether it is gone."""
        # An orphan is already logged.
        orphan = self.older.get(name) or self.orphans.pop(name, None)
        if orphan is None or orphan.record.pid != record.pid:
            self.log.info("Companion %s waits for its older process, pid %d", name, record.pid)
            orphan = Orphan(record, now, run, kernel=self.kernel)
        self.older[name] = orphan
        if not orphan.step(now):
            return False
        del self.older[name]
        return True

    def _blocked_elsewhere(self, name: str, record: Record | None) -> Blocked:
        pid = record.pid if record is not None else None
        if name not in self._waiting:
            self._waiting.add(name)
            self.log.info("Companion %s waits: another server runs it (pid %s)", name, pid or "unknown yet")
        return Blocked(pid)

    def _other_form(self, name: str, now: float) -> Blocked | None:
        """Return the process of ``sched`` if ``sched:0`` is to start, or the other way round."""
        group, is_copy, _ = name.partition(":")
        copies = {*self._files_of(group, now), *(n for n in self._runs if n.startswith(group + ":"))} - {name}
        for other in [group] if is_copy else sorted(copies):
            own = self._runs.get(other)
            record = own.read() if own is not None else runfile.peek(self.run_dir, other)
            orphaned = own is None and record is not None and not record.is_supervised(self.kernel)
            if record is not None and orphaned and other not in self.orphans:
                self.orphans[other] = Orphan(record, now, kernel=self.kernel)
            if own is not None or orphaned or runfile.is_held(self.run_dir, other):
                pid = record.pid if record is not None else None
                if self._logged_form.get(name) != other:
                    self._logged_form[name] = other
                    self.log.info("Companion %s waits for %s (pid %s)", name, other, pid or "unknown yet")
                return Blocked(pid)
        self._logged_form.pop(name, None)
        return None

    def _files_of(self, group: str, now: float) -> list[str]:
        """The names of the companions of *group* that have a run file."""
        if now >= self._listed_at + LISTING:
            self._listed, self._listed_at = {}, now
            for name in runfile.names(self.run_dir):
                self._listed.setdefault(name.partition(":")[0], []).append(name)
        return self._listed.get(group, [])

    def _without_room(self, name: str, run: RunFile) -> RunFile:
        """Keep the right to start *name*, and its record in memory, because the disk is full."""
        self._complain(os.strerror(errno.ENOSPC))
        memory = RunFile.claim(None, name)
        assert memory is not None
        memory.locked = run
        self._runs[name] = memory
        return memory

    def _older_process(self, name: str) -> Record | None:
        """The record of a live process that a dead manager left, if it can be read."""
        record = runfile.peek(self.run_dir, name)
        if record is None or record.is_supervised(self.kernel) or not record.runs(self.kernel):
            return None
        return record

    def _pid_elsewhere(self, name: str) -> int | None:
        """The pid of *name* if it runs under the manager of another server."""
        record = runfile.peek(self.run_dir, name)
        if record is None or record.supervisor == os.getpid():
            return None
        return record.pid if record.is_supervised(self.kernel) and record.runs(self.kernel) else None

    def _take(self, name: str) -> RunFile | None:
        if self.rights.is_elsewhere(_right(name)):
            # Over an upgrade, whatever has become of the run files.
            return None
        try:
            return RunFile.claim(self.run_dir, name)
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                self._complain(exc.strerror)
            elif self.usable_run_dir() is not None:
                raise
            # It runs even if no run file can be made; but not beside a process whose record can be read.
            return None if self._pid_elsewhere(name) is not None else RunFile.claim(None, name)

    def _renew(self, name: str, run: RunFile) -> bool:
        """Make a run file again that somebody has removed; False if that fails."""
        fresh = None
        try:
            fresh = RunFile.claim(self.run_dir, name)
            if fresh is None:
                return False
            run.copy_to(fresh)
        except OSError as exc:
            self._complain(exc.strerror)
            if fresh is not None:
                fresh.release()
            return False
        # Only now: the new file is in place.
        run.release()
        self._runs[name] = fresh
        return True

    def renew(self) -> None:
        """Make the run files again that somebody has removed, perhaps with their directory."""
        lost = [(name, run) for name, run in self._runs.items() if not run.in_place]
        if lost and self.usable_run_dir() is not None:
            count = sum(self._renew(name, run) for name, run in lost)
            self.log.warning("Run files were missing: %d; recreated: %d", len(lost), count)

    def other_owner(self, group: str) -> int | None:
        """The pid of a companion of *group* that another server runs; None: there is none."""
        pids = map(self._pid_elsewhere, self._files_of(group, self.kernel.now()))
        return next((pid for pid in pids if pid is not None), None)

    def clear(self, name: str) -> None:
        """Clear the record, and keep the right to start the next process."""
        run = self._runs.get(name)
        if run is not None:
            run.clear()

    def note_group_signalled(self, name: str, pid: int) -> None:
        """Record that the process group of *pid* has its stop signal: no later manager sends it again."""
        run = self._runs.get(name)
        record = None if run is None else run.read()
        # Just after its fork it has not written its record yet.
        if run is not None and record is not None and record.pid == pid:
            with contextlib.suppress(OSError):
                run.write(replace(record, group_signalled=True))

    def release(self, name: str) -> None:
        """Give up the right, and remove the record."""
        run = self._runs.pop(name, None)
        self._waiting.discard(name)
        if run is not None:
            run.release()
            self.rights.let_go(_right(name))

    def usable_run_dir(self) -> str | None:
        """The run directory, or None and one warning where it cannot be used."""
        if self.run_dir is None:
            return None
        try:
            os.makedirs(self.run_dir, mode=0o700, exist_ok=True)
            if not os.access(self.run_dir, os.W_OK | os.X_OK):
                raise PermissionError(13, "it is not writable")
        except OSError as exc:
            self._complain(exc.strerror)
            return None
        return self.run_dir

    def _complain(self, reason: str | None) -> None:
        if self._complaint != reason:
            self._complaint = reason
            self.log.warning(
                "No run files in %s: %s. If the manager is killed, companions that ignore"
                " their stop signal may run beside their successors; and a second server on this"
                " directory does not wait for them",
                self.run_dir,
                reason,
            )

    def has_older_process(self, name: str) -> bool:
        """Whether a dead manager left a record of *name*."""
        record = runfile.peek(self.run_dir, name)
        return record is not None and not record.is_supervised(self.kernel)

    # -- older processes -----------------------------------------------------

    def find_orphans(self, known: Iterable[str], now: float) -> None:
        """Begin to stop what a dead manager left under names that are not *known*."""
        for name, orphan in orphans(self.run_dir, now, known, self.kernel).items():
            self.log.info("Stopping %s (pid %d): removed from the configuration", name, orphan.record.pid)
            self.orphans[name] = orphan

    def hasten(self, deadline: float) -> None:
        """Limit the time of all older processes to *deadline*."""
        for orphan in (*self.older.values(), *self.orphans.values()):
            orphan.deadline = min(orphan.deadline, deadline)

    def sessions_to_look_at(self, now: float) -> set[int]:
        """The sessions of older processes for which something is due; one that only drains is not checked."""
        older = (*self.older.values(), *self.orphans.values())
        return {orphan.record.session for orphan in older if not orphan.drains(now)}

    def step_orphans(self, now: float, wanted: set[int], members: Mapping[int, list[int]]) -> list[str]:
        """Do what is due for older processes that are no longer configured; return those that are gone."""
        gone = []
        for name, orphan in list(self.orphans.items()):
            if orphan.record.session in wanted and orphan.step(now, members):
                del self.orphans[name]
                with contextlib.suppress(OSError):
                    run = RunFile.claim(self.run_dir, name)
                    if run is not None:
                        run.release()
                gone.append(name)
        return gone

    def with_older_processes(self) -> list[str]:
        """The names of companions of a dead manager that still have processes."""
        found = {
            name: record
            for name, record in runfile.records(self.run_dir).items()
            if not record.is_supervised(self.kernel)
        }
        members = self.kernel.members({record.session for record in found.values()})
        return [name for name, record in found.items() if record.session in members]
