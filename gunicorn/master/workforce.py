# SPDX-License-Identifier: MIT
"""The master's workers: fork them, watch their heartbeats, retire, kill and bury them, as `pool` plans."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from gunicorn.master import pool
from gunicorn.master.failure import FailedStarts, Failure, explain, one_line
from gunicorn.master.worker_process import WorkerProcess
from gunicorn.unix.process import describe_end, exit_code, term_signal
from gunicorn.unix.signals import blocked_signals

# Seconds between two figures for `enable_backlog_metric`.
BACKLOG_EVERY = 1.0

# More workers are a slip of the finger, or a matter for the configuration.
MOST_BY_COMMAND = 1024


class Workforce(WorkerProcess):
    """The part of the master that has workers."""

    num_workers: Any

    def __init__(self) -> None:
        super().__init__()
        self.worker_class: Any = None
        self.worker_age = 0
        self.timeout = 0.0
        self._records: dict[int, pool.WorkerRecord] = {}
        self._pacing = pool.Pacing()
        self._reported_workers: int | None = None
        self._backlog_due = 0.0
        self._failed_starts = FailedStarts()

    if TYPE_CHECKING:  # the arbiter's own
        reload_number: int

        def worker_failed(self, failure: Failure, *, booted: bool) -> bool: ...

        def replace_workers(self) -> int: ...

        def worker_left(self) -> None: ...

        @property
        def wanted_workers(self) -> int: ...

        def end_of_life(self, now: float) -> float | None: ...

        def beat(self) -> None: ...

        def wakeup(self) -> None: ...

    def _mark_retiring(self, record: pool.WorkerRecord) -> None:
        record.retiring = True
        slot = getattr(self.WORKERS[record.pid], "slot", None)
        if slot is not None:
            slot.retire()

    def _take_slot_back(self, worker: Any, cause: str | None = None) -> None:
        """Take back the slot of *worker*, which is gone for a *cause* of `pool.end_cause`, or never ran."""
        slot = getattr(worker, "slot", None)
        if slot is not None and self.scoreboard is not None:
            self.scoreboard.take_back(slot, cause)

    def _record(self, pid: int) -> pool.WorkerRecord:
        """The record of one of ``WORKERS``."""
        record = self._records.get(pid)
        if record is None:
            # An embedder has started it: treat it as booting from now on.
            worker = self.WORKERS[pid]
            record = pool.WorkerRecord(
                pid, worker.age, time.monotonic(), worker.tmp.last_update(), timeout=self.timeout
            )
            self._records[pid] = record
        return record

    def _all_records(self) -> list[pool.WorkerRecord]:
        return [self._record(pid) for pid in self.WORKERS]

    def _plan(self, now: float) -> pool.Plan:
        return pool.plan(
            self._fresh_records(),
            0 if self.web_is_held else self.wanted_workers,
            now,
            trial=self.on_trial,
            batch=self.cfg.reload_batch,
        )

    def web_is_ready(self) -> bool:
        """Whether all wanted workers have booted with the current configuration."""
        return not self.web_is_held and pool.all_booted(self._fresh_records(), self.num_workers)

    def _fresh_records(self) -> list[pool.WorkerRecord]:
        """All records, up to date with the heartbeat files."""
        records = self._all_records()
        for record in records:
            self._note_boot(record)
            # It ends by itself, after a request that took too long for one.
            record.leaving = record.leaving or self._told_by(record.pid, "leaving") is True
            record.ending = record.ending or self._told_by(record.pid, "ending") is True
        return records

    def _note_boot(self, record: pool.WorkerRecord) -> None:
        if not record.booted:
            beat = self._last_beat(record.pid)
            if beat is None or beat == record.first_beat:
                return
            record.booted = True
            # The clock of another class's heartbeat may be another one.
            record.booted_at = min(max(record.spawned_at, beat), time.monotonic())
            self._served = True
            if not record.outdated and (count := self._failed_starts.end()):
                self.log.info("A worker has booted again, after %d that could not", count)
            slot = getattr(self.WORKERS[record.pid], "slot", None)
            if slot is not None:
                # For classes that do not do so themselves.
                slot.set("booted", 1)

    def _last_beat(self, pid: int) -> float | None:
        try:
            beat: float = self.WORKERS[pid].tmp.last_update()
        except (OSError, ValueError):
            # That its file cannot be read is no reason to end it.
            return None
        return beat

    def _told_by(self, pid: int, name: str) -> Any:
        """A flag in the heartbeat file of a worker; None if it cannot be read, or the class has none."""
        try:
            return getattr(self.WORKERS[pid].tmp, name, None)
        except (OSError, ValueError):
            return None

    def murder_workers(self) -> None:
        """Kill workers without a heartbeat: SIGABRT, so that they can log where they hang, then SIGKILL.

        Workers that did not stop in time get SIGKILL as well.
        """
        now = time.monotonic()
        beats = {pid: beat for pid in self.WORKERS if (beat := self._last_beat(pid)) is not None}
        timeouts = {pid: self._record(pid).timeout for pid in beats}
        for pid in pool.overdue(beats, timeouts, now):
            worker, record = self.WORKERS[pid], self._record(pid)
            if record.retiring and not worker.aborted:
                continue  # it has a deadline, and not every class beats while it drains
            if not worker.aborted:
                # One that has yet to boot is told of when it is gone, with the place where it hung.
                log = self.log.critical if record.booted or not self._served else self.log.info
                log("Worker %s has sent no heartbeat for %s s", pid, record.timeout)
                worker.aborted = True
                record.kill_at = now + pool.ABORT_GRACE
                self.kill_worker(pid, signal.SIGABRT)
            elif record.kill_at is None:
                self.kill_worker(pid, signal.SIGKILL)
        self._kill_due(now)

    def _kill_due(self, now: float) -> None:
        for record in pool.due_for_kill(self._all_records(), now):
            log = self.log.error if record.booted or not self._served else self.log.info
            log("Worker %s did not exit in time: SIGKILL", record.pid)
            record.killed_at = now
            self.kill_worker(record.pid, signal.SIGKILL)

    def _bury_worker(self, pid: int, status: int) -> tuple[str, int] | None:
        """Account for the end of a worker; return why and how that ends the server, if it does."""
        record = self._record(pid)
        # Others may have booted since the loop last looked.
        self._fresh_records()
        # It did not come to the end of `_run_worker`.
        vanished = self._told_by(pid, "ended") is False
        words = self._told_by(pid, "reported")
        told = Failure(*words) if isinstance(words, tuple) else None
        worker = self.WORKERS.pop(pid)
        del self._records[pid]
        now = time.monotonic()
        timed_out = worker.aborted is True
        self._pacing.worker_ended(
            now, now - record.spawned_at, booted=record.booted, asked=record.retiring, failed=status != 0
        )
        worker.tmp.close()
        cause = getattr(getattr(worker, "slot", None), "cause", None)
        self._take_slot_back(worker, pool.end_cause(record, status, timed_out, cause))
        self._hook("child_exit", self, worker)
        if record.retiring or record.refused or self.stopping or (not status and not vanished):
            self._log_end(pid, status, asked=record.retiring or record.refused)
            if not (record.retiring or record.outdated or self.stopping):
                self._note_end_in_order(record, status)
            return None
        failure = explain(
            status,
            booted=record.booted,
            told=told,
            timeout=record.timeout if timed_out else 0,
            vanished=vanished,
        )
        if not record.outdated and self.worker_failed(failure, booted=record.booted):
            return None
        if record.booted or record.outdated:
            self._log_end(pid, status, asked=not record.booted)
            if told is not None and record.booted:
                self.log.error("Worker %s failed: %s", pid, told)
            return None
        return self._bury_unbooted(pid, status, failure, vanished)

    def _note_end_in_order(self, record: pool.WorkerRecord, status: int) -> None:
        """Note that a worker has ended by itself, or was told to by somebody else."""
        if record.booted:
            self.worker_left()
        else:
            # By chance, if it happens once; a hook that exits does so each time.
            self.worker_failed(Failure(f"a worker {describe_end(status)} while booting"), booted=True)

    def _bury_unbooted(
        self, pid: int, status: int, failure: Failure, vanished: bool
    ) -> tuple[str, int] | None:
        """Account for a worker that could not start; return why and how that ends the server, if it does."""
        code = exit_code(status)
        if self._served:
            if self._failed_starts.note(failure.reason):
                left = sum(map(pool.serves, self._fresh_records()))
                self.log.error(
                    "%s could not boot; %s of %s wanted serve, and the server tries again: %s",
                    _count(self._failed_starts.count),
                    left,
                    self.wanted_workers,
                    failure,
                )
            return None
        if vanished and code is not None:
            self.log.error("The application does not load: %s", failure.reason)
            code = self.WORKER_BOOT_ERROR
        else:
            self._log_end(pid, status, asked=False)
        return pool.halt_reason(
            code, False, boot_error=self.WORKER_BOOT_ERROR, load_error=self.APP_LOAD_ERROR
        )

    def _log_end(self, pid: int, status: int, *, asked: bool) -> None:
        log = self.log.debug if asked or status == 0 else self.log.error
        hint = " (out of memory?)" if term_signal(status) == signal.SIGKILL and not asked else ""
        log("Worker %s %s%s", pid, describe_end(status), hint)

    def _retire(self, pid: int, now: float) -> None:
        """Retire a worker: signal it once, and kill it at the deadline."""
        record = self._record(pid)
        self._mark_retiring(record)
        deadline = now + self.cfg.graceful_timeout
        record.kill_at = deadline if record.kill_at is None else min(deadline, record.kill_at)
        self.kill_worker(pid, signal.SIGTERM)

    def _report_workers(self) -> None:
        count = len(self.WORKERS)
        if count != self._reported_workers:
            self._reported_workers = count
            gauge = {"metric": "gunicorn.workers", "value": count, "mtype": "gauge"}
            self.log.debug("%s workers", count, extra=gauge)

    def _report_backlog(self, now: float) -> None:
        """Once a second, send how many connections wait to be accepted."""
        if now < self._backlog_due or not (self.cfg.enable_backlog_metric and self.cfg.statsd_host):
            return
        self._backlog_due = now + BACKLOG_EVERY
        from gunicorn.unix import sockdiag

        queues = sockdiag.backlogs([os.fstat(listener.fileno()).st_ino for listener in self.LISTENERS])
        lengths = [waiting for waiting, _ in queues.values()]
        for length in lengths:
            figure = {"metric": "gunicorn.socket.backlog", "value": length, "mtype": "histogram"}
            self.log.debug("", extra=figure)
        if lengths:
            figure = {"metric": "gunicorn.backlog", "value": sum(lengths), "mtype": "gauge"}
            self.log.debug("", extra=figure)

    def spawn_workers(self) -> None:
        """Start some of the missing workers; none during the delay after a failure.

        The loop calls this again for the others, and handles signals in between.
        """
        now = time.monotonic()
        missing = min(self._plan(now).spawn, pool.SPAWN_BATCH)
        for _ in range(missing):
            if self._pacing.pause(time.monotonic()) > 0 or not self.spawn_worker():
                return

    def spawn_worker(self) -> int:
        """Fork one worker and return its pid; 0 if the system refuses. In the worker, it does not return."""
        self.prepare_to_fork()
        # A reload that brings companions to wait for must not end the workers that serve.
        self.web_released = True
        self.worker_age += 1
        try:
            worker = self.worker_class(
                self.worker_age, self.pid, self.LISTENERS, self.app, self.timeout / 2.0, self.cfg, self.log
            )
            first_beat = worker.tmp.last_update()
        except Exception as exc:
            # Its heartbeat file, for example, if no descriptor is left.
            if not self._served:
                raise
            return self._refuse_start(exc)
        if self.scoreboard is not None:
            worker.slot = self.scoreboard.take(self.worker_age)
        try:
            self._hook("pre_fork", self, worker)
        except SystemExit as exc:
            if not self.on_trial:
                raise
            worker.tmp.close()
            self._take_slot_back(worker)
            return self._refuse_start(exc)
        with blocked_signals():
            try:
                pid = os.fork()
            except OSError as exc:
                worker.tmp.close()
                self._take_slot_back(worker)
                return self._refuse_start(exc)
            if pid == 0:
                self._leave_master(worker)
        if pid == 0:
            self._run_worker(worker)
        worker.pid = pid
        if getattr(worker, "slot", None) is not None:
            worker.slot.set("pid", pid)
        self.WORKERS[pid] = worker
        record = pool.WorkerRecord(
            pid, worker.age, time.monotonic(), first_beat=first_beat, timeout=self.timeout
        )
        record.expires_at = self.end_of_life(record.spawned_at)
        self._records[pid] = record
        return pid

    def _refuse_start(self, exc: BaseException) -> int:
        """Log why no worker was started, and have the next attempt wait."""
        self._pacing.start_failed(time.monotonic())
        failure = Failure(f"a worker cannot be started: {one_line(exc)}")
        if not self.worker_failed(failure, booted=True):
            unexpected = exc if not isinstance(exc, OSError) else None
            self.log.error("Cannot start a worker: %s", exc, exc_info=unexpected)
        return 0

    def steer_workers(self, do: str, count: int = 1, pid: int = 0) -> dict[str, Any]:
        """Do what somebody asks for by command; return what to answer. Raises ValueError with why not.

        This is called in the middle of a turn of the loop, whose next one starts and ends the workers.
        """
        if self.stopping:
            raise ValueError("the server is stopping")
        if do == "kill":
            text = self._kill_by_command(pid)
        elif do == "reload":
            text = f"{_count(self.replace_workers())} will be replaced"
        else:
            wanted = self.num_workers + (count if do == "add" else -count)
            if wanted < 1:
                raise ValueError(f"the server wants {_count(self.num_workers)}, and one has to stay")
            if wanted > MOST_BY_COMMAND:
                raise ValueError(f"by command there are at most {MOST_BY_COMMAND} workers")
            self.num_workers = wanted
            text = f"there will be {_count(wanted)}"
        self.log.info("By command: %s", text)
        # Who is answered may look at once.
        self.beat()
        self.wakeup()
        return {"message": text, "newest": self.worker_age, "number": self.reload_number}

    def _kill_by_command(self, pid: int) -> str:
        """Have a worker end now, as the watchdog does. Another one takes its place at once."""
        if pid not in self.WORKERS:
            raise ValueError(f"process {pid} is not a worker of this server")
        record, deadline = self._record(pid), time.monotonic() + pool.ABORT_GRACE
        record.commanded = True
        self._mark_retiring(record)
        record.kill_at = deadline if record.kill_at is None else min(deadline, record.kill_at)
        self.kill_worker(pid, signal.SIGABRT)
        return f"worker {pid} will be killed"

    def kill_workers(self, sig: int) -> None:
        """Send *sig* to every worker."""
        for pid in list(self.WORKERS):
            self.kill_worker(pid, sig)

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send *sig* to one worker; forget it if it is gone, because somebody else has reaped it."""
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            record = self._record(pid) if pid in self.WORKERS else None
            worker = self.WORKERS.pop(pid, None)
            self._records.pop(pid, None)
            if worker is not None and record is not None:
                worker.tmp.close()
                self._take_slot_back(worker, pool.end_cause(record, 0, worker.aborted is True, None))
                self._hook("child_exit", self, worker)


def _count(number: int) -> str:
    return f"{number} worker" + ("s" if number != 1 else "")
