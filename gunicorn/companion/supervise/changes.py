# SPDX-License-Identifier: MIT
"""Change the configuration of running companions, by command or as the manager of an old master does."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from gunicorn.companion.config import CompanionConfig, address_problems, copies
from gunicorn.companion.control import error
from gunicorn.companion.process import Cause, CompanionProcess, Event, State
from gunicorn.companion.supervise.order import Stop
from gunicorn.companion.supervise.overrides import KeptState, Overrides, Scaled, configs_of
from gunicorn.companion.supervise.rights import StartRights
from gunicorn.companion.supervise.sharedstate import Rights
from gunicorn.companion.supervise.starter import Starter
from gunicorn.companion.supervise.steering import Steering
from gunicorn.companion.table import ProcessTable
from gunicorn.errors import on_one_line
from gunicorn.unix.kernel import KERNEL, Kernel

Configs = list[CompanionConfig]


class ConfigUnreadable(Exception):
    """The configuration may not be read by the user that the manager runs as."""


@dataclass
class Difference:
    """Names, by what becomes of them."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, list[str]]:
        return {kind: sorted(names) for kind, names in vars(self).items()}

    def __str__(self) -> str:
        return ", ".join(f"{len(names)} {kind}" for kind, names in vars(self).items() if names) or "none"


def digest(configs: Iterable[CompanionConfig]) -> str:
    """The same for any two lists that configure the same companions."""
    text = "\n".join(sorted(f"{config.name} {config.fingerprint}" for config in configs))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(processes: Mapping[str, CompanionProcess], configs: Iterable[CompanionConfig]) -> Difference:
    """What it takes to come from *processes* to *configs*."""
    found = Difference()
    wanted = {config.name: config for config in configs}
    for name, process in processes.items():
        if name not in wanted and not process.removed:
            found.removed.append(name)
    for name, config in wanted.items():
        known = processes.get(name)
        if known is None or known.removed:
            found.added.append(name)
        elif known.config.fingerprint == config.fingerprint:
            found.unchanged.append(name)
        elif _begins_or_ends_schedule(known, config) or (
            known.config.shape_hash != config.shape_hash and _would_be_another(known)
        ):
            found.restarted.append(name)
        else:
            found.updated.append(name)
    return found


def _would_be_another(process: CompanionProcess) -> bool:
    """Whether another shape has something to change now, and not only at the next start."""
    if process.config.schedule is not None:
        # A run goes on; the next one has the new shape.
        return False
    if process.state is State.STARTING:
        return process.pid is not None
    if process.state is State.STOPPED:
        # It ended or failed by itself in its old shape.
        return process.settled is not None
    return process.state in (State.RUNNING, State.BACKOFF)


def _begins_or_ends_schedule(process: CompanionProcess, config: CompanionConfig) -> bool:
    """Whether *config* has a schedule and the present one has not, or the other way round, with an effect."""
    if (process.config.schedule is None) is (config.schedule is None) or process.manual_stop:
        return False
    return process.state is not State.STOPPED or (config.schedule is None and config.autostart)


def scale(configs: Iterable[CompanionConfig], scaled: Scaled) -> list[CompanionConfig]:
    """Return *configs* with the numbers of copies set by command.

    A number set by command lasts until the configured one changes; then it is removed from *scaled*.
    """
    found: list[CompanionConfig] = []
    configured: set[str] = set()
    for config in configs:
        group = config.group
        if config.numprocs is None:
            found.append(config)
            continue
        if group in configured:
            continue
        configured.add(group)
        number, before = scaled.get(group, (config.numprocs, config.numprocs))
        if before != config.numprocs or _is_too_many(config, number):
            scaled.pop(group, None)
            number = config.numprocs
        found.extend(copies(config, number))
    for group in scaled.keys() - configured:
        del scaled[group]
    return found


def _is_too_many(config: CompanionConfig, number: int) -> bool:
    """Whether *number*, asked for under an older configuration, is more than ports are left for."""
    try:
        copies(config, number)
    except ValueError:
        return True
    return False


