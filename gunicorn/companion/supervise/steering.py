# SPDX-License-Identifier: MIT
"""Start, stop and restart companions, by command or because the server stops."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass

from gunicorn.companion.process import Cause, CompanionProcess, Event, State
from gunicorn.companion.supervise.order import Rolling, Stop, Stops
from gunicorn.companion.supervise.overrides import KeptState
from gunicorn.companion.supervise.rights import StartRights
from gunicorn.companion.table import ProcessTable
from gunicorn.unix.kernel import KERNEL, Kernel

Outcome = tuple[bool, str]


@dataclass(eq=False, repr=False)
class Steering:
    """Turns requests into events; ``stopping`` says whether all companions stop.

    *stop_order*: with "reverse" those that need others stop before them.
    """

    table: ProcessTable
    _: KW_ONLY
    stops: Stops
    rolling: Rolling
    kept: KeptState
    start_rights: StartRights
    stop_order: str
    kernel: Kernel = KERNEL
    stopping: bool = False
    # Whether another manager follows, and the server goes on.
    replaced: bool = False
    # Whether another server takes over and runs every companion.
    handing_over: bool = False

    @property
    def why_nothing_starts(self) -> str:
        """The answer to requests for a start while all companions stop."""
        if self.replaced:
            return "all companions are restarting with their manager; retry later"
        return "the server is stopping"

    # -- one or several ----------------------------------------------------

    def start(self, name: str) -> Outcome:
        """Start a companion that is stopped or waits for its next start."""
        process = self.table[name]
        if process.state is State.STOPPING or process.removed:
            return self._is_stopping(process)
        self._take_stop_back(process)
        if process.state is State.RUNNING:
            return True, f"{name} is already running"
        if process.state is State.STARTING:
            return True, self._is_starting(process)
        self._note_start(process)
        self.rolling.resume(process)
        self.table.send(process, Event.START, self.kernel.now())
        return True, f"{name} is starting"

    def resume(self, name: str) -> Outcome:
        """Let the schedule of a companion count again; it is not run now."""
        process = self.table[name]
        self._take_stop_back(process)
        self._note_start(process)
        process.manual_stop = False
        return True, f"{name} runs at its next time"

    def stop(self, processes: Iterable[CompanionProcess]) -> dict[str, Outcome]:
        """Stop *processes* and keep them stopped, each after those that come after it."""
        stopped = {process.name: self.is_stopped(process) for process in processes}
        for name in stopped:
            self.stops.ask(name, Stop(manual=True))
            self.kept.note(name, stopped=True)
        self.stop_due(self.kernel.now())
        return {name: (True, self._is_stopped(name, already)) for name, already in stopped.items()}

    def restart(self, name: str, cause: Cause = Cause.COMMAND, reason: str = "by command") -> Outcome:
        """Stop a companion within its `reload_timeout` and start it again."""
        process = self.table[name]
        if process.state is State.STOPPING or process.removed:
            return self._is_stopping(process)
        self._take_stop_back(process)
        # Without a process, the pending start is the restart.
        coming = process.state is State.STARTING and process.pid is None
        self._note_start(process)
        process.manual_stop = False
        self.rolling.resume(process)
        self.table.send(process, Event.RESTART, self.kernel.now(), cause=cause, reason=reason)
        return True, self._is_starting(process) if coming else f"{name} is restarting"

    def restart_in_turn(self, name: str) -> Outcome:
        """Restart a companion when no other copy of it is down."""
        process = self.table[name]
        if process.state is State.STOPPED:
            return self.start(name)
        if process.state is State.STOPPING or (process.state is State.STARTING and process.pid is None):
            return self.restart(name)
        self.rolling.ask_again(process, "by command, in turn")
        return True, f"{name} will restart when its turn comes"

    def _is_stopping(self, process: CompanionProcess) -> Outcome:
        """The refusal of a start, with the time that it may still take."""
        return False, f"{process.name} is stopping; retry later ({process.description(self.kernel.now())})"

    def _is_starting(self, process: CompanionProcess) -> str:
        """Return ``rq is already starting``, or what it waits for."""
        if process.pid is not None:
            return f"{process.name} is already starting"
        return f"{process.name} is {process.description(self.kernel.now())}"

    @staticmethod
    def is_stopped(process: CompanionProcess) -> bool:
        """Whether a stop changes nothing. Between two runs of a schedule it ends the schedule."""
        return process.state is State.STOPPED and (process.config.schedule is None or process.manual_stop)

    def _is_stopped(self, name: str, already: bool) -> str:
        process = self.table[name]
        if already:
            return f"{name} is already stopped"
        if process.stops_after:
            return f"{name} is stopped after {', '.join(process.stops_after)}"
        return f"{name} is {'stopped' if process.state is State.STOPPED else 'stopping'}"

    def _note_start(self, process: CompanionProcess) -> None:
        """Note for the next manager that *process* is to run, unless it would anyway."""
        if process.manual_stop or not process.config.autostart:
            self.kept.note(process.name, stopped=False)

    def _take_stop_back(self, process: CompanionProcess) -> None:
        if process.name in self.stops:
            self.stops.drop(process)
            self.kept.note(process.name, stopped=False)

    # -- all ---------------------------------------------------------------

    def stop_all(self, timeout: float | None = None, *, reload: bool = False) -> None:
        """Stop every companion in its order, each within its own timeout (at most *timeout*).

        Repeated without *timeout* it changes nothing: a service manager signals every
        process of the unit, and the arbiter does it too.
        """
        if not reload:
            self.replaced = False
        if self.stopping and timeout is None:
            return
        self.replaced = reload
        now, again = self.kernel.now(), self.stopping
        self.stopping = self.table.changed = True
        if reload:
            # The next manager brings new code, so it retries companions that have failed with the old one.
            for process in self.table.values():
                process.settled = None
        self.stops.clear(self.table)
        cause, reason = Cause.SERVER, "the server stops"
        if reload:
            cause, reason = Cause.RELOAD, "its manager is replaced"
        elif self.handing_over:
            cause, reason = Cause.UPGRADE, "another master takes over"
        for process in self.table.values():
            own = process.config.reload_timeout if reload else process.config.stop_timeout
            limit = own if timeout is None else min(own, timeout)
            # A companion that is ending has its deadline already; the stop only cancels its restart.
            has_one = process.state is State.STOPPING and timeout is None
            self.stops.ask(process.name, Stop(None if has_one else limit, cause=cause, reason=reason))
        # With another manager each companion has a successor, which waits for it alone.
        self.stop_due(now, together=again or reload)
        if timeout is not None:
            self.start_rights.hasten(now + timeout)

    def stop_due(self, now: float, *, together: bool = False) -> None:
        """Stop the companions whose turn has come; with *together* all that are to stop."""
        together = together or self.stop_order != "reverse"
        # With another master each has a successor, too. But requests of the old workers may still need it.
        while found := self.stops.due(self.table, together=together, only_web=self.handing_over):
            for process, stop in found:
                self.table.send(process, Event.STOP, now, **stop.details)
