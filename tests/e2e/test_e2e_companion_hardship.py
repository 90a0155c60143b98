# SPDX-License-Identifier: MIT
"""Companions under hard conditions: lost output, lost directories, few descriptors, odd targets, many."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from e2e_apps import JOBS, WEB
from e2e_companions import (
    CHECKS_OFTEN,
    companion_server,
    entry,
    overlaps,
    pids,
    pids_in,
    reconfigure,
    signals,
    starts,
)
from harness import (
    Server,
    descendants_of,
    descriptors,
    free_port,
    is_alive,
    short_tmpdir,
    wait_until,
)


def test_the_reader_of_the_log_goes_away() -> None:
    """Output goes into a pipe without a reader; supervision goes on."""
    reading, writing = os.pipe()
    server = companion_server(entry("a", "idle"), popen_option={"stdout": writing, "stderr": writing})
    with server:
        os.close(writing)
        pid = server.wait_companion("a")["pid"]
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        again = server.wait_companion("a", without=[pid])["pid"]
        worker = server.wait_workers(1)[0]
        os.kill(worker, signal.SIGKILL)
        server.wait_workers(1, without=[worker])
        server.signal(signal.SIGHUP)
        assert server.get("/").status == 200
        os.kill(server.wait_manager(), signal.SIGKILL)
        server.wait_companion("a", without=[pid, again])
        assert server.stop() == 0


def test_sixty_companions() -> None:
    names = [f"c{number}" for number in range(60)]
    with companion_server(*(entry(name, "idle") for name in names), companion_startsecs=0.5) as server:
        wait_until(
            lambda: all(found["state"] == "RUNNING" for found in server.companions().values()),
            30,
            "all running",
        )
        assert len(server.companions()) == 60
        assert server.get("/").status == 200
        before = pids(server)
        os.kill(server.wait_manager(), signal.SIGKILL)
        wait_until(
            lambda: all(
                found["state"] == "RUNNING" and found["pid"] != before[name]
                for name, found in server.companions().items()
            ),
            30,
            "all again",
        )
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 10


ODD = """
import functools, jobs

def plain():
    jobs.idle()

class Runner:
    def __call__(self):
        jobs.idle()
    def method(self):
        jobs.idle()
    @classmethod
    def make(cls):
        jobs.idle()
    class Inner:
        @staticmethod
        def deep():
            jobs.idle()

def takes(value, *, other=None):
    jobs.mark("value", f"{value} {other}")
    jobs.idle()
"""


def test_every_kind_of_target() -> None:
    config = """
import functools, odd
def here():
    import jobs
    jobs.idle()
companion_startsecs = 0.1
companion_workers = [
    {"name": "local", "target": here},
    {"name": "lambda", "target": lambda: here()},
    {"name": "plain", "target": odd.plain},
    {"name": "instance", "target": odd.Runner()},
    {"name": "method", "target": odd.Runner().method},
    {"name": "class-method", "target": "odd:Runner.make"},
    {"name": "deep", "target": "odd:Runner.Inner.deep"},
    {"name": "partial", "target": functools.partial(odd.takes, 5, other=6)},
]
"""
    with Server(WEB, config, files={"jobs.py": JOBS, "odd.py": ODD}, env={"PYTHONPATH": None}) as server:
        server.wait_manager()
        names = list(server.companions())
        assert len(names) == 8
        for name in names:
            assert server.wait_companion(name)["restart_count"] == 0
        assert server.log("partial.value") == "5 6\n"
        before = pids(server)
        for _ in range(2):
            reply = server.ask("reread")
            assert reply["unchanged"] == sorted(names), reply
        server.signal(signal.SIGHUP)
        server.wait_manager()
        assert pids(server) == before


PROGRAMS = """
import asyncio, multiprocessing, os, signal, sys, time
import jobs

def asynchronous():
    async def main():
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        jobs.begin()
        await stop.wait()
        jobs.mark("ended", "well")
    asyncio.run(main())

def _child(number, queue):
    queue.put(number)
    time.sleep(1000)

def processes():
    jobs.begin()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_child, args=(n, queue), daemon=True) for n in range(3)]
    for child in children:
        child.start()
    got = sorted(queue.get() for _ in range(3))
    jobs.mark("got", str(got))
    def on_term(*_):
        sys.exit(0)
    signal.signal(signal.SIGTERM, on_term)
    jobs.mark("up", "1")
    jobs.sleep_forever()