@dataclass(eq=False, repr=False)
class Changes:
    """Brings *table* to another configuration.

    *load_configs* reads the configuration anew; it raises with a text for people. *adopt_config* is called
    when what it has read is to count. *tell* sends the master a message; *spare_descriptors* frees some to
    read files with; *after_command* begins what needs no waiting.
    """

    table: ProcessTable
    log: Any
    _: KW_ONLY
    steering: Steering
    starter: Starter
    kept: KeptState
    start_rights: StartRights
    load_configs: Callable[[], Configs] | None
    adopt_config: Callable[[], Any]
    tell: Callable[[dict[str, Any]], None]
    spare_descriptors: Callable[[], AbstractContextManager[None]]
    after_command: Callable[[], None]
    kernel: Kernel = KERNEL

    @property
    def _scaled(self) -> Scaled:
        return self.kept.overrides.scaled

    def reread(self, *, dry_run: bool = False, cause: Cause = Cause.REREAD) -> dict[str, Any]:
        """Read the configuration again and apply the difference; on any error nothing changes.

        With *dry_run* nothing changes at all, and the difference is only told. *cause* is that of the ends.
        """
        if self.steering.stopping:
            return error(self.steering.why_nothing_starts)
        if self.load_configs is None:
            return {**error("this manager has no configuration to read"), "kept_old_config": True}
        # Configuration files are programs, and one may never return.
        self.tell({"rereading": True})
        try:
            with self.spare_descriptors():
                configs = self.load_configs()
        except ConfigUnreadable as exc:
            if not dry_run:
                self.tell({"unreadable": True})
            return self._refuse(f"{exc}; send SIGHUP to the master, which may read it")
        except SystemExit as exc:
            return self._refuse(f"the configuration calls sys.exit({exc})")
        except Exception as exc:
            return self._refuse(str(exc) or type(exc).__name__)
        if dry_run:
            found = difference(self.table, scale(configs, dict(self._scaled)))
            return {"ok": True, "dry_run": True, **found.as_dict()}
        self.adopt_config()
        # The manager of a new master may take over what this one releases, so it must know the change first.
        self.kept.overrides.configuration = digest(configs)
        self.kept.write()
        result = self.use(configs, cause)
        self.tell({"reread": {config.name: config.fingerprint for config in configs}})
        self.after_command()
        return result

    def _refuse(self, reason: str) -> dict[str, Any]:
        self.log.error("Reread refused, companions keep their configuration: %s", on_one_line(reason))
        return {**error(reason), "kept_old_config": True}

    def use(self, configs: Configs, cause: Cause = Cause.REREAD) -> dict[str, Any]:
        """Make *configs*, which are valid, the configuration; tell what changed, by name."""
        found = self._apply(scale(configs, self._scaled), cause, "it was removed from the configuration")
        self.log.info("Companions reread: %s", found)
        return {"ok": True, **found.as_dict()}

    def scale_group(self, group: str, number: int) -> Difference:
        """Have *number* copies of *group*, which has `numprocs`, until the configured number changes."""
        present = [self.steering.rolling.config_of(p) for p in self.table.values() if not p.removed]
        one = next(config for config in present if config.group == group)
        assert one.numprocs is not None
        others = [config for config in present if config.group != group]
        problems = address_problems([*others, *copies(one, number)])
        if problems:
            raise ValueError("; ".join(problems))
        self._scaled[group] = (number, one.numprocs)
        # As in `reread`.
        self.kept.write()
        found = self._apply(scale(present, self._scaled), Cause.COMMAND, "scaled down by command")
        if number == one.numprocs:
            del self._scaled[group]
        self.log.info("Companion %s now has %d copies", group, number)
        return found

    def _apply(self, configs: Sequence[CompanionConfig], cause: Cause, why_removed: str) -> Difference:
        now = self.kernel.now()
        found = difference(self.table, configs)
        # Of several copies the last goes first.
        for name in reversed(found.removed):
            self.table[name].removed = True
            self.steering.rolling.drop_change(name)
            self.steering.stops.ask(name, Stop(cause=cause, reason=why_removed))
        self.steering.stop_due(now)
        added, restarted, updated = set(found.added), set(found.restarted), set(found.updated)
        for config in configs:
            name = config.name
            if name in added:
                self._add(config, now)
                continue
            process, reason = self.table[name], "its configuration has changed"
            if name in restarted and config.schedule is None and self._goes_in_turn(process, config):
                self.steering.rolling.change(config, reason, cause)
                continue
            self.steering.rolling.drop_change(name)
            process.config = config
            if name in restarted and config.schedule is not None:
                # What has run all the time is now started at its times alone.
                self.table.send(process, Event.STOP, now, cause=cause, reason=reason)
            elif name in restarted:
                self.table.send(process, Event.RESTART, now, cause=cause, reason=reason)
            elif name in updated:
                self._record_limits(process)
        self.table.arrange(config.name for config in configs)
        self.starter.close_unused()
        self.forget_removed()
        return found

    def _goes_in_turn(self, process: CompanionProcess, config: CompanionConfig) -> bool:
        """Whether *process* waits for its turn to be restarted with *config*, so that other copies work on.

        Not with other addresses, which copies may share, or take over from each other.
        """
        before = process.config
        same_sockets = (before.socket_owner, before.bind) == (config.socket_owner, config.bind)
        return (
            process.state is State.RUNNING
            and same_sockets
            and any(
                other.config.group == config.group and other is not process and not other.removed
                for other in self.table.values()
            )
        )

    def _add(self, config: CompanionConfig, now: float) -> None:
        process = self.table.add(config)
        stops = self.steering.stops
        # A name that comes back waits, as STOPPING, for its old process.
        if config.name in stops:
            stops.drop(process)
            self.table.send(process, Event.STOP, now)
        process.config = config
        process.removed = False
        # The companion that had the name before has settled, and not this one.
        process.settled = None
        if config.autostart and config.schedule is None and not process.manual_stop:
            self.table.send(process, Event.START, now)

    def _record_limits(self, process: CompanionProcess) -> None:
        """Write down how what runs is to be stopped, for a next manager that finds it without this one."""
        run = self.start_rights.held(process.name)
        record = run.read() if run is not None else None
        if run is not None and record is not None and record.pid == process.pid:
            config = process.config
            record = replace(
                record,
                stop_signal=config.stop_signal,
                stop_timeout=config.stop_timeout,
                stop_as_group=config.stop_as_group,
                later_signals=config.later_signals,
            )
            # On a full disk the old limits stay there.
            with contextlib.suppress(OSError):
                run.write(record)

    def forget_removed(self) -> None:
        """Drop companions that were removed from the configuration and have ended."""
        for process in [p for p in self.table.values() if p.removed and p.state is State.STOPPED]:
            self.table.remove(process)
            self.starter.let_go(process)
            self.kept.overrides.stopped.pop(process.name, None)
            self.kept.history.forget(process.name)
            self.log.info("Companion %s is gone", process.name)


