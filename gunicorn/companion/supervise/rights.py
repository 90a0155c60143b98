# SPDX-License-Identifier: MIT
"""Grant the right to start a companion, and stop older processes that stand in its way.

This module stops older processes that a dead manager left behind. Those with another supervisor are waited
for.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gunicorn.companion import runfile
from gunicorn.companion.runfile import Orphan, Record, RunFile
from gunicorn.companion.supervise.sharedstate import Rights
from gunicorn.unix.kernel import KERNEL, Kernel

# What another server runs is tried for again after so long, whether or not anything has changed.
LOOK_AGAIN = 5.0
# One look at the run directory and at the other server serves for so long.
GLANCE = 0.02
# A file system tells no two changes apart that follow so soon, in nanoseconds.
SAME_MOMENT = 20_000_000


@dataclass(frozen=True)
class Blocked:
    """An older process lives, as *pid* (None: unknown). *session*: ours to stop; None: somebody else's."""

    pid: int | None
    session: int | None = None


@dataclass
class _Glance:
    """What all that wait for another server have in common, as of *at*."""

    at: float
    # The time of the run directory's last change: a lock that is released takes its file with it. None
    # while that is just happening.
    stamp: int | None
    directory: str | None = None
    kernel: Kernel = KERNEL
    _alive: dict[tuple[int, str], bool] = field(default_factory=dict)

    @functools.cached_property
    def copies(self) -> dict[str, list[str]]:
        """By group the names of copies that have a run file."""
        found: dict[str, list[str]] = {}
        for name in runfile.names(self.directory):
            group, is_copy, _ = name.partition(":")
            if is_copy:
                found.setdefault(group, []).append(name)
        return found

    @classmethod
    def of(cls, directory: str | None, now: float, kernel: Kernel) -> _Glance:
        stamp = None
        if directory is not None:
            with contextlib.suppress(OSError):
                changed = os.stat(directory).st_mtime_ns
                stamp = changed if abs(time.time_ns() - changed) > SAME_MOMENT else None
        return cls(now, stamp, directory, kernel)

    def supervised(self, record: Record) -> bool:
        who = record.supervisor, record.supervisor_started
        if who not in self._alive:
            self._alive[who] = record.is_supervised(self.kernel)
        return self._alive[who]