def _square(n):
    return n * n

def pool():
    jobs.begin()
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as workers:
            jobs.mark("squares", str(workers.map(_square, range(4))))

def closes_everything():
    jobs.begin()
    os.closerange(0, 256)
    raise RuntimeError("no stream is left to print this")

def signals_its_parent():
    jobs.begin()
    if len(open(os.path.join(jobs.HERE, "signals_its_parent.starts")).readlines()) == 1:
        os.kill(os.getppid(), signal.SIGTERM)
    jobs.sleep_forever()

def odd_output():
    jobs.begin()
    print("umlaut \\u00fc and more")
    sys.stdout.buffer.write(b"\\xff\\xfe raw\\n")
    sys.stdout.flush()
    jobs.mark("printed", "1")
    jobs.sleep_forever()
"""


def program(name: str, **keys: object) -> dict[str, object]:
    return {"name": name, "target": f"programs:{name}", **keys}


def test_programs_of_every_kind() -> None:
    companions = [
        program("asynchronous"),
        program("processes"),
        program("pool", restart_delay=60),
        program("closes_everything", restart_delay=60),
        program("odd_output"),
    ]
    with companion_server(*companions, files_option={"programs.py": PROGRAMS}) as server:
        manager = server.wait_manager()
        server.wait_companion("asynchronous")
        assert server.ask("stop", "asynchronous")["ok"]
        assert server.wait_companion("asynchronous", "STOPPED")["last_exit_code"] == 0
        assert server.log("asynchronous.ended") == "well\n"
        server.wait_log("1", name="processes.up")
        below = descendants_of(server.companion("processes")["pid"])
        assert len(below) == 3 and server.log("processes.got") == "[0, 1, 2]\n"
        server.ask("stop", "processes")
        assert server.wait_companion("processes", "STOPPED")["last_exit_code"] == 0
        assert not [pid for pid in below if is_alive(pid)]
        assert server.wait_companion("closes_everything", "BACKOFF")["last_exit_code"] == 1
        assert server.wait_companion("pool", "BACKOFF")["last_exit_code"] == 0
        assert server.log("pool.squares") == "[0, 1, 4, 9]\n" * 3
        server.wait_log("1", name="odd_output.printed")
        assert server.wait_companion("odd_output")["exit_count"] == 0
        assert server.manager() == manager


def test_a_companion_may_terminate_its_manager() -> None:
    companions = [program("signals_its_parent"), entry("a", "idle")]
    with companion_server(*companions, files_option={"programs.py": PROGRAMS}) as server:
        wait_until(lambda: len(starts(server, "signals_its_parent")) == 2, 10, "a second life")
        server.wait_companion("signals_its_parent")
        server.wait_companion("a")
        assert server.get("/").status == 200
        assert overlaps(server) == []


def test_threads_in_the_master_are_named_in_one_warning() -> None:
    app = WEB + (
        "\nimport threading\n"
        "threading.Thread(target=time.sleep, args=(1000,), daemon=True, name='thread-of-the-app').start()\n"
    )
    # Python may warn of the same.
    options = {"app_option": app, "env_option": {"PYTHONWARNINGS": None}}
    with companion_server(entry("a", "idle"), preload_app=True, workers=2, **options) as server:
        server.wait_companion("a")
        server.wait_workers(2)
        lines = [line for line in server.log().splitlines() if "thread-of-the-app" in line]
        assert len(lines) == 1 and "WARNING" in lines[0]


def test_a_timeout_of_zero_means_at_once() -> None:
    with companion_server(entry("stubborn", stop_timeout=0, reload_timeout=0)) as server:
        pid = server.wait_companion("stubborn")["pid"]
        started = time.monotonic()
        server.ask("restart", "stubborn")
        server.wait_companion("stubborn", without=[pid])
        assert time.monotonic() - started < 1.5
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 2


def test_hup_and_stop_while_no_manager_is_there() -> None:
    with companion_server(entry("a", "idle")) as server:
        pid = server.wait_companion("a")["pid"]
        os.kill(server.wait_manager(), signal.SIGKILL)
        server.wait_manager(3)
        os.kill(server.manager() or 0, signal.SIGKILL)
        # No manager is started within a second of the last start.
        reconfigure(server, entry("a", "idle"), entry("b", "idle"))
        server.signal(signal.SIGHUP)
        server.wait_companion("b", timeout=5)
        server.wait_companion("a", without=[pid])


def test_hups_during_a_replacement_of_the_manager() -> None:
    with companion_server(entry("drain", env={"UNTIL": "done"}), companion_reload="all") as server:
        pid = server.wait_companion("drain")["pid"]
        for _ in range(3):
            workers = server.workers()
            server.signal(signal.SIGHUP)
            server.wait_workers(1, without=workers)
        reconfigure(server, entry("drain", env={"DRAIN": "0"}), entry("b", "idle"), companion_reload="all")
        server.signal(signal.SIGHUP)
        server.write("done", "")
        server.wait_companion("b", timeout=8)
        server.wait_companion("drain", without=[pid])
        wait_until(lambda: len(server.companions()) == 2)
        assert len([s for s in signals(server, "drain") if s[0] == pid]) == 1
        assert overlaps(server) == []


def test_a_daemon_with_companions() -> None:
    config = {"pidfile": "g.pid", "errorlog": "error.log", "daemon": True}
    with companion_server(entry("drain", env={"DRAIN": "0.5"}), **config) as server:
        assert server.wait_exit() == 0
        server.adopt(server.read_int("g.pid"))
        pid = server.wait_companion("drain")["pid"]
        server.signal(signal.SIGWINCH)
        server.wait_workers(0)
        assert server.companion("drain")["pid"] == pid, "WINCH is for the workers"
        server.signal(signal.SIGHUP)
        server.wait_workers(1)
        assert server.companion("drain")["pid"] == pid
        server.stop()
        assert pids_in(server, "drain.drained") == [pid]


def test_a_reread_leaves_no_side_effects_in_the_manager() -> None:
    """The config file changes the directory and the environment when it is read."""
    effects = """
