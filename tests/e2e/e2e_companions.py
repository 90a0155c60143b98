# SPDX-License-Identifier: MIT
"""Shared pieces of the companion tests: building a configuration, reading the notes that targets leave."""

from __future__ import annotations

from typing import Any

from e2e_apps import JOBS, WEB
from harness import Server, children_of, conf, wait_until

#: Short times, so that a test is quick; each test overrides what it is about.
FAST: dict[str, Any] = {
    "companion_startsecs": 0.1,
    "companion_restart_delay": 0.3,
    "companion_stop_timeout": 10,
    "companion_reload_timeout": 10,
    "graceful_timeout": 5,
}

#: For the configuration file: lost sockets and run files are looked for twice a second, not every 5 s.
CHECKS_OFTEN = """
import gunicorn.companion.server.handle, gunicorn.companion.control
gunicorn.companion.server.handle.SOCKET_CHECK_INTERVAL = gunicorn.companion.control.RETRY_INTERVAL = 0.5
"""


def entry(name: str, target: str | None = None, **keys: Any) -> dict[str, Any]:
    """One companion; its target is the function of its own name in ``jobs.py`` unless said otherwise."""
    return {"name": name, "target": f"jobs:{target or name}", **keys}


def config_text(*companions: dict[str, Any], extra: str = "", **settings: Any) -> str:
    return conf(**{**FAST, "companion_workers": list(companions), **settings}) + extra


def take_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the keywords ending in ``_option`` out of *settings*; return them without that ending."""
    names = [name for name in settings if name.endswith("_option")]
    return {name.removesuffix("_option"): settings.pop(name) for name in names}


def companion_server(*companions: dict[str, Any], extra: str = "", **settings: Any) -> Server:
    """A server (not started) with these companions; keywords ending in ``_option`` go to ``Server``."""
    options = take_options(settings)
    files = {"jobs.py": JOBS, **options.pop("files", {})}
    app = options.pop("app", WEB)
    server = Server(app, config_text(*companions, extra=extra, **settings), files=files, **options)
    server.notes_starts = True
    return server


def reconfigure(server: Server, *companions: dict[str, Any], extra: str = "", **settings: Any) -> None:
    server.write("gunicorn.conf.py", config_text(*companions, extra=extra, **settings))


def wait_waiting(server: Server, name: str, pid: int | None) -> None:
    """Wait until companion *name* waits for its older process *pid*."""
    wait_until(
        lambda: (
            (found := server.companion(name))["state"] == "STARTING"
            and found["pid"] is None
            and found["description"] == f"waiting for pid {pid}"
        ),
        20,
        lambda: f"{name} waits for {pid}: {server.companion(name)}",
    )


def keeper_of(server: Server, without: int | None = None) -> int:
    """The log keeper: the manager's child that is no companion. It may just be started anew."""

    def found() -> int | None:
        own = {pid for pid in pids(server).values() if pid}
        others = set(children_of(server.wait_manager())) - own - {without}
        return others.pop() if len(others) == 1 else None

    keeper: int = wait_until(found, 5, "the log keeper")
    return keeper


def starts(server: Server, name: str) -> list[tuple[int, float]]:
    """(pid, wall-clock time) of each start of a companion, in order."""
    lines = [line.split() for line in server.log(f"{name}.starts").splitlines()]
    return [(int(line[0]), float(line[1])) for line in lines if len(line) == 2]


def signals(server: Server, name: str) -> list[tuple[int, int, float]]:
    """(pid, signal, time) of each signal that a companion has noted."""
    lines = [line.split() for line in server.log(f"{name}.signals").splitlines()]
    return [(int(line[0]), int(line[1]), float(line[2])) for line in lines if len(line) == 3]


def overlaps(server: Server) -> list[str]:
    """The companions that ran beside an older process of their own."""
    return sorted(path.name for path in server.dir.glob("*.overlap"))


def pids_in(server: Server, name: str) -> list[int]:
    return [int(line) for line in server.log(name).split()]


def pids(server: Server) -> dict[str, int | None]:
    return {name: entry["pid"] for name, entry in server.companions().items()}
