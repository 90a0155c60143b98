# SPDX-License-Identifier: MIT
"""The companions of one manager, by name and by pid: send them events, report and keep what changes."""

from __future__ import annotations

import fnmatch
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, ValuesView
from typing import Any, NamedTuple

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.control import ControlServer
from gunicorn.companion.process import Action, Cause, CompanionProcess, Event, State
from gunicorn.companion.status import format_uptime
from gunicorn.unix.signals import signal_name

Processes = Mapping[str, CompanionProcess]

# The metrics of a logger that sends some. Which logger makes a metric of an ``extra`` is its own business.
RUNNING = "gunicorn.companions.running"
RESTARTS = "gunicorn.companions.restarts"
BACKOFFS = "gunicorn.companions.backoffs"
KILLS = "gunicorn.companions.kills"
ENDS = "gunicorn.companions.ends"

# An event as ``events`` shows it: an object with ``event``, ``time`` (seconds since the epoch) and ``name``.
Entry = dict[str, Any]

# The events of all companions that are kept, and of each companion the ends.
EVENTS_KEPT = 100
ENDS_KEPT = 5


class Snapshot(NamedTuple):
    """A companion before or after an event, for observers to compare."""

    state: State
    restarts: int
    kills: int

    @classmethod
    def of(cls, process: CompanionProcess) -> Snapshot:
        return cls(process.state, process.restart_count, process.kill_count)


class Change(NamedTuple):
    """An event of a companion, and the actions that follow."""

    process: CompanionProcess
    before: Snapshot
    actions: tuple[Action, ...]
    now: float
    event: Event


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

    def arrange(self, names: Iterable[str]) -> None:
        """Have companions in the order of *names*; those that are just being removed come last."""
        first = {name: self._by_name[name] for name in names if name in self._by_name}
        self._by_name = {**first, **self._by_name}

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
        change = Change(process, before, actions, now, event)
        for observe in self.observers:
            observe(change)


def chosen(processes: Processes, name: str) -> list[CompanionProcess]:
    """What ``rq``, ``rq:2``, ``rq:*``, ``w*`` or ``@workers`` means: one, a set, all that match, a group."""
    if name in processes:
        return [processes[name]]
    if name.startswith("@"):
        return in_order(p for p in processes.values() if name[1:] in p.config.groups)
    group = name.removesuffix(":*")
    found = [p for p in processes.values() if p.config.group == group]
    # No name has one of these characters.
    if not found and any(character in name for character in "*?["):
        found = [p for p in processes.values() if fnmatch.fnmatchcase(p.name, name)]
    return in_order(found)


def in_order(processes: Iterable[CompanionProcess]) -> list[CompanionProcess]:
    """Put copies together, by their index, where the first of them is."""
    found = list(processes)
    places: dict[str, int] = {}
    for process in found:
        places.setdefault(process.config.group, len(places))
    return sorted(found, key=lambda process: (places[process.config.group], process.config.index or 0))


