# SPDX-License-Identifier: MIT
"""Resolve the order of starts, stops and rolling restarts of companions. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.process import GAVE_UP, Cause, CompanionProcess, State
from gunicorn.companion.table import Processes, chosen


class Unmet(NamedTuple):
    """What a companion waits for: *names* of its `after`.

    *stuck* says which of them fail or are stopped, and why; *hopeless*: they stay so unless somebody helps.
    """

    names: tuple[str, ...] = ()
    stuck: str | None = None
    hopeless: bool = False


def unmet(processes: Processes, after: Iterable[str]) -> Unmet:
    """Find which companions of *after* have to be waited for."""
    names: list[str] = []
    stuck: list[str] = []
    hopeless = False
    for name in after:
        found = chosen(processes, name)
        missing = [process for process in found if not process.has_been_running]
        if found and not missing:
            continue
        names.append(name)
        if not found:
            hopeless = True
            stuck.append(f"{name}, which no longer exists")
        for process in missing:
            why = _why_missing(process)
            if why is not None:
                hopeless = hopeless or process.state is State.STOPPED or process.hopeless
                stuck.append(f"{process.name}, which {why}")
    return Unmet(tuple(names), "; ".join(stuck) or None, hopeless)


def _why_missing(process: CompanionProcess) -> str | None:
    """Return what keeps *process* from becoming RUNNING; None if it is on its way."""
    if process.state is State.STARTING:
        return None if process.stuck is None else f"waits for {process.stuck}"
    if process.state is State.BACKOFF:
        return f"keeps failing: {process.why}"
    if process.state is not State.STOPPED:
        return None
    if process.manual_stop:
        return "was stopped by command"
    if process.settled == GAVE_UP:
        return process.verdict
    if process.settled is not None:
        return f"has ended: {process.verdict}"
    return "is not started" if process.start_count == 0 else "is stopped"


def hold(processes: Processes, waiting: Collection[CompanionProcess]) -> None:
    """Update what each of *waiting* waits for; they are STARTING and have no process."""
    changed = True
    while changed:
        # A companion that waits in vain may be what another one waits for.
        changed = False
        for process in waiting:
            found = unmet(processes, process.config.after)
            if found != (process.held_by, process.stuck, process.hopeless):
                process.held_by, process.stuck, process.hopeless = found
                changed = True


# -- stops -----------------------------------------------------------------------


@dataclass(frozen=True)
class Stop:
    """A requested stop. *timeout*: None for the companion's own. *manual*: by command, it stays stopped."""

    timeout: float | None = None
    manual: bool = False
    cause: Cause | None = None
    reason: str | None = None

    @property
    def details(self) -> dict[str, Any]:
        """The arguments of the event."""
        return vars(self)


