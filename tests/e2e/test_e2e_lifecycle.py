# SPDX-License-Identifier: MIT
"""Starting, failing to start, supervising and ending: the master's own life."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from e2e_apps import WEB
from harness import DEFAULT_APP, Server, all_procs, children_of, is_alive, session_of, wait_until
from workertools import make_certificate

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def failing(app: str, config: str = "", target: str = "app:app", timeout: float = 15.0) -> tuple[int, str]:
    """Exit code and log of a server that is expected not to come up; nothing of it may be left."""
    server = Server(app, config, target=target, ready=None)
    with server:
        code = server.wait_exit(timeout)
        server.assert_nothing_left()
        return code, server.log()


# -- application errors --


@pytest.mark.parametrize("preload", [False, True], ids=["lazy", "preload"])
def test_an_application_that_raises_on_import(preload: bool) -> None:
    code, log = failing("raise RuntimeError('cannot load this')", f"workers = 2\npreload_app = {preload}")
    assert "cannot load this" in log
    assert code == 3 if not preload else code != 0


def test_a_missing_attribute_is_an_app_load_error() -> None:
    code, log = failing(WEB, target="app:nothing_here")
    assert code == 4
    assert "nothing_here" in log


def test_a_missing_module_is_named() -> None:
    code, log = failing(WEB, target="no_such_module:app")
    assert code in (3, 4)
    assert "no_such_module" in log


def test_a_module_that_lacks_an_import_of_its_own_is_told_apart() -> None:
    code, log = failing("import not_installed_here\napp = None")
    assert code in (3, 4)
    assert "not_installed_here" in log and "Traceback" in log


def test_an_attribute_that_is_no_callable() -> None:
    code, _log = failing("app = 5")
    assert code == 4


def test_a_factory_with_arguments() -> None:
    app = (
        WEB
        + """
def make(version, *, other="x"):
    global VERSION
    VERSION = version + other
    return app
