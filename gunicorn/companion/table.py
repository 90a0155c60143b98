# SPDX-License-Identifier: MIT
"""The companions of one manager, by name and by pid, and the one place that sends them events."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, ValuesView
from typing import Any, NamedTuple

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.process import Action, CompanionProcess, Event, State

Processes = Mapping[str, CompanionProcess]


class Snapshot(NamedTuple):
    """A companion before or after an event, for observers to compare."""

    state: State
    restarts: int
    kills: int
    manual_stop: bool = False

    @classmethod
    def of(cls, process: CompanionProcess) -> Snapshot:
        return cls(process.state, process.restart_count, process.kill_count, process.manual_stop)


class Change(NamedTuple):
    """An event of a companion, and the actions that follow."""

    process: CompanionProcess
    before: Snapshot
    actions: tuple[Action, ...]
    now: float


Observer = Callable[[Change], object]


class ProcessTable(Mapping[str, CompanionProcess]):
    """Maps names to companions.

    ``observers`` are called in their order after each event. ``changed`` says whether a companion may need a
    look: `send` sets it, whoever has looked at all companions clears it.
    """

    def __init__(self, configs: Iterable[CompanionConfig]) -> None:
        self._by_name = {config.name: CompanionProcess(config) for config in configs}
        self._by_pid: dict[int, CompanionProcess] = {}
        self.observers: list[Observer] = []
        self.changed = True

    def __getitem__(self, name: str) -> CompanionProcess:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def values(self) -> ValuesView[CompanionProcess]:
        # The manager looks at all of them often; the inherited view would call `__getitem__` for each.
        return self._by_name.values()

    def add(self, config: CompanionConfig) -> CompanionProcess:
        """Return the companion named in *config*: the existing one, or a new one."""
        return self._by_name.setdefault(config.name, CompanionProcess(config))

    def remove(self, process: CompanionProcess) -> None:
        del self._by_name[process.name]

    def by_pid(self, pid: int) -> CompanionProcess | None:
        """The companion that runs as *pid*."""
        return self._by_pid.get(pid)

    def chosen(self, name: str) -> list[CompanionProcess]:
        """Those that *name* means, as `chosen` finds them."""
        return chosen(self._by_name, name)

    def send(self, process: CompanionProcess, event: Event, now: float, **details: Any) -> None:
        """Let *event* happen to *process*, and tell the observers."""
        # A sign of life only puts a deadline off.
        self.changed = self.changed or event is not Event.BEAT
        if event is Event.EXITED and process.pid is not None:
            self._by_pid.pop(process.pid, None)
        before = Snapshot.of(process)
        actions = process.handle(event, now, **details)
        if event is Event.FORKED and process.pid is not None:
            self._by_pid[process.pid] = process
        change = Change(process, before, actions, now)
        for observe in self.observers:
            observe(change)


def chosen(processes: Processes, name: str) -> list[CompanionProcess]:
    """What ``rq``, ``rq:2``, ``rq:*`` or ``w*`` means: one, all copies of a set, or all that match."""
    if name in processes:
        return [processes[name]]
    group = name.removesuffix(":*")
    found = [p for p in processes.values() if p.config.group == group]
    # No name has one of these characters.
    if not found and any(character in name for character in "*?["):
        found = [p for p in processes.values() if fnmatch.fnmatchcase(p.name, name)]
    return in_order(found)


def in_order(processes: Iterable[CompanionProcess]) -> list[CompanionProcess]:
    """Sort by name, and copies by their index."""
    return sorted(processes, key=lambda process: (process.config.group, process.config.index or 0))
