# SPDX-License-Identifier: MIT
"""SIGHUP: all of a new configuration or nothing of it, and a loop that never stops looking."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from harness import environ_of, free_port, is_alive, status_field, wait_until
from tinyserver import APP, HOOKS, TinyServer, config
from workertools import make_certificate


def reload(server: TinyServer, *parts: str, **settings: Any) -> None:
    """Write another configuration and have it read."""
    server.write("gunicorn.conf.py", config(*parts, **settings))
    server.signal(signal.SIGHUP)


def test_workers_are_replaced_and_each_is_told_once() -> None:
    with TinyServer(HOOKS, workers=3) as server:
        retired: list[int] = []
        for _ in range(2):
            pids = server.running(3)
            retired += pids
            server.signal(signal.SIGHUP)
            server.running(3, without=retired)
        assert len(server.events("on_reload")) == 2
        assert sorted(int(pid) for [pid] in server.events("term")) == sorted(retired)


def test_old_workers_serve_until_new_ones_have_booted() -> None:
    with TinyServer(mode="slow", workers=2) as server:
        first = server.running(2)
        server.signal(signal.SIGHUP)
        wait_until(lambda: len(server.workers()) == 4, 5)
        # The new ones need a second to boot; nobody waits for them.
        started = time.monotonic()
        assert int(server.get().text) in first
        assert time.monotonic() - started < 0.5
        assert not server.events("term")
        server.running(2, without=first)


def test_one_worker_more_is_not_lost_with_the_reload_that_is_refused_after_it() -> None:
    with TinyServer(workers=1) as server:
        [first] = server.running(1)
        reload(server, workers=3, raw_env=["TINY=hangs"])
        wait_until(lambda: len(server.workers()) == 4, 10)
        server.signal(signal.SIGTTIN)
        wait_until(lambda: len(server.workers()) == 5, 10)
        os.kill(max(server.workers()), signal.SIGKILL)
        assert first in server.running(2)


def test_the_loop_goes_on_while_old_workers_drain() -> None:
    with TinyServer(mode="deaf", workers=2, graceful_timeout=4) as server:
        first = server.running(2)
        # Only the old ones are deaf.
        reload(server, workers=2, graceful_timeout=4, raw_env=["TINY="])
        server.wait_events("term", 2)
        told_at = time.monotonic()
        [killed, _] = [pid for pid in server.workers() if pid not in first]
        os.kill(killed, signal.SIGKILL)
        wait_until(
            lambda: len([p for p in server.workers() if p not in (*first, killed)]) == 2, 2, "a replacement"
        )
        server.signal(signal.SIGTTIN)
        wait_until(lambda: len(server.workers()) == 5, 2, "one more")
        assert all(map(is_alive, first))
        server.running(3, without=first)
        assert 3.5 < time.monotonic() - told_at < 7
        assert len(server.events("term")) == 2


def test_a_draining_worker_needs_no_heartbeat() -> None:
    settings = {"workers": 1, "timeout": 2, "graceful_timeout": 4}
    with TinyServer(mode="drains", **settings) as server:
        [old] = server.running(1)
        reload(server, raw_env=["TINY="], **settings)
        server.wait_events("term")
        told_at = time.monotonic()
        server.running(1, without=[old])
        assert time.monotonic() - told_at > 3
        assert not server.events("abort")


def test_a_surplus_worker_that_does_not_end_is_killed_at_its_deadline() -> None:
    with TinyServer(mode="deaf", workers=2, graceful_timeout=2) as server:
        [oldest, other] = server.running(2)
        server.signal(signal.SIGTTOU)
        assert server.wait_events("term") == [[str(oldest)]]
        time.sleep(1.2)
        assert is_alive(oldest)
        assert server.running(1, timeout=5) == [other]
        assert len(server.events("term")) == 1


def test_a_quick_series_of_reloads_ends_with_the_wanted_workers() -> None:
    with TinyServer(workers=2) as server:
        server.running(2)
        for _ in range(15):
            server.signal(signal.SIGHUP)
            time.sleep(0.03)
            assert server.get().status == 200
        # Of two signals that are pending together the one sent last may be heard first.
        wait_until(lambda: int(status_field(server.pid, "ShdPnd"), 16) == 0, 10, "the last one delivered")
        server.signal(signal.SIGTTIN)
        server.running(3)


@pytest.mark.parametrize(
    "text, said",
    [
        ("this is not python", "gunicorn.conf.py"),
        ("raise RuntimeError('no luck')", "no luck"),
        ("import sys; sys.exit('gone')", "gone"),
        ("import asyncio; raise asyncio.CancelledError('later')", "CancelledError: later"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("certfile = __file__", "certfile"),
        ("workers = 'many'", "workers"),
        ("worker_class = 'nothing.of_that_name.Worker'", "of_that_name"),
        ("bind = ['127.0.0.1:99999']", "99999"),
        ("raw_env = ['NO_VALUE']", "NO_VALUE"),
        ("pidfile = '/nothing/of/that/name.pid'", "/nothing/of/that/name.pid"),
        ("logger_class = 'nothing.of_that_name.Logger'", "of_that_name"),
        ("bind = 'unix:/nothing/of/that/name.sock'", "/nothing/of/that/name.sock"),
        ("import os; os.chdir('/'); raise RuntimeError('from elsewhere')", "from elsewhere"),
        ("errorlog = 'other.log'; worker_class = 'nothing.of_that_name.Worker'", "of_that_name"),
    ],
)
def test_a_bad_configuration_changes_nothing(text: str, said: str) -> None:
    hook = (
        HOOKS
        + """