import os
os.chdir("/")
os.environ["LEAKED"] = "1"
"""
    with companion_server(entry("report")) as server:
        pid = server.wait_companion("report")["pid"]
        reconfigure(server, entry("report"), entry("b", "idle"), extra=effects)
        server.ask("reread")
        server.wait_companion("b")
        (server.dir / "report.json").unlink()
        os.kill(pid, signal.SIGKILL)
        server.wait_companion("report", without=[pid])
        found = json.loads(wait_until(lambda: server.log("report.json")))
        assert found["cwd"] == str(server.dir) and "LEAKED" not in found["env"]
        assert server.ask("stop", "b")["ok"]
        server.wait_companion("b", "STOPPED")
        assert server.stop() == 0


def test_a_manager_that_dies_after_the_addresses_changed_still_finds_the_older_processes() -> None:
    """The name of the default run directory depends on the addresses, which HUP can change."""
    companions = [entry("drain", env={"UNTIL": "done"}), entry("a", "idle")]
    port, other = free_port(), free_port()
    server = companion_server(*companions, bind=f"127.0.0.1:{port}", bind_option=None)
    server.port = port
    with server:
        old = server.wait_companion("drain")["pid"]
        a = server.wait_companion("a")["pid"]
        reconfigure(server, *companions, bind=f"127.0.0.1:{other}")
        server.signal(signal.SIGHUP)
        server.port = other
        wait_until(lambda: server.get("/").status == 200)
        wait_until(
            lambda: str(other) in str(server.ask("status")["server"]["addresses"]), 5, "the new address"
        )
        os.kill(server.wait_manager(), signal.SIGKILL)
        server.wait_companion("a", without=[a])
        assert server.companion("drain")["state"] == "STARTING" and is_alive(old)
        server.write("done", "")
        server.wait_companion("drain", without=[old])
        assert overlaps(server) == []


def test_a_manager_that_dies_after_the_run_directory_changed_still_finds_the_older_processes() -> None:
    companions = [entry("drain", env={"UNTIL": "done"}), entry("a", "idle")]
    with companion_server(*companions, companion_run_dir="run/one") as server:
        old = server.wait_companion("drain")["pid"]
        a = server.wait_companion("a")["pid"]
        reconfigure(server, *companions, companion_run_dir="run/two")
        workers = server.workers()
        server.signal(signal.SIGHUP)
        server.wait_workers(1, without=workers)
        assert server.companion("drain")["pid"] == old
        os.kill(server.wait_manager(), signal.SIGKILL)
        server.wait_companion("a", without=[a])
        assert is_alive(old)
        server.write("done", "")
        server.wait_companion("drain", without=[old])
        assert overlaps(server) == []


def test_the_manager_follows_its_logs() -> None:
    """USR1 after a rotation, HUP after a rotation, HUP with another file: each reaches the manager."""
    with companion_server(entry("a", "idle"), errorlog="logs/a.log", files_option={"logs/x": ""}) as server:

        def speaks_in(name: str) -> None:
            found = server.wait_companion("a")["pid"]
            size = len(server.log(name))
            assert server.ask("restart", "a")["ok"]
            server.wait_companion("a", without=[found])
            assert f"{found}" in server.log(name)[size:], name

        def rotate_and_send(sig: signal.Signals, target: str = "logs/a.log") -> None:
            workers = server.workers()
            os.rename(server.dir / "logs" / "a.log", server.dir / "logs" / f"a.log.{sig.name}")
            server.signal(sig)
            wait_until((server.dir / target).exists, 5, "a new file")
            if sig == signal.SIGHUP:
                server.wait_workers(1, without=workers)

        speaks_in("logs/a.log")
        rotate_and_send(signal.SIGUSR1)
        wait_until(lambda: reopened(server, "logs/a.log"), 5, "reopened by the manager")
        speaks_in("logs/a.log")
        rotate_and_send(signal.SIGHUP)
        wait_until(lambda: reopened(server, "logs/a.log"), 5, "reopened by the manager at HUP")
        speaks_in("logs/a.log")
        reconfigure(server, entry("a", "idle"), errorlog="logs/b.log")
        rotate_and_send(signal.SIGHUP, "logs/b.log")
        wait_until(lambda: reopened(server, "logs/b.log"), 5, "the manager in the other file")
        speaks_in("logs/b.log")


def reopened(server: Server, name: str) -> bool:
    return str(server.dir / name) in descriptors(server.wait_manager()).values()


def test_losing_the_log_directory_ends_no_process() -> None:
    settings = {"errorlog": "logs/a.log", "accesslog": "logs/access.log"}
    with companion_server(entry("a", "idle"), **settings, files_option={"logs/x": ""}) as server:
        pid = server.wait_companion("a")["pid"]
        before = (server.wait_manager(), server.workers())
        shutil.rmtree(server.dir / "logs")
        server.signal(signal.SIGUSR1)
        server.signal(signal.SIGTTIN)
        server.wait_workers(2)
        assert server.get("/").status == 200
        assert (server.wait_manager(), server.workers()[:1]) == before
        assert server.companion("a")["pid"] == pid
        (server.dir / "logs").mkdir()
        server.signal(signal.SIGUSR1)
        wait_until((server.dir / "logs" / "a.log").exists, 5, "made again")


# -- run files --


def run_file(server: Server, name: str) -> Path:
    return next(iter(server.run_dir.glob(f"gunicorn/run-*/{name}.run")), server.run_dir / "none")


def test_run_files_that_are_removed_are_made_again() -> None:
    """systemd removes a user's runtime directory at the last logout. The next manager finds what runs."""
    server = companion_server(entry("stubborn", stop_timeout=1), entry("one", "idle"), extra=CHECKS_OFTEN)
    with server:
        pids = {name: server.wait_companion(name)["pid"] for name in ("stubborn", "one")}
        run_file(server, "one").unlink()
        shutil.rmtree(server.run_dir / "gunicorn")
        for name, pid in pids.items():
            wait_until(lambda name=name, pid=pid: f'"pid": {pid}' in run_file(server, name).read_text(), 12)  # type: ignore[misc]
        manager = server.wait_manager()
        os.kill(manager, signal.SIGKILL)
        server.wait_manager(10, without=manager)
        assert server.companion("stubborn")["description"] == f"waiting for pid {pids['stubborn']}"
        server.wait_companion("stubborn", without=list(pids.values()))
        assert overlaps(server) == []


