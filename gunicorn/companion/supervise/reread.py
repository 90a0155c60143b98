# SPDX-License-Identifier: MIT
"""Compare a new configuration with the present companions, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gunicorn.companion.config import CompanionConfig, copies
from gunicorn.companion.process import CompanionProcess, State

# A number of copies that was asked for by command, and the configured number that it takes the place of.
Scaled = dict[str, tuple[int, int]]


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
        elif known.config.shape_hash != config.shape_hash and _would_be_another(known):
            found.restarted.append(name)
        else:
            found.updated.append(name)
    return found


def _would_be_another(process: CompanionProcess) -> bool:
    """Whether another shape has something to change now, and not only at the next start."""
    if process.state is State.STARTING:
        return process.pid is not None
    if process.state is State.STOPPED:
        # What has ended or failed by itself did so in its old shape.
        return process.settled is not None
    return process.state in (State.RUNNING, State.BACKOFF)


def scale(configs: Iterable[CompanionConfig], scaled: Scaled) -> list[CompanionConfig]:
    """*configs* with as many copies as was asked for by command.

    A number that was asked for holds until the configured one changes; it is taken out of *scaled* then.
    """
    found: list[CompanionConfig] = []
    done: set[str] = set()
    configured: set[str] = set()
    for config in configs:
        group = config.group
        if config.numprocs is None:
            found.append(config)
            continue
        configured.add(group)
        number, before = scaled.get(group, (config.numprocs, config.numprocs))
        if before != config.numprocs:
            del scaled[group]
            number = config.numprocs
        if group not in done:
            done.add(group)
            found.extend(copies(config, number))
    for group in scaled.keys() - configured:
        del scaled[group]
    return found
