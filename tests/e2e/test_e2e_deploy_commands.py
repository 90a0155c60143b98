# SPDX-License-Identifier: MIT
"""``gunicorn-companion`` reload, upgrade and shutdown: the server as a whole, by command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_apps import WEB
from e2e_companions import companion_server, entry, overlaps, pids, pids_in, reconfigure, starts
from e2e_notify import ServiceManager
from harness import Background, Server, free_port, is_alive, load, wait_until

#: Takes jobs out of a directory, and notes each that it has finished; a stop lets it finish the one it has.
WORKER = """
import os, signal, time
from jobs import HERE, begin, mark

def work():
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    begin()
    while not asked:
        for job in sorted(os.listdir(os.path.join(HERE, "queue"))):
            try:
                os.rename(os.path.join(HERE, "queue", job), os.path.join(HERE, "taken", job))
            except FileNotFoundError:
                continue
            time.sleep(0.05)
            with open(os.path.join(HERE, "finished"), "a") as f:
                f.write(job + "\\n")
            break
        else:
            time.sleep(0.01)
"""


#: The paths of `WEB` that are asked for here.
ASGI = """
import asyncio, os

HERE = os.path.dirname(os.path.abspath(__file__))

def mark(name):
    with open(os.path.join(HERE, name), "a") as f:
        f.write(f"{os.getpid()}\\n")

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    path, query, text = scope["path"], scope["query_string"].decode(), b"here"
    if path == "/slow":
        mark("slow.started")
        await asyncio.sleep(float(query))
        text = b"slow done"
    elif path == "/wait":
        mark("wait.started")
        while not os.path.exists(os.path.join(HERE, query)):
            await asyncio.sleep(0.01)
        text = b"waited"
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})
"""

OTHERS = ("sync", "gevent", "gevent_pywsgi", "tornado", "uvicorn_worker.UvicornWorker")


class Command:
    """The command, for a server that may change its master."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def begin(self, *words: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "gunicorn.companion.ctl", "-s", str(self.server.control_path()), *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, env=self.server.env, stdout=pipe, stderr=pipe, text=True)

    def __call__(self, *words: str) -> tuple[int, str, str]:
        process = self.begin(*words)
        out, err = process.communicate(timeout=40)
        return process.returncode, out, err.replace("gunicorn-companion: ", "")


@contextlib.contextmanager
def jobs_coming(server: Server) -> Iterator[list[str]]:
    """Put a job into the queue every few milliseconds; the list given has their names."""
    for name in ("queue", "taken"):
        (server.dir / name).mkdir()
    done, names = threading.Event(), list[str]()

    def run() -> None:
        while not done.wait(0.02):
            names.append(f"{len(names):06}")
            (server.dir / "queue" / names[-1]).touch()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield names
    finally:
        done.set()
        thread.join(10)


def beside(server: Server) -> Server:
    """The new master that an upgrade has started."""
    new = Server(directory=server.dir, bind=None, ready=None)
    new.env, new.configured_control = server.env, server.configured_control
    new.adopt(wait_until(server.new_master, 20, "a new master") or 0)
    return new


def check_refused(command: Command, new: Server) -> None:
    for words in (["upgrade"], ["reload"], ["shutdown"]):
        code, _, err = command(*words)
        assert code == 1 and f"an upgrade is under way: process {new.pid} is to take over" in err