@dataclass(eq=False, repr=False)
class Follower:
    """Repeats what is asked of the old master's manager, while both masters run: ``beside_old_master``."""

    table: ProcessTable
    log: Any
    _: KW_ONLY
    kept: KeptState
    rights: Rights
    steering: Steering
    changes: Changes
    beside_old_master: bool

    def step(self, now: float) -> None:
        old, last = self.kept.old, not self.beside_old_master
        if old is None:
            return
        if old.has_changed and not self.steering.stopping:
            self._follow(*old.look(), at=now)
        if last:
            self.kept.part_from_old()
            self.rights.forget(old.shared)
            old.shared.close()

    def _follow(self, before: Overrides, now: Overrides, *, at: float) -> None:
        """Do here what has been asked of the old manager since *before*."""
        if before.configuration != now.configuration:
            self.log.info("Rereading companions, as the old master did")
            self.changes.reread()
        for group in {*before.scaled, *now.scaled}:
            if before.scaled.get(group) != now.scaled.get(group):
                self._follow_scale(group, now.scaled.get(group))
        for name, stopped in now.stopped.items():
            process = self.table.get(name)
            if process is None or process.removed or before.stopped.get(name) == stopped:
                continue
            if stopped and not process.manual_stop:
                self.log.info("Stopping companion %s, as the old master did by command", name)
                self.steering.stop([process])
            elif not stopped and process.config.schedule is not None:
                # The old manager runs it now.
                process.manual_stop = False
                self.kept.note(name, stopped=False)
            elif not stopped and process.state is State.STOPPING:
                # No command could do that; but this one is to run as soon as it can.
                self.table.send(process, Event.START, at)
                process.manual_stop = False
                self.kept.note(name, stopped=False)
            elif not stopped:
                self.log.info("Starting companion %s, as the old master did by command", name)
                self.steering.start(name)

    def _follow_scale(self, group: str, numbers: tuple[int, int] | None) -> None:
        """*numbers*: asked for, and configured there; None: as many as are configured."""
        configs = configs_of(self.table, group)
        configured = configs[0].numprocs if configs else None
        if configured is None:
            return
        # With another number in the new configuration, that one counts.
        wanted = numbers[0] if numbers is not None and numbers[1] == configured else configured
        if len(configs) != wanted:
            try:
                self.changes.scale_group(group, wanted)
            except ValueError as exc:
                self.log.error("Companion %s keeps its number of copies: %s", group, exc)
