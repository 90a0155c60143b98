# SPDX-License-Identifier: MIT
"""Replace workers that are due for it, and follow the load: more workers while too few are idle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gunicorn.master import care, pool
from gunicorn.master.workforce import Workforce

if TYPE_CHECKING:
    from gunicorn.memory import Patience


class Upkeep(Workforce):
    """The part of the master that looks after workers that serve.

    A worker that is due goes on serving until its replacement has booted: see `pool.plan`.
    """

    def __init__(self) -> None:
        super().__init__()
        # With those that exceed `max_memory`.
        self._patience: Patience | None = None
        # When a worker last exceeded `max_memory`.
        self._excess_at = float("-inf")
        self._spares = care.Spares()
        self._memory_due = self._look_due = 0.0
        # Whether it is said that memory cannot be measured.
        self._told_unreadable = False

    @property
    def wanted_workers(self) -> int:
        """How many workers there are to be now: ``num_workers``, and those that the load asks for."""
        fixed: int = self.num_workers
        return fixed + min(self._spares.extra, self._room_for_more())

    def _room_for_more(self) -> int:
        # With none wanted at all, as after SIGWINCH, none is idle on purpose.
        return max(0, self.cfg.workers_max - self.num_workers) if self.num_workers else 0

    def next_look(self, now: float) -> float | None:
        """When the load is to be looked at again; None: it has no influence."""
        return max(now, self._look_due) if self._room_for_more() else None

    def end_of_life(self, now: float) -> float | None:
        """When a worker that starts *now* is due because of its age."""
        if not self.cfg.max_lifetime:
            return None
        import random

        return float(now + self.cfg.max_lifetime + random.uniform(0, self.cfg.max_lifetime_jitter))

    def look_after_workers(self, now: float) -> None:
        """Mark those that are due to be replaced; adapt the number of workers to the load."""
        cfg = self.cfg
        if self.stopping or not (
            cfg.max_requests or cfg.max_memory or cfg.max_lifetime or self._room_for_more()
        ):
            return
        records = self._fresh_records()
        if any(record.outdated and not record.retiring for record in records):
            return  # a reload replaces them anyway
        serving = sorted(filter(pool.serves, records), key=lambda record: record.age)
        for record in serving:
            if record.expiring:
                continue
            if record.expires_at is not None and now >= record.expires_at:
                self._expire(record, "lifetime", f"it has lived for {now - record.spawned_at:.0f} s")
            elif cfg.max_requests and self._told_by(record.pid, "due") is True:
                record.expiring = "max_requests"
        if cfg.max_memory and now >= self._memory_due:
            self._check_memory(serving, now)
        if self._room_for_more() and now >= self._look_due:
            self._look_due = now + care.LOOK_INTERVAL
            self._follow_load(serving, now)

    def _expire(self, record: pool.WorkerRecord, cause: str, why: str) -> None:
        record.expiring = cause
        self.log.info("Worker %s is to be replaced: %s", record.pid, why)

    # -- memory --------------------------------------------------------------------------------

    def _check_memory(self, serving: Sequence[pool.WorkerRecord], now: float) -> None:
        """Mark the oldest worker that exceeds `max_memory`; the next one when that is replaced."""
        # A plain server does without it.
        from gunicorn.memory import INTERVAL, MB, Patience

        self._memory_due = now + INTERVAL
        self._patience = patience = self._patience or Patience(INTERVAL)
        if any(record.expiring for record in serving):
            return
        limit = self.cfg.max_memory
        for record in serving:
            age = now - record.spawned_at
            # Others that started together with the last one are no sign that each new worker exceeds it.
            is_new = record.spawned_at > self._excess_at
            if is_new and age < patience.seconds:
                continue
            private = self._private_beyond(record.pid, limit)
            if private:
                why = f"its {private / MB:.1f} MB of private memory exceed {limit / MB:g} MB"
                self._expire(record, "memory", why)
                if is_new:
                    self._excess_at = now
                    self._note_excess(patience, age)
                return

    def _private_beyond(self, pid: int, limit: int) -> int:
        from gunicorn.memory import private_beyond

        try:
            return private_beyond(pid, limit)
        except PermissionError:
            if not self._told_unreadable:
                self._told_unreadable = True
                self.log.warning(
                    "max_memory has no effect, because the master may not measure worker %s: it needs"
                    " CAP_SYS_PTRACE, or the same user as its workers",
                    pid,
                )
            return 0

    def _note_excess(self, patience: Patience, age: float) -> None:
        if patience.note(age):
            self.log.warning(
                "Workers exceed max_memory soon after their start, %d times in a row: do they need more?"
                " The limit is ignored for the first %g s of each",
                patience.count,
                patience.seconds,
            )

    # -- the load ------------------------------------------------------------------------------

    def _follow_load(self, serving: Sequence[pool.WorkerRecord], now: float) -> None:
        requests = {record.pid: self._requests(record.pid) for record in serving}
        wanted = self.wanted_workers
        self._spares.look(
            now,
            fixed=self.num_workers,
            most=self.cfg.workers_max,
            spare=self.cfg.workers_spare,
            idle=care.idle(requests.values(), self._places()),
            booting=max(0, wanted - len(serving)),
        )
        if self.wanted_workers == wanted:
            return
        self.log.info(
            "%d of %d workers are busy: there will be %d",
            sum(map(bool, requests.values())),
            len(serving),
            self.wanted_workers,
        )
        if self.wanted_workers < wanted:
            one = care.idle_one(requests, [record.pid for record in serving if record.expiring])
            if one is not None:
                record = self._record(one)
                record.expiring = record.expiring or "idle"
                self._retire(one, now)

    def _places(self) -> int:
        """How many requests a worker can serve at the same time."""
        places = getattr(self.worker_class, "places", None)
        return 1 if places is None else int(places(self.cfg))

    def _requests(self, pid: int) -> int:
        """How many requests a worker serves, by the scoreboard."""
        slot: Any = getattr(self.WORKERS[pid], "slot", None)
        return slot.serving if slot is not None else 0
