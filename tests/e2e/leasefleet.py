# SPDX-License-Identifier: MIT
"""Servers that stand for as many hosts, with one companion that may run on one of them at a time."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from e2e_companions import config_text
from harness import Server, descendants_of, is_alive, short_tmpdir, wait_until
from proctools import cmdline_of, read_proc

from gunicorn.unix import boottime

#: It notes that it is alive, fifty times a second, with its token and by the clock that all processes share.
JOBS = """
import os, signal, time
from gunicorn.companion import lease

def run():
    asked = []
    signal.signal(signal.SIGTERM, lambda *args: asked.append(time.monotonic()))
    mine, drain = lease(), float(os.environ["DRAIN"])
    assert str(mine.token) == os.environ["GUNICORN_LEASE_TOKEN"]
    fd = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    while not asked or time.monotonic() < asked[0] + drain:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        os.write(fd, f"{os.getpid()} {mine.token} {now:.6f}\\n".encode())
        time.sleep(0.02)
"""
WITHOUT_GUARD = """
import gunicorn.companion.leasing.guard
gunicorn.companion.leasing.guard.Guard._kill = lambda self, over: self.watched.clear()
"""
# libfaketime 0.9.10 knows neither this clock nor clock_nanosleep(2), and it moves the alarms of the clock
# that it leaves alone: the guard's would ring an hour late. So that system call (of x86-64) passes by it.
WITH_FAKETIME = """
import ctypes, select, time
from gunicorn.unix import boottime, libc
boottime.CLOCK = time.CLOCK_BOOTTIME = time.CLOCK_MONOTONIC
libc._timerfd_settime = lambda *args: ctypes.CDLL(None).syscall(286, *args)
time.sleep = lambda seconds: select.select([], [], [], seconds)
"""
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


class Life(NamedTuple):
    """A process of the companion, by its own notes."""

    begin: float
    end: float
    pid: int
    token: int


class Fleet:
    """*count* servers with the store *url*, or one each; by default a directory of their own."""

    def __init__(
        self,
        count: int,
        url: str | Sequence[str] = "",
        seed: int = 1,
        *,
        guard: bool = True,
        steps: bool = False,
        **settings: Any,
    ) -> None:
        self.draw = random.Random(seed)
        self.dir = short_tmpdir()
        self.urls = [url or f"file://{self.dir}/leases"] * count if isinstance(url, str) else list(url)
        # Whether the clocks of the servers can be set: see `Faults.step`.
        self.steps = steps
        self.guard = guard
        self.settings: dict[str, Any] = {"companion_lease_ttl": 5, "companion_lease_margin": 1, **settings}
        self.ttl: float = self.settings["companion_lease_ttl"]
        self.history: list[str] = []
        self.servers = [self._new_server(index) for index in range(count)]

    def _new_server(self, index: int) -> Server:
        return Server(
            config=self.config(index), files={"jobs.py": JOBS}, ready="listen", env=self.environment(index)
        )

    def environment(self, index: int) -> dict[str, str | None]:
        if not self.steps:
            return {}
        clock = self.clock(index)
        clock.write_text("+0")
        return {
            "LD_PRELOAD": FAKETIME,
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def clock(self, index: int) -> Path:
        """What is added to the clock on the wall of that server."""
        return self.dir / f"clock{index}"

    def config(self, index: int, drain: float = 0.0) -> str:
        job = {
            "name": "one",
            "target": "jobs:run",
            "lease": "shop",
            "env": {"JOURNAL": str(self.dir / "journal"), "DRAIN": str(drain)},
            "stop_timeout": 1,
            "reload_timeout": 1,
        }
        settings = {
            "companion_lease_store": self.urls[index],
            "companion_restart_delay": 0.1,
            "companion_startsecs": 0,
            "graceful_timeout": 2,
            **self.settings,
        }
        extra = ("" if self.guard else WITHOUT_GUARD) + (WITH_FAKETIME if self.steps else "")
        return config_text(job, extra=extra, **settings)

    def end(self) -> None:
        for server in self.servers:
            server.kill_tree()
            shutil.rmtree(server.dir, ignore_errors=True)
        shutil.rmtree(self.dir, ignore_errors=True)

    # -- processes ---------------------------------------------------------------

    def process(self, server: Server, kind: str) -> int | None:
        """The pid of a process of *server* by its title, such as ``companion lease keeper``."""
        if kind == "master":
            return server.pid
        title = f"gunicorn: companion {kind}"
        return next((pid for pid in descendants_of(server.pid) if cmdline_of(pid) == title), None)

    def signal(self, server: Server, kind: str, signum: int) -> int | None:
        pid = self.process(server, kind)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        return pid

    # -- what the companions have noted ------------------------------------------

    def lives(self) -> list[Life]:
        """All of them, in the order of their beginnings."""
        found: dict[tuple[int, int], list[float]] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.dir / "journal").read_text().splitlines():
                pid, token, when = line.split()
                found.setdefault((int(pid), int(token)), []).append(float(when))
        return sorted(Life(min(times), max(times), *who) for who, times in found.items())

    def check(self) -> None:
        """No two of them at once, and each with a larger token than all before."""
        lives = self.lives()
        for one, other in itertools.pairwise(lives):
            assert one.end < other.begin, f"{other} began before {one} ended"
            assert one.token < other.token, f"{other} has no larger token than {one}"

    def wait_life(self, after: Life | None = None, timeout: float = 20.0) -> Life:
        """One that is alive now and began after *after*."""

        def found() -> Life | None:
            lives = self.lives()
            if not lives or (after is not None and lives[-1].begin <= after.begin):
                return None
            return lives[-1] if lives[-1].end > boottime.now() - 0.2 else None

        life = wait_until(found, timeout, lambda: f"one runs; {self.lives()[-3:]}")
        assert life is not None
        return life

    def holder(self) -> Server | None:
        """The server whose companion runs."""
        return next((each for each in self.servers if self.process(each, "[one]")), None)

    def describe(self) -> str:
        lines = [*self.history, "---- lives", *map(str, self.lives())]
        for server in self.servers:
            lines += [f"---- {server.pid}", server.log()]
        return "\n".join(lines)


class Faults(Fleet):
    """Random faults. *store_faults* are those of the store: each is called, and what it returns ends it."""

    def __init__(
        self,
        count: int,
        url: str | Sequence[str] = "",
        seed: int = 1,
        store_faults: Any = (),
        **settings: Any,
    ) -> None:
        super().__init__(count, url, seed, **settings)
        self.store_faults = store_faults
        self.bag: list[Callable[[], object]] = []
        # What ends faults that last, and when.
        self.ends: list[tuple[float, Callable[[], object]]] = []

    def all_faults(self) -> list[Callable[[], object]]:
        kinds = ("[one]", "lease keeper", "lease guard", "manager", "master")
        kills = [lambda kind=kind: self.kill(kind) for kind in kinds]
        stops = [lambda kind=kind: self.stop(kind) for kind in kinds]
        both = [lambda: self.stop("manager", "lease keeper"), lambda: self.stop("manager", "[one]")]
        deploys = [self.deploy, self.reload, self.upgrade, self.restart]
        return [
            *kills,
            *stops,
            *both,
            *deploys,
            *([self.step] if self.steps else []),
            *(lambda f=f: self.store_fault(f) for f in self.store_faults),
        ]

    def go(self) -> None:
        """One fault, mostly where the companion runs."""
        self.end_faults(time.monotonic())
        self.start_dead()
        if not self.bag:
            self.bag = self.draw.sample(self.all_faults(), len(self.all_faults()))
        self.bag.pop()()
        time.sleep(self.draw.choice([0.0, 0.1, 0.5, 1.0, 2.0]))
        self.check()

    def some_server(self) -> Server:
        return (self.draw.random() < 0.7 and self.holder()) or self.draw.choice(self.servers)

    def note(self, text: str) -> None:
        self.history.append(f"{boottime.now():.2f} {text}")

    def kill(self, kind: str) -> None:
        server = self.some_server()
        if kind == "lease guard" and not self.works(server, "manager"):
            # One of the two must be there to end the companion in time.
            return
        self.note(f"kill {kind} of {server.pid}")
        if kind == "master":
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            self.start_anew(server)
        else:
            self.signal(server, kind, signal.SIGKILL)

    def works(self, server: Server, kind: str) -> bool:
        pid = self.process(server, kind)
        proc = read_proc(pid) if pid is not None else None
        return proc is not None and proc.state != "T"

    def start_anew(self, server: Server) -> None:
        index = self.servers.index(server)
        fresh = Server(directory=server.dir, ready=None, env=self.environment(index))
        # The harness removes only what it owns.
        self.servers[index] = fresh.start()

    def start_dead(self) -> None:
        """Start anew what a signal has ended before it could handle it."""
        for server in list(self.servers):
            if not is_alive(server.pid):
                self.start_anew(server)

    def stop(self, *kinds: str) -> None:
        server, seconds = self.some_server(), self.draw.uniform(0.1, 1.6) * self.ttl
        for one, other in itertools.permutations(("manager", "lease guard")):
            if one in kinds and not self.works(server, other):
                return
        self.note(f"stop {kinds} of {server.pid} for {seconds:.1f} s")
        for kind in kinds:
            pid = self.signal(server, kind, signal.SIGSTOP)
            if pid is not None:
                self.ends.append((time.monotonic() + seconds, lambda pid=pid: go_on(pid)))

    def end_faults(self, now: float) -> None:
        for end in [end for end in self.ends if end[0] <= now]:
            self.ends.remove(end)
            end[1]()

    def deploy(self) -> None:
        server = self.some_server()
        self.note(f"stop and start {server.pid}")
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGCONT)
        if self.draw.random() < 0.5:
            wait_until(lambda: server.proc is None or server.proc.poll() is not None, 20, "gone")
        self.start_anew(server)

    def reload(self) -> None:
        server = self.some_server()
        drain = self.draw.choice([0.0, 0.3, 1000.0])
        self.note(f"reload {server.pid}, drain {drain}")
        server.write("gunicorn.conf.py", self.config(self.servers.index(server), drain))
        server.signal(signal.SIGHUP)

    def upgrade(self) -> None:
        server = self.some_server()
        self.note(f"upgrade {server.pid}")
        server.signal(signal.SIGCONT)
        server.signal(signal.SIGUSR2)
        with contextlib.suppress(AssertionError):
            new = wait_until(server.new_master, 10, "a new master")
            time.sleep(self.draw.uniform(0, 1))
            server.signal(signal.SIGTERM)
            wait_until(lambda: server.proc is None or server.proc.poll() is not None, 20, "gone")
            server.adopt(new)

    def step(self) -> None:
        """Set a clock; it stays so until the server is started anew."""
        server = self.some_server()
        offset = self.draw.choice(["+0", "+20", "-20", "+3600", "-3600", "+86400"])
        self.note(f"clock of {server.pid} {offset}")
        self.clock(self.servers.index(server)).write_text(offset)

    def restart(self) -> None:
        server = self.some_server()
        self.note(f"restart on {server.pid}")
        with contextlib.suppress(OSError, AssertionError):
            server.ask("restart", "one", timeout=1.0)

    def store_fault(self, fault: Any) -> None:
        # There are several, one after the other; and a store that is always away tries nothing.
        seconds = self.draw.uniform(0.05, self.draw.choice([0.3, 1.2])) * self.ttl
        self.note(f"store: {getattr(fault, '__name__', fault)} for {seconds:.1f} s")
        self.ends.append((time.monotonic() + seconds, fault()))

    def run(self, count: int) -> float:
        """Have so many faults; return the seconds after the last one until one runs."""
        for server in self.servers:
            server.start()
        self.wait_life()
        for _ in range(count):
            self.go()
        self.end_faults(float("inf"))
        self.start_dead()
        began = time.monotonic()
        self.wait_life(timeout=self.ttl + 20)
        self.check()
        return time.monotonic() - began


def go_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