@pytest.mark.parametrize(
    "worker_class",
    ["gthread", *(pytest.param(name, marks=pytest.mark.matrix) for name in OTHERS)],
)
def test_an_upgrade_under_load_loses_nothing_and_runs_nothing_twice(worker_class: str) -> None:
    server = companion_server(
        entry("one", "idle"),
        entry("slow", "drain", env={"UNTIL": "drained"}, stop_timeout=20),
        {"name": "rq", "target": "worker:work", "numprocs": 2},
        files_option={"worker.py": WORKER},
        workers=2,
        threads=2,
        worker_class=worker_class,
        pidfile="g.pid",
        app_option=ASGI if "uvicorn" in worker_class else WEB,
    )
    command = Command(server)
    with server:
        with jobs_coming(server) as jobs, load(server) as problems, load(server, "/slow?0.1") as more:
            old = {name: server.wait_companion(name)["pid"] for name in ("one", "slow", "rq:0", "rq:1")}
            master, workers = server.pid, server.wait_workers(2)
            held = Background(server, "/wait?answer")
            server.read_int("wait.started")
            upgrade = command.begin("upgrade", "--wait")
            new = beside(server)
            # From here on it is decided, and only what is under way is waited for.
            wait_until(lambda: len(starts(server, "one")) == 2, 20, "the singleton in the new master")
            assert is_alive(master) and is_alive(old["slow"]) and upgrade.poll() is None
            check_refused(command, new)
            server.write("answer", "")
            assert held.result().text == "waited"
            server.write("drained", "")
            out, err = upgrade.communicate(timeout=40)
            assert (upgrade.returncode, err) == (0, ""), out
            lines = out.splitlines()
            assert lines[0] == f"process {new.pid} is to take over"
            assert lines[2] == f"process {new.pid} has taken over" and lines[-1] == "done"
            assert sorted(lines[3:-1]) == [f"{name}: RUNNING" for name in sorted(old)]
            assert not is_alive(master)
            server.wait_exit()
            server.adopt(server.read_int("g.pid"))
            assert server.pid == new.pid and not set(server.workers()) & set(workers)
            assert not set(pids(server).values()) & set(old.values())
            told = json.loads(command("--json", "status")[1])["server"]["upgrade"]
            assert (told["number"], told["result"], told["pid"]) == (1, "done", new.pid)
            count = len(jobs)
            wait_until(lambda: len(server.log("finished").split()) > count, 20, "jobs that came after it")
        assert problems == [] and more == []
        before = len(server.log("slow.started").split())
        # The worker and the companion have their last work, and the command waits for that.
        last = Background(server, "/slow?0.3")
        wait_until(lambda: len(server.log("slow.started").split()) > before)
        assert command("shutdown", "--wait", "--timeout", "30") == (
            0,
            f"the server stops\nprocess {new.pid} has ended\n",
            "",
        )
        assert not is_alive(new.pid) and server.wait_exit() == 0
        assert last.result().text == "slow done"
        finished = server.log("finished").split()
        assert sorted(finished) == sorted(os.listdir(server.dir / "taken"))
        assert {*finished, *os.listdir(server.dir / "queue")} == set(jobs)
        assert pids_in(server, "slow.drained")[0] == old["slow"] and overlaps(server) == []


def test_a_new_master_that_is_killed_while_the_old_one_stops_is_replaced() -> None:
    port = free_port()
    server = companion_server(
        entry("one", "idle"),
        entry("slow", "drain", env={"UNTIL": "drained"}, stop_timeout=20, bind=f"127.0.0.1:{port}"),
        threads=4,
    )
    command = Command(server)
    with server:
        for name in ("one", "slow"):
            server.wait_companion(name)
        with load(server) as problems:
            held = Background(server, "/wait?answer")
            server.read_int("wait.started")
            upgrade = command.begin("upgrade", "--wait")
            new = beside(server)
            wait_until(lambda: "this one stops" in server.log(), 20, "the old master stops")
            os.kill(new.pid, signal.SIGKILL)

            def third() -> int | None:
                # Neither is it refused by the socket of a companion.
                socket.create_connection(("127.0.0.1", port), 10).close()
                return pid if (pid := server.new_master()) not in (None, new.pid) else None

            last = wait_until(third, 20, "another new master")
            # The old manager, which tells it, is gone as soon as nothing drains any more.
            assert upgrade.stdout is not None
            assert f"process {last} is to take over\n" in iter(upgrade.stdout.readline, "")
            server.write("answer", "")
            assert held.result().text == "waited"
            server.write("drained", "")
            out, err = upgrade.communicate(timeout=40)
            assert (upgrade.returncode, err) == (0, ""), out
            assert f"process {last} has taken over\n" in out
            server.wait_exit()
            server.adopt(last)
        assert problems == [] and overlaps(server) == []


#: The last moment at which the old master can notice it.
KILLS_ITS_SUCCESSOR = """
import os

def on_exit(server):
    if server.reexec_pid:
        os.kill(server.reexec_pid, 9)
        os.waitid(os.P_PID, server.reexec_pid, os.WEXITED | os.WNOWAIT)
"""


