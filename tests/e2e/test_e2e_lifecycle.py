# SPDX-License-Identifier: MIT
"""Starting, failing to start, supervising and ending: the master's own life."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from e2e_apps import WEB
from e2e_companions import companion_server, entry, pids_in
from e2e_users import reachable_for_all
from harness import DEFAULT_APP, Server, children_of, wait_until
from workertools import make_certificate

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def failing(app: str, config: str = "") -> tuple[int, str]:
    """Exit code and log of a server that cannot start; nothing of it may be left."""
    with Server(app, config, ready=None) as server:
        code = server.wait_exit(15)
        server.assert_nothing_left()
        return code, server.log()


# -- application errors --


@pytest.mark.parametrize("preload", [False, True], ids=["lazy", "preload"])
def test_an_application_that_raises_on_import(preload: bool) -> None:
    code, log = failing("raise RuntimeError('cannot load this')", f"workers = 2\npreload_app = {preload}")
    assert "cannot load this" in log
    assert code == 3 if not preload else code != 0


@pytest.mark.parametrize(
    "how, kind, code, said",
    [
        ("sys.exit(7)", "sync", 4, "it asked to exit, with 7, in "),
        ("sys.exit(0)", "gevent", 4, "it asked to exit, with 0, in "),
        ("os._exit(7)", "gthread", 3, "while booting, without an exception"),
        ("os._exit(0)", "sync", 3, "while booting, without an exception"),
    ],
)
def test_an_application_that_exits_on_import(how: str, kind: str, code: int, said: str) -> None:
    status, log = failing(f"import os, sys\n{how}", f"worker_class = {kind!r}")
    assert status == code
    assert said in log


def test_a_heartbeat_directory_that_is_gone_ends_no_healthy_server() -> None:
    beats = "import os\nos.makedirs('beats', exist_ok=True)\nworker_tmp_dir = 'beats'\nworkers = 2"
    with Server(config=beats) as server:
        first, second = server.wait_workers(2)
        os.rename(server.dir / "beats", server.dir / "elsewhere")
        server.signal(signal.SIGKILL, first)
        server.wait_log("Cannot start a worker: [Errno 2]")
        assert server.get().text == str(second)
        os.rename(server.dir / "elsewhere", server.dir / "beats")
        server.wait_workers(2, without=[first])


def test_certificates_that_cannot_be_used_end_a_start_and_no_server(short_dir: Path) -> None:
    cert, key = make_certificate(short_dir)
    good = Path(cert).read_text()
    tls = f"certfile, keyfile = {cert!r}, {key!r}\nworkers = 2\nworker_class = 'gevent'"
    tls += """
def ssl_context(config, default_ssl_context_factory):
    context = default_ssl_context_factory()
    print("loaded", flush=True)
    return context