"""
    )
    with Server(app, target="app:make('three', other='four')") as server:
        assert server.get("/process").json()["version"] == "threefour"


def test_wsgi_app_from_the_config_file() -> None:
    with Server(WEB, "wsgi_app = 'app:app'", target="") as server:
        assert server.get("/").status == 200


def test_no_application_at_all_is_an_error() -> None:
    server = Server(WEB, target="", ready=None)
    with server:
        assert server.wait_exit() != 0
        assert "Traceback" not in server.log()


@pytest.mark.parametrize(
    "how, kind, code, said",
    [
        ("sys.exit(7)", "sync", 4, "it asked to exit, with 7, in "),
        ("sys.exit(0)", "gevent", 4, "it asked to exit, with 0, in "),
        ("os._exit(7)", "gthread", 3, "exited while booting"),
        ("os._exit(0)", "sync", 3, "exited while booting"),
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
        done = run("--check-config", "--certfile", cert, "--keyfile", key, "app:app", cwd=server.dir)
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
        server.wait_log(f"failed: certfile {cert!r}")
        Path(cert).write_text(good)
        server.wait_workers(2, without=serving[:1])
        assert "Traceback" not in server.log()


def test_post_worker_init_that_raises_is_a_boot_error() -> None:
    code, log = failing(WEB, "def post_worker_init(worker):\n    raise RuntimeError('hook failed')")
    assert code == 3
    assert "hook failed" in log


def test_an_address_in_use_is_reported() -> None:
    with Server(WEB) as first:
        impatient = "import gunicorn.sock\ngunicorn.sock.RETRY_DELAY = 0.05\n"
        second = Server(WEB, impatient + f"bind = '{first.address}'", bind=None, ready=None)
        with second:
            assert second.wait_exit(15) != 0
            assert str(first.port) in second.log()
            second.assert_nothing_left()
        assert first.get("/").status == 200


# -- supervision --


@pytest.mark.parametrize("worker", ["sync"])
def test_a_worker_that_hangs_is_killed_at_the_timeout(worker: str) -> None:
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


def test_a_stopped_worker_is_killed_at_the_timeout() -> None:
    """SIGSTOP: it cannot run its abort handler, so SIGKILL must follow."""
    with Server(WEB, "timeout = 1\nworkers = 1") as server:
        (pid,) = server.wait_workers(1)
        os.kill(pid, signal.SIGSTOP)
        server.wait_workers(1, timeout=8, without=[pid])
        assert server.get("/").status == 200


def test_gthread_requests_may_take_longer_than_the_timeout() -> None:
    with Server(WEB, "timeout = 1\nworker_class = 'gthread'\nthreads = 2") as server:
        assert server.get("/slow?2.2", timeout=10).text == "slow done"


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_max_requests_recycles_the_worker(worker: str) -> None:
    threads = 2 if worker == "gthread" else 1
    config = f"worker_class = {worker!r}\nthreads = {threads}\nmax_requests = 5\nworkers = 1"
    with Server(WEB, config, ready="listen") as server:
        pids = [server.get("/").text for _ in range(5)]
        assert len(set(pids)) == 1
        # One that retires still serves who comes before its successor does.
        wait_until(lambda: server.get("/").text != pids[0], 5, "another worker")
        wait_until(lambda: not is_alive(int(pids[0])), 5, "the first one gone")


def test_preload_loads_once_in_the_master() -> None:
    with Server(WEB, "preload_app = True\nworkers = 2") as server:
        for _ in range(5):
            assert server.get("/process").json()["loaded_by"] == server.pid
    with Server(WEB, "workers = 1") as server:
        found = server.get("/process").json()
        assert found["loaded_by"] == found["pid"]


def test_hooks_run_in_their_order_with_their_arguments() -> None:
    config = """
        import os
        def note(text):
            with open("hooks", "a") as f:
                f.write(text + "\\n")
        def on_starting(server): note(f"on_starting {server.pid == os.getpid() or server.pid}")
        def when_ready(server): note(f"when_ready {bool(server.LISTENERS)}")
        def pre_fork(server, worker): note(f"pre_fork {worker.age} {os.getpid() == server.pid}")
        def post_fork(server, worker): note(f"post_fork {worker.age} {os.getpid() == worker.pid}")
        def post_worker_init(worker): note(f"post_worker_init {worker.age} {callable(worker.wsgi)}")
        def worker_int(worker): note("worker_int")
        def pre_request(worker, req): note(f"pre_request {req.method} {req.path}")
        def post_request(worker, req, environ, resp):
            note(f"post_request {req.path} {environ['REQUEST_METHOD']} {resp.status_code}")
        def child_exit(server, worker): note(f"child_exit {worker.age}")
        def worker_exit(server, worker): note(f"worker_exit {worker.age}")
        def nworkers_changed(server, new_value, old_value): note(f"nworkers_changed {new_value} {old_value}")
        def on_reload(server): note("on_reload")
        def on_exit(server): note("on_exit")
    """
    with Server(WEB, config) as server:
        server.get("/echo")
        server.signal(signal.SIGTTIN)
        server.wait_workers(2)
        # Until it has booted, a worker that is told to end just ends.
        wait_until(lambda: "post_worker_init 2 True" in server.log("hooks"), 10, "the second worker")
        old = server.workers()
        server.signal(signal.SIGHUP)
        server.wait_workers(1, without=old)
        assert server.stop() == 0
        lines = server.log("hooks").splitlines()
    assert lines[0] == "nworkers_changed 1 None"
    assert lines[1].startswith("on_starting")
    assert lines[2:6] == [
        "when_ready True",
        "pre_fork 1 True",
        "post_fork 1 True",
        "post_worker_init 1 True",
    ]
    assert lines.count("nworkers_changed 2 1") == lines.count("nworkers_changed 1 2") == 1
    assert lines.index("pre_request GET /echo") < lines.index("post_request /echo GET 200")
    assert "pre_fork 2 True" in lines and "on_reload" in lines
    for age in (1, 2, 3):
        assert lines.count(f"worker_exit {age}") == 1 and lines.count(f"child_exit {age}") == 1
    assert lines[-1] == "on_exit"


def test_the_heartbeat_files_are_unlinked() -> None:
    with Server(WEB, "workers = 2\nworker_tmp_dir = 'beats'", files={"beats/x": ""}) as server:
        server.wait_workers(2)
        assert os.listdir(server.dir / "beats") == ["x"]


# -- pid file and daemon --


def test_pid_file_of_a_dead_server_is_replaced_and_of_a_live_one_refused() -> None:
    with Server(WEB, files={"g.pid": "999999999\n"}, args=["-p", "g.pid"]) as server:
        assert server.read_int("g.pid") == server.pid
        second = Server(WEB, args=["-p", str(server.dir / "g.pid")], ready=None)
        with second:
            assert second.wait_exit(15) != 0
            second.assert_nothing_left()
        assert server.read_int("g.pid") == server.pid
        assert server.get("/").status == 200


def test_daemon() -> None:
    config = "workers = 2\npidfile = 'g.pid'\nerrorlog = 'error.log'\ndaemon = True"
    with Server(WEB, config) as server:
        launcher = server.pid
        assert server.wait_exit() == 0, "the launcher returns"
        pid = server.read_int("g.pid")
        assert pid != launcher
        server.adopt(pid)
        assert server.get("/").status == 200
        assert pid in session_of(os.getsid(pid)) and os.getsid(pid) != os.getsid(0)
        assert not os.path.exists(f"/proc/{pid}/fd/0") or os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        assert os.readlink(f"/proc/{pid}/cwd") == str(server.dir)
        # WINCH ends the workers of a daemon; HUP brings them back.
        server.wait_workers(2)
        server.signal(signal.SIGWINCH)
        server.wait_workers(0)
        assert is_alive(pid)
        server.signal(signal.SIGHUP)
        server.wait_workers(2)
        assert server.get("/").status == 200
        server.stop()
        assert not (server.dir / "g.pid").exists()


def test_a_daemon_that_cannot_start_leaves_nothing() -> None:
    config = "pidfile = 'g.pid'\nerrorlog = 'error.log'\ndaemon = True"
    with Server("raise RuntimeError('no')", config, ready=None) as server:
        server.wait_exit()
        server.wait_log("no", name="error.log")
        wait_until(lambda: not server.tree(), 10, "nothing left")


# -- ends at odd moments --


@pytest.mark.parametrize("bind", ["tcp", "unix"])
@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_an_idle_server_stops_at_once(worker: str, bind: str) -> None:
    threads = 2 if worker == "gthread" else 1
    with Server(WEB, f"worker_class = {worker!r}\nthreads = {threads}\nworkers = 2", bind=bind) as server:
        server.wait_workers(2)
        kept = server.http()
        kept.request("GET", "/")
        assert kept.getresponse().read()
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 2.5, "an idle kept connection holds nobody up"
        kept.close()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda sig: sig.name)
def test_a_stop_while_starting_leaves_nothing(sig: signal.Signals) -> None:
    for delay in (0.05, 0.15, 0.25, 0.4):
        with Server(WEB, "workers = 2\npidfile = 'g.pid'", ready=None) as server:
            time.sleep(delay)
            code = server.stop(sig)
            # Before the server has its handlers, the signal ends the interpreter by its own rules.
            assert code in (0, -sig, 1 if sig == signal.SIGINT else 0, 130), code
            server.assert_nothing_left()


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_a_stop_while_the_application_loads(worker: str) -> None:
    """A worker that serves nobody yet has nothing to finish."""
    app = "import time\nopen('loading', 'w').write('1')\ntime.sleep(60)\n" + WEB
    threads = 2 if worker == "gthread" else 1
    with Server(app, f"worker_class = {worker!r}\nthreads = {threads}\nworkers = 2", ready=None) as server:
        server.wait_log("1", name="loading")
        server.wait_workers(2)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 3


def test_workers_end_when_the_master_is_killed() -> None:
    with Server(WEB, "workers = 2\ntimeout = 2") as server:
        server.wait_workers(2)
        server.kill()
        wait_until(lambda: not server.tree(), 5, "workers gone")


def test_a_stop_of_a_server_without_workers() -> None:
    with Server(WEB, "workers = 0", ready="listen") as server:
        assert server.workers() == []
        assert server.stop() == 0


@ROOT_ONLY
def test_as_pid_1_strangers_are_reaped_and_halt_nothing() -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "--pid", "--fork", "true"]).returncode:
        pytest.skip("no pid namespace to be had here")
    app = WEB + (
        "\n_app = app\n"
        "def app(environ, start_response):\n"
        "    if environ['PATH_INFO'] == '/orphan':\n"
        "        if os.fork() == 0:\n"
        "            if os.fork() == 0:\n"
        "                while os.getppid() != 1: time.sleep(0.01)\n"
        "                os._exit(int(environ['QUERY_STRING']))\n"
        "            os._exit(0)\n"
        "        os.wait()\n"
        "    return _app(environ, start_response)\n"
    )
    prefix = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with Server(app, "workers = 2", prefix=prefix) as server:
        master = children_of(server.pid)[0]
        workers = children_of(master)
        assert len(workers) == 2
        for code in (3, 4, 0):
            assert server.get(f"/orphan?{code}").status == 200
        wait_until(
            lambda: not [p for p in all_procs().values() if p.ppid == master and not p.alive], 5, "reaped"
        )
        wait_until(lambda: children_of(master) == workers, 5, "same workers")
        assert server.get("/").status == 200
        os.kill(master, signal.SIGTERM)
        assert server.wait_exit() == 0


@ROOT_ONLY
def test_companions_under_pid_1() -> None:
    """As in a container: strangers in the manager's part of the tree are the manager's to reap."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "--pid", "--fork", "true"]).returncode:
        pytest.skip("no pid namespace to be had here")
    from e2e_companions import companion_server, entry, pids_in

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
        assert len(children_of(manager)) == 3, "two companions, and the daemon that one left"
        os.kill(manager, signal.SIGKILL)
        wait_until(lambda: len(server.log("double_forks.starts").splitlines()) == 2, 5, "started again")
        server.wait_companion("drain")
        assert len(pids_in(server, "drain.drained")) == 1
        os.kill(master, signal.SIGTERM)
        assert server.wait_exit(10) == 0
        assert daemon and len(pids_in(server, "drain.drained")) == 2


