# SPDX-License-Identifier: MIT
"""Why a companion has ended: one word, the same in status, events, history, log and metrics."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from e2e_companions import companion_server, entry, reconfigure, wait_waiting
from harness import Control, Server, wait_until
from test_e2e_companion_commands import ctl
from test_e2e_statsd import Daemon

JOBS = """
import socket, os, time

def idle():
    while True:
        time.sleep(60)

def crash():
    raise KeyError("price")

def done():
    pass

def grows():
    held = bytes(b"x") * 20_000_000
    idle()

def ready():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        path = os.environ["NOTIFY_SOCKET"]
        sock.sendto(b"READY=1", "\\0" + path[1:] if path.startswith("@") else path)
    idle()

def hoards():
    held = []
    while True:
        held.append(bytes(b"x") * 1_000_000)
"""

# Memory is measured twice a second, not every 5 s.
MEASURES_OFTEN = """
import gunicorn.companion.supervise.memory
gunicorn.companion.supervise.memory.MEMORY_INTERVAL = 0.5
"""

# By companion: the cause, and the reason.
CAUSES = {
    "crash": ("crash", "exited with status 1 (KeyError: 'price')"),
    "done": ("exit", "exited with status 0"),
    "asked": ("command", "by command"),
    "reread": ("reread", "its configuration has changed"),
    "reloaded": ("reload", "its configuration has changed"),
    "grows": ("memory", None),
    "old": ("lifetime", "it has lived for 0.5s"),
    "silent": ("watchdog", "no WATCHDOG=1 for 0.5s"),
    "unready": ("not ready", "not ready within 0.3s"),
    "killed": ("killed", "killed by SIGKILL"),
}


def companions(**changed: dict[str, Any]) -> list[dict[str, Any]]:
    long = {"restart_delay": 60}
    found = [
        entry("crash", startsecs=0, **long),
        entry("done", startsecs=0, autorestart="never"),
        entry("asked", "idle"),
        entry("reread", "idle"),
        entry("reloaded", "idle"),
        entry("grows", max_memory="10M"),
        entry("old", "idle", max_lifetime=0.5),
        entry("silent", "ready", ready="notify", watchdog=0.5, **long),
        entry("unready", "idle", ready="notify", start_timeout=0.3, **long),
        entry("killed", "idle", **long),
        entry("gave", "crash", start_retries=1, startsecs=5),
        entry("waits", "idle", after=["gave"]),
    ]
    return [{**one, **changed.get(one["name"], {})} for one in found]


class Events:
    """What ``events`` has told so far."""

    def __init__(self, server: Server) -> None:
        self.control = Control(server.control_path(), 20)
        self.control.ask("events")
        self.seen: list[dict[str, Any]] = []

    def wait(self, name: str, event: str) -> dict[str, Any]:
        """The next event of that kind, or one seen before."""
        while True:
            for one in self.seen:
                if (one["name"], one["event"]) == (name, event):
                    return one
            self.seen.append(self.control.read_reply())


def is_logged(server: Server, *parts: str) -> bool:
    return any(all(part in line for part in parts) for line in server.log().splitlines())


def counted(scrape: str, what: str, name: str, cause: str) -> int:
    """The count of a cause in the text for Prometheus; 0 where it is not there."""
    start = f'gunicorn_companion_{what}_total{{companion="{name}",cause="{cause}"}} '
    return sum(int(line.removeprefix(start)) for line in scrape.splitlines() if line.startswith(start))


def test_the_cause_has_one_word_everywhere() -> None:
    daemon = Daemon()
    settings = {
        "statsd_host": daemon.address,
        "dogstatsd_tags": "env:test",
        "files_option": {"jobs.py": JOBS},
        "extra": MEASURES_OFTEN,
    }
    made = companion_server(*companions(gave={"autostart": False}), **settings)
    made.notes_starts = False
    with made as server:
        del settings["files_option"]
        for name in ("asked", "reread", "reloaded", "killed"):
            server.wait_companion(name)
        events = Events(server)
        assert server.ask("start", "gave")["ok"]
        assert server.ask("restart", "asked")["ok"]
        server.signal(signal.SIGKILL, server.companion("killed")["pid"])
        env = {"env": {"A": "b"}}
        reconfigure(server, *companions(reread=env), **settings)
        assert server.ask("reread")["restarted"] == ["reread"]
        events.wait("reread", "exit")
        reconfigure(server, *companions(reread=env, reloaded=env), **settings)
        server.signal(signal.SIGHUP)
        # Those that may have ended before anybody followed.
        early = {"crash", "done", "unready", "silent", "old"}
        for name, (cause, reason) in CAUSES.items():
            if name not in early:
                told = events.wait(name, "exit")
                assert (told["cause"], told["reason"]) == (cause, reason or told["reason"])
            wait_until(lambda name=name: server.companion(name)["last_exit_cause"], 10, name)
            wait_until(lambda name=name: server.ask("history", name)["history"][1:], 10, name)
            found = server.companion(name)
            first = next(e for e in server.ask("history", name)["history"] if e["event"] == "exit")
            assert (first["cause"], first["reason"]) == (cause, reason or first["reason"])
            assert found["last_exit_cause"] == cause
            who = f"{name} (pid {first['pid']}) "
            wait_until(
                lambda who=who, cause=cause: is_logged(server, who, f", cause: {cause}"), 5, server.log
            )
            tag = f"companion:{name},cause:{cause.replace(' ', '_')},env:test"
            wait_until(
                lambda tag=tag: any(
                    rest.endswith(f"#{tag}") for what, _, rest in daemon.figures if what.endswith(".ends")
                ),
                10,
                lambda: str(daemon.figures),
            )
        told = events.wait("gave", "gave up")
        assert told["reason"] == server.companion("gave")["description"]
        assert told["cause"] == server.companion("gave")["reason"] == "gave up"
        told = server.ask("history", "waits")["history"][0]
        assert (told["event"], told["cause"]) == ("waiting", "dependency")
        assert f"Companion waits is {told['reason']}, cause: dependency" in server.log()
        shown = ctl(server, "metrics").stdout
        for name, (cause, _) in CAUSES.items():
            assert counted(shown, "ends", name, cause) >= 1
        assert counted(shown, "start_failures", "gave", "gave up") >= 1
        assert counted(shown, "start_failures", "waits", "dependency") >= 1
        found = server.companion("asked")
        assert ", 1 restart, last: command " in found["description"]
        shown = ctl(server, "history", "asked", "crash").stdout
        assert ": command\n" in shown
        assert ": crash, exited with status 1 (KeyError: 'price')\n" in shown
        assert len(json.loads(ctl(server, "history", "--json", "-n", "3").stdout)["history"]) == 3
        assert ctl(server, "history", "-n", "1", "nobody").returncode != 0
        # The next manager has it, too.
        manager = server.wait_manager()
        os.kill(manager, signal.SIGKILL)
        server.wait_manager(20, without=manager)
        server.wait_companion("asked")
        assert ctl(server, "history", "asked").stdout.startswith(shown.splitlines()[0].split("   ")[0])
        assert server.ask("history", "asked")["history"][0]["event"] == "start"
    daemon.close()


def test_an_upgrade_and_a_stop_are_told_apart() -> None:
    with companion_server(entry("a", "idle"), pidfile="g.pid") as server:
        server.wait_companion("a")
        pid = server.companion("a")["pid"]
        new = server.upgrade()
        wait_waiting(new, "a", pid)
        events = Events(server)
        assert server.stop() == 0
        assert events.wait("a", "exit")["cause"] == "upgrade"
        server.adopt(new.pid)
        server.wait_companion("a")
        assert counted(ctl(server, "metrics").stdout, "ends", "a", "upgrade") == 1
        events = Events(server)
        assert server.stop() == 0
        assert events.wait("a", "exit")["cause"] == "server"


def memory_group() -> Path | None:
    """The directory in which a group with a limit of memory can be made; None: there is none."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            parent = Path("/sys/fs/cgroup/memory") / path.lstrip("/")
            return parent if (parent / "memory.limit_in_bytes").exists() else None
        if not controllers:
            parent = Path("/sys/fs/cgroup") / path.lstrip("/")
            if "memory" in _read(parent / "cgroup.subtree_control"):
                return parent
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a control group")
def test_what_the_kernel_kills_for_memory() -> None:
    parent = memory_group()
    if parent is None:
        pytest.skip("no control group with a limit of memory can be made here")
    group = parent / f"gunicorn-test-{os.getpid()}"
    group.mkdir()
    try:
        limit = group / "memory.max"
        if not limit.exists():
            limit = group / "memory.limit_in_bytes"
        limit.write_text("150000000")
        with companion_server(
            entry("hoards", autostart=False, restart_delay=60), files_option={"jobs.py": JOBS}
        ) as server:
            for pid in (server.pid, *server.workers()):
                (group / "cgroup.procs").write_text(str(pid))
            manager = server.wait_manager()
            (group / "cgroup.procs").write_text(str(manager))
            server.ask("start", "hoards")
            found = server.wait_companion("hoards", "BACKOFF", 60)
            assert found["last_exit_cause"] == "oom"
            assert found["description"].startswith("killed by the kernel for memory, retrying in ")
            assert server.ask("history", "hoards")["history"][-1]["cause"] == "oom"
            assert counted(ctl(server, "metrics").stdout, "ends", "hoards", "oom") == 1
            assert "killed by the kernel for memory, cause: oom; restarting" in server.log()
    finally:
        wait_until(lambda: not _read(group / "cgroup.procs"), 20, "an empty group")
        group.rmdir()
