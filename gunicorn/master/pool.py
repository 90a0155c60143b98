# SPDX-License-Identifier: MIT
"""Plan the next step for the pool of workers. Pure: the master keeps the records and carries the plan out."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gunicorn.unix.process import exit_code, term_signal

# A worker that ends within so many seconds of its fork without being asked is a failed start.
YOUNG = 1.0
# Waits before the next start after one, two, … failed starts in a row.
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0
# The longest one while workers cannot boot at all: the code on the disk has to change first.
LONGEST_BOOT_PAUSE = 10.0
# After so many more seconds without a failed start the waits begin anew.
FORGIVEN_AFTER = 10.0
# Seconds from SIGABRT to SIGKILL, for a worker without a heartbeat.
ABORT_GRACE = 1.0
# How long a new worker must run after it has booted until it counts for an old one.
PROBATION = 0.5
# Seconds until a worker without a heartbeat counts as booted, if the old ones have sent none either.
SILENT_BOOT = 30.0
# Signals by which a process ends itself, or that its own fault brings on.
FAULTS = frozenset(
    getattr(signal, f"SIG{name}") for name in ("ABRT", "BUS", "FPE", "ILL", "SEGV", "SYS", "TRAP")
)
# How many workers start before the loop handles signals again.
SPAWN_BATCH = 4


class WorkerRecord:
    """The master's side of one worker process."""

    def __init__(
        self,
        pid: int,
        age: int,
        spawned_at: float,
        first_beat: float = 0.0,
        *,
        timeout: float = 0.0,
        booted: bool = False,
        outdated: bool = False,
        retiring: bool = False,
        leaving: bool = False,
    ) -> None:
        self.pid = pid
        self.age = age
        self.spawned_at = spawned_at
        # The heartbeat set by the master; a later one is the worker's own and shows that it has booted.
        self.first_beat = first_beat
        self.booted = booted
        self.booted_at = spawned_at
        # For how many seconds it may be silent, by the configuration that it was started with; 0 for ever.
        self.timeout = timeout
        # It has begun to end, in order or by a failure.
        self.ending = False
        # Started under a configuration that a reload has replaced.
        self.outdated = outdated
        # Started by a reload that was refused.
        self.refused = False
        # Told to end, once.
        self.retiring = retiring
        # The worker has announced that it takes no more work and only finishes what it has.
        self.leaving = leaving
        # Why it is to be replaced, one of `gunicorn.scoreboard.ENDS`; "": it is not. It still serves.
        self.expiring = ""
        # When it is to be replaced because of its age.
        self.expires_at: float | None = None
        # Somebody has asked for its end by command.
        self.commanded = False
        # The deadline for its SIGKILL; then the moment when it got that.
        self.kill_at: float | None = None
        self.killed_at: float | None = None


class Plan(NamedTuple):
    """How many workers to start, which to tell to end, and whether old ones wait for new ones to boot."""

    spawn: int = 0
    retire: tuple[int, ...] = ()
    waiting: bool = False


def plan(
    records: Iterable[WorkerRecord], wanted: int, now: float, *, trial: bool = False, batch: int = 0
) -> Plan:
    """Return the steps to *wanted* workers of the current configuration.

    An outdated worker keeps serving until a new one has proven itself in its place; on *trial* all of them
    do, because a worker that was told to end cannot come back. Of surplus workers, outdated ones that never
    booted go first (they serve nobody), then those of a refused reload, then the oldest.

    A worker that is to be replaced keeps serving, too, until there is one more than wanted that has proven
    itself. They are replaced one after the other, and not during a reload.

    *batch*: while there are outdated workers, start so many at once; 0 for all.
    """
    records = list(records)
    staying = [record for record in records if not (record.retiring or record.leaving)]
    current = sorted((record for record in staying if not record.outdated), key=_first_to_go)
    outdated = sorted((record for record in staying if record.outdated), key=_first_to_go)
    expiring = [record for record in current if record.expiring] if wanted and not outdated else []
    room = wanted + bool(expiring)
    surplus = current[: max(0, len(current) - room)]
    proven_ones = _count_proven(current, outdated, now)
    replaced = expiring[:1] if not surplus and proven_ones >= room else []
    keep = max(0, wanted - proven_ones)
    retire = outdated[: max(0, len(outdated) - keep)]
    if trial:
        retire = [record for record in retire if record.refused]
    spawn = room - len(current)
    if batch and outdated:
        # Workers that still finish their requests take memory, too.
        spawn = min(spawn, max(wanted, len(outdated)) + batch - len(records))
    going = tuple(record.pid for record in (*retire, *replaced, *surplus))
    return Plan(
        spawn=max(0, spawn),
        retire=going,
        waiting=trial or any(record.pid not in going for record in (*outdated, *expiring)),
    )


def proven(record: WorkerRecord, now: float) -> bool:
    """Whether a worker has booted and run on for a while, or has left in order."""
    return record.booted and (record.leaving or (now - record.booted_at >= PROBATION and not record.ending))


def next_proof(records: Iterable[WorkerRecord], now: float) -> float | None:
    """When the next of those that have booted will have proven itself; None if there is none to wait for."""
    proofs = (record.booted_at + PROBATION for record in records if record.booted and not record.outdated)
    return min((proof for proof in proofs if proof > now), default=None)


def _count_proven(new: Sequence[WorkerRecord], old: Sequence[WorkerRecord], now: float) -> int:
    # A class that never sends a heartbeat never shows that it has booted.
    silent = bool(old) and not any(record.booted for record in old)
    return sum(
        1 for record in new if proven(record, now) or (silent and now - record.spawned_at >= SILENT_BOOT)
    )


