# SPDX-License-Identifier: MIT
"""An upgrade by command: start a successor, see it boot, and then hand over to it, or end it.

The old master drives, because a client may go away half-way. Its successor reports over a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

from gunicorn.errors import on_one_line
from gunicorn.master.handoff import Inherited

# Seconds that a successor has to boot, unless the command says otherwise.
BOOT_LIMIT = 120.0
# Seconds between two looks whether all workers have booted.
BOOT_TICK = 0.1
# Seconds beyond its own limits in which a successor that was told to end is gone.
END_MARGIN = 5.0
# Seconds between the two SIGINT that end a successor at once.
INSIST_AFTER = 0.2
# So that a report fits into PIPE_BUF bytes, and is read whole.
LONGEST_REASON = 1000

# The words of a report; a reason follows the second one.
SERVES, FAILED = "serves", "failed"

BOOTING, ENDING, HANDING_OVER = "booting", "ending", "handing over"


def write_report(fd: int, reason: str | None = None) -> None:
    """Tell the old master that this one serves; with a *reason*, that it cannot."""
    line = SERVES if reason is None else f"{FAILED} {on_one_line(reason)[:LONGEST_REASON]}"
    # It may be gone.
    with contextlib.suppress(OSError):
        os.write(fd, line.encode("utf-8", "replace"))


class Upgrade:
    """The upgrade that this master has begun by command, or by which it was started.

    *last*: what is told of it; None if there was none. *stage*: BOOTING, ENDING, HANDING_OVER; "" if none is
    under way.
    """

    def __init__(self, arbiter: Any) -> None:
        self.arbiter = arbiter
        self.last: dict[str, Any] | None = None
        self.stage = ""
        # In a successor that has not reported yet, its end of the pipe; in the old master the other one.
        self.report_fd: int | None = None
        self._reader: int | None = None
        # When the successor is given up, or killed.
        self._due = 0.0
        self._reason = ""
        # A stop that waits until the successor is gone; whether that is to kill all its children.
        self._stop_by = 0
        self._insist = False

    @property
    def can_be_rolled_back(self) -> bool:
        """Whether this one still decides over its successor."""
        return self.stage in (BOOTING, ENDING)

    @property
    def is_handing_over(self) -> bool:
        """Whether this one stops, for a successor that serves."""
        return self.stage == HANDING_OVER

    @property
    def on_trial(self) -> bool:
        """Whether this is a successor that has to show that it can take over."""
        return self.report_fd is not None

    def next_deadline(self, now: float) -> float | None:
        """When `step` has something to do."""
        if self.on_trial or (self.last is not None and self.arbiter.master_pid):
            # Soon after the report the old master is gone, which nothing tells.
            return now + BOOT_TICK
        return self._due if self.can_be_rolled_back else None

    def step(self, now: float) -> None:
        """Report, or act on a deadline."""
        if self.on_trial and self._serves(now):
            self.report()
        elif self.stage == BOOTING and now >= self._due:
            self._take_back("the new master did not boot in time", signal.SIGTERM)
        elif self.stage == ENDING and now >= self._due:
            self._due = now + END_MARGIN
            if self._insist:
                self._insist = False
                self._signal(signal.SIGINT)
                return
            self._signal(signal.SIGKILL)

    def _note(self, result: str, pid: int, number: int, reason: str | None = None) -> None:
        self.last = {
            "number": number,
            "at": round(time.time(), 3),
            "result": result,
            "reason": reason,
            "pid": pid,
            "stage": self.stage or None,
        }
        if self.arbiter.companions is not None:
            self.arbiter.companions.tell_upgrade(self.last)

    # -- the successor -------------------------------------------------------------------------

    def inherit(self, given: Inherited) -> None:
        """This master was started by an upgrade, perhaps."""
        if given.report_fd is None:
            return
        try:
            os.set_inheritable(given.report_fd, False)
        except OSError:
            return
        self.report_fd = given.report_fd
        self._note("pending", os.getpid(), given.upgrade)

    def _serves(self, now: float) -> bool:
        """Whether all workers serve, and the companions can change hands."""
        arbiter = self.arbiter
        if arbiter.on_trial or not arbiter.have_proven_themselves(now):
            return False
        return arbiter.companions is None or arbiter.companions.can_take_over()

    def report(self, reason: str | None = None) -> None:
        """Tell the old master, if it waits, that this one serves, or for what *reason* it ends."""
        if self.report_fd is not None:
            write_report(self.report_fd, reason)
            self.close_report()

    def close_report(self) -> None:
        """Let go of the pipe, also in a child."""
        if self.report_fd is not None:
            os.close(self.report_fd)
            self.report_fd = None

    def promoted(self) -> None:
        """The old master is gone."""
        self.close_report()
        if self.last is not None:
            self._note("done", self.last["pid"], self.last["number"])

    # -- the old master ------------------------------------------------------------------------

    def begin(self, limit: float = BOOT_LIMIT) -> dict[str, Any]:
        """Start a successor, which has *limit* seconds to boot; return what is told of the upgrade.

        Raises ValueError if it cannot begin.
        """
        number = 1 + (self.last["number"] if self.last is not None else 0)
        self._start(number)
        self.stage, self._reason, self._stop_by = BOOTING, "", 0
        self._due = time.monotonic() + limit
        self._note("pending", self.arbiter.reexec_pid, number)
        assert self.last is not None
        return self.last

    def _start(self, number: int) -> None:
        """Start the successor of the upgrade *number*. Raises ValueError if that fails."""
        arbiter = self.arbiter
        try:
            reader, writer = os.pipe()
        except OSError as exc:
            raise ValueError(f"the new master cannot be started: {exc.strerror}") from exc
        try:
            arbiter.reexec((writer, number))
        finally:
            os.close(writer)
        if not arbiter.reexec_pid:
            os.close(reader)
            raise ValueError("the new master cannot be started: see the server's log")
        os.set_blocking(reader, False)
        self._reader = reader
        arbiter.poller.add(reader, lambda events: self._read_report())

    def _read_report(self) -> None:
        assert self._reader is not None
        try:
            data = os.read(self._reader, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._close_reader()
        if not data or self.stage != BOOTING:
            # It is about to end, and is buried then.
            return
        word, _, reason = data.decode("utf-8", "replace").partition(" ")
        if word == SERVES:
            self._hand_over()
        else:
            # It ends by itself.
            self._take_back(reason, None)

    def _close_reader(self) -> None:
        if self._reader is not None:
            self.arbiter.poller.remove(self._reader)
            os.close(self._reader)
            self._reader = None

    def _hand_over(self) -> None:
        arbiter = self.arbiter
        assert self.last is not None
        self.stage = HANDING_OVER
        self._note("pending", arbiter.reexec_pid, self.last["number"])
        arbiter.log.info("The new master, process %d, serves: this one stops", arbiter.reexec_pid)
        arbiter.signal(signal.SIGTERM)

    def _take_back(self, reason: str, sig: int | None) -> None:
        """Have the successor end, by *sig* or by itself; this master goes on as if nothing had been."""
        arbiter = self.arbiter
        assert self.last is not None
        self.stage, self._reason = ENDING, reason
        arbiter.log.error("The upgrade is rolled back: %s", reason)
        # Its workers may be serving.
        limit = max(arbiter.cfg.graceful_timeout, arbiter.companion_manager_stop_timeout())
        self._due = time.monotonic() + limit + END_MARGIN
        self._note("pending", arbiter.reexec_pid, self.last["number"], reason)
        if sig is not None:
            self._signal(sig)

    def _signal(self, sig: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.arbiter.reexec_pid, sig)

    def buried(self, pid: int, how: str, *, told: bool = False) -> None:
        """The successor *pid* has ended: *how* in words; *told*: because somebody wanted it to."""
        self._close_reader()
        if not self.stage:
            return
        assert self.last is not None
        if self.stage == HANDING_OVER:
            self._replace(how, told=told)
            return
        self.stage = ""
        reason = self._reason or f"the new master {how}: see the server's log"
        self._note("rolled back", pid, self.last["number"], reason)
        self.arbiter.unit.upgrade_failed(reason)
        if self._stop_by:
            self.arbiter.signal(self._stop_by)

    def _replace(self, how: str, *, told: bool) -> None:
        """Start another successor in the place of one that has died while this master stops.

        Clients wait meanwhile: this master keeps its listeners (`is_handing_over`).
        """
        arbiter = self.arbiter
        assert self.last is not None
        try:
            if told:
                raise ValueError("it was told to end")
            self._start(self.last["number"])
        except ValueError as exc:
            arbiter.log.critical("The new master %s while this one stops: nobody takes over: %s", how, exc)
            return
        arbiter.log.critical(
            "The new master %s while this one stops: process %d is to take over", how, arbiter.reexec_pid
        )
        self._note("pending", arbiter.reexec_pid, self.last["number"])

    def ends_first(self, sig: int) -> bool:
        """Whether a stop by *sig* has to wait for a successor that has not shown that it serves.

        It is told to end: whoever stops the server does not want it to go on with that one.
        """
        if not self.can_be_rolled_back:
            return False
        if self.stage == BOOTING:
            self._take_back("the server is to stop", sig)
        else:
            self._signal(sig)
        self._stop_by = sig
        if self.arbiter.end_at_once:
            # Not SIGKILL: a worker of its that hangs while it boots would outlive it.
            self._insist = True
            self._due = time.monotonic() + INSIST_AFTER
        return True
