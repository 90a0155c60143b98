# SPDX-License-Identifier: MIT
"""Resolve the order of starts, stops and rolling restarts of companions, and of the web tier. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from gunicorn.companion.checks import WEB
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.process import GAVE_UP, Cause, CompanionProcess, State
from gunicorn.companion.table import Processes, chosen


@dataclass(eq=False)
class WebTier:
    """The web workers as a member of the order. The master forks and stops them, and says how they are.

    *after*: the companions that they come after. *waiting*: the master starts none until those are there.
    *beside_old_master*: the companions of an old master may still run.
    """

    after: tuple[str, ...] = ()
    waiting: bool = False
    beside_old_master: bool = False
    # Whether all wanted workers have booted.
    ready: bool = False
    # Whether the server stops, and workers are still there.
    stopping: bool = False
    # Whether no companion that is stopped needs them any more; and whether the master was told.
    may_stop: bool = False
    told: bool = False
    # What they wait for, as the master was told.
    held_by: str | None = None


class Unmet(NamedTuple):
    """What a companion waits for: *names* of its `after`.

    *stuck* says which of them fail or are stopped, and why; *hopeless*: they stay so unless somebody helps.
    """

    names: tuple[str, ...] = ()
    stuck: str | None = None
    hopeless: bool = False


def unmet(
    processes: Processes,
    after: Iterable[str],
    web: WebTier,
    is_there: Callable[[CompanionProcess], bool] = lambda process: process.has_been_running,
) -> Unmet:
    """Find which of *after* have to be waited for."""
    names: list[str] = []
    stuck: list[str] = []
    hopeless = False
    for name in after:
        if name == WEB:
            names += [] if web.ready else [WEB]
            continue
        found = chosen(processes, name)
        missing = [process for process in found if not is_there(process)]
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


def unmet_by_web(processes: Processes, web: WebTier) -> Unmet:
    """Find which companions the web workers have to wait for.

    A job counts when it is done, however long it has been running.
    """

    def is_there(process: CompanionProcess) -> bool:
        if process.config.is_job:
            return process.done
        return (
            process.state is State.RUNNING
            or process.done
            or (web.beside_old_master and _serves_elsewhere(process))
        )

    return unmet(processes, web.after, web, is_there)


def _serves_elsewhere(process: CompanionProcess) -> bool:
    """Whether it waits for an older process of its own, which serves under another master meanwhile."""
    waits = process.state is State.STARTING and process.waiting_for is not None and process.session is None
    return waits and not process.config.is_job


def _needed_by_web(processes: Processes, web: WebTier) -> set[str]:
    """The companions that web workers come after, also by way of others."""
    found: set[str] = set()
    pending = list(web.after)
    while pending:
        for process in chosen(processes, pending.pop()):
            if process.name not in found:
                found.add(process.name)
                pending.extend(process.config.after)
    return found


def _why_missing(process: CompanionProcess) -> str | None:
    """Return what keeps *process* from becoming RUNNING; None if it is on its way."""
    if process.state is State.STARTING:
        return None if process.stuck is None else f"waits for {process.stuck}"
    if process.state is State.BACKOFF:
        return f"keeps failing: {process.why}"
    if process.state is State.RUNNING:
        # Web workers wait for its end, nobody else does.
        return "is a job and has not ended yet"
    if process.state is not State.STOPPED:
        return None
    if process.manual_stop:
        return "was stopped by command"
    if process.settled == GAVE_UP:
        return process.verdict
    if process.settled is not None:
        return f"has ended: {process.verdict}"
    return "is not started" if process.start_count == 0 else "is stopped"


def hold(processes: Processes, waiting: Collection[CompanionProcess], web: WebTier) -> None:
    """Update what each of *waiting* waits for; they are STARTING and have no process."""
    # An old master stops when the web workers of its successor serve. What these need cannot wait for that.
    urgent = _needed_by_web(processes, web) if web.waiting and web.beside_old_master else ()
    changed = True
    while changed:
        # A companion that waits in vain may be what another one waits for.
        changed = False
        for process in waiting:
            after = process.config.after
            if process.name in urgent:
                found = unmet(
                    processes, after, web, lambda each: each.has_been_running or _serves_elsewhere(each)
                )
            else:
                found = unmet(processes, after, web)
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
    job. Nothing waits for a companion that is not part of the stop. When the server stops, the web workers
    are part of it: `WebTier.may_stop` says when nothing needs them.
    """

    def __init__(self, web: WebTier | None = None) -> None:
        self.web = web or WebTier()
        self._waiting: dict[str, Stop] = {}
        # Companions with a requested stop, until they are gone.
        self._going: set[str] = set()
        # Maps names, sets and groups to their companions, each with what it needs. While a stop waits, this
        # keeps companions that are gone.
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

    def due(
        self, processes: Processes, *, together: bool = False, only_web: bool = False
    ) -> list[tuple[CompanionProcess, Stop]]:
        """Take the stops whose turn has come, or all with *together*; note what the others wait for.

        With *only_web* companions wait for web workers, and nothing waits for a companion.
        """
        self._going = {n for n in self._going if n in processes and self._is_going(processes[n])}
        if not self._waiting and not self.web.stopping:
            self._known.clear()
            return []
        needed = self._find_needed(processes)
        self.web.may_stop = together or only_web or not needed.get(WEB)
        found = []
        for name, stop in list(self._waiting.items()):
            process = processes.get(name)
            if process is None:
                del self._waiting[name]
                continue
            users = [user for label in process.config.labels for user in needed.get(label, ())]
            if only_web:
                users = [user for user in users if user == WEB]
            # A companion that is ending serves no other. The stop only keeps it from coming back.
            there = process.pid is not None and process.state is not State.STOPPING
            if together or not there or not users:
                self.drop(process)
                found.append((process, stop))
            else:
                process.stops_after = tuple(sorted({*users}))
        return found

    def _waits(self, name: str) -> bool:
        """Whether *name* is being stopped, and so holds up by itself what it needs."""
        return self.web.stopping if name == WEB else name in self._going

    def _is_going(self, process: CompanionProcess) -> bool:
        return process.name in self._waiting or process.state is State.STOPPING

    def _find_needed(self, processes: Processes) -> dict[str, list[str]]:
        """Map names, sets and groups to what has to be gone before them."""
        befores: dict[str, list[str]] = {}
        for process in processes.values():
            for name in process.config.stop_after:
                befores.setdefault(name, []).append(process.name)
        for process in processes.values():
            config = process.config
            needs = [*config.after, *(name for label in config.labels for name in befores.get(label, ()))]
            for label in config.labels:
                self._known.setdefault(label, {})[config.name] = needs
        self._known[WEB] = {WEB: [*self.web.after, *befores.get(WEB, ())]}
        needed: dict[str, list[str]] = {}
        # Copies share the result.
        behind: dict[tuple[str, ...], set[str]] = {}
        for name in [*self._going, *([WEB] if self.web.stopping else [])]:
            needs_of_it = tuple(self._known[name][name])
            if needs_of_it not in behind:
                behind[needs_of_it] = self._all_behind(needs_of_it)
            for each in behind[needs_of_it]:
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
                pending.extend(before for name, its in known if not self._waits(name) for before in its)
        return found


