# SPDX-License-Identifier: MIT
"""A singleton never runs twice at once, whatever happens to its servers, and in the end it runs.

By hand, for longer: ``NEVER_TWO_EVENTS=200 NEVER_TWO_SEED=7 pytest -k never_two``.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from e2e_companions import config_text
from harness import Server, is_alive, short_tmpdir, wait_until

EVENTS = int(os.environ.get("NEVER_TWO_EVENTS", "26"))
SEED = int(os.environ.get("NEVER_TWO_SEED", "20"))

#: It holds a lock as long as it lives. The kernel takes the lock away at its death and not before, so a
#: process that has it and then notes its start does so after the death of every process before it.
JOBS = """
import fcntl, os, signal, time

HERE = os.path.dirname(os.path.abspath(__file__))
PATH = os.path.join(HERE, "singleton.log")

def note(*words):
    fd = os.open(PATH, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
    os.close(fd)

def birth(pid):
    # The start time tells a process from a later one with its pid; None if it is gone.
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]

def run():
    asked = []
    signal.signal(signal.SIGTERM, lambda *args: asked.append(time.monotonic()))
    lock = open(os.path.join(HERE, "singleton.lock"), "a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        note("overlap", os.getpid(), time.monotonic())
    if os.path.exists(PATH):
        with open(PATH) as file:
            for line in file:
                words = line.split()
                if words[0] == "start" and birth(words[1]) == words[3]:
                    note("beside", os.getpid(), words[1])
    note("start", os.getpid(), time.monotonic(), birth(os.getpid()))
    drain = float(os.environ["DRAIN"])
    while not asked or time.monotonic() < asked[0] + drain:
        time.sleep(0.005)
    note("end", os.getpid(), time.monotonic())
"""
APP = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n"
PINGS = "import gunicorn.companion.server.handle as handle\nhandle.PING_WARN, handle.PING_KILL = 0.5, 1\n"


class World:
    """The servers on one run directory; *main* is the server that remains."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.dir = short_tmpdir()
        self.history: list[str] = []
        # Events still to be drawn before any of them is drawn again.
        self.bag: list[Callable[[World], None]] = []
        self.servers: list[Server] = []
        (self.dir / "jobs.py").write_text(JOBS)
        (self.dir / "app.py").write_text(APP)
        self.configure()
        self.main = self.start()

    def configure(self) -> None:
        """Write a configuration with another environment; with some the singleton ignores its stop signal."""
        drain = self.draw.choice(["0", "0.05", "0.3", "1000"])
        settings: dict[str, Any] = {
            "companion_run_dir": "files",
            "companion_restart_delay": 0.1,
            "companion_startsecs": 0,
            "graceful_timeout": 2,
            "companion_reload": self.draw.choice(["changed", "changed", "all"]),
        }
        job = {
            "name": "one",
            "target": "jobs:run",
            "env": {"DRAIN": drain, "NUMBER": str(len(self.history))},
            "stop_timeout": 1,
            "reload_timeout": 0.7,
        }
        fresh = self.dir / "gunicorn.conf.py.new"
        fresh.write_text(config_text(job, extra=PINGS, **settings))
        os.replace(fresh, self.dir / "gunicorn.conf.py")

    def start(self) -> Server:
        server = Server(directory=self.dir, ready="listen")
        self.servers.append(server)
        return server.start()

    def pause(self, longest: float = 0.5) -> None:
        time.sleep(self.draw.uniform(0, longest))

    def log(self) -> list[list[str]]:
        with contextlib.suppress(FileNotFoundError):
            return [line.split() for line in (self.dir / "singleton.log").read_text().splitlines()]
        return []

    # -- events --

    def kill_manager(self) -> None:
        self.signal_manager(signal.SIGKILL)

    def stop_manager(self) -> None:
        """It hangs until the arbiter notices."""
        self.signal_manager(signal.SIGSTOP)

    def signal_manager(self, sig: int) -> None:
        manager = self.main.manager()
        if manager is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(manager, sig)

    def kill_singleton(self) -> None:
        starts = [words for words in self.log() if words[0] == "start"]
        if starts and is_alive(int(starts[-1][1])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(starts[-1][1]), signal.SIGKILL)

    def kill_arbiter(self) -> None:
        self.main.kill()
        self.main = self.start()

    def kill_arbiter_and_manager(self) -> None:
        self.signal_manager(signal.SIGKILL)
        self.kill_arbiter()

    def stop_and_start(self) -> None:
        """As ``systemctl restart``, or as an administrator who does not wait for the end."""
        self.main.signal(self.draw.choice([signal.SIGTERM, signal.SIGQUIT]))
        if self.draw.random() < 0.5:
            self.main.wait_exit()
        old, self.main = self.main, self.start()
        if old.exit_code is None:
            old.wait_exit()

    def reload(self) -> None:
        self.configure()
        self.main.signal(signal.SIGHUP)

    def reread(self) -> None:
        self.configure()
        self.ask("reread")

    def restart(self) -> None:
        self.ask("restart", "one")

    def ask(self, *words: str) -> None:
        # There may be no manager just now.
        with contextlib.suppress(OSError):
            self.main.ask(*words)

    def upgrade_and_roll_back(self) -> None:
        new = self.upgrade()
        self.pause(1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(new, self.draw.choice([signal.SIGTERM, signal.SIGKILL]))
        wait_until(lambda: not is_alive(new), 20, "the new master gone")
        wait_until(lambda: self.main.new_master() is None, 20, "the roll-back")

    def upgrade_and_complete(self) -> None:
        new = self.upgrade()
        self.pause(1)
        sig = self.draw.choice([signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
        self.main.signal(sig)
        self.main.wait_exit()
        self.main.adopt(new)
        wait_until(lambda: self.main.get("/").status == 200, 20, "the new master serves")

    def upgrade(self) -> int:
        self.main.signal(signal.SIGUSR2)
        return wait_until(self.main.new_master, 20, "a new master") or 0

    def second_server(self) -> None:
        """Start another server on the same run directory, and stop or kill one of them."""
        other = self.start()
        self.pause(1)
        if self.draw.random() < 0.5:
            self.main, other = other, self.main
        if self.draw.random() < 0.5:
            other.kill()
        else:
            other.stop()

    EVENTS: tuple[Callable[[World], None], ...] = (
        kill_manager,
        stop_manager,
        kill_singleton,
        kill_arbiter,
        kill_arbiter_and_manager,
        stop_and_start,
        reload,
        reread,
        restart,
        restart,
        upgrade_and_roll_back,
        upgrade_and_complete,
        second_server,
    )

    def go(self) -> None:
        if not self.bag:
            self.bag = self.draw.sample(self.EVENTS, len(self.EVENTS))
        event = self.bag.pop()
        self.history.append(f"{time.monotonic():.2f} {event.__name__}")
        event(self)
        if self.draw.random() < 0.7:
            self.pause()
        self.check()

    # -- what must hold --

    def check(self) -> None:
        running: tuple[str, float] | None = None
        ended_at = 0.0
        for kind, pid, when, *_ in self.log():
            assert kind in ("start", "end"), (kind, pid, when)
            if kind == "start":
                assert float(when) >= ended_at, f"{pid} started before {running} ended"
                running = pid, float(when)
            else:
                assert running is not None and running[0] == pid, f"{pid} ended while {running} ran"
                ended_at = float(when)

    def check_end(self) -> None:
        found = self.main.wait_companion("one", timeout=20)
        wait_until(
            lambda: self.log()[-1][:2] == ["start", str(found["pid"])], 20, lambda: f"{self.log()[-3:]}"
        )
        self.check()
        assert self.main.stop() == 0
        assert not is_alive(found["pid"])
        files = self.dir / "files"
        wait_until(lambda: not files.exists(), 10, lambda: f"left behind: {list(files.iterdir())}")

    def end(self) -> None:
        for server in self.servers:
            server.kill_tree()
        shutil.rmtree(self.dir, ignore_errors=True)

    def describe(self) -> str:
        lines = "\n".join(" ".join(words) for words in self.log())
        return (
            f"seed {SEED}\n"
            + "\n".join(self.history)
            + f"\n---- singleton.log\n{lines}\n---- server.log\n{self.main.log()}"
        )


@pytest.mark.timeout(60 + 5 * EVENTS)
def test_never_two() -> None:
    world = World(SEED)
    try:
        for _ in range(EVENTS):
            world.go()
        world.check_end()
        starts = [words for words in world.log() if words[0] == "start"]
        assert len(starts) > EVENTS // 3
    except BaseException:
        print(world.describe())
        raise
    finally:
        world.end()