@pytest.mark.parametrize("stop", [True, False], ids=["stop", "next manager"])
def test_the_manager_is_killed_right_after_its_run_files_were_removed(stop: bool) -> None:
    """Its companions have their time all the same."""
    with companion_server(entry("drain", env={"UNTIL": "done"}, stop_timeout=20)) as server:
        first = server.wait_companion("drain")["pid"]
        manager = server.wait_manager()
        shutil.rmtree(server.run_dir / "gunicorn")
        os.kill(manager, signal.SIGKILL)
        wait_until(lambda: not is_alive(manager))
        if stop:
            server.signal(signal.SIGTERM)
            wait_until(lambda: server.workers() == [])
        else:
            server.wait_manager(10, without=manager)
            assert server.wait_companion("drain", "STARTING")["description"] == f"waiting for pid {first}"
        assert is_alive(first)
        server.write("done", "")
        if stop:
            assert server.wait_exit() == 0
        else:
            server.wait_companion("drain", without=[first])
        assert server.log("drain.drained").split() == [str(first)]
        assert overlaps(server) == []


def test_over_an_upgrade_nothing_runs_twice_though_the_run_files_are_removed() -> None:
    companions = [entry("a", "idle"), entry("stubborn")]
    with companion_server(*companions, pidfile="g.pid", extra=CHECKS_OFTEN) as server:
        old = {name: server.wait_companion(name)["pid"] for name in ("a", "stubborn")}
        shutil.rmtree(server.run_dir / "gunicorn")
        new = server.upgrade()
        for again in range(2):
            # The new manager listens when it has tried to start its companions.
            wait_until(lambda: new.manager() is not None, 20)
            path = server.run_dir / "gunicorn" / f"companion-{new.pid}.sock"
            wait_until(path.exists, 20, "the new manager's socket")
            for name in old:
                wait_until(lambda name=name: new.companion(name)["state"] == "STARTING", 10)  # type: ignore[misc]
            if again == 0:
                for file in server.run_dir.glob("gunicorn/run-*/*.run"):
                    file.unlink()
        turn = time.monotonic() + 0.6
        wait_until(lambda: time.monotonic() > turn)
        assert {name: len(starts(server, name)) for name in old} == {"a": 1, "stubborn": 1}
        assert overlaps(server) == []
        server.signal(signal.SIGKILL, old["stubborn"])
        assert server.stop() == 0
        server.adopt(new.pid)
        for name in old:
            server.wait_companion(name, without=list(old.values()))
        server.signal(signal.SIGKILL, server.companion("stubborn")["pid"])
        assert overlaps(server) == []
        server.kill_tree()