def test_so_is_one_that_is_killed_as_the_old_one_exits() -> None:
    server = companion_server(entry("one", "idle"), extra=KILLS_ITS_SUCCESSOR, pidfile="g.pid")
    with server, load(server) as problems:
        server.wait_companion("one")
        assert Command(server)("upgrade")[0] == 0
        new = beside(server)
        server.wait_exit()
        last = wait_until(lambda: pid if (pid := server.read_int("g.pid")) != new.pid else None, 20)
        server.adopt(last)
        server.wait_companion("one")
    assert problems == [] and overlaps(server) == []


def test_what_does_not_boot_touches_nothing(short_dir: Path) -> None:
    companions = entry("one", "idle"), entry("rq", "idle", numprocs=2, singleton=False)
    settings: dict[str, Any] = {"workers": 2, "pidfile": "g.pid", "graceful_timeout": 2}
    address = str(short_dir / "notify")
    server = companion_server(*companions, env_option={"NOTIFY_SOCKET": address}, **settings)
    command = Command(server)
    with ServiceManager(address) as systemd, server, load(server) as problems:
        for name in ("one", "rq:0", "rq:1"):
            server.wait_companion(name)
        before = pids(server), server.wait_workers(2), server.manager()
        good = server.log("app.py")

        def check_rolled_back(reason: str, *words: str) -> None:
            code, out, err = command("upgrade", "--wait", *words)
            assert code == 1 and "is to take over" in out
            assert err.startswith("upgrade rolled back: ") and reason in err
            assert (pids(server), server.workers(), server.manager()) == before
            assert server.new_master() is None and server.read_int("g.pid") == server.pid

        server.write("app.py", "import nothing_of_that_name\n" + good)
        check_rolled_back("nothing_of_that_name")
        systemd.wait_status(lambda text: "; the last upgrade failed: ModuleNotFoundError" in text)
        code, _, err = command("reload", "--wait")
        assert code == 1 and "reload refused: ModuleNotFoundError" in err
        assert (pids(server), server.wait_workers(2), server.manager()) == before
        # One of them serves, and one does not come up.
        hangs = "import os, time\ntry: os.mkdir('first')\nexcept OSError: time.sleep(99)\n"
        server.write("app.py", hangs + good)
        code, out, _ = command("--json", "upgrade", "--wait", "--timeout", "1")
        told = json.loads(out)
        assert (code, told["ok"], told["upgrade"]["result"]) == (1, False, "rolled back")
        assert told["upgrade"]["reason"] == "the new master did not boot in time"
        server.write("app.py", good)
        reconfigure(server, *companions, extra="raise RuntimeError('not today')\n", **settings)
        check_rolled_back("not today")
        # And after the mend it works.
        reconfigure(server, *companions, **settings)
        code, _, err = command("upgrade", "--wait")
        assert (code, err) == (0, "")
        server.wait_exit()
        server.adopt(server.read_int("g.pid"))
        assert not set(pids(server).values()) & set(before[0].values())
        assert "one.overlap" not in overlaps(server)
        assert systemd.wait("MAINPID").lines["MAINPID"] == str(server.pid)
        # A reload, too, waits for those that it has changed.
        workers = server.workers()
        reconfigure(server, *companions[1:], entry("two", "drain", startsecs=0.5), **settings)
        code, out, err = command("reload", "--wait")
        assert (code, err, out.splitlines()[2:]) == (0, "", ["one: removed", "two: added", "done"])
        assert server.companion("two")["state"] == "RUNNING"
        server.wait_workers(2, without=workers)
    assert problems == []


@pytest.mark.parametrize("how", ["TERM", "now"])
def test_a_stop_while_the_new_master_boots_ends_both(how: str) -> None:
    # Both masters run one of these.
    companion = entry("one", "stubborn" if how == "now" else "idle", singleton=False, stop_timeout=60)
    server = companion_server(companion, workers=1, pidfile="g.pid", graceful_timeout=60)
    command = Command(server)
    with server:
        server.wait_companion("one")
        server.write("app.py", "import time\ntime.sleep(99)\n")
        assert command("upgrade")[0] == 0
        new = beside(server)
        wait_until(lambda: len(starts(server, "one")) == 2 and new.workers(), 10, "what it starts")
        check_refused(command, new)
        assert command("-s", str(new.control_path()), "reload")[0] == 1
        if how == "TERM":
            server.signal(signal.SIGTERM)
        else:
            assert command("shutdown", "--now", "--wait")[0] == 0
        assert server.wait_exit() == 0
        assert not is_alive(new.pid)
        assert "the server is to stop" in server.log()