# -- command line --


def run(*args: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gunicorn", *args],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_version_and_help(short_dir: Path) -> None:
    result = run("--version", cwd=short_dir)
    assert result.returncode == 0 and "23.1.0" in result.stdout
    result = run("--help", cwd=short_dir)
    assert result.returncode == 0 and "--bind" in result.stdout and "--companion-worker" in result.stdout
    result = run("--no-such-flag", "app:app", cwd=short_dir)
    assert result.returncode == 2 and "--no-such-flag" in result.stderr


def test_check_config(short_dir: Path) -> None:
    (short_dir / "app.py").write_text(WEB)
    assert run("--check-config", "app:app", cwd=short_dir).returncode == 0
    result = run("--check-config", "app:nothing", cwd=short_dir)
    assert result.returncode != 0 and "nothing" in result.stderr + result.stdout
    (short_dir / "gunicorn.conf.py").write_text("workers = 'many'")
    result = run("--check-config", "app:app", cwd=short_dir)
    assert result.returncode != 0 and "workers" in result.stderr + result.stdout
    (short_dir / "gunicorn.conf.py").write_text("worker = 3\n")
    result = run("--check-config", "app:app", cwd=short_dir)
    assert result.returncode == 0 and "workers" in result.stderr + result.stdout, "a near miss is a warning"


def test_layers_of_configuration() -> None:
    """Each layer over the one below: file, GUNICORN_CMD_ARGS, command line."""
    config = "raw_env = ['A=file']\nproc_name = 'file'\nworkers = 1\nkeepalive = 3\n"
    env = {"GUNICORN_CMD_ARGS": "--workers 2 --env 'A=environment'", "WEB_CONCURRENCY": "4"}
    with Server(WEB, config, env=env) as server:
        server.wait_workers(2)
        assert server.get("/process").json()["env"]["A"] == "environment"
    with Server(WEB, config, args=["--workers", "3", "--env", "A=line"], env=env) as server:
        server.wait_workers(3)
        assert server.get("/process").json()["env"]["A"] == "line"
    with Server(WEB, "", env={"WEB_CONCURRENCY": "2"}) as server:
        server.wait_workers(2)


@ROOT_ONLY
def test_workers_run_as_the_user_that_is_set() -> None:
    import pwd

    from e2e_users import reachable_for_all

    nobody = pwd.getpwnam("nobody")
    with Server(WEB, f"user = 'nobody'\ngroup = {nobody.pw_gid}", prefix=reachable_for_all()) as server:
        found = server.get("/process").json()
        assert (found["uid"], found["gid"]) == (nobody.pw_uid, nobody.pw_gid)
        assert os.stat(f"/proc/{server.pid}").st_uid == 0
