# SPDX-License-Identifier: MIT
"""Lasting commands: companions stopped or started, and numbers of copies; kept for the next manager."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.supervise.sharedstate import SharedState
from gunicorn.companion.table import Change, ProcessTable

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


class Elder:
    """The overrides of the old master's manager, as they were at the last look."""

    def __init__(self, shared: SharedState, seen: Overrides | None = None) -> None:
        self.shared = shared
        self._version = b""
        self.overrides = Overrides() if seen is None else seen

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
    """The state that outlives a manager: overrides, and why companions have settled.

    *shared* is where the next manager reads it. *elder*, over an upgrade, is where the manager of the old
    master writes the same.
    """

    def __init__(self, shared: SharedState | None, elder: SharedState | None, log: Any) -> None:
        self.shared = shared
        self.log = log
        self.elder: Elder | None = None
        state = {} if shared is None else shared.read()
        if elder is not None:
            if not state:
                # The first manager of a new master takes over the overrides of the old one. Companions that
                # have ended or given up there are retried with the new code.
                found = Overrides.of(elder.read()).as_state()
                state = {**found, "elder": found}
            if isinstance(seen := state.get("elder"), dict):
                self.elder = Elder(elder, Overrides.of(seen))
        self.overrides = Overrides.of(state)
        self._settled: Mapping[str, Any] = state.get("settled", {})
        self._table = ProcessTable(())
        self._written: dict[str, Any] = {}
        self._overrides_changed = False
        self._is_ours = True

    def restore(self, table: ProcessTable) -> None:
        """Apply the state to *table*, and keep that table's state from now on."""
        self._table = table
        for name, process in table.items():
            process.manual_stop = self.overrides.stopped.get(name, False)
        for name, legacy in self._settled.items():
            if name in table:
                table[name].inherit(legacy)

    def _state(self) -> dict[str, Any]:
        state = self.overrides.as_state()
        state["settled"] = {
            process.name: legacy for process in self._table.values() if (legacy := process.legacy)
        }
        if self.elder is not None:
            state["elder"] = self.elder.overrides.as_state()
        return state

    def write(self) -> None:
        """Write it down for the next manager, and for that of a new master."""
        self._overrides_changed = False
        state = self._state()
        if state == self._written or self.shared is None or not self._is_ours:
            return
        self._written = state
        try:
            self.shared.write(state)
        except OSError as exc:
            self.log.error("Commands so far will be lost with this companion manager: %s", exc.strerror)

    def write_overrides(self) -> None:
        """Write only if a command has changed one: a released companion may start elsewhere at once."""
        if self._overrides_changed:
            self.write()

    def hand_over(self) -> None:
        """Write for the last time: from now on the next manager does."""
        self.write()
        self._is_ours = False

    def note(self, name: str, *, stopped: bool) -> None:
        """The companion *name* was stopped or started by command."""
        self.overrides.stopped[name] = stopped
        self._overrides_changed = True

    def observe(self, change: Change) -> None:
        """Note a stop by command that has begun or ended with an event."""
        process = change.process
        if process.manual_stop is not change.before.manual_stop:
            self.note(process.name, stopped=process.manual_stop)

    @property
    def must_follow_first(self) -> bool:
        """Whether the old master's manager was given a command that has not been done here."""
        return self.elder is not None and self.elder.has_changed

    def descriptors(self) -> Iterable[int]:
        if self.shared is not None:
            yield self.shared.fd
        if self.elder is not None:
            yield self.elder.shared.fd


def configs_of(table: ProcessTable, group: str) -> list[CompanionConfig]:
    """The configurations of all copies of *group* that are configured."""
    return [p.config for p in table.values() if p.config.group == group and not p.removed]
