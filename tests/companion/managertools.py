# SPDX-License-Identifier: MIT
"""A real companion manager for a test: started, configured, asked, signalled, ended with all it started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from companiontools import Script
from harness import (
    Control,
    descendants_of,
    is_alive,
    kill_all,
    kill_quietly,
    reap_zombies,
    session_of,
    short_tmpdir,
    wait_until,
)

# Quick companions; each key can be set anew.
QUICK = "settings = dict(startsecs=0, restart_delay=0.1, stop_timeout=20, reload_timeout=20)\n"


class Managed:
    """A master with its manager, in a directory of its own.

    *config* is Python text that sets ``workers``, and may set ``settings`` (global defaults without their
    ``companion_``) and ``hook``; ``T`` in it is the module of targets.
    """

    def __init__(self, masters: Script, config: str, directory: Path | None = None, **plan: Any) -> None:
        self.directory = directory or short_tmpdir()
        self.owned = directory is None
        self.socket = self.directory / "c.sock"
        self.run_dir = self.directory / "run"
        self.pids: set[int] = set()
        self.configure(config)
        full = {
            "directory": str(self.directory),
            "control": str(self.socket),
            "run_dir": str(self.run_dir),
            "graceful_timeout": 30,
            "stop_order": "reverse",
            "state": {},
            "reread": True,
            **plan,
        }
        self.listens = full["control"] is not None
        self.socket = Path(full["control"] or self.socket)
        masters.stdin.write(json.dumps(full).encode() + b"\n")
        masters.stdin.flush()
        self.master = int(masters.line())
        self.manager = 0

    def ready(self) -> Managed:
        """Wait for the manager's first answer."""
        self.manager = self.wait_manager()
        return self

    # -- files --

    def configure(self, config: str) -> None:
        text = textwrap.dedent(config)
        fresh = self.directory / "conf.new"
        fresh.write_text(text if "settings" in text else QUICK + text)
        os.replace(fresh, self.directory / "conf.py")

    def read(self, name: str) -> str:
        try:
            return (self.directory / name).read_text()
        except FileNotFoundError:
            return ""

    def log(self) -> str:
        return self.read("log")

    def told(self, name: str) -> list[str]:
        """What a companion told, line by line."""
        return self.read(f"{name}.told").splitlines()

    def wait_told(self, name: str, start: str, count: int = 1) -> str:
        """What follows *start* in the last of *count* lines that begin with it."""

        def found() -> list[str] | None:
            lines = [line for line in self.told(name) if line.startswith(start)]
            return lines if len(lines) >= count else None

        lines = wait_until(found, 20, lambda: f"{count} x {start!r} of {name}: {self.told(name)}")
        assert lines is not None
        return lines[count - 1][len(start) :].strip()

    def go_on(self) -> None:
        """What drains may end."""
        (self.directory / "go").touch()

    def events(self, key: str) -> list[Any]:
        """What the master noted: ``started``, ``ended``, ``message`` (but that a reread begins)."""
        found = (json.loads(line) for line in self.read("events").splitlines())
        return [event[key] for event in found if key in event and event[key] != {"rereading": True}]

    # -- the processes --

    def wait_manager(self, count: int = 1) -> int:
        """The pid of the *count*-th manager, when it answers."""
        wait_until(lambda: len(self.events("started")) >= count, 20, lambda: self.read("output"))
        pid: int = self.events("started")[count - 1]
        if self.listens:
            wait_until(lambda: self.peer() == pid, 20, lambda: f"answer of {pid}: {self.log()}")
        return pid

    def peer(self) -> int:
        with Control(self.socket) as control:
            return control.peer_pid()

    def order(self, **order: Any) -> None:
        """Tell the master: ``spawn={}`` another manager, ``send={…}`` over the link."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(json.dumps(order).encode(), str(self.directory / "orders"))

    def respawn(self, **plan: Any) -> int:
        """Another manager, once it answers."""
        count = len(self.events("started"))
        self.order(spawn=plan)
        self.manager = self.wait_manager(count + 1)
        return self.manager

    def signal(self, signum: int) -> None:
        os.kill(self.manager, signum)

    def kill_manager(self) -> None:
        self.signal(signal.SIGKILL)
        wait_until(lambda: self.manager in self.events("ended"), 20, "the manager reaped")

    def wait_end(self, timeout: float = 20) -> None:
        """The manager has ended well, and nothing of it is left."""
        wait_until(
            lambda: self.manager in self.events("ended"),
            timeout,
            lambda: f"the end of the manager: {self.log()}",
        )
        ends = dict(zip(self.events("ended"), self.events("code"), strict=True))
        assert ends[self.manager] == 0, self.read("output")
        assert not self.socket.exists()
        assert not self.run_dir.exists() or list(self.run_dir.iterdir()) == []

    def end(self) -> None:
        """Kill all of it."""
        everything = {self.master, *descendants_of(self.master)}
        for event in self.events("started"):
            everything.update((event, *descendants_of(event)))
        # Orphans are children of the test process; their sessions are those that were told.
        for path in self.directory.glob("*.told"):
            for word in path.read_text().split():
                if word.isdigit():
                    everything.add(int(word))
        # Until a look finds none: one look misses a process that just gets another parent, and what a
        # companion has just forked is known by its session only.
        while alive := [
            pid for pid in descendants_of(os.getpid()) if is_alive(pid) and _is_of(everything, pid)
        ]:
            everything.update(alive)
            kill_all(alive)
            reap_zombies()
        if self.owned:
            shutil.rmtree(self.directory, ignore_errors=True)

    # -- the control socket --

    def ask(self, cmd: str, name: str | None = None, **more: Any) -> dict[str, Any]:
        with Control(self.socket) as control:
            return control.ask(cmd, name, **more)

    def ok(self, cmd: str, name: str | None = None, **more: Any) -> dict[str, Any]:
        reply = self.ask(cmd, name, **more)
        assert reply["ok"], reply
        return reply

    def status(self) -> dict[str, dict[str, Any]]:
        return {entry["name"]: entry for entry in self.ok("status")["companions"]}

    def wait(
        self, name: str, state: str = "RUNNING", *, without: Sequence[int] = (), timeout: float = 20
    ) -> dict[str, Any]:
        """The status of *name* once it is in *state*, under a pid that is none of *without*."""
        last: dict[str, Any] = {}

        def right() -> dict[str, Any] | None:
            last.clear()
            last.update(self.status().get(name, {}))
            return dict(last) if last.get("state") == state and last["pid"] not in without else None

        found = wait_until(right, timeout, lambda: f"{name} {state}; last {last}; {self.log()}")
        assert found is not None
        return found

    def pid(self, name: str, *, without: Sequence[int] = ()) -> int:
        """The pid of *name*, when it runs."""
        pid: int = self.wait(name, without=without)["pid"]
        return pid


def _is_of(known: set[int], pid: int) -> bool:
    try:
        return pid in known or os.getsid(pid) in known
    except ProcessLookupError:
        return False


def gone(*pids: int) -> None:
    """Wait until none of them lives."""
    wait_until(lambda: not any(map(is_alive, pids)), 20, lambda: f"{[p for p in pids if is_alive(p)]} gone")


def empty(session: int) -> None:
    """Wait until a session has no member."""
    wait_until(lambda: not session_of(session), 20, lambda: f"session {session} empty: {session_of(session)}")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing for a while."""
    kill_quietly(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        kill_quietly(pid, signal.SIGCONT)
