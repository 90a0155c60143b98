# SPDX-License-Identifier: MIT
"""Read, compare and apply a new configuration for running companions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.control import error
from gunicorn.companion.process import Cause, CompanionProcess, Event
from gunicorn.companion.supervise.order import Stop
from gunicorn.companion.supervise.reread import Difference, difference, digest, scale
from gunicorn.errors import on_one_line

if TYPE_CHECKING:
    from gunicorn.companion.manager import CompanionManager


class ConfigUnreadable(Exception):
    """The configuration may not be read by the user that the manager runs as."""


def reread(manager: CompanionManager, *, dry_run: bool = False) -> dict[str, Any]:
    """Read the configuration again and apply the difference; on any error nothing changes.

    With *dry_run* nothing changes at all, and the difference is only told.
    """
    if manager.stopping:
        return error(manager.why_nothing_starts)
    if manager.load_configs is None:
        return {**error("this manager has no configuration to read"), "kept_old_config": True}
    # Configuration files are programs, and one may never return.
    manager.tell({"rereading": True})
    try:
        with manager.spare_descriptors():
            configs = manager.load_configs()
    except ConfigUnreadable as exc:
        if not dry_run:
            manager.tell({"unreadable": True})
        return _refuse(manager, f"{exc}; send SIGHUP to the master, which may read it")
    except SystemExit as exc:
        return _refuse(manager, f"the configuration calls sys.exit({exc})")
    except Exception as exc:
        return _refuse(manager, str(exc) or type(exc).__name__)
    if dry_run:
        found = difference(manager.processes, scale(configs, dict(manager.scaled)))
        return {"ok": True, "dry_run": True, **found.as_dict()}
    manager.adopt_config()
    # What goes may be taken up by the manager of a new master, which must know better then.
    manager.orders.configuration = digest(configs)
    manager.keep_state()
    result = manager.reread_config(configs)
    manager.tell({"reread": {config.name: config.fingerprint for config in configs}})
    manager.after_command()
    return result


def _refuse(manager: CompanionManager, reason: str) -> dict[str, Any]:
    manager.log.error("Reread refused, companions keep their configuration: %s", on_one_line(reason))
    return {**error(reason), "kept_old_config": True}


def scale_group(manager: CompanionManager, group: str, number: int) -> Difference:
    """Have *number* copies of *group*, which has `numprocs`, until the configured number changes."""
    configs = [process.config for process in manager.processes.values() if not process.removed]
    one = next(config for config in configs if config.group == group)
    assert one.numprocs is not None
    others = [config for config in configs if config.group != group]
    manager.scaled[group] = (number, one.numprocs)
    # As in `reread`.
    manager.keep_state()
    found = apply(manager, scale([*others, one], manager.scaled))
    if number == one.numprocs:
        del manager.scaled[group]
    manager.log.info("Companion %s now has %d copies", group, number)
    return found


def apply(manager: CompanionManager, configs: Sequence[CompanionConfig]) -> Difference:
    """Make *configs*, which are valid, the configuration; return what that changed."""
    now = time.monotonic()
    found = difference(manager.processes, configs)
    # Of several copies the last goes first.
    for name in reversed(found.removed):
        manager.processes[name].removed = True
        manager.stops.ask(name, Stop(cause=Cause.REREAD, reason="it was removed from the configuration"))
    manager.stop_due(now)
    added, restarted, updated = set(found.added), set(found.restarted), set(found.updated)
    for config in configs:
        name = config.name
        if name in added:
            _add(manager, config, now)
            continue
        process = manager.processes[name]
        process.config = config
        if name in restarted:
            reason = "its configuration has changed"
            manager.send_event(process, Event.RESTART, now, cause=Cause.REREAD, reason=reason)
        elif name in updated:
            _record_limits(manager, process)
    manager.forget_removed()
    return found


def _add(manager: CompanionManager, config: CompanionConfig, now: float) -> None:
    process = manager.processes.setdefault(config.name, CompanionProcess(config))
    # A name that comes back waits, as STOPPING, for its old process.
    if config.name in manager.stops:
        manager.stops.drop(process)
        manager.send_event(process, Event.STOP, now)
    process.config = config
    process.removed = False
    if config.autostart and not process.manual_stop:
        manager.send_event(process, Event.START, now)


def _record_limits(manager: CompanionManager, process: CompanionProcess) -> None:
    """How what runs is to be stopped, for a next manager that finds it without this one."""
    run = manager.claims.held(process.name)
    record = run.read() if run is not None else None
    if run is not None and record is not None and record.pid == process.pid:
        config = process.config
        record = replace(
            record,
            stop_signal=config.stop_signal,
            stop_timeout=config.stop_timeout,
            stop_as_group=config.stop_as_group,
        )
        # On a full disk the old limits stay there.
        with contextlib.suppress(OSError):
            run.write(record)