MOUNT = 'mount -t tmpfs -o size={size} none "$1" && shift && exec "$@"'


def mounted(size: str, path: Path) -> list[str]:
    """A command prefix under which *path* is a small file system."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("mounts a file system")
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNT.format(size=size), "sh"]
    if subprocess.run([*prefix, "/mnt", "true"], capture_output=True).returncode:
        pytest.skip("mounts a file system")
    return [*prefix, str(path)]


FILL = """
import os

def fill(path):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    for size in (4096, 1):
        try:
            while True:
                os.write(fd, b"x" * size)
        except OSError:
            pass
    os.close(fd)
"""


def test_on_a_full_disk_companions_run_and_failed_starts_tell_why() -> None:
    run = short_tmpdir()
    control = short_tmpdir() / "c.sock"
    extra = (
        FILL + f"\nif os.path.exists({str(control.parent / 'full')!r}):\n    fill({str(run / 'fill')!r})\n"
    )
    more = [{"name": "new", "target": "jobs:idle"}, {"name": "bad", "target": "nowhere:at_all"}]
    before = [entry("a", "idle"), {"name": "late", "target": "nowhere:at_all", "autostart": False}]
    settings = {"companion_run_dir": str(run), "companion_control_socket": str(control)}
    server = companion_server(*before, prefix_option=mounted("64k", run), extra=extra, **settings)
    server.configured_control = control
    try:
        with server:
            server.wait_companion("a")
            (control.parent / "full").touch()
            reconfigure(server, *before, *more, extra=extra, **settings)
            assert server.ask("reread")["ok"]
            server.wait_companion("new")
            for name in ("bad", "late"):
                server.ask("start", name)
                wait_until(
                    lambda name=name: "No module named 'nowhere'" in server.companion(name)["description"],  # type: ignore[misc]
                    10,
                    lambda name=name: f"{server.companion(name)}",  # type: ignore[misc]
                )
            os.kill(server.companion("a")["pid"], signal.SIGKILL)
            server.wait_companion("a")
            assert server.log().count("No run files in") == 1
            assert "No space left on device" in server.log()
    finally:
        shutil.rmtree(run)
        shutil.rmtree(control.parent)