#: Ways for new code not to come up, by the file that they change, and a part of the reason that is told.
FAULTS: dict[str, tuple[str, str]] = {
    "syntax": ("app.py", "def broken(:\n"),
    "raises": ("app.py", "raise RuntimeError('no database')\n"),
    "missing": ("app.py", "import nothing_of_that_name\n"),
    "hangs": ("app.py", "import time\ntime.sleep(99)\n"),
    "exits": ("app.py", "import sys\nsys.exit('no database')\n"),
    "vanishes": ("app.py", "import os\nos._exit(0)\n"),
    "killed": ("app.py", "import os\nos.kill(os.getpid(), 9)\n"),
    "post_fork": ("gunicorn.conf.py", "def post_fork(server, worker): raise RuntimeError('no database')\n"),
    "post_worker_init": (
        "gunicorn.conf.py",
        "def post_worker_init(worker): raise RuntimeError('no database')\n",
    ),
    "certificate": ("gunicorn.conf.py", "certfile = keyfile = 'gunicorn.conf.py'\n"),
    "dies": (
        "gunicorn.conf.py",
        "def post_worker_init(worker):\n"
        "    import os, threading\n"
        "    threading.Timer(0.2, os._exit, [1]).start()\n",
    ),
    "companion": ("gunicorn.conf.py", "companion_workers[0]['no_such_key'] = 1\n"),
    "migration": (
        "gunicorn.conf.py",
        "web_after = ['migrate']\ncompanion_workers.append("
        "{'name': 'migrate', 'target': 'jobs:exit3', 'autorestart': 'on-failure', 'start_retries': 1})\n",
    ),
}
REASONS = {
    "syntax": "invalid syntax",
    "missing": "nothing_of_that_name",
    "vanishes": "without an exception",
    "killed": "SIGKILL",
    "hangs": "did not boot within 2 s",
    "certificate": "certfile",
    "dies": "exited with status 1 while serving",
    "companion": "no_such_key",
    "migration": "migrate",
}


@pytest.mark.matrix
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_kind_of_broken_code_touches_nothing(fault: str, preload: bool, workers: int) -> None:
    settings: dict[str, Any] = {
        "workers": workers,
        "preload_app": preload,
        "timeout": 2,
        "graceful_timeout": 2,
    }
    companions = entry("one", "idle"), entry("two", "idle")
    server = companion_server(*companions, pidfile="g.pid", **settings)
    command = Command(server)
    with server, load(server) as problems:
        for name in ("one", "two"):
            server.wait_companion(name)
        before = pids(server), server.wait_workers(workers), server.manager()
        name, text = FAULTS[fault]
        good = server.log(name)
        server.write(name, text + good if name == "app.py" else good + text)
        code, _, err = command("upgrade", "--wait", "--timeout", "8")
        assert code == 1 and err.startswith("upgrade rolled back: ")
        in_master = preload and name == "app.py"
        expected = "in time" if in_master and fault == "hangs" else REASONS.get(fault, "no database")
        if not (in_master and fault in ("vanishes", "killed")):
            assert expected in err
        assert (pids(server), server.workers(), server.manager()) == before
        assert server.new_master() is None
        if not in_master and fault != "migration":
            code, _, err = command("reload", "--wait")
            assert code == 1 and err.startswith("reload refused: ") and expected in err
            assert (pids(server), server.wait_workers(workers), server.manager()) == before
        server.write(name, good)
        if not preload:
            assert command("reload", "--wait")[::2] == (0, "")
        assert command("upgrade", "--wait")[::2] == (0, "")
        server.wait_exit()
        server.adopt(server.read_int("g.pid"))
        assert overlaps(server) == []
    assert problems == []