# -- restarts, one copy after the other --------------------------------------------

# A copy in one of these states does no work.
DOWN = (State.STARTING, State.BACKOFF, State.STOPPING)


class Rolling:
    """The queue of companions to restart, in the order of the requests.

    A copy whose configuration has changed gets the new one when its turn comes. Until then it lives, and is
    started again, by the old one.
    """

    def __init__(self, web: WebTier | None = None) -> None:
        self.web = web or WebTier()
        # Maps names to reason, cause and the pid to replace; a dict keeps the order.
        self._waiting: dict[str, tuple[str, Cause, int | None]] = {}
        self._changes: dict[str, CompanionConfig] = {}
        # Those whose change has stopped: their new configuration, and the copy that gave up with it.
        self._stopped: dict[str, tuple[CompanionConfig, str]] = {}

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

    def change(self, config: CompanionConfig, reason: str, cause: Cause) -> None:
        """Ask for a restart with another configuration."""
        self._stopped.pop(config.name, None)
        self._changes[config.name] = config
        self.ask(config.name, reason, cause=cause)

    def drop_change(self, name: str) -> None:
        """Leave *name* the configuration that it has."""
        self._stopped.pop(name, None)
        if self._changes.pop(name, None) is not None:
            self._waiting.pop(name, None)

    def config_of(self, process: CompanionProcess) -> CompanionConfig:
        """Return the configuration that *process* has, or will have after its turn."""
        return self._changes.get(process.name, process.config)

    def stop_changes(
        self, processes: Mapping[str, CompanionProcess]
    ) -> Iterator[tuple[CompanionProcess, list[str]]]:
        """Stop the change of each set of which a copy has given up; return that copy and the other names."""
        groups = {config.group for config in self._changes.values()}
        for failed in processes.values():
            group = failed.config.group
            if group in groups and failed.state is State.STOPPED and failed.settled == GAVE_UP:
                groups.remove(group)
                names = [name for name, config in self._changes.items() if config.group == group]
                for name in names:
                    config = self._changes[name]
                    self.drop_change(name)
                    self._stopped[name] = config, failed.name
                yield failed, names

    def stopped_by(self, name: str) -> str | None:
        """Return the copy that gave up with the configuration that *name* was to have; None without one."""
        return self._stopped[name][1] if name in self._stopped else None

    def ask_again(self, process: CompanionProcess, reason: str) -> None:
        """Ask for a restart by command, which brings that configuration, too."""
        if process.name in self._stopped:
            self.change(self._stopped[process.name][0], reason, Cause.COMMAND)
        else:
            self.ask(process.name, reason)

    def resume(self, process: CompanionProcess) -> None:
        """Give *process* that configuration: somebody starts it by command."""
        if process.name in self._stopped:
            process.config, _ = self._stopped.pop(process.name)

    def _take(self, name: str, process: CompanionProcess | None) -> None:
        """Remove *name*: its next start brings what was asked for."""
        self._waiting.pop(name, None)
        config = self._changes.pop(name, None)
        if process is not None and config is not None:
            process.config = config

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
                self._take(name, process)
            elif pid not in (None, process.pid):
                self._take(name, process)
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
            if pid is not None and unmet(processes, process.config.after, self.web).names:
                continue
            taken.add(group)
            self._take(name, process)
            yield process, reason, cause


def _keeps_failing(process: CompanionProcess) -> bool:
    """Whether it is down because it keeps failing."""
    return process.state is not State.STOPPING and process.failures.persist


def _would_be_replaced(process: CompanionProcess) -> bool:
    """Whether a restart would bring a new process that is not coming anyway."""
    if process.state is State.STARTING:
        return process.pid is not None
    return process.state in (State.RUNNING, State.BACKOFF)