class Stops:
    """Stop several companions together, in the reverse order of `after`: each gets its signal when all that
    need it are gone.

    A companion is needed by those that come after it, even through others that are gone, such as a finished
    job. Nothing waits for a companion that is not part of the stop.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Stop] = {}
        # Companions with a requested stop, until they are gone.
        self._going: set[str] = set()
        # Maps names and sets to their companions, each with its `after`. While a stop waits, this keeps
        # companions that are gone.
        self._known: dict[str, dict[str, Sequence[str]]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._waiting

    def ask(self, name: str, stop: Stop) -> None:
        """Request a stop of *name*, as soon as nothing needs it."""
        before = self._waiting.get(name, stop)
        timeout = before.timeout if stop.timeout is None else stop.timeout
        self._waiting[name] = replace(stop, timeout=timeout, manual=before.manual or stop.manual)
        self._going.add(name)

    def drop(self, process: CompanionProcess) -> None:
        """Drop the request for *process*: it is cancelled, or carried out."""
        self._waiting.pop(process.name, None)
        process.stops_after = ()

    def clear(self, processes: Processes) -> None:
        for name in list(self._waiting):
            if name in processes:
                self.drop(processes[name])
        self._waiting.clear()

    def due(self, processes: Processes, *, together: bool = False) -> list[tuple[CompanionProcess, Stop]]:
        """Take the stops whose turn has come, or all with *together*; note what the others wait for."""
        self._going = {n for n in self._going if n in processes and self._is_going(processes[n])}
        if not self._waiting:
            self._known.clear()
            return []
        needed = self._find_needed(processes)
        found = []
        for name, stop in list(self._waiting.items()):
            process = processes.get(name)
            if process is None:
                del self._waiting[name]
                continue
            config = process.config
            users = needed.get(name, []) + (needed.get(config.group, []) if config.group != name else [])
            # A companion that is ending serves no other. The stop only keeps it from coming back.
            there = process.pid is not None and process.state is not State.STOPPING
            if together or not there or not users:
                self.drop(process)
                found.append((process, stop))
            else:
                process.stops_after = tuple(sorted(users))
        return found

    def _is_going(self, process: CompanionProcess) -> bool:
        return process.name in self._waiting or process.state is State.STOPPING

    def _find_needed(self, processes: Processes) -> dict[str, list[str]]:
        """Map names and sets to the companions with a requested stop that need them."""
        for process in processes.values():
            config = process.config
            for label in (config.name, config.group):
                self._known.setdefault(label, {})[config.name] = config.after
        needed: dict[str, list[str]] = {}
        # Copies share the result.
        behind: dict[tuple[str, ...], set[str]] = {}
        for name in self._going:
            after = tuple(processes[name].config.after)
            if after not in behind:
                behind[after] = self._all_behind(after)
            for each in behind[after]:
                needed.setdefault(each, []).append(name)
        return needed

    def _all_behind(self, after: Iterable[str]) -> set[str]:
        """Return *after*, and through companions without a requested stop what those come after."""
        found: set[str] = set()
        pending = list(after)
        while pending:
            each = pending.pop()
            if each not in found:
                found.add(each)
                known = self._known.get(each, {}).items()
                pending.extend(before for name, its in known if name not in self._going for before in its)
        return found


# -- restarts, one copy after the other --------------------------------------------

# A copy in one of these states does no work.
DOWN = (State.STARTING, State.BACKOFF, State.STOPPING)


class Rolling:
    """The queue of companions to restart, in the order of the requests."""

    def __init__(self) -> None:
        # Maps names to reason, cause and the pid to replace; a dict keeps the order.
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
        """Remove *name*: it needs no restart any more."""
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
            if process is None or process.removed or not _would_be_replaced(process):
                # Its next start, if there is one, is the restart.
                self.drop(name)
            elif pid not in (None, process.pid):
                self.drop(name)
        # Sets with a copy that goes down now.
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
            if pid is not None and unmet(processes, process.config.after).names:
                continue
            taken.add(group)
            del self._waiting[name]
            yield process, reason, cause


def _keeps_failing(process: CompanionProcess) -> bool:
    """Whether it is down because it keeps failing."""
    return process.state is not State.STOPPING and process.failures.persist


def _would_be_replaced(process: CompanionProcess) -> bool:
    """Whether a restart would bring a new process that is not coming anyway."""
    if process.state is State.STARTING:
        return process.pid is not None
    return process.state in (State.RUNNING, State.BACKOFF)


def stop_limit(configs: Iterable[CompanionConfig], seconds: Callable[[CompanionConfig], float]) -> float:
    """Return the longest time that a stop of *configs* in order may take, *seconds* for each."""
    own: dict[str, float] = {}
    after: dict[str, set[str]] = {}
    for config in configs:
        own[config.group] = max(own.get(config.group, 0.0), seconds(config))
        after.setdefault(config.group, set()).update(name.partition(":")[0] for name in config.after)
    total: dict[str, float] = {}
    # No recursion: chains may be long. There are no cycles.
    pending = list(own)
    while pending:
        group = pending[-1]
        others = [name for name in after[group] if name in own]
        missing = [name for name in others if name not in total]
        if missing:
            pending.extend(missing)
            continue
        pending.pop()
        total[group] = own[group] + max((total[name] for name in others), default=0.0)
    return max(total.values(), default=0.0)
