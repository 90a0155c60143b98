# SPDX-License-Identifier: MIT
"""Commands with a lasting effect (stopped, started, scaled), kept for the next manager."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.supervise.sharedstate import SharedState
from gunicorn.companion.table import History, ProcessTable
from gunicorn.companion.totals import Totals

# For each set: the number of copies asked for by command, and the configured number that it replaces.
Scaled = dict[str, tuple[int, int]]


@dataclass
class Overrides:
    """By name: whether it was stopped (True) or started by command; by set: the number of copies.

    *configuration* names the one that is applied, see `changes.digest`.
    """

    stopped: dict[str, bool] = field(default_factory=dict)
    scaled: Scaled = field(default_factory=dict)
    configuration: str = ""

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Overrides:
        """Those in *state*, which another version of the server may have written."""
        stopped, scaled = state.get("stopped"), state.get("scale")
        return cls(
            {name: bool(value) for name, value in stopped.items()} if isinstance(stopped, dict) else {},
            {
                group: (numbers[0], numbers[1])
                for group, numbers in (scaled.items() if isinstance(scaled, dict) else ())
                if isinstance(numbers, list) and len(numbers) == 2
            },
            str(state.get("configuration", "")),
        )

    def as_state(self) -> dict[str, Any]:
        scaled = {group: list(numbers) for group, numbers in self.scaled.items()}
        return {"stopped": dict(self.stopped), "scale": scaled, "configuration": self.configuration}


class OldOverrides:
    """The overrides of the old master's manager during an upgrade, as of the last look."""

    def __init__(self, shared: SharedState, seen: Overrides) -> None:
        self.shared = shared
        self.overrides = seen
        self._version = b""

    @property
    def has_changed(self) -> bool:
        return self.shared.version() != self._version

    def look(self) -> tuple[Overrides, Overrides]:
        """The overrides before and now."""
        # Read the version first: later writes are seen the next time.
        self._version = self.shared.version()
        before, self.overrides = self.overrides, Overrides.of(self.shared.read())
        return before, self.overrides


class KeptState:
    """The state that outlives a manager: overrides, the history, counts, and why companions have settled.

    *shared* is where the next manager reads it; *old_state* is where the manager of the old master writes the
    same during an upgrade.
    """

    def __init__(self, shared: SharedState | None, old_state: SharedState | None, log: Any) -> None:
        self.shared = shared
        self.log = log
        self.old: OldOverrides | None = None
        state = {} if shared is None else shared.read()
        if old_state is not None:
            if not state:
                # The first manager of a new master takes over the overrides of the old one. Companions that
                # have ended or given up there are retried with the new code.
                found = Overrides.of(old_state.read()).as_state()
                state = {**old_state.read(), **found, "old": found, "settled": {}, "totals": {}}
            if isinstance(seen := state.get("old"), dict):
                self.old = OldOverrides(old_state, Overrides.of(seen))
        self.overrides = Overrides.of(state)
        self.history = History(state)
        self.totals = Totals(state.get("totals"))
        self._settled: Mapping[str, Any] = state.get("settled", {})
        self._table = ProcessTable(())
        self._written: dict[str, Any] = {}
        self._overrides_changed = False
        self._is_ours = True

    def restore(self, table: ProcessTable) -> None:
        """Apply the state to *table*, and keep that table's state from now on."""
        self._table = table
        # Drop removed companions: the last manager may have died before it could.
        stopped = self.overrides.stopped
        self.overrides.stopped = {name: value for name, value in stopped.items() if name in table}
        for name, process in table.items():
            process.manual_stop = self.overrides.stopped.get(name, False)
            if name in self._settled:
                process.restore_settled(self._settled[name])

    def write(self) -> None:
        """Write the state for the next manager, and for that of a new master."""
        self._overrides_changed = False
        state = {**self.overrides.as_state(), **self.history.as_state(), "totals": self.totals.as_state()}
        state["settled"] = {p.name: its for p in self._table.values() if (its := p.settled_state) is not None}
        if self.old is not None:
            state["old"] = self.old.overrides.as_state()
        if state == self._written or self.shared is None or not self._is_ours:
            return
        self._written = state
        try:
            self.shared.write(state)
        except OSError as exc:
            self.log.error("Commands so far will be lost with this companion manager: %s", exc.strerror)

    def write_overrides(self) -> None:
        """Write the state if a command has changed an override since."""
        if self._overrides_changed:
            self.write()

    def hand_over(self) -> None:
        """Write for the last time: from now on the next manager does.

        Count the ends that all processes come to after a stop, because nobody learns of them.
        """
        for process in self._table.values():
            if process.pid is not None:
                end = {"event": "exit", "time": time.time(), "name": process.name, "cause": process.cause}
                self.totals.note(end)
        self.write()
        self._is_ours = False

    @property
    def old_totals(self) -> Totals | None:
        """What the old master's managers have counted until now; None if there is no old master."""
        return None if self.old is None else Totals(self.old.shared.read().get("totals"))

    def part_from_old(self) -> OldOverrides | None:
        """The old master is gone: go on with what its managers have counted."""
        old, totals = self.old, self.old_totals
        self.old = None
        if totals is not None:
            self.totals.add(totals)
        return old

    def note(self, name: str, *, stopped: bool) -> None:
        """Note that *name* was stopped or started by command."""
        self.overrides.stopped[name] = stopped
        self._overrides_changed = True

    @property
    def must_follow_first(self) -> bool:
        """Whether the old master's manager was given a command that has not been done here."""
        return self.old is not None and self.old.has_changed

    def descriptors(self) -> Iterable[int]:
        if self.shared is not None:
            yield self.shared.fd
        if self.old is not None:
            yield self.old.shared.fd


def configs_of(table: ProcessTable, group: str) -> list[CompanionConfig]:
    """The configurations of all copies of *group* that are configured."""
    return [p.config for p in table.values() if p.config.group == group and not p.removed]
