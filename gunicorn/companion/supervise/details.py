# SPDX-License-Identifier: MIT
"""Tell all that is known of one companion: its processes, limits, and latest ends."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from gunicorn.companion.checks import describe_target
from gunicorn.companion.process import CompanionProcess
from gunicorn.companion.supervise import memory as memory_of
from gunicorn.companion.table import History
from gunicorn.settings import redact
from gunicorn.unix import session

HOUR = 3600.0


def details(
    process: CompanionProcess,
    memory: Mapping[str, int] | None,
    history: History,
    belonging: Mapping[int, int],
    now: float,
    wall: float,
) -> dict[str, Any]:
    """Return what ``status`` adds for a single companion, whose *memory* it has measured.

    *wall* is the time of day at monotonic *now*.
    """
    config = process.config
    pids = _pids_of(process, belonging)
    return {
        "runs": _what_runs(process),
        "cwd": config.cwd,
        "since": None if process.since is None else round(process.since - now + wall, 3),
        "processes": [_describe_process(pid) for pid in pids],
        "descriptors": _descriptors_of(pids),
        "addresses": list(config.bind),
        "limits": _limits(process, None if memory is None else memory["private"], now),
        "starts_in_the_last_hour": sum(start > now - HOUR for start in process.starts),
        "ends": history.ends_of(process.name),
        "runs_of_schedule": list(process.timing.runs),
    }


def _pids_of(process: CompanionProcess, belonging: Mapping[int, int]) -> list[int]:
    if process.session is None:
        return []
    found = set(memory_of.families({process.session}, belonging).get(process.session, ()))
    if process.pid is not None:
        # Just after its fork the leader is not in its session yet.
        found.add(process.pid)
    return sorted(found)


def _what_runs(process: CompanionProcess) -> str:
    """Return the command or the target; a command line may hold passwords."""
    config = process.config
    if config.command is not None:
        words = redact.in_value(list(config.command))
        return " ".join(map(_quoted, words))
    return redact.in_text(describe_target(config.target)) if config.target is not None else ""


def _quoted(word: str) -> str:
    """As for a shell, but hidden parts need no quotes."""
    rest = word.replace(redact.HIDDEN, "x")
    return word if shlex.quote(rest) == rest else shlex.quote(word)


def _describe_process(pid: int) -> dict[str, Any]:
    info = session.read_stat(pid)
    return {
        "pid": pid,
        "ppid": None if info is None else info.ppid,
        "name": session.command_name(pid),
        "cpu": None if info is None else info.cpu,
    }


def _descriptors_of(pids: Collection[int]) -> dict[str, int] | None:
    """Count open descriptors, and the sockets among them; None if the system does not show them."""
    count = sockets = 0
    shown = False
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                shown = True
                count += 1
                with contextlib.suppress(OSError):
                    sockets += os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
    return {"open": count, "sockets": sockets} if shown else None


def _limits(process: CompanionProcess, private: int | None, now: float) -> dict[str, dict[str, Any]]:
    """Return each limit that is set, and how near the companion is to it."""
    config = process.config
    runs = process.pid is not None and process.started_at is not None
    beat = None if process.watchdog_at is None or config.watchdog is None else process.watchdog_at
    age = now - (process.started_at or now) if runs else None
    most = config.start_limit
    found = {
        "max_memory": (config.max_memory, private),
        "max_lifetime": (config.max_lifetime, age),
        "max_runtime": (config.max_runtime, age),
        "watchdog": (
            config.watchdog,
            None if beat is None or not runs else now - beat + (config.watchdog or 0),
        ),
        "start_retries": (config.start_retries, process.failed_starts),
        "start_limit": (
            None if most is None else most.starts,
            None if most is None else sum(start > now - most.seconds for start in process.tries),
        ),
    }
    return {
        name: {"limit": limit, "now": round(value, 3) if isinstance(value, float) else value}
        for name, (limit, value) in found.items()
        if limit is not None
    }