class Trial:
    """What the workers of a new configuration have shown, while those of the old one still serve.

    *needed*: how many have to prove themselves: all, or the first batch.
    """

    def __init__(self) -> None:
        # Workers that have left in order, after `max_requests` for one.
        self._left = 0
        self._failures = 0

    def is_passed(self, records: Iterable[WorkerRecord], needed: int, now: float) -> bool:
        """Whether enough of them have proven themselves."""
        there = [record for record in records if not record.retiring]
        new = [record for record in there if not record.outdated]
        old = [record for record in there if record.outdated]
        return self._left + _count_proven(new, old, now) >= needed

    def worker_ended(self, *, booted: bool, failed: bool, needed: int) -> bool:
        """Note the end of one that nobody has asked for; return whether it decides against all of them.

        A single worker that has booted may die of one bad request; if all of them do, it is their code.
        """
        if not booted:
            return True
        if not failed:
            self._left += 1
            return False
        self._failures += 1
        return self._failures >= max(2, needed)


def all_booted(records: Iterable[WorkerRecord], wanted: int) -> bool:
    """Whether *wanted* workers of the current configuration serve, and none of an older one is needed."""
    staying = [record for record in records if not record.retiring]
    return count_booted(staying) >= wanted and not any(record.outdated for record in staying)


def count_booted(records: Iterable[WorkerRecord]) -> int:
    """How many workers of the current configuration serve."""
    return sum(1 for record in records if record.booted and not record.outdated and not record.retiring)


def _first_to_go(record: WorkerRecord) -> tuple[bool, bool, bool, int]:
    return record.booted, not record.refused, not record.expiring, record.age


def overdue(beats: Mapping[int, float], timeouts: Mapping[int, float], now: float) -> list[int]:
    """Return the pids whose last heartbeat is longer ago than their timeout in seconds; 0 is no limit."""
    return [pid for pid, beat in beats.items() if now - beat > timeouts[pid] > 0]


def due_for_kill(records: Iterable[WorkerRecord], now: float) -> list[WorkerRecord]:
    """The records whose deadline has passed, without those that have had their SIGKILL."""
    return [
        record
        for record in records
        if record.killed_at is None and record.kill_at is not None and record.kill_at <= now
    ]


def next_kill(records: Iterable[WorkerRecord]) -> float | None:
    """When the next SIGKILL is due."""
    return min(
        (record.kill_at for record in records if record.killed_at is None and record.kill_at is not None),
        default=None,
    )


def halt_reason(
    code: int | None, booted: bool, *, boot_error: int, load_error: int
) -> tuple[str, int] | None:
    """Return why the end of a worker ends a server that starts, and with which status; None if it does not.

    A worker that cannot start would be started for ever. One that has served, and ends with the same code by
    chance, is only replaced.
    """
    if booted or code is None:
        return None
    if code == boot_error:
        return "a worker failed to boot", boot_error
    if code == load_error:
        return "the application failed to load", load_error
    return None


def end_cause(record: WorkerRecord, status: int, timed_out: bool, own: str | None) -> str:
    """Return why a worker ended with the wait *status*: one of `gunicorn.scoreboard.ENDS`.

    *timed_out*: the master has missed its heartbeat. *own*: the cause that the worker has given for ending by
    itself.
    """
    if record.commanded:
        return "command"
    if record.retiring:
        return "reload" if record.outdated else record.expiring or "command"
    if timed_out:
        return "timeout"
    if own is not None:
        return own
    if not record.booted:
        return "boot"
    if (sig := term_signal(status)) is not None:
        return "crash" if sig in FAULTS else "killed"
    return "crash" if exit_code(status) else "exit"


def serves(record: WorkerRecord) -> bool:
    """Whether a worker takes requests and goes on doing so."""
    return record.booted and not (record.retiring or record.leaving)


class Pacing:
    """Spaces the starts of workers that die as soon as they are started."""

    def __init__(self) -> None:
        self._failures = 0
        self._last_failure = 0.0
        self._longest = LONGEST_PAUSE

    def worker_ended(self, now: float, lived: float, *, booted: bool, asked: bool, failed: bool) -> None:
        """Count the end of a worker that *lived* so many seconds.

        Only a failure counts, and an end before the worker has booted is one: with ``max_requests=1`` a
        worker that ends young has done its work.
        """
        if asked or (booted and (lived >= YOUNG or not failed)):
            return
        self.start_failed(now, LONGEST_PAUSE if booted else LONGEST_BOOT_PAUSE)

    def start_failed(self, now: float, longest: float = LONGEST_PAUSE) -> None:
        """Count a failed start: a refused fork, or a worker that died at once."""
        if self._is_forgiven(now):
            self._failures = 0
        self._failures += 1
        self._last_failure = now
        self._longest = longest

    def _wait(self) -> float:
        return min(self._longest, FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))

    def _is_forgiven(self, now: float) -> bool:
        return not self._failures or now - self._last_failure >= self._wait() + FORGIVEN_AFTER

    def pause(self, now: float) -> float:
        """Seconds from *now* until a worker may be started."""
        if self._is_forgiven(now):
            return 0.0
        return max(0.0, self._last_failure + self._wait() - now)


def match_addresses(old: Sequence[object], new: Sequence[object]) -> tuple[list[int | None], list[int]]:
    """Match the *old* listeners to the *new* addresses.

    Return for each new address the index of the same old one, or None if a listener must be created; then
    the indices of old ones that are not needed any more. An address that is listed twice is matched twice
    only if it was there twice.
    """
    left = dict(enumerate(old))
    kept: list[int | None] = []
    for address in new:
        index = next((i for i, candidate in left.items() if candidate == address), None)
        if index is not None:
            del left[index]
        kept.append(index)
    return kept, sorted(left)