"""
    # By the master, and by both workers.
    with Server(config=tls, ready=lambda server: server.log().count("loaded") == 3) as server:
        old = server.wait_workers(2)
        Path(cert).write_text("broken")
        server.signal(signal.SIGHUP)
        server.wait_log("the old configuration stays: certfile")
        status, log = failing(DEFAULT_APP, tls)
        assert status == 1 and "Traceback" not in log and f"certfile {cert!r}" in log
        command = [sys.executable, "-m", "gunicorn", "--check-config", "--certfile", cert, "--keyfile", key]
        done = subprocess.run(
            [*command, "app:app"], cwd=server.dir, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert server.workers() == old
        Path(cert).write_text(good)
        server.signal(signal.SIGHUP)
        server.wait_workers(2, without=old)
        assert "failed" not in server.log()
        # And without a reload: each worker that is started meanwhile says so in one line.
        Path(cert).write_text("broken")
        serving = server.wait_workers(2)
        os.kill(serving[0], signal.SIGKILL)
        server.wait_log(f"the server tries again: certfile {cert!r}")
        Path(cert).write_text(good)
        server.wait_workers(2, without=serving[:1])
        assert "Traceback" not in server.log()


def test_post_worker_init_that_raises_is_a_boot_error() -> None:
    code, log = failing(WEB, "def post_worker_init(worker):\n    raise RuntimeError('hook failed')")
    assert code == 3
    assert "hook failed" in log


# -- supervision --


def test_a_worker_that_hangs_is_killed_at_the_timeout() -> None:
    config = """
        timeout = 1
        workers = 1
        def worker_abort(worker):
            open("aborted", "w").write(str(worker.pid))
    """
    with Server(WEB, config) as server:
        (pid,) = server.wait_workers(1)
        started = time.monotonic()
        with pytest.raises(Exception):  # noqa: B017 - reset, closed or cut: the point is that it ends
            reply = server.get("/slow?30", timeout=10)
            assert reply.status != 200
            raise OSError
        assert time.monotonic() - started < 5
        server.wait_workers(1, without=[pid])
        assert server.read_int("aborted") == pid
        assert server.get("/").status == 200


# -- ends at odd moments --


def test_a_daemon_that_cannot_start_leaves_nothing() -> None:
    config = "pidfile = 'g.pid'\nerrorlog = 'error.log'\ndaemon = True"
    with Server("raise RuntimeError('no')", config, ready=None) as server:
        server.wait_exit()
        server.wait_log("no", name="error.log")
        wait_until(lambda: not server.tree(), 10, "nothing left")


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda sig: sig.name)
def test_a_stop_while_starting_leaves_nothing(sig: signal.Signals) -> None:
    for moment in ("", "starts as process", "Listening on", "Workers: 2", "Worker "):
        with Server(WEB, "workers = 2\npidfile = 'g.pid'", ready=None) as server:
            wait_until(lambda moment=moment: moment in server.log(), 10, moment, interval=0.001)
            code = server.stop(sig)
            # Before the server has its handlers, the signal ends the interpreter by its own rules.
            assert code in (0, -sig, 1 if sig == signal.SIGINT else 0, 130), code
            server.assert_nothing_left()


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_a_stop_while_the_application_loads(worker: str) -> None:
    """A worker without a request has nothing to finish."""
    app = "import time\nopen('loading', 'w').write('1')\ntime.sleep(60)\n" + WEB
    threads = 2 if worker == "gthread" else 1
    with Server(app, f"worker_class = {worker!r}\nthreads = {threads}\nworkers = 2", ready=None) as server:
        server.wait_log("1", name="loading")
        server.wait_workers(2)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 3


# -- an upgrade --


def upgrade(server: Server) -> int:
    """Upgrade and wait until the new master has workers; its pid."""
    pid = server.upgrade().pid
    wait_until(lambda: served_by(server, pid), 10, "the new master serves")
    return pid


def served_by(server: Server, master: int) -> bool:
    return bool(server.get("/process").json()["ppid"] == master)


def test_the_new_master_goes_on_when_the_old_one_is_killed() -> None:
    with Server(WEB, "workers = 1\npidfile = 'g.pid'\n") as server:
        killed = upgrade(server)
        server.signal(signal.SIGKILL, killed)
        wait_until(lambda: not (server.dir / "g.pid.2").exists(), 5, "nothing left of a killed new master")
        new = upgrade(server)
        old = server.log("g.pid")
        # The file names a living process, so the new master may not take it.
        server.write("g.pid", f"{os.getpid()}\n")
        server.signal(signal.SIGKILL)
        wait_until(lambda: "Cannot rename the pid file" in server.log(), 5, "a complaint")
        assert server.log("g.pid.2").strip() == str(new)
        # The old master is a zombie: this process has not reaped it.
        server.write("g.pid", old)
        wait_until(lambda: server.log("g.pid").strip() == str(new), 5, "promoted")
        assert server.log().count("Cannot rename the pid file") == 1
        assert server.wait_exit() == -signal.SIGKILL
        server.adopt(new)
        wait_until(lambda: served_by(server, new), 5, "serving")


def test_a_stop_of_a_server_without_workers() -> None:
    with Server(WEB, "workers = 0", ready="listen") as server:
        assert server.workers() == []
        assert server.stop() == 0


@ROOT_ONLY
def test_companions_under_pid_1() -> None:
    """As in a container: the manager reaps orphans below it."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "--pid", "--fork", "true"]).returncode:
        pytest.skip("no pid namespace to be had here")
    server = companion_server(
        entry("double_forks"),
        entry("drain", env={"DRAIN": "0.5"}),
        prefix_option=["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"],
    )
    server.notes_starts = False
    with server:
        master = children_of(server.pid)[0]
        server.configured_control = server.run_dir / "gunicorn" / "companion-1.sock"
        server.wait_companion("drain")
        server.wait_companion("double_forks")
        daemon = server.read_int("double_forks.daemon")
        wait_until(lambda: server.log("drain.starts"))
        manager = next(pid for pid in children_of(master) if os.getsid(pid) == pid)
        assert len(children_of(manager)) == 4, "two companions, the daemon that one left, the log keeper"
        os.kill(manager, signal.SIGKILL)
        for name in ("double_forks", "drain"):
            wait_until(lambda name=name: len(server.log(f"{name}.starts").splitlines()) == 2, 10, name)
        assert len(pids_in(server, "drain.drained")) == 1
        os.kill(master, signal.SIGTERM)
        assert server.wait_exit(10) == 0
        assert daemon and len(pids_in(server, "drain.drained")) == 2


@ROOT_ONLY
def test_workers_run_as_the_user_that_is_set() -> None:
    nobody = pwd.getpwnam("nobody")
    with Server(WEB, f"user = 'nobody'\ngroup = {nobody.pw_gid}", prefix=reachable_for_all()) as server:
        found = server.get("/process").json()
        assert (found["uid"], found["gid"]) == (nobody.pw_uid, nobody.pw_gid)
        assert os.stat(f"/proc/{server.pid}").st_uid == 0


EXITS = """
import atexit, sys

notes = os.open("notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

# At its end Python forgets a module's names before it frees the objects.
def note(what, write=os.write, fd=notes, getpid=os.getpid):
    write(fd, b"%s %d\\n" % (what, getpid()))

class Held:
    def __del__(self, note=note):
        note(b"freed")

sys.held = Held()
atexit.register(note, b"handled")
"""


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "not frozen"])
def test_workers_run_exit_handlers_and_free_nothing_that_is_frozen(frozen: bool) -> None:
    with Server(DEFAULT_APP + EXITS, f"workers = 2\npreload_app = True\ngc_freeze = {frozen}") as server:
        workers = server.wait_workers(2)
        for pid in workers:
            wait_until(lambda pid=pid: server.get().text == str(pid))
        assert server.stop() == 0
        notes = server.log("notes").splitlines()
    theirs = {note for note in notes if not note.endswith(f" {server.pid}")}
    done = ["handled"] if frozen else ["handled", "freed"]
    assert theirs == {f"{what} {pid}" for what in done for pid in workers}
