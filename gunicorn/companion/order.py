# SPDX-License-Identifier: MIT
"""Which companions a name means, and which of them another one has to wait for. Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping

from gunicorn.companion.process import CompanionProcess, State
from gunicorn.companion.states import GAVE_UP

Processes = Mapping[str, CompanionProcess]


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
    """By name, and copies by their index."""
    return sorted(processes, key=lambda process: (process.config.group, process.config.index or 0))


def unmet(processes: Processes, after: Iterable[str]) -> tuple[tuple[str, ...], str | None]:
    """Those of *after* that have to be waited for; and, where that would be for ever, which and why."""
    names: list[str] = []
    hopeless: list[str] = []
    for name in after:
        found = chosen(processes, name)
        missing = [process for process in found if not process.has_been_running]
        if found and not missing:
            continue
        names.append(name)
        if not found:
            hopeless.append(f"{name}, which is not there any more")
        hopeless += [f"{p.name}, which {why}" for p in missing if (why := _why_never(p)) is not None]
    return tuple(names), "; ".join(hopeless) or None


def _why_never(process: CompanionProcess) -> str | None:
    """Why *process* won't be RUNNING unless somebody starts it; None where it may."""
    if process.state is State.STARTING:
        return None if process.stuck is None else f"waits for {process.stuck}"
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
    """Find out anew what holds each of *waiting*, which are STARTING and have no process."""
    changed = True
    while changed:
        # One that waits for ever may be what another one waits for.
        changed = False
        for process in waiting:
            found = unmet(processes, process.config.after)
            if found != (process.held_by, process.stuck):
                process.held_by, process.stuck = found
                changed = True
