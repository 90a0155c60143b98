# SPDX-License-Identifier: MIT
"""Leases of companions: have the keeper hold them, start what holds one, and end what has lost it.

A lease is held for as long as processes of it live, and given up with the last one: whatever starts next has
another token. The manager trusts no process, only the end of the lease, which the keeper puts off in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol

from gunicorn.companion.child.lease import Grant
from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.helpers.handle import HelperHandle
from gunicorn.companion.helpers.wire import Message
from gunicorn.companion.leasing.store import hide_password
from gunicorn.companion.leasing.words import SLOTS, LeaseMemory
from gunicorn.companion.process import Cause, CompanionProcess, Event, State
from gunicorn.companion.supervise.lease import Lease, Living, shown, time_until_stop, why_lost
from gunicorn.companion.table import Change, History, ProcessTable
from gunicorn.unix.kernel import KERNEL, Kernel

# Seconds by which a keeper may be late with what it does every ttl, before it is taken for hung.
LATE = 1.0

# Seconds that others have to take what was given away by command.
HOLD_OFF = 3.0


class LeaseHelper(HelperHandle, Protocol):
    """The keeper or the guard: see `leasing.handle`."""

    memory: LeaseMemory

    def kill(self) -> None: ...


@dataclass(eq=False, repr=False)
class Leases:
    """Keeps the keeper's work in step with *table*; *guard* kills where the manager does not get to it."""

    table: ProcessTable
    log: Any
    _: KW_ONLY
    keeper: LeaseHelper
    guard: LeaseHelper
    history: History
    kernel: Kernel = KERNEL
    _leases: dict[tuple[str, str], Lease] = field(default_factory=dict, init=False)
    _serials: Iterator[int] = field(default_factory=lambda: itertools.count(1), init=False)
    _slots: Iterator[int] = field(default_factory=lambda: itertools.cycle(range(SLOTS)), init=False)
    # By name what its process was started with, until its session is empty.
    _living: dict[str, Living] = field(default_factory=dict, init=False)
    # Those among them of which it was told that it ends, each with the `lease_on_loss` that it had.
    _told: dict[str, str] = field(default_factory=dict, init=False)
    # How many seconds before that the guard kills each; it does not know the others.
    _early: dict[str, float] = field(default_factory=dict, init=False)
    _memory: LeaseMemory | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.keeper.on_message = self._receive
        self.keeper.on_start = self._begin_all
        self.guard.on_message = lambda message: None
        self.guard.on_start = self._watch_all

    # -- leases ------------------------------------------------------------------

    def of(self, config: CompanionConfig) -> Lease | None:
        """The lease of *config*; None if it has none."""
        key = self._key(config)
        if key is None:
            return None
        lease = self._leases.get(key)
        if lease is None:
            self._memory = self._memory or LeaseMemory()
            self.keeper.memory = self.guard.memory = self._memory
            lease = self._leases[key] = Lease(
                *key, self._free_slot(), self._memory, self.kernel, config.lease_timing
            )
        return lease

    def _free_slot(self) -> int:
        """Not the one that has just become free: the keeper may write to it once more."""
        used = {lease.slot for lease in self._leases.values()}
        return next(slot for slot in self._slots if slot not in used or len(used) >= SLOTS)

    @staticmethod
    def _key(config: CompanionConfig) -> tuple[str, str] | None:
        if config.lease_name is None or config.lease_store is None:
            return None
        return config.lease_store, config.lease_name

    def all(self) -> Iterable[Lease]:
        return self._leases.values()

    def may_start(self, process: CompanionProcess) -> bool:
        """Whether *process* holds its lease, or needs none; otherwise it stands by for it."""
        lease = self.of(process.config)
        if lease is None:
            return True
        process.lease = lease
        if self._is_usable(lease, process):
            return True
        process.standby = True
        self.table.changed = True
        return False

    def _is_usable(self, lease: Lease, process: CompanionProcess) -> bool:
        """Whether *process* may start with the present holding of *lease*."""
        if not lease.token or lease.spent or time_until_stop(lease, process, lease.left()) <= 0:
            return False
        # One that a reload has removed, renamed, or given another lease, must have ended.
        users = [self.table.get(name) for name in lease.living]
        return all(user and not user.removed and self._key(user.config) == lease.key for user in users)

    def grant(self, process: CompanionProcess) -> Grant | None:
        """What *process*, which is about to start, gets of its lease."""
        lease = self.of(process.config)
        if lease is None:
            return None
        words, token, clock = lease.words, lease.token, self.kernel.boottime
        return Grant(lease.name, token, lambda: float(words.left(token, clock())))

    def step(self, now: float) -> None:
        """Tell those to stop whose lease ends; have the keeper hold and give up what has changed."""
        users: dict[Lease, list[CompanionProcess]] = {lease: [] for lease in self._leases.values()}
        for process in self.table.values():
            if process.config.lease is None and process.lease is None and not process.standby:
                continue
            lease = self.of(process.config)
            process.lease = lease
            if lease is None:
                process.standby = False
                continue
            process.standby = process.standby and _waits(process)
            users.setdefault(lease, []).append(process)
        if not users:
            return
        for lease, found in users.items():
            self._adjust(lease, found)
            self._end_what_has_lost(lease, now)
            self._hold_or_give(lease, found, now)
            if not (found or lease.serial or lease.living):
                del self._leases[lease.key]

    def _adjust(self, lease: Lease, users: Sequence[CompanionProcess]) -> None:
        """A reread may have changed its times."""
        timing = users[0].config.lease_timing if users else lease.timing
        if timing != lease.timing:
            lease.timing = timing
            if lease.serial:
                self._send_want(lease)
        for name in lease.living & self.table.keys():
            self._watch(name)

    def _hold_or_give(self, lease: Lease, users: Sequence[CompanionProcess], now: float) -> None:
        living = lease.living
        waiting = [process for process in users if process.standby]
        if lease.serial and not living and (lease.spent or not waiting):
            self._give(lease)
        if waiting and not lease.serial and now >= lease.hold_off:
            lease.serial, lease.other, lease.free_since = next(self._serials), None, now
            self._use()
            self._send_want(lease)
        for process in waiting:
            process.standby = not self._is_usable(lease, process)
        if lease.serial and self._is_overdue(lease):
            self.log.error("The lease keeper does nothing for lease %s: another one is started", lease.name)
            self.keeper.kill()
            for each in self._leases.values():
                each.boot_asked = self.kernel.boottime()

    def _use(self) -> None:
        self.keeper.start()
        self.guard.start()

    def _is_overdue(self, lease: Lease) -> bool:
        return self.kernel.boottime() >= self._overdue_at(lease)

    def _overdue_at(self, lease: Lease) -> float:
        return max(float(lease.words.asked), lease.boot_asked) + lease.timing.ttl + LATE

    def _give(self, lease: Lease) -> None:
        if lease.token:
            lease.transitions += 1
            # Before the keeper ends it.
            self._tell(lease, lease.end_of_holding)
        self.keeper.send({"give": lease.serial})
        lease.serial = lease.token = 0
        lease.spent = False

    # -- ends --------------------------------------------------------------------

    def _end_what_has_lost(self, lease: Lease, now: float) -> None:
        for name in sorted(lease.living):
            process = self.table.get(name)
            left = self._living[name].left()
            if process is None or time_until_stop(lease, process, left) > 0:
                continue
            way = process.config.lease_on_loss
            if self._told.get(name) == way:
                continue
            self._told[name] = way
            reason = why_lost(lease, left)
            if way == "keep":
                self.log.error("Companion %s runs on without its lease: %s", name, reason)
                continue
            lease.spent = True
            if process.pid is not None and process.state is not State.STOPPING:
                self.log.warning("Companion %s is stopped: %s", name, reason)
                self._note(process, reason)
            if process.state in (State.STARTING, State.RUNNING, State.STOPPING):
                timeout = max(0.0, left - lease.timing.margin)
                self.table.send(
                    process, Event.LEASE_LOST, now, cause=Cause.LEASE, reason=reason, timeout=timeout
                )

    def store(self, lease: Lease, note: str) -> None:
        """Store *note* with *lease*, which is held; ``noted`` is True when the store has it."""
        lease.note, lease.noted = note, False
        self.keeper.send({"note": lease.serial, "text": note})

    def release(self, lease: Lease) -> None:
        """Let others have it, who look at least once a second."""
        lease.hold_off = self.kernel.now() + min(lease.timing.ttl, HOLD_OFF)
        lease.spent = True
        self.table.changed = True

    def observe(self, change: Change) -> None:
        """Keep account of the processes that live, for the guard too."""
        process = change.process
        if change.event is Event.FORKED:
            lease = self.of(process.config)
            if lease is not None and process.pid is not None:
                self._living[process.name] = Living(lease, lease.token, process.pid)
                lease.living.add(process.name)
                self._watch(process.name)
        elif process.name in self._living and process.pid is None and process.session is None:
            living = self._living.pop(process.name)
            living.lease.living.discard(process.name)
            self._told.pop(process.name, None)
            self._early.pop(process.name, None)
            self.guard.send({"drop": living.pid})
            if not living.lease.living:
                living.lease.spent = True

    def has_ended(self, process: CompanionProcess) -> bool:
        """Whether the guard has killed *process*, which SIGKILL has ended."""
        living = self._living.get(process.name)
        if living is None or process.config.lease_on_loss == "keep":
            return False
        return living.left() <= living.lease.timing.margin

    # -- keeper and guard ----------------------------------------------------------

    def _send_want(self, lease: Lease) -> None:
        lease.boot_asked = self.kernel.boottime()
        self.keeper.send(
            {
                "want": lease.serial,
                "store": lease.store,
                "name": lease.name,
                "ttl": lease.timing.ttl,
                "slot": lease.slot,
                "token": lease.token,
                "above": lease.last_token,
            }
        )

    def _begin_all(self) -> None:
        """Another keeper has started: it goes on with what is held."""
        for lease in self._leases.values():
            # It tells what is wrong once more.
            lease.down_since, lease.down_why = None, ""
            if lease.serial:
                self._send_want(lease)
                if lease.token and not lease.noted:
                    self.store(lease, lease.note)

    def _watch(self, name: str) -> None:
        """Tell the guard when to kill *name*, unless it knows."""
        lease, token, pid = self._living[name]
        if self.table[name].config.lease_on_loss == "keep":
            if self._early.pop(name, None) is not None:
                self.guard.send({"drop": pid})
            return
        early = lease.timing.margin / 2
        identity = None if self._early.get(name) == early else self.kernel.identity(pid)
        if identity is not None:
            self._early[name] = early
            self.guard.send({"watch": [pid, identity, lease.slot, token, early]})

    def _watch_all(self) -> None:
        """Another guard has started."""
        self._early.clear()
        for name in self._living:
            if name in self.table:
                self._watch(name)

    def _receive(self, message: Message) -> None:
        now = self.kernel.now()
        self.table.changed = True
        if "down" in message or "up" in message:
            url = message.get("down") or message["up"]
            down = [lease for lease in self._leases.values() if lease.store == url]
            # A lease that is asked for meanwhile has the keeper tell it again.
            known = all(lease.down_why == message.get("why") for lease in down)
            for lease in down:
                lease.set_down(message.get("why"), now)
            if known:
                return
            if "down" in message:
                self.log.error("Store of leases %s: %s", hide_password(url), message["why"])
            else:
                self.log.warning("Store of leases %s can be reached again", hide_password(url))
            return
        serials = (message.get(word) for word in ("held", "lost", "refused", "noted", "wrong", "right"))
        serial = next(filter(None, serials), None)
        found = [each for each in self._leases.values() if each.serial == serial]
        if not found:
            # It was given up meanwhile.
            return
        [lease] = found
        if "held" in message:
            self._take(lease, message, now)
        elif "noted" in message:
            lease.noted = True
        elif "wrong" in message:
            lease.set_down(message["why"], now, alone=True)
            self.log.error("Lease %s in %s: %s", lease.name, lease.address, message["why"])
        elif "right" in message:
            lease.set_down(None, now)
            self.log.warning("Lease %s in %s can be used again", lease.name, lease.address)
        elif "lost" in message:
            lease.token, lease.other, lease.free_since = 0, None, now
            lease.transitions += 1
        else:
            lease.other = message["owner"]
            lease.free_since = None if lease.other else now

    def _take(self, lease: Lease, message: Message, now: float) -> None:
        lease.token = lease.last_token = message["token"]
        lease.transitions += 1
        lease.since, lease.note, lease.noted = now, message["note"], True
        lease.other, lease.free_since = None, None
        before, how = message["before"], "which gave it up"
        if message["expired"]:
            how = "which had not renewed it"
        came = f", from {shown(before)}, {how}" if before else ""
        self._tell(lease, f"took lease {lease.name} (token {lease.token}){came}")

    def _tell(self, lease: Lease, text: str) -> None:
        """Log it, and note it in the history of each companion that it concerns."""
        concerned = [process for process in self.table.values() if process.lease is lease]
        for process in concerned:
            self.log.info("Companion %s: %s", process.name, text)
            self._note(process, text)
        if not concerned:
            # A reload has changed that.
            self.log.info("No companion needs lease %s any more: %s", lease.name, text)

    def _note(self, process: CompanionProcess, text: str) -> None:
        self.history.add("lease", process.name, cause=Cause.LEASE, reason=text)

    # -- for the manager's loop ------------------------------------------------------

    def next_deadline(self, now: float) -> float | None:
        """When `step` has something to do again, by the monotonic clock."""
        times = []
        boot = self.kernel.boottime()
        for name, living in self._living.items():
            if name not in self._told and name in self.table:
                until_stop = time_until_stop(living.lease, self.table[name], living.left())
                times.append(now + max(0.0, until_stop))
        for lease in self._leases.values():
            if lease.serial:
                times.append(now + max(0.0, self._overdue_at(lease) - boot))
            elif lease.hold_off > now:
                times.append(lease.hold_off)
        return min(times, default=None)

    @property
    def start_at(self) -> float | None:
        """When a helper is to be started again."""
        times = [each.start_at for each in (self.keeper, self.guard) if each.start_at is not None]
        return min(times, default=None)

    @property
    def helper_pids(self) -> set[int]:
        return {each.pid for each in (self.keeper, self.guard) if each.pid is not None}

    def tick(self, now: float) -> None:
        self.keeper.tick(now)
        self.guard.tick(now)

    def reaped(self, pid: int, status: int) -> bool:
        return self.keeper.reaped(pid, status) or self.guard.reaped(pid, status)

    def descriptors(self) -> list[int]:
        return [*self.keeper.descriptors(), *self.guard.descriptors()]

    def end(self) -> None:
        """The server ends, and its companions have ended: give up what is held."""
        for lease in self._leases.values():
            if lease.serial:
                self._give(lease)
        self.keeper.end()
        self.guard.end()

    def as_dicts(self) -> list[dict[str, Any]]:
        """All leases, each with the companions that need it."""
        return [
            {**lease.as_dict(), "companions": [p.name for p in self.table.values() if p.lease is lease]}
            for lease in self._leases.values()
        ]


def _waits(process: CompanionProcess) -> bool:
    """Whether nothing but its lease keeps *process* from a start."""
    return process.state is State.STARTING and process.pid is None and not process.held_by