@dataclass(frozen=True)
class _Elsewhere:
    """A companion that another server runs, and until when that need not be checked again."""

    record: Record
    stamp: int
    until: float


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
        # Of these, those whose last process has come to its end: nobody else has written since.
        self._cleared: set[str] = set()
        self._older: dict[str, Orphan] = {}
        # Older processes of companions that are no longer configured.
        self._orphans: dict[str, Orphan] = {}
        # Whose wait for another server has been logged.
        self._waiting: set[str] = set()
        self._elsewhere: dict[str, _Elsewhere] = {}
        # The same of a wait for the other form of a companion, and for which.
        self._told_of: dict[str, str] = {}
        self._glance = _Glance(float("-inf"), None)
        self._complaint: str | None = None
        # Sets of copies that another server runs, with the pid of one of them, as of a moment.
        self._owners: dict[str, int] = {}
        self._owners_at = float("-inf")

    def held(self, name: str) -> RunFile | None:
        return self._runs.get(name)

    def descriptors(self) -> list[int]:
        return [fd for run in self._runs.values() for fd in run.descriptors()]

    # -- claiming ----------------------------------------------------------

    def claim(self, name: str, now: float, *, singleton: bool = True) -> RunFile | Blocked:
        """Return the locked, empty run file of *name*, or what is in the way. Raises OSError."""
        run = self._runs.get(name)
        if run is not None and (named := run.locked) is not None:
            # There may be room again.
            run.locked = None
            run.release()
            self._runs[name] = run = named
            self._cleared.discard(name)
        if run is not None and not run.in_place and not self._renew(name, run):
            # What it says nobody would find; and somebody else may have made another.
            self.release(name)
        run = self._runs.get(name)
        if run is not None and name in self._cleared:
            self._cleared.discard(name)
            return run
        if run is None and (known := self._still_elsewhere(name, now)) is not None:
            return Blocked(known.pid)
        if run is None:
            run = self._take(name) if singleton else RunFile.claim(None, name)
            if run is not None:
                self._runs[name] = run
                if singleton:
                    self.rights.hold(_right(name))
        record = run.read() if run is not None else runfile.peek(self.run_dir, name)
        if singleton and record is None and run is not None and run.path is None:
            # Of a directory that cannot be written to.
            record = self._older_process(name)
        if record is not None and not record.is_supervised(self.kernel):
            # One that was configured no more has been told already.
            orphan = self._older.get(name) or self._orphans.pop(name, None)
            if orphan is None or orphan.record.pid != record.pid:
                self.log.info("Companion %s waits for its older process, pid %d", name, record.pid)
                orphan = Orphan(record, now, run, kernel=self.kernel)
            self._older[name] = orphan
            if not orphan.step(now):
                return Blocked(record.pid, record.session)
            del self._older[name]
        if run is None:
            pid = record.pid if record is not None else None
            self._note_elsewhere(name, record, now)
            if name not in self._waiting:
                self._waiting.add(name)
                self.log.info(
                    "Companion %s waits: another server runs it (pid %s)", name, pid or "unknown yet"
                )
            return Blocked(pid)
        if singleton and (other := self._other_form(name, now)) is not None:
            # Given up, for the other form may be waiting for this one.
            self.release(name)
            return other
        self._waiting.discard(name)
        return run if run.clear() else self._without_room(name, run)

    def _other_form(self, name: str, now: float) -> Blocked | None:
        """Return the process of ``sched`` if ``sched:0`` is to start, or the other way round."""
        group, is_copy, _ = name.partition(":")
        for other in [group] if is_copy else self._copies(group, now):
            own = self._runs.get(other)
            record = own.read() if own is not None else runfile.peek(self.run_dir, other)
            orphaned = own is None and record is not None and not record.is_supervised(self.kernel)
            if record is not None and orphaned and other not in self._orphans:
                self._orphans[other] = Orphan(record, now, kernel=self.kernel)
            if own is not None or orphaned or runfile.is_held(self.run_dir, other):
                pid = record.pid if record is not None else None
                if self._told_of.get(name) != other:
                    self._told_of[name] = other
                    self.log.info("Companion %s waits for %s (pid %s)", name, other, pid or "unknown yet")
                return Blocked(pid)
        self._told_of.pop(name, None)
        return None

    def _copies(self, group: str, now: float) -> list[str]:
        """The names of the copies of *group* that have a run file."""
        return sorted(
            {*self._look(now).copies.get(group, ()), *(n for n in self._runs if n.startswith(group + ":"))}
        )

    def _without_room(self, name: str, run: RunFile) -> RunFile:
        """The right to start it is ours, but its record cannot be where others look. It still runs."""
        self._complain(os.strerror(errno.ENOSPC))
        memory = RunFile.claim(None, name)
        assert memory is not None
        memory.locked = run
        self._runs[name] = memory
        return memory

    def _older_process(self, name: str) -> Record | None:
        """What a dead manager left, if it can be read and its process lives."""
        record = runfile.peek(self.run_dir, name)
        return (
            record
            if record is not None and record.runs(self.kernel) and not record.is_supervised(self.kernel)
            else None
        )

    def _runs_elsewhere(self, name: str) -> bool:
        """Whether the record names a process of somebody else's that lives, as does its supervisor."""
        record = runfile.peek(self.run_dir, name)
        return (
            record is not None
            and record.supervisor != os.getpid()
            and record.is_supervised(self.kernel)
            and record.runs(self.kernel)
        )

    def _look(self, now: float) -> _Glance:
        if now >= self._glance.at + GLANCE:
            self._glance = _Glance.of(self.run_dir, now, self.kernel)
        return self._glance

    def _still_elsewhere(self, name: str, now: float) -> Record | None:
        """The record of *name*, while nothing shows that another try to take it would be worth while.

        Many may wait for long, as over an upgrade; a try is several system calls for each.
        """
        if name not in self._waiting:
            return None
        glance, known = self._look(now), self._elsewhere.get(name)
        if known is None:
            return None
        if now < known.until and known.stamp == glance.stamp and glance.supervised(known.record):
            return known.record
        del self._elsewhere[name]
        return None

    def _note_elsewhere(self, name: str, record: Record | None, now: float) -> None:
        # The directory's time before the attempt: later changes are seen the next time.
        stamp = self._glance.stamp
        if record is not None and stamp is not None and now < self._glance.at + GLANCE:
            self._elsewhere[name] = _Elsewhere(record, stamp, now + LOOK_AGAIN)

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
            # Without a directory to write it down, it still runs; but not beside one that can be read of.
            return None if self._runs_elsewhere(name) else RunFile.claim(None, name)

    def _renew(self, name: str, run: RunFile) -> bool:
        """Make a run file again that somebody has removed; False where that cannot be."""
        try:
            fresh = RunFile.claim(self.run_dir, name)
        except OSError as exc:
            self._complain(exc.strerror)
            return False
        if fresh is None:
            return False
        try:
            run.copy_to(fresh)
        except OSError as exc:
            self._complain(exc.strerror)
            fresh.release()
            return False
        # Not before: from now on the other one is found.
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
        """The pid of a copy of *group* that another server runs; None: there is none."""
        now = self.kernel.now()
        if now >= self._owners_at + GLANCE:
            self._owners, self._owners_at = self._look_for_owners(), now
        return self._owners.get(group)

    def _look_for_owners(self) -> dict[str, int]:
        return {
            name.partition(":")[0]: record.pid
            for name, record in runfile.records(self.run_dir).items()
            if record.supervisor != os.getpid()
            and record.is_supervised(self.kernel)
            and record.runs(self.kernel)
        }

    def clear(self, name: str) -> None:
        """Forget who ran, and keep the right to start the next."""
        run = self._runs.get(name)
        if run is not None and run.clear():
            self._cleared.add(name)

    def note_group_signalled(self, name: str, pid: int) -> None:
        """The process group of *pid* was asked to end, and is not to be asked again by a next manager."""
        run = self._runs.get(name)
        record = None if run is None else run.read()
        # Just after its fork it has not written its record yet.
        if run is not None and record is not None and record.pid == pid:
            with contextlib.suppress(OSError):
                run.write(replace(record, group_signalled=True))

    def release(self, name: str) -> None:
        """Give the right up, and the record with it."""
        run = self._runs.pop(name, None)
        self._cleared.discard(name)
        self._waiting.discard(name)
        self._elsewhere.pop(name, None)
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
        """Begin to end what a dead manager left under names that are not *known* any more."""
        for name, orphan in runfile.orphans(self.run_dir, now, known, self.kernel).items():
            self.log.info("Stopping %s (pid %d): removed from the configuration", name, orphan.record.pid)
            self._orphans[name] = orphan

    @property
    def has_orphans(self) -> bool:
        return bool(self._orphans)

    def waits_for_older_process(self, name: str) -> bool:
        return name in self._older

    def hasten(self, deadline: float) -> None:
        """Limit the time of all older processes to *deadline*."""
        for orphan in (*self._older.values(), *self._orphans.values()):
            orphan.deadline = min(orphan.deadline, deadline)

    def sessions_to_look_at(self, now: float) -> set[int]:
        """The sessions of older processes for which something is due; one that only drains is not checked."""
        old_selves = (*self._older.values(), *self._orphans.values())
        return {orphan.record.session for orphan in old_selves if not orphan.drains(now)}

    def step_older_process(self, name: str, now: float, members: Mapping[int, list[int]]) -> bool:
        """Do what is due for the older process of *name*; True when it is gone."""
        return self._older[name].step(now, members)

    def forget_older_process(self, name: str) -> None:
        self._older.pop(name, None)

    def older_session(self, name: str) -> int | None:
        orphan = self._older.get(name)
        return None if orphan is None else orphan.record.session

    def step_orphans(self, now: float, wanted: set[int], members: Mapping[int, list[int]]) -> list[str]:
        """Do what is due for older processes that are no longer configured; return those that are gone."""
        gone = []
        for name, orphan in list(self._orphans.items()):
            if orphan.record.session in wanted and orphan.step(now, members):
                del self._orphans[name]
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