def pre_fork(server, worker): note("in", os.getcwd())
def post_worker_init(worker): note("with", os.environ.get("COLOUR"), worker.cfg.proc_name)
"""
    )
    bind = f"127.0.0.1:{free_port()}"
    settings: dict[str, Any] = {"workers": 1, "raw_env": ["COLOUR=green"], "proc_name": "steady"}
    with TinyServer(hook, bind=None, ready=None, bind_to=bind, **settings) as server:
        server.host, server.port = "127.0.0.1", int(bind.split(":")[1])
        pids = server.running(1)
        log = server.log()
        reload(server, hook, text, **{"bind": bind, "proc_name": "shaken", "raw_env": ["COLOUR=red"]})
        wait_until(lambda: "ERROR" in server.log()[len(log) :], 5, "an error")
        new = server.log()[len(log) :]
        assert said in new and "Traceback" not in new
        assert len([line for line in new.splitlines() if "ERROR" in line]) == 1, new
        assert server.running(1) == pids
        assert server.get().status == 200
        assert not server.events("on_reload") and not server.events("term")
        # What a new worker inherits is the old configuration too.
        os.kill(pids[0], signal.SIGKILL)
        server.running(1, without=pids)
        assert server.events("with") == 2 * [["green", "steady"]]
        assert server.events("in") == 2 * [[str(server.dir)]]


def test_settings_follow_a_reload() -> None:
    hook = """
    import os
    def post_fork(server, worker):
        note("env", os.environ.get("ONE"), os.environ.get("TWO"), os.environ.get("HOME"), server.proc_name)
    """
    with TinyServer(hook, workers=1, raw_env=["ONE=1", "HOME=/a"], proc_name="first") as server:
        home = server.env["HOME"]
        first = server.running(1)
        # The configuration is read in the environment that the server was started with.
        check = "assert 'ONE' not in os.environ"
        reload(server, hook, check, workers=2, raw_env=["TWO=2"], proc_name="second", pidfile="x.pid")
        second = server.running(2, without=first)
        assert server.events("env") == [["1", "None", "/a", "first"]] + 2 * [["None", "2", home, "second"]]
        assert server.read_int("x.pid") == server.pid
        reload(server, hook, workers=1, pidfile="y.pid")
        server.running(1, without=second)
        assert server.read_int("y.pid") == server.pid
        assert not (server.dir / "x.pid").exists()
        assert server.events("env")[-1] == ["None", "None", home, "app:app"]


def test_a_configuration_may_set_no_signal_handlers_of_the_master() -> None:
    with TinyServer(workers=1) as server:
        first = server.running(1)
        reload(server, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)", workers=1)
        second = server.running(1, without=first)
        server.signal(signal.SIGHUP)
        server.running(1, without=[*first, *second])


def test_another_worker_class() -> None:
    hook = """
    import tinyworker
    class Other(tinyworker.TinyWorker):
        def run(self):
            note("other", self.pid)
            super().run()
    worker_class = Other
    """
    with TinyServer(workers=1) as server:
        first = server.running(1)
        reload(server, hook, workers=1)
        [pid] = server.running(1, without=first)
        assert server.events("other") == [[str(pid)]]


def test_another_log_configuration() -> None:
    with TinyServer(workers=1, errorlog="one.log") as server:
        first = server.running(1)
        reload(server, workers=1, errorlog="two.log", loglevel="debug")
        server.running(1, without=first)
        server.wait_log("starts", name="two.log")
        assert "DEBUG" in server.log("two.log")


def test_a_rotated_log_is_begun_anew() -> None:
    with TinyServer(workers=1, errorlog="one.log") as server:
        first = server.running(1)
        os.rename(server.dir / "one.log", server.dir / "one.log.1")
        server.signal(signal.SIGHUP)
        server.running(1, without=first)
        server.wait_log("starts", name="one.log")


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_addresses_follow_a_reload() -> None:
    kept, dropped, added = free_port(), free_port(), free_port()

    def bind(*ports: int) -> list[str]:
        return [f"127.0.0.1:{port}" for port in ports]

    with TinyServer(bind=None, ready=None, workers=1, bind_to=bind(kept, dropped)) as server:
        server.host, server.port = "127.0.0.1", kept
        first = server.running(1)
        assert connects(kept) and connects(dropped)
        hook = """
            import os
            def on_reload(server):
                for listener in server.old_listeners:
                    note("inherited", os.get_inheritable(listener.fileno()))
        """
        reload(server, hook, workers=1, bind=bind(added, kept))
        second = server.running(1, without=first)
        # A master that follows is given no listener that is about to be closed.
        assert server.events("inherited") == [["False"]]
        assert connects(kept) and connects(added)
        wait_until(lambda: not connects(dropped), 5, "the dropped address closed")
        server.port = added
        assert int(server.get().text) == second[0]


def test_an_address_that_cannot_be_had_keeps_the_old_ones() -> None:
    kept = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = f"127.0.0.1:{taken.getsockname()[1]}"
        free = free_port()
        with TinyServer(bind=None, ready=None, workers=1, bind_to=[f"127.0.0.1:{kept}"]) as server:
            server.host, server.port = "127.0.0.1", kept
            pids = server.running(1)
            started = time.monotonic()
            reload(server, workers=3, bind=[f"127.0.0.1:{free}", wanted])
            server.wait_log(wanted)
            assert time.monotonic() - started < 2
            assert server.get().status == 200
            assert not connects(free)
            assert server.running(1) == pids
            # The next good one is taken.
            reload(server, workers=2, bind=[f"127.0.0.1:{free}"])
            server.running(2, without=pids)
            assert connects(free)


def test_a_unix_socket_that_is_dropped_leaves_no_file(short_dir: Path) -> None:
    one, two = short_dir / "one", short_dir / "two"
    with TinyServer(bind=None, ready=None, workers=1, bind_to=[f"unix:{one}"]) as server:
        first = server.running(1)
        reload(server, workers=1, bind=[f"unix:{two}"])
        server.running(1, without=first)
        assert two.is_socket() and not one.exists()
        server.stop()
        assert not two.exists()


def test_a_stop_does_not_wait_for_reloads() -> None:
    slow = """
    import os, time
    note("read")
    if os.path.exists("slow"):
        time.sleep(0.5)
    """
    with TinyServer(slow, workers=1) as server:
        server.running(1)
        server.write("slow", "")
        server.signal(signal.SIGHUP)
        server.wait_events("read", 2)
        for _ in range(8):
            server.signal(signal.SIGHUP)
            wait_until(lambda: not pending(server.pid))
        assert server.stop(timeout=10) == 0
        # Nobody has read it nine times: the last ones were one, or none.
        assert len(server.events("read")) <= 3


def test_a_stop_does_not_wait_for_a_configuration_that_hangs() -> None:
    hangs = """
    import os, time
    note("read")
    while os.path.exists("hang"):
        try:
            time.sleep(60)
        except Exception:
            pass
    """
    with TinyServer(hangs, workers=1) as server:
        server.running(1)
        server.write("hang", "")
        server.signal(signal.SIGHUP)
        server.wait_events("read", 2)
        assert server.stop(timeout=10) == 0


def test_a_stop_that_a_hook_has_swallowed_is_not_forgotten() -> None:
    hook = """
    def on_starting(server):
        import time
        note("waits")
        try:
            time.sleep(60)
        except BaseException:
            pass
    """
    with TinyServer(hook, workers=1, ready=None) as server:
        server.wait_events("waits")
        assert server.stop(timeout=10) == 0


def pending(pid: int) -> int:
    """The signals that have not reached the process yet."""
    return int(status_field(pid, "ShdPnd"), 16)


def switch(base: Path, release: str, by: str) -> None:
    """Make *release* the current one, and remove the one before, as a deploy does."""
    current, old = base / "current", (base / "current").resolve()
    if by == "link":
        (base / "new").symlink_to(release)
        (base / "new").replace(current)
    else:
        old = base / "old"
        current.rename(old)
        (base / release).rename(current)
    shutil.rmtree(old)


@pytest.mark.parametrize("by", ["link", "rename"])
def test_a_reload_leaves_a_release_that_was_removed(by: str) -> None:
    app = "def app(environ, start_response): pass\nopen('../loaded', 'a').write('{} ')\n"
    files = {f"{release}/app.py": app.format(release) for release in ("r1", "r2", "r3")}
    server = TinyServer(files=files, args=["--chdir", "current"], workers=1)
    if by == "link":
        (server.dir / "current").symlink_to("r1")
    else:
        (server.dir / "r1").rename(server.dir / "current")
    with server:
        workers = server.running(1)
        for release in ("r2", "r3"):
            switch(server.dir, release, by)
            server.signal(signal.SIGHUP)
            workers = server.running(1, without=workers)
        assert server.log("loaded").split() == ["r1", "r2", "r3"]


def test_what_nobody_notices_is_told_at_the_start_and_by_a_reload() -> None:
    """A setting that is misspelt, and code that was preloaded."""
    with TinyServer("worker = 3\nhttp_parser = 'fast'", workers=1, preload_app=True) as server:
        first = server.running(1)
        assert "http_parser has no effect: there is one parser" in server.log()
        assert "worker is not a setting and has no effect; did you mean workers?" in server.log()
        assert "preloaded application stays" not in server.log()
        reload(server, "bnid = 5", workers=1, preload_app=True)
        server.running(1, without=first)
        assert "bnid is not a setting and has no effect; did you mean bind?" in server.log()
        assert server.log().count("The preloaded application stays") == 1


def test_a_reload_that_turns_preload_app_on_loads_nothing_in_the_master() -> None:
    app = APP + "import os\nwith open('loaded', 'a') as file: print(os.getpid(), file=file)\n"
    with TinyServer(app=app, workers=1) as server:
        first = server.running(1)
        reload(server, workers=1, preload_app=True)
        second = server.running(1, without=first)
        assert server.log("loaded").split() == [str(pid) for pid in (*first, *second)]
        assert "preload_app is on, but only a new master preloads" in server.log()
        assert "preloaded application stays" not in server.log()


def test_listeners_that_stay_follow_the_configuration(short_dir: Path) -> None:
    cert, key = make_certificate(short_dir)
    with TinyServer(workers=1) as server:
        first = server.running(1)
        reload(server, workers=1, certfile=cert, keyfile=key)
        server.running(1, without=first)
        server.wait_log(f"Listening on https://127.0.0.1:{server.port}")


def test_a_stop_before_new_workers_have_booted_leaves_no_file(short_dir: Path) -> None:
    one, two = short_dir / "one", short_dir / "two"
    with TinyServer(
        bind=None, ready=None, workers=1, bind_to=[f"unix:{one}"], pidfile=str(short_dir / "x.pid")
    ) as server:
        server.running(1)
        reload(
            server, "def post_fork(*args):\n    import time; time.sleep(60)", bind=[f"unix:{two}"], workers=1
        )
        wait_until(lambda: two.is_socket() and len(server.workers()) == 2)
        assert one.is_socket()
        assert server.stop() == 0
        assert list(short_dir.iterdir()) == []


def test_a_configuration_whose_workers_do_not_boot_is_taken_back(short_dir: Path) -> None:
    other, path = free_port(), short_dir / "s"
    more = {"raw_env": ["TINY=boot"], "pidfile": "y.pid", "workers": 3, "proc_name": "new"}
    port = free_port()
    server = TinyServer(workers=2, pidfile="x.pid", bind=None, bind_to=f"127.0.0.1:{port}", ready="listen")
    server.port = port
    with server:
        old = server.running(2)
        for times in (1, 2):
            reload(server, bind=[f"127.0.0.1:{other}", f"unix:{path}"], **more)
            wait_until(lambda times=times: server.log().count("the old configuration stays") == times)
            assert server.running(2) == old
            assert server.get().status == 200 and not connects(other) and not path.exists()
            assert server.read_int("x.pid") == server.pid and not (server.dir / "y.pid").exists()
        # The address that was to be dropped is the next worker's, too.
        os.kill(old[0], signal.SIGKILL)
        old += server.running(2, without=[old[0]])
        os.kill(old[1], signal.SIGKILL)
        old += server.running(2, without=old[:2])
        assert int(server.get().text) in old[2:]
        reload(server, bind=f"127.0.0.1:{other}", **{**more, "raw_env": []})
        server.running(3, without=old)
        assert connects(other) and not connects(server.port)
        assert server.read_int("y.pid") == server.pid and not (server.dir / "x.pid").exists()


def test_workers_that_still_boot_go_with_a_configuration_that_is_taken_back() -> None:
    with TinyServer(workers=2) as server:
        old = server.running(2)
        hook = """
            def post_fork(server, worker):
                import time
                if worker.age == 4:
                    raise RuntimeError("does not boot")
                time.sleep(60)
        """
        reload(server, hook, workers=2)
        server.wait_log("the old configuration stays")
        assert server.running(2) == old
        assert server.get().status == 200


def test_a_replacement_that_does_not_boot_ends_no_server_that_serves() -> None:
    """Without a reload: the code on the disk is broken when a worker has to be replaced."""
    with TinyServer(workers=2) as server:
        first, second = server.running(2)
        server.write("app.py", "import not_there")
        os.kill(first, signal.SIGKILL)
        server.wait_log(
            "1 worker could not boot; 1 of 2 wanted serve, and the server tries again: a worker exited"
        )
        assert server.get().text == str(second)
        server.write("app.py", APP)
        server.running(2, without=[first])


def test_broken_code_ends_no_server_that_has_served() -> None:
    """Not even if no worker is left: it says so once, and tries again until the code is mended."""
    with TinyServer(workers=1) as server:
        [first] = server.running(1)
        server.write("app.py", "import not_there")
        os.kill(first, signal.SIGKILL)
        server.wait_log("1 worker could not boot; 0 of 1 wanted serve, and the server tries again: ")
        wait_until(lambda: server.log().count(" starts\n") >= 5, 10, "more attempts")
        assert server.log().count("could not boot") == 1
        server.write("app.py", APP)
        # The next attempt may be seconds away; a reload does not wait for it.
        server.signal(signal.SIGHUP)
        server.running(1, without=[first], timeout=5)
        server.wait_log("A worker has booted again, after ")


@pytest.mark.parametrize("hook", ["on_reload(server)", "pre_fork(server, worker)"])
def test_a_hook_of_the_master_that_exits_ends_no_server_that_serves(hook: str) -> None:
    with TinyServer(workers=1) as server:
        old = server.running(1)
        reload(server, f"def {hook}: raise SystemExit(7)", workers=1)
        log = server.wait_log("the old configuration stays: ")
        assert "it asked to exit (7)" in log and "[ERROR]" in log
        assert server.running(1) == old
        reload(server, workers=1)
        server.running(1, without=old)


def test_a_reload_in_batches() -> None:
    hook = "def pre_fork(server, worker): note('there', len(server.WORKERS))"
    settings = {"workers": 3, "reload_batch": 1}
    with TinyServer(hook, **settings) as server:
        first = server.running(3)
        reload(server, hook, **settings)
        second = server.running(3, without=first)
        assert [int(count) for [count] in server.events("there")][3:] == [3, 3, 3]
        # One that fails after the first batch stops the reload there, and old ones stay.
        fails = "def post_fork(server, worker):\n    if worker.age == 8: raise KeyError('the eighth')"
        reload(server, fails, **settings)
        server.wait_log("Reload stopped with 2 old workers left: ")
        third = server.running(3)
        assert len(set(third) & set(second)) == 2
        # The next one takes over, in the same way.
        reload(server, **settings)
        server.running(3, without=[*second, *third])


def test_a_reload_replaces_one_that_has_yet_to_show_whether_its_workers_boot() -> None:
    with TinyServer(workers=2, pidfile="x.pid") as server:
        old = server.running(2)
        # Without a limit: they may boot for ever, and the old ones serve for ever.
        impatient = "import gunicorn.master.reload\ngunicorn.master.reload.LONG_WAIT = 0.2"
        hangs = "def post_fork(server, worker):\n    import time; time.sleep(60)"
        reload(server, impatient, hangs, workers=2, timeout=0, pidfile="y.pid")
        wait_until(lambda: (server.dir / "y.pid").exists() and len(server.workers()) > 2)
        server.wait_log("The reload waits for the new workers to boot, for which timeout = 0 sets no limit")
        assert server.get().status == 200
        assert server.read_int("x.pid") == server.pid
        server.write("gunicorn.conf.py", "not python")
        server.signal(signal.SIGHUP)
        server.wait_log("the old configuration stays")
        assert server.running(2) == old
        assert server.read_int("x.pid") == server.pid and not (server.dir / "y.pid").exists()


def test_a_worker_that_hangs_while_it_boots_retires_no_old_one() -> None:
    with TinyServer(workers=1, timeout=1, graceful_timeout=1) as server:
        old = server.running(1)
        reload(server, "def post_fork(*args):\n    import time; time.sleep(60)", workers=1, timeout=1)
        server.wait_log("the old configuration stays: a worker did not boot within 1 s (timeout)")
        assert server.running(1) == old


def test_a_preloaded_application_sees_its_environment() -> None:
    app = """
    import os
    from tinyworker import note
    note("import", os.environ.get("COLOUR"), os.environ["SERVER_SOFTWARE"].split("/")[0], os.getpid())
    def app(environ, start_response): pass
    """
    with TinyServer(app=app, preload_app=True, workers=1, raw_env=["COLOUR=green"]) as server:
        assert server.events("import") == [["green", "gunicorn", str(server.pid)]]
        assert environ_of(server.pid).get("COLOUR") is None