class History:
    """Keeps the latest events of all companions, and the latest ends of each.

    *state* is the ``as_state()`` of an earlier manager. ``tell`` is called with each new entry.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.tell: Callable[[Entry], object] = lambda entry: None
        self.entries = deque(_entries_in(state.get("history")), maxlen=EVENTS_KEPT)
        self._state: dict[str, Any] | None = None
        ends = state.get("ends")
        self._ends = {
            name: deque(_entries_in(found), maxlen=ENDS_KEPT)
            for name, found in (ends.items() if isinstance(ends, dict) else ())
        }

    def as_state(self) -> dict[str, Any]:
        """Return all of it for the next manager; the same object until something is added."""
        if self._state is None:
            ends = {name: list(found) for name, found in self._ends.items()}
            self._state = {"history": list(self.entries), "ends": ends}
        return self._state

    def ends_of(self, name: str) -> list[Entry]:
        """The latest ends of *name*, the last one first."""
        return list(reversed(self._ends.get(name, ())))

    def forget(self, name: str) -> None:
        """Drop the ends of a companion that is configured no more; its events stay."""
        if self._ends.pop(name, None) is not None:
            self._state = None

    def add(self, event: str, name: str, **details: Any) -> Entry:
        entry = {"event": event, "time": round(time.time(), 3), "name": name, **details}
        entry["description"] = _describe(entry)
        self.entries.append(entry)
        self._state = None
        self.tell(entry)
        return entry

    def observe(self, change: Change) -> None:
        """Note the starts, ends and failures among the changes of a process table."""
        process = change.process
        if change.event is Event.FORKED:
            self.add("start", process.name, pid=process.pid)
        elif change.event is Event.EXITED:
            self._add_end(process)
        elif change.event is Event.START_FAILED:
            self.add("start failed", process.name, cause=Cause.START_FAILED, reason=process.reason)
        if Action.GIVE_UP in change.actions:
            self.add("gave up", process.name, cause=Cause.GAVE_UP, reason=process.outlook(change.now))

    def _add_end(self, process: CompanionProcess) -> None:
        signum = process.last_exit_signal
        entry = self.add(
            "exit",
            process.name,
            # Its leader's pid is the number of the session, which outlives it.
            pid=process.session,
            cause=process.cause,
            reason=process.cause_text,
            exit_code=process.last_exit_code,
            signal=None if signum is None else signal_name(signum),
            uptime=round(process.latest_run, 3),
        )
        self._ends.setdefault(process.name, deque(maxlen=ENDS_KEPT)).append(entry)


def _describe(entry: Entry) -> str:
    """``pid 4713``, ``pid 4713 after 00:12:03: crash, exited with status 1 (KeyError: 'price')``."""
    if entry["event"] == "start":
        return f"pid {entry['pid']}"
    reason, text = str(entry["cause"]), entry["reason"] or ""
    if entry["event"] in ("lease", "missed", "skipped"):
        return text
    if text.startswith(reason):
        # ``killed by SIGKILL``, ``gave up after …``
        reason = text
    elif text and text != f"by {reason}":
        reason += f", {text}"
    if entry["event"] == "exit":
        return f"pid {entry['pid']} after {format_uptime(entry['uptime'])}: {reason}"
    return reason


def _entries_in(found: Any) -> list[Entry]:
    """The entries in a state, which another version of the server may have written."""
    if not isinstance(found, list):
        return []
    return [entry for entry in found if isinstance(entry, dict) and {"event", "time", "name"} <= entry.keys()]


class Reporter:
    """Reports changes in *table* to the log, as metrics, and to subscribers of ``events``."""

    def __init__(self, table: ProcessTable, log: Any, control: ControlServer | None) -> None:
        self.table = table
        self.log = log
        self.control = control
        self._running: int | None = None

    def observe(self, change: Change) -> None:
        process, before, after = change.process, change.before, Snapshot.of(change.process)
        if before == after:
            return
        for metric, number in counted(before, after).items():
            # The name is a tag, for servers that know tags.
            extra = {
                "metric": metric,
                "value": number,
                "mtype": "counter",
                "tags": {"companion": process.name},
            }
            self.log.debug("Companion %s: %s +%d", process.name, metric, number, extra=extra)
        if before.state is after.state:
            return
        if after.state is State.RUNNING:
            # In a crash loop only its ends are of interest.
            log = self.log.debug if process.failures.persist else self.log.info
            log("Companion %s is RUNNING", process.name)
        self.broadcast(
            "state",
            process,
            change.now,
            **{"from": before.state.value},
            to=after.state.value,
            pid=process.pid,
            last_exit_cause=process.cause,
            last_exit_reason=process.cause_text,
        )

    def tell(self, entry: Mapping[str, Any]) -> None:
        """Send an entry of the history to all subscribers; count an end by its cause."""
        if self.control is not None and self.control.has_subscribers:
            self.control.broadcast(dict(entry))
        if entry["event"] == "exit":
            name, cause = entry["name"], entry["cause"]
            extra = {
                "metric": ENDS,
                "value": 1,
                "mtype": "counter",
                "tags": {"companion": name, "cause": str(cause).replace(" ", "_")},
            }
            self.log.debug("Companion %s: %s +1 (%s)", name, ENDS, cause, extra=extra)

    def broadcast(self, event: str, process: CompanionProcess, now: float, **details: Any) -> None:
        """Send *event* of *process* to all subscribers."""
        if self.control is not None and self.control.has_subscribers:
            common = {"event": event, "time": round(time.time(), 3), "name": process.name}
            self.control.broadcast({**common, **details, "description": process.description(now)})

    def count_running(self) -> None:
        """Log how many companions run, where that has changed."""
        count = sum(process.state is State.RUNNING for process in self.table.values())
        if count != self._running:
            self._running = count
            extra = {"metric": RUNNING, "value": count, "mtype": "gauge"}
            self.log.debug("Companions running: %d", count, extra=extra)


def counted(before: Snapshot, after: Snapshot) -> dict[str, int]:
    """By how much which counter has grown between two moments; nothing that has not."""
    grown = {
        RESTARTS: after.restarts - before.restarts,
        BACKOFFS: int(after.state is State.BACKOFF and before.state is not State.BACKOFF),
        KILLS: after.kills - before.kills,
    }
    return {metric: number for metric, number in grown.items() if number > 0}
