# SPDX-License-Identifier: MIT
"""Servers whose workers are tiny, and the record of what happened to them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from harness import Server, wait_until

HERE = Path(__file__).resolve().parent
APP = """
def app(environ, start_response):
    raise RuntimeError("tiny workers call no application")
"""
# Hooks that write down which process they run in.
HOOKS = """
import os

def on_starting(server): note("on_starting", os.getpid())
def when_ready(server): note("when_ready", os.getpid())
def on_reload(server): note("on_reload", os.getpid())
def pre_fork(server, worker): note("pre_fork", os.getpid(), worker.age)
def post_fork(server, worker): note("post_fork", os.getpid(), worker.age)
def post_worker_init(worker): note("post_worker_init", os.getpid(), worker.age)
def worker_exit(server, worker): note("worker_exit", os.getpid(), worker.age)
def child_exit(server, worker): note("child_exit", os.getpid(), worker.age)
def nworkers_changed(server, new, old): note("nworkers_changed", os.getpid(), new, old)
def pre_exec(server): note("pre_exec", os.getpid())
def on_exit(server): note("on_exit", os.getpid())
"""


def config(*parts: str, **settings: Any) -> str:
    """The text of a configuration file with tiny workers."""
    lines = ["from tinyworker import note", 'worker_class = "tinyworker.TinyWorker"']
    # A reload is final sooner.
    lines += ["import gunicorn.master.pool", "gunicorn.master.pool.PROBATION = 0.1"]
    lines += [f"{name} = {value!r}" for name, value in settings.items()]
    return "\n".join([*lines, *map(textwrap.dedent, parts)])


class TinyServer(Server):
    """A server of tiny workers; *mode* is how they behave (see tinyworker)."""

    def __init__(self, *parts: str, mode: str = "", args: Any = (), **settings: Any) -> None:
        options = {
            name: settings.pop(name)
            for name in ("bind", "ready", "files", "app", "env", "target", "popen", "expected_code", "prefix")
            if name in settings
        }
        expected = options.pop("expected_code", 0)
        if "bind_to" in settings:
            # Addresses in the configuration file, which a reload can change.
            settings["bind"] = settings.pop("bind_to")
        options.setdefault("ready", "listen" if mode in ("frozen", "undead") else "http")
        env = {"EVENTS": "events", "TINY": mode, **options.pop("env", {})}
        super().__init__(options.pop("app", APP), config(*parts, **settings), args, env=env, **options)
        self.env["EVENTS"] = str(self.dir / "events")
        self.env["PYTHONPATH"] += f":{HERE}"
        self.expected_code = expected

    def events(self, kind: str = "") -> list[list[str]]:
        """What was noted, a list of words each; with *kind*, those that begin with it, without it."""
        lines = [line.split() for line in self.log("events").splitlines()]
        return [line[1:] for line in lines if line[0] == kind] if kind else lines

    def wait_events(self, kind: str, count: int = 1, timeout: float = 20.0) -> list[list[str]]:
        """The events of *kind*, once there are *count* of them."""

        def enough() -> list[list[str]] | None:
            found = self.events(kind)
            return found if len(found) >= count else None

        found = wait_until(enough, timeout, lambda: f"{count} of {kind}; there are {self.events(kind)}")
        assert found is not None
        return found

    def running(self, count: int, without: Any = (), timeout: float = 20.0) -> list[int]:
        """The workers, once *count* of them run their loop and there are no others."""
        return wait_until(
            lambda: (
                pids
                if len(pids := self.workers()) == count
                and not set(pids) & set(without)
                and {str(pid) for pid in pids} <= {words[0] for words in self.events("run")}
                else None
            ),
            timeout,
            lambda: f"{count} workers; there are {self.workers()}",
        )
