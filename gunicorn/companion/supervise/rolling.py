# SPDX-License-Identifier: MIT
"""Rolling restarts: never stop two copies of one companion at a time.

Pure, like the life of a companion: restarts are queued, and after each event the caller asks whose turn it
is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gunicorn.companion.process import CompanionProcess, State
from gunicorn.companion.states import Cause
from gunicorn.companion.supervise import order

# A copy in one of these is not there when it is needed.
DOWN = (State.STARTING, State.BACKOFF, State.STOPPING)


class Rolling:
    """Companions to restart, in the order of the requests."""

    def __init__(self) -> None:
        # Name to reason, cause, and the pid that it is about; a dict keeps the order.
        self._waiting: dict[str, tuple[str, Cause, int | None]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._waiting

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def ask(self, name: str, reason: str, pid: int | None = None, cause: Cause = Cause.COMMAND) -> bool:
        """Ask for a restart of *name*; False if it waits for one already.

        With *pid* it is for a limit of that process: the next one has done nothing yet. One that waits for a
        restart by command, perhaps for ever, waits for this one from now on.
        """
        if name in self._waiting and (pid is None or self._waiting[name][2] is not None):
            return False
        self._waiting[name] = reason, cause, pid
        return True

    def drop(self, name: str) -> None:
        """It needs no restart any more."""
        self._waiting.pop(name, None)

    def turns(
        self, processes: Mapping[str, CompanionProcess]
    ) -> Iterator[tuple[CompanionProcess, str, Cause]]:
        """Return those to restart now, each with reason and cause, and at most one copy of a set that would
        go down.

        A copy that is down goes first, because it costs nothing; a running copy goes when all others run.
        Stopped copies do not count. A restart by command waits for a copy that keeps failing, because the
        new code may be broken. A restart for a limit does not, because a leak goes on meanwhile. A restart
        for a limit also does not begin while a companion in `after` is not RUNNING, because the copy would
        stay down.
        """
        for name in list(self._waiting):
            process = processes.get(name)
            pid = self._waiting[name][2]
            if process is None or process.removed or not _has_a_process_to_come(process):
                # Its next start, if there is one, is the restart.
                self.drop(name)
            elif pid not in (None, process.pid):
                self.drop(name)
        # Sets with a copy that is down, or will be.
        taken: set[str] = set()
        down = {process.config.group for process in processes.values() if process.state in DOWN}
        down_for_limits = {
            process.config.group
            for process in processes.values()
            if process.state in DOWN and not _keeps_failing(process)
        }
        for name in sorted(self._waiting, key=lambda name: processes[name].state is State.RUNNING):
            process = processes[name]
            group = process.config.group
            reason, cause, pid = self._waiting[name]
            waited_for = down if pid is None else down_for_limits
            if process.state is State.RUNNING and (group in taken or group in waited_for):
                continue
            if pid is not None and order.unmet(processes, process.config.after).names:
                continue
            taken.add(group)
            del self._waiting[name]
            yield process, reason, cause


def _keeps_failing(process: CompanionProcess) -> bool:
    """Whether it is down because it fails again and again."""
    return process.state is not State.STOPPING and process.failures.persist


def _has_a_process_to_come(process: CompanionProcess) -> bool:
    """Whether a restart now would bring a new process, beside a start that is pending anyway."""
    if process.state is State.STARTING:
        return process.pid is not None
    return process.state in (State.RUNNING, State.BACKOFF)
