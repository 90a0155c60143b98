# SPDX-License-Identifier: MIT
"""Imports point one way, and forks and signal handlers stay where they can be found."""

from __future__ import annotations

import ast
import functools
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "gunicorn"

# Each layer may import itself and those above it in this list. A name ending in ``.*`` is a whole
# package; the most exact entry counts.
LAYERS: list[list[str]] = [
    ["gunicorn", "gunicorn.errors", "gunicorn.unix.*", "gunicorn.http.grammar", "gunicorn.http.errors"],
    # Decisions over plain data, and what the command stands on.
    [
        "gunicorn.http.policy",
        "gunicorn.http.parse",
        "gunicorn.http.chunked",
        "gunicorn.http.environ",
        "gunicorn.http.head",
        "gunicorn.http.proxyproto",
        "gunicorn.logs",
        "gunicorn.logs.accesslog",
        "gunicorn.master",
        "gunicorn.master.pool",
        "gunicorn.master.handoff",
        "gunicorn.master.announce",
        "gunicorn.master.care",
        "gunicorn.memory",
        "gunicorn.scoreboard",
        "gunicorn.monitor",
        "gunicorn.monitor.access",
        "gunicorn.monitor.inherited",
        "gunicorn.monitor.timeline",
        "gunicorn.companion",
        "gunicorn.companion.runfile",
        "gunicorn.companion.child.*",
        "gunicorn.companion.client.*",
        "gunicorn.companion.ctl",
        "gunicorn.companion.importing.*",
        "gunicorn.monitor",
        "gunicorn.monitor.openmetrics",
    ],
    # The configuration, and what a companion is.
    [
        "gunicorn.loading",
        "gunicorn.static",
        "gunicorn.staticfiles",
        "gunicorn.settings.*",
        "gunicorn.config",
        "gunicorn.companion.checks",
        "gunicorn.companion.config",
        "gunicorn.companion.failures",
        "gunicorn.companion.graph",
        "gunicorn.companion.keys",
        "gunicorn.companion.leasing",
        "gunicorn.companion.leasing.store",
        "gunicorn.companion.leasing.timing",
        "gunicorn.companion.placeholders",
        "gunicorn.companion.status",
        "gunicorn.companion.probe",
        "gunicorn.companion.schedule",
        "gunicorn.companion.process",
        "gunicorn.app",
        "gunicorn.app.configfile",
        "gunicorn.app.start",
    ],
    # Sockets, files, logs, messages.
    [
        "gunicorn.sock",
        "gunicorn.systemd",
        "gunicorn.pidfile",
        "gunicorn.glogging",
        "gunicorn.logs.*",
        "gunicorn.instrument.*",
        "gunicorn.debug",
        "gunicorn.reloader",
        "gunicorn.http.*",
        "gunicorn.companion.control",
        "gunicorn.companion.helpers.*",
        "gunicorn.companion.output.*",
        "gunicorn.companion.server.link",
        "gunicorn.companion.table",
        "gunicorn.companion.totals",
    ],
    # What is done with a connection, and in a companion's own process.
    [
        "gunicorn.workers",
        "gunicorn.workers.threads.*",
        "gunicorn.workers.connection",
        "gunicorn.workers.bodies",
        "gunicorn.workers.cycle",
        "gunicorn.workers.retiring",
        "gunicorn.workers.workertmp",
        "gunicorn.companion.child.watch",
        "gunicorn.companion.spawn",
        "gunicorn.companion.probing.*",
        "gunicorn.companion.leasing.*",
    ],
    ["gunicorn.workers.base", "gunicorn.companion.supervise.*", "gunicorn.monitor.*"],
    ["gunicorn.workers.*", "gunicorn.companion.manager"],
    ["gunicorn.companion.server.*"],
    ["gunicorn.master.*", "gunicorn.arbiter"],
    ["gunicorn.app.*", "gunicorn.__main__"],
]
# For outsiders; what they re-export comes from everywhere, and nothing inside imports it.
OUTSIDE = {"gunicorn.util"}

