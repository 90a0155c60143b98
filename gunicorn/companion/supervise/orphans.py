# SPDX-License-Identifier: MIT
"""End the sessions of companions whose manager is dead."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable, Mapping
from dataclasses import replace

from gunicorn.companion.runfile import DRAIN_INTERVAL, Record, RunFile, records
from gunicorn.unix.kernel import KERNEL, Kernel


class Orphan:
    """Ends a recorded session whose supervisor is dead. Call ``step`` at intervals until it returns True.

    The leader gets its stop signal once, unless the kernel has sent it, and then the next ones of
    `stop_signals`. When it is gone, or at the deadline, the rest of the session gets SIGKILL; with
    `stop_as_group` the rest gets the stop signals too, and has until the deadline. *run*: its run file, for
    what a later manager must know. *timeout*: in the place of the recorded one. *uid*: touch only that user's
    processes, since the records are in a directory of that user, for whom a privileged master must not kill
    others.
    """

    def __init__(
        self,
        record: Record,
        now: float,
        run: RunFile | None = None,
        timeout: float | None = None,
        uid: int | None = None,
        kernel: Kernel = KERNEL,
    ) -> None:
        self.record = record
        self.kernel = kernel
        self.uid = uid
        self.deadline = now + (record.stop_timeout if timeout is None else timeout)
        self._later = list(record.later_signals)
        # When to look again for processes besides the leader, while they may finish.
        self._look_at = now
        self._run = run
        self._begun = False
        with contextlib.suppress(OSError):
            self._begin()

    def _begin(self) -> None:
        """Send the stop signal. Raises OSError if no descriptor is left to look with."""
        record, run = self.record, self._run
        runs = record.runs(self.kernel)
        ours = self._may_touch(record.pid) if runs else not self._is_strangers()
        if runs and ours:
            # A stopped process handles its parent-death signal only once it continues.
            self.kernel.ask_to_stop(record.pid, signal.SIGCONT if record.signalled else record.stop_signal)
        self._begun = True
        if not ours:
            return
        if record.stop_as_group and not record.group_signalled:
            self._ask_the_others(record.stop_signal)
        if run is not None and not (record.signalled and record.group_signalled is record.stop_as_group):
            # If this manager dies too, the next one must not send it again.
            run.write(replace(record, signalled=True, group_signalled=record.stop_as_group))

    def _ask_the_others(self, signum: int) -> None:
        """Send a stop signal to the process group except its leader, which gets its own."""
        leader = self.record.pid
        for pid in self.kernel.members({self.record.session}).get(self.record.session, ()):
            with contextlib.suppress(OSError):
                if pid != leader and self.kernel.group_of(pid) == leader and self._may_touch(pid):
                    self.kernel.ask_to_stop(pid, signum)

    def _has_signal_due(self, now: float) -> bool:
        return bool(self._later) and now >= self.deadline - self._later[0][1]

    def _send_due_signal(self, now: float) -> None:
        """Send the next stop signal if its time has come; with little time, only the latest of them."""
        signum = None
        while self._has_signal_due(now):
            signum = int(self._later.pop(0)[0])
        if signum is None:
            return
        if self.record.runs(self.kernel):
            self.kernel.ask_to_stop(self.record.pid, signum)
        if self.record.stop_as_group:
            self._ask_the_others(signum)

    def _is_strangers(self) -> bool:
        """Whether another process has the leader's pid now, so that the session is empty.

        The kernel does not reuse the number of a session that still has members.
        """
        return not self.record.runs(self.kernel) and self.kernel.identity(self.record.pid) is not None

    def drains(self, now: float) -> bool:
        """Whether there is nothing to do but wait for it to finish."""
        try:
            if now >= self.deadline or self._has_signal_due(now) or not self._may_touch(self.record.pid):
                return False
        except OSError:
            return False
        return self.record.runs(self.kernel) or now < self._look_at

    def step(self, now: float, members: Mapping[int, list[int]] | None = None) -> bool:
        """Do what is due; return whether the session is empty. *members*: those of sessions, if at hand."""
        try:
            return self._step(now, members)
        except OSError:
            # No descriptor is left to look with: it is not known to be gone.
            return False

    def _step(self, now: float, members: Mapping[int, list[int]] | None) -> bool:
        if not self._begun:
            self._begin()
        if self.record.runs(self.kernel) and self._may_touch(self.record.pid):
            if now >= self.deadline:
                self.kill(members)
            else:
                self._send_due_signal(now)
            return False
        if self._is_strangers():
            return True
        if self.record.stop_as_group and now < self.deadline:
            self._send_due_signal(now)
            if now >= self._look_at or members is not None:
                self._look_at = now + DRAIN_INTERVAL
                return not self._members(members)
            return False
        return not self.kill(members)

    def _members(self, members: Mapping[int, list[int]] | None) -> list[int]:
        if members is None:
            members = self.kernel.members({self.record.session})
        return [pid for pid in members.get(self.record.session, []) if self._may_touch(pid)]

    def kill(self, members: Mapping[int, list[int]] | None = None) -> bool:
        """Send SIGKILL to every member; False if there is none."""
        pids = self._members(members)
        for pid in pids:
            self.kernel.send(pid, signal.SIGKILL)
        return bool(pids)

    def _may_touch(self, pid: int) -> bool:
        return self.uid is None or self.kernel.owner(pid) == self.uid


def orphans(
    directory: str | None, now: float, known: Iterable[str] = (), kernel: Kernel = KERNEL
) -> dict[str, Orphan]:
    """Begin to end each recorded session of *directory* whose supervisor is dead, except names *known*.

    Those are ended when the companion is to start.
    """
    skipped = frozenset(known)
    return {
        name: Orphan(record, now, kernel=kernel)
        for name, record in records(directory).items()
        if name not in skipped and not record.is_supervised(kernel)
    }
