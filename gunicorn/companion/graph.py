# SPDX-License-Identifier: MIT
"""The graph of what comes after what: its mistakes, and how long a stop in its order takes. Pure.

A name in `after` is a companion, a copy of one, a group (``@GROUP``), or ``web``, the web workers. A node of
the graph is a companion with all its copies, or ``web``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol, TypeVar

from gunicorn.companion.checks import WEB, did_you_mean


class Ordered(Protocol):
    """The configuration of a companion, as far as it is about the order."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def groups(self) -> tuple[str, ...]: ...
    @property
    def after(self) -> tuple[str, ...]: ...
    @property
    def stop_after(self) -> tuple[str, ...]: ...
    @property
    def autostart(self) -> bool: ...
    @property
    def schedule(self) -> str | None: ...


Config = TypeVar("Config", bound=Ordered)
Graph = Mapping[str, Collection[str]]


class _Nodes:
    """Knows which nodes a name means."""

    def __init__(self, configs: Iterable[Ordered]) -> None:
        self._members: dict[str, set[str]] = {}
        for config in configs:
            for group in config.groups:
                self._members.setdefault(f"@{group}", set()).add(config.group)

    @property
    def groups(self) -> Collection[str]:
        return self._members.keys()

    def of(self, names: Iterable[str]) -> set[str]:
        found: set[str] = set()
        for name in names:
            found |= self._members.get(name) or {name.partition(":")[0]}
        return found


def start_graph(configs: Collection[Ordered], web_after: Iterable[str]) -> dict[str, set[str]]:
    """Map each node to those that it comes after."""
    nodes = _Nodes(configs)
    graph = {WEB: nodes.of(web_after) - {WEB}}
    for config in configs:
        graph.setdefault(config.group, set()).update(nodes.of(config.after))
    return graph


def stop_graph(configs: Collection[Ordered], web_after: Iterable[str]) -> dict[str, set[str]]:
    """Map each node to those that are stopped after it."""
    nodes = _Nodes(configs)
    graph = start_graph(configs, web_after)
    for config in configs:
        for node in nodes.of(config.stop_after):
            graph.setdefault(node, set()).add(config.group)
    return graph


def concerns_web(configs: Iterable[Ordered], web_after: Collection[str]) -> bool:
    """Whether the web tier has a place in the order."""
    return bool(web_after) or any(WEB in (*config.after, *config.stop_after) for config in configs)


def stop_times(
    configs: Collection[Config],
    web_after: Collection[str],
    seconds: Callable[[Config], float],
    web_seconds: float,
) -> dict[str, float]:
    """Return for each node the latest time at which it is gone, in seconds from the begin of a stop in order.

    *seconds*: the time that a companion has to end; *web_seconds*: the same of web workers.
    """
    from graphlib import TopologicalSorter

    own: dict[str, float] = {}
    for config in configs:
        own[config.group] = max(own.get(config.group, 0.0), seconds(config))
    if concerns_web(configs, web_after):
        own[WEB] = web_seconds
    told = dict.fromkeys(own, 0.0)
    graph = stop_graph(configs, web_after)
    # The sorter wants to know for each node those before it, and returns these first.
    for node in reversed(list(TopologicalSorter(graph).static_order())):
        for other in graph.get(node, ()):
            if node in told and other in told:
                told[other] = max(told[other], told[node] + own[node])
    return {node: told[node] + own[node] for node in own}


def order_problems(
    configs: Collection[Ordered], names: Collection[str], web_after: Collection[str]
) -> list[str]:
    """Report unknown names, and cycles, in which nothing could ever start or stop.

    *names*: those of all companions and copies, also of entries with other mistakes.
    """
    nodes = _Nodes(configs)
    companions = {*names, *nodes.groups}
    known = {*companions, WEB}
    problems = []
    for config in configs:
        for key in ("after", "stop_after"):
            problems += [
                f"companion {config.name!r}: {key}: no companion named {did_you_mean(name, known)}"
                for name in getattr(config, key)
                if name not in known
            ]
    problems += [
        f"web_after: no companion named {did_you_mean(name, companions)}"
        for name in web_after
        if name not in companions
    ]
    problems += [
        f"web_after: web workers would wait for {config.name!r} for ever, because its autostart is False"
        for config in configs
        if not config.autostart and config.name in nodes.of(web_after)
    ]
    problems += _waits_for_schedules(configs, web_after)
    if cycle := find_cycle(start_graph(configs, web_after)):
        label = "web_after" if cycle[0] == WEB else f"companion {cycle[0]!r}: after"
        problems.append(f"{label}: they wait for each other: {' -> '.join(cycle)}")
    elif cycle := find_cycle(stop_graph(configs, web_after)):
        culprit = next(
            config.name
            for config in configs
            if config.name in cycle and not nodes.of(config.stop_after).isdisjoint(cycle)
        )
        path = cycle[:0:-1]
        first = path.index(culprit)
        path = [*path[first:], *path[:first], culprit]
        problems.append(
            f"companion {culprit!r}: stop_after: each is stopped after the next one: {' -> '.join(path)}"
        )
    return problems


def _waits_for_schedules(configs: Collection[Ordered], web_after: Collection[str]) -> list[str]:
    """Report what would wait for the next time of a schedule, which may be far."""
    nodes = _Nodes(configs)
    scheduled = {config.group for config in configs if config.schedule is not None}
    waiting = {f"companion {config.name!r}: after": config.after for config in configs}
    return [
        f"{label}: {name!r} runs only at the times of its schedule, and nothing can wait for these"
        for label, after in {**waiting, "web_after": web_after}.items()
        for name in sorted(nodes.of(after) & scheduled)
    ]


def find_cycle(graph: Graph) -> list[str]:
    """Return the names along a cycle, which ends with the first one again; empty if there is none."""
    done: set[str] = set()
    for start in graph:
        # A dict, for a look-up in a long chain.
        path: dict[str, None] = {}
        # The nodes left to visit for each node on the path. Recursion would limit the length of a chain.
        branches = [iter([start])]
        while branches:
            name = next(branches[-1], None)
            if name is None:
                branches.pop()
                if path:
                    done.add(path.popitem()[0])
            elif name in path:
                names = list(path)
                return [*names[names.index(name) :], name]
            elif name not in done:
                path[name] = None
                branches.append(iter(sorted(graph.get(name, ()))))
    return []