# The master forks workers, one companion manager and its successor, each in the part that owns them.
MAY_FORK = {
    "gunicorn.master.workforce",
    "gunicorn.companion.server.handle",
    "gunicorn.master.succession",
    "gunicorn.companion.spawn",
    "gunicorn.companion.helpers.child",
    "gunicorn.companion.probing.commands",
    "gunicorn.unix.process",
}
MAY_HANDLE_SIGNALS = {"gunicorn.unix.signals"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["gunicorn", *path.relative_to(PACKAGE).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


MODULES = modules()


def layer(name: str) -> int | None:
    """The place of a module in the list; none if it has none."""
    best: tuple[int, int] | None = None
    for place, names in enumerate(LAYERS):
        for entry in names:
            package = entry.removesuffix(".*")
            matches = name == entry or (entry.endswith(".*") and (name + ".").startswith(package + "."))
            # An exact entry outranks a package, a longer package a shorter one.
            rank = len(package) + (1000 if name == entry else 0)
            if matches and (best is None or rank > best[0]):
                best = rank, place
    return best[1] if best else None


def imports(tree: ast.AST, package: str, for_types: bool = False) -> Iterator[tuple[int, str]]:
    """What a module imports when it runs; *for_types*: and what only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not for_types:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: 1 - node.level or None] if node.level else []
            source = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                module = f"{source}.{alias.name}"
                # ``from gunicorn import sock`` imports the module, not a name in the package.
                yield node.lineno, module if module in MODULES else source
        else:
            yield from imports(node, package, for_types)


@functools.cache
def parsed(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(), str(MODULES[name]))


def test_imports_point_one_way() -> None:
    wrong = [problem for name in MODULES if name not in OUTSIDE for problem in wrong_imports(name)]
    assert not wrong, "\n".join(wrong)


def wrong_imports(name: str) -> Iterator[str]:
    own = layer(name)
    if own is None:
        yield f"{name} has no layer: give it one in LAYERS"
        return
    for line, imported in imports(parsed(name), package_of(name)):
        if imported.split(".")[0] != "gunicorn":
            continue
        if imported in OUTSIDE:
            yield f"{name}:{line} imports {imported}, which is for outsiders"
        other = layer(imported)
        if other is None or other > own:
            yield f"{name}:{line} imports {imported}, a layer above its own"


def package_of(name: str) -> str:
    return name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]


@pytest.mark.parametrize(
    "package", ["companion", "http", "workers", "settings", "logs", "unix", "master", "monitor"]
)
def test_no_package_has_a_cycle(package: str) -> None:
    """Types count: whoever reads one of two files that know each other has to read the other."""
    inside = [name for name in MODULES if f"{name}.".startswith(f"gunicorn.{package}.")]
    graph = {
        name: {imported for _, imported in imports(parsed(name), package_of(name), for_types=True)}
        & set(inside) - {name, f"gunicorn.{package}"}
        for name in inside
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def uses(tree: ast.AST, module: str, names: set[str], but: Collection[ast.AST] = ()) -> Iterator[int]:
    """Lines that use ``module.name``, except for the nodes *but*, or import the name from the module."""
    for node in ast.walk(tree):
        if node in but:
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found = node.value.id == module and node.attr in names
        elif isinstance(node, ast.ImportFrom):
            found = node.module == module and bool(names & {alias.name for alias in node.names})
        else:
            continue
        if found:
            yield node.lineno


def test_forks_are_in_few_places() -> None:
    found = {name: list(uses(parsed(name), "os", {"fork", "forkpty", "posix_spawn"})) for name in MODULES}
    assert {name: lines for name, lines in found.items() if lines and name not in MAY_FORK} == {}


def test_signal_handlers_are_in_two_places() -> None:
    found = {
        name: list(handlers(parsed(name))) for name in MODULES if not name.startswith("gunicorn.workers.")
    }
    assert {name: lines for name, lines in found.items() if lines and name not in MAY_HANDLE_SIGNALS} == {}


def handlers(tree: ast.AST) -> Iterator[int]:
    """Lines that set signal handlers; back to the default is none."""
    resets = {
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "signal.signal"
        and ast.unparse(node.args[1]) == "signal.SIG_DFL"
    }
    return uses(tree, "signal", {"signal", "set_wakeup_fd", "siginterrupt"}, resets)


def test_the_list_is_not_behind() -> None:
    """Every entry of the list names something that is there."""
    for names in LAYERS:
        for entry in names:
            package = entry.removesuffix(".*")
            assert any(name == package or name.startswith(package + ".") for name in MODULES), entry
